//! Password resets do not wait behind a backlog: critical mail for an account that is busy for half a minute arrives
//! about as soon as on an idle one.

use std::{collections::BTreeMap, time::Duration};

use paceline_tests::{Fleet, Mail, Plan, Report, arrivals::Arrival, full, load, now_us, percentile, publish, sized};

const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn critical_mail_overtakes_a_backlog() {
    let (per_s, backlog, critical, runs) = sized((200, 1_500, 40, 1), (1_000, 30_000, 500, 3));
    let mut report = Report::new("critical");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n\
               [[destination]]\nname = \"microsoft\"\nrate = \"5000/s\"\n",
        ..Plan::default()
    })
    .await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    let mut excesses = Vec::new();
    for run in 0..runs {
        let idle = inject(&fleet, &format!("idle-{run}"), critical).await;
        fleet.settled(PATIENCE).await;
        let normal = |i| Mail::new(&format!("normal-{run}-{i}"), "normal", &format!("u{i}@{}", domain(i)));
        publish(&*fleet.broker(), (0..backlog).map(normal)).await;
        let busy = inject(&fleet, &format!("busy-{run}"), critical).await;
        fleet.settled(PATIENCE).await;

        let arrivals = fleet.arrivals().await;
        let at = times(&arrivals);
        let of = |prefix: String| at.keys().filter(|id| id.starts_with(&prefix)).count();
        let all = [("idle", critical), ("busy", critical), ("normal", backlog)];
        for (kind, wanted) in all {
            let arrived = of(format!("{kind}-{run}-"));
            report.check(&format!("run {run}: {kind} ones that arrived"), arrived, wanted, arrived == wanted);
        }

        // Order, which holds however slow the machine: the last critical one was ahead of much of the backlog.
        let last = busy.keys().filter_map(|id| at.get(id.as_str())).max().unwrap();
        let behind = at.iter().filter(|(id, t)| id.starts_with(&format!("normal-{run}-")) && *t > last).count();
        report.check(&format!("run {run}: backlog left when the last critical one arrived"), behind, "> 0", behind > 0);

        let waits = |sent: &BTreeMap<String, u64>| -> Vec<u64> {
            sent.iter().filter_map(|(id, from)| Some(at.get(id.as_str())?.saturating_sub(*from))).collect()
        };
        let (idle, busy) = (waits(&idle), waits(&busy));
        let (p95_idle, p95_busy) = (percentile(&idle, 0.95), percentile(&busy, 0.95));
        let ms = |us: u64| format!("{:.1}", us as f64 / 1e3);
        report.figure(&format!("run {run}: idle p50 / p95, ms"), format!("{} / {}", ms(percentile(&idle, 0.5)), ms(p95_idle)));
        report.figure(&format!("run {run}: busy p50 / p95, ms"), format!("{} / {}", ms(percentile(&busy, 0.5)), ms(p95_busy)));
        let span = |prefix: &str| {
            let prefix = format!("{prefix}-{run}-");
            let of = || at.iter().filter(|(id, _)| id.starts_with(&prefix)).map(|(_, t)| *t);
            of().max().unwrap_or(0).saturating_sub(of().min().unwrap_or(0)) as f64 / 1e6
        };
        report.figure(&format!("run {run}: backlog from first to last arrival, s"), format!("{:.1}", span("normal")));
        excesses.push(p95_busy as f64 - 3.0 * p95_idle as f64);
    }
    let all = fleet.arrivals().await.len();
    let sent = runs * (backlog + 2 * critical);
    report.check("requests in all", all, sent, all == sent);
    excesses.sort_by(f64::total_cmp);
    let median = excesses[excesses.len() / 2] / 1e3;
    report.timing("p95 beyond 3 × idle p95, median of the runs, ms", format!("{median:.1}"), "≤ 50", median <= 50.0);
    workers.iter().for_each(paceline_tests::Pod::assert_sound);
    report.finish();
}

/// Publishes critical mail at an even pace; when each was handed to the broker.
async fn inject(fleet: &Fleet, name: &str, count: usize) -> BTreeMap<String, u64> {
    // The same pace with and without the backlog. In the small size the backlog outlasts it many times over.
    let pace = Duration::from_millis(if full() { 20 } else { 25 });
    let mut ticks = tokio::time::interval(pace);
    let mut sent = BTreeMap::new();
    for i in 0..count {
        ticks.tick().await;
        let id = format!("{name}-{i}");
        let mail = Mail::new(&id, "critical", &format!("u{i}@{}", domain(i)));
        sent.insert(id, now_us());
        let broker = fleet.broker();
        // Not awaited: the pace must not depend on the broker's.
        tokio::spawn(async move { load::publish_one(&*broker, &mail).await });
    }
    sent
}

fn domain(i: usize) -> &'static str {
    ["gmail.com", "one.example", "outlook.com"][i % 3]
}

fn times(arrivals: &[Arrival]) -> BTreeMap<&str, u64> {
    arrivals.iter().map(|a| (a.id(), a.at_us)).collect()
}
