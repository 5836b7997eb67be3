//! Several workers share one account's quota and its calls at a time: no span of the quota's length exceeds it on the
//! dates of grants, never are more calls under way than allowed, hardly anything is left unused, and nothing is published.

use std::time::Duration;

use paceline_tests::{
    Fleet, Mail, Plan, Report, arrivals,
    events::{self, Event},
    publish, sized,
    windows::{self, Limit, Use},
};

const PATIENCE: Duration = Duration::from_secs(400);
/// How long the provider takes.
const CALL_MS: u64 = 200;
const DOMAINS: [&str; 4] = ["gmail.com", "outlook.com", "yahoo.com", "one.example"];

struct Scale {
    workers: usize,
    account: Limit,
    quota: (u64, &'static str, u64),
    concurrency: u64,
    messages: usize,
    /// Quotas' worth that an ideal limiter grants from the first grant to the last.
    spans: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_a_quota_and_calls_at_a_time() {
    let of = sized(
        Scale {
            workers: 2,
            account: Limit { per_s: 200, burst: 50 },
            quota: (40, "s", 1_000_000),
            concurrency: 15,
            messages: 240,
            spans: 5,
        },
        Scale {
            workers: 8,
            account: Limit { per_s: 500, burst: 100 },
            quota: (6_000, "min", 60_000_000),
            concurrency: 150,
            messages: 18_000,
            spans: 2,
        },
    );
    let (most, unit, length_us) = of.quota;
    let mut report = Report::new("quotas");
    let fleet = Fleet::start(Plan {
        account: &format!(
            "rate = \"{}/s\"\nburst = {}\nquota = [\"{most}/{unit}\", \"1000000/d\"]\nconcurrency = {}",
            of.account.per_s, of.account.burst, of.concurrency
        ),
        more: "[[destination]]\nname = \"google\"\nrate = \"400/s\"\n\
               [[destination]]\nname = \"microsoft\"\nrate = \"400/s\"\n\
               [[destination]]\nname = \"yahoo\"\nrate = \"400/s\"\n\
               [tail]\nrate = \"400/s\"\nburst = 100\n",
        sandbox: &format!("[[rule]]\ndomain = \"*\"\nthen = \"accept\"\ndelay = [\"{CALL_MS}ms\", \"{CALL_MS}ms\"]\n"),
        ..Plan::default()
    })
    .await;
    let heard = fleet.events().await;
    let mails = (0..of.messages).map(|i| {
        // Critical mail alone may use all of a quota: what it reserves would make the ideal hard to name.
        Mail::new(&format!("m{i}"), "critical", &format!("u{i}@{}", DOMAINS[i % DOMAINS.len()]))
    });
    publish(&*fleet.broker(), mails).await;
    let mut workers = vec![];
    for n in 0..of.workers {
        workers.push(fleet.worker(&format!("w{n}")).await);
    }
    fleet.settled(PATIENCE).await;
    let (mut publishes, mut calls) = (0.0, 0.0_f64);
    for worker in &mut workers {
        let metrics = worker.metrics().await;
        publishes += metrics.sum("paceline_broker_publishes_total", |labels| !labels.contains("\"event\""));
        calls = calls.max(metrics.total("paceline_limiter_calls_total"));
        worker.drain().await;
    }

    let all = fleet.arrivals().await;
    report.check("messages that arrived", arrivals::accepted(&all).len(), of.messages, all.len() == of.messages);
    report.check("publishes by workers, events apart", publishes, 0, publishes == 0.0);
    paceline_tests::until("every event", Duration::from_secs(10), async || heard.count() >= of.messages).await;
    let heard: Vec<Event> = heard.so_far();
    let grants = events::grants(&heard);
    let worst = windows::worst_excess(&grants, of.account);
    report.check("account: worst window of grant dates, millionths over", worst, "≤ 0", worst <= 0);
    let found = windows::most_within(&grants, length_us);
    report.check("most granted in any span of the quota's length", found, format!("≤ {most}"), found <= most);
    let uses: Vec<Use> = all.iter().map(|a| (a.at_us, 1)).collect();
    let over = windows::excess(&uses, of.account).over * 100.0;
    report.timing("account: windows of arrivals over by more than 0.1 s of rate, %", format!("{over:.3}"), "≤ 1", over <= 1.0);
    // Whatever arrives within the time that a call takes is under way together.
    let found = windows::most_within(&uses, CALL_MS * 1_000 - 1);
    report.check("most calls under way", found, format!("≤ {}", of.concurrency), found <= of.concurrency);

    let (first, last) = (grants.iter().map(|g| g.0).min().unwrap_or(0), grants.iter().map(|g| g.0).max().unwrap_or(0));
    let in_time = grants.iter().filter(|g| g.0 < first + of.spans * length_us).count() as f64;
    let share = in_time / (of.spans * most) as f64;
    report.timing("granted of what an ideal limiter grants", format!("{share:.3}"), "≥ 0.97", share >= 0.97);
    let busiest = calls * 1e6 / (last - first) as f64;
    report.timing("limiter calls a second, busiest worker", format!("{busiest:.1}"), "≤ 51", busiest <= 51.0);
    report.finish();
}
