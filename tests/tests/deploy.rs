//! A fleet under load is rolled to lower limits one worker at a time, while an old pod restarts in between, and rolled
//! back: by the dates of grants never at both limits, no lane goes to and fro, and no message is lost or sent twice.

use std::{collections::HashMap, time::Duration};

use paceline_tests::{
    Fleet, Mail, Plan, Pod, Report, arrivals, events, publish, sized,
    windows::{self, Limit, Use},
};

const DESTINATIONS: [&str; 4] = ["gmail.com", "outlook.com", "yahoo.com", "icloud.com"];

/// One configuration: the account's limit, and google's part of it.
#[derive(Clone, Copy)]
struct Limits {
    account: Limit,
    google: Limit,
}

impl Limits {
    fn toml(self) -> [String; 2] {
        let limit = |l: Limit| format!("rate = \"{}/s\"\nburst = {}", l.per_s, l.burst);
        [limit(self.account), limit(self.google)]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_deploy_and_its_rollback_never_run_at_both_limits() {
    let of = |account, burst, google, google_burst| Limits {
        account: Limit { per_s: account, burst },
        google: Limit { per_s: google, burst: google_burst },
    };
    let high = sized(of(120, 20, 20, 8), of(1_000, 200, 150, 30));
    let low = sized(of(40, 8, 6, 2), of(400, 50, 60, 10));
    let workers = sized(2, 8);
    let steady = sized(120, 4_000);
    let mut report = Report::new("deploy");
    let mut fleet = Fleet::start(Plan {
        account: &high.toml()[0],
        more: &format!(
            "[[destination]]\nname = \"google\"\n{}\n{}",
            high.toml()[1],
            ["microsoft", "yahoo", "apple"].map(|d| format!("[[destination]]\nname = \"{d}\"\nrate = \"2000/s\"\n")).concat()
        ),
        ..Plan::default()
    })
    .await;
    let heard = fleet.events().await;
    let backlog = sized(9_000, 120_000);
    publish(&*fleet.broker(), (0..backlog).map(mail)).await;

    let mut pods = Vec::new();
    for i in 0..workers {
        pods.push(fleet.worker(&format!("first-{i}")).await);
    }
    more(&fleet, steady).await;
    let mut ended = Vec::new();
    // Down. After the first new pod an old one is replaced by an old one: it must not bring the old limits back.
    configure(&mut fleet, high, low);
    roll(&fleet, &mut pods, 0, "second", &mut ended).await;
    configure(&mut fleet, low, high);
    roll(&fleet, &mut pods, 1, "first-again", &mut ended).await;
    configure(&mut fleet, high, low);
    for i in 1..workers {
        roll(&fleet, &mut pods, i, "second", &mut ended).await;
    }
    more(&fleet, steady / 2).await;
    // Back, which is up.
    configure(&mut fleet, low, high);
    let rolled_back = paceline_tests::now_us();
    for i in 0..workers {
        roll(&fleet, &mut pods, i, "third", &mut ended).await;
    }
    more(&fleet, steady).await;
    for pod in &mut pods {
        pod.drain().await;
    }
    ended.extend(pods);

    let all = fleet.arrivals().await;
    let accepted = arrivals::accepted(&all);
    let left = fleet.waiting().await;
    let kept = accepted.len() as u64 + left;
    report.check("messages that arrived or wait", kept, backlog, kept == backlog as u64);
    report.check("requests in all", all.len(), accepted.len(), all.len() == accepted.len());
    paceline_tests::until("every event", Duration::from_secs(10), async || heard.count() >= accepted.len()).await;

    let sender: HashMap<&str, &str> = all.iter().map(|a| (a.id(), a.pod())).collect();
    let events = heard.so_far();
    let first_grant = |of: &str| {
        let of_them = events.iter().filter(|e| sender.get(&*e.id).is_some_and(|pod| pod.starts_with(of)));
        of_them.filter_map(|e| e.granted_at_us).min().unwrap_or_else(|| panic!("no grant of {of}"))
    };
    let (second, third) = (first_grant("second"), first_grant("third"));
    for (name, google_only, limit) in
        [("account", false, [high.account, low.account, high.account]), ("google", true, [high.google, low.google, high.google])]
    {
        let grants = events::grants(events.iter().filter(|e| !google_only || e.destination == "google"));
        for (phase, from, to, limit) in [
            ("before the deploy", 0, second, limit[0]),
            // To when the rollback's first pod was started: its first grants come too late as often as not, while it connects, and
            // of grants that nobody used no event tells.
            ("from the first new pod's first grant on", second, rolled_back, limit[1]),
            ("from the rollback's first grant on", third, u64::MAX, limit[2]),
            ("over all of it", 0, u64::MAX, limit[0]),
        ] {
            let in_phase: Vec<Use> = grants.iter().copied().filter(|(at, _)| (from..to).contains(at)).collect();
            report.figure(&format!("{name} {phase}: grants"), in_phase.len());
            let worst = windows::worst_excess(&in_phase, limit);
            let what = format!("{name} {phase}: worst window of grant dates, millionths over");
            report.check(&what, worst, "≤ 0", worst <= 0 && !in_phase.is_empty());
            if let (Some(start), Some(end)) = (in_phase.iter().map(|u| u.0).min(), in_phase.iter().map(|u| u.0).max()) {
                let seconds = (end - start) as f64 / 1e6;
                let used = in_phase.len() as f64 / (seconds * limit.per_s as f64 + limit.burst as f64);
                let what = format!("{name} {phase}: part of the limit used");
                match phase.starts_with("from") && !google_only {
                    true => report.timing(&what, format!("{used:.3}"), "≥ 0.9", used >= 0.9),
                    false => report.figure(&what, format!("{used:.3}")),
                }
            }
        }
    }
    let rests: usize =
        ended.iter().map(|pod| pod.process.stderr_lines().iter().filter(|line| line.contains("lane rests")).count()).sum();
    report.check("lanes that went to rest", rests, 0, rests == 0);
    report.finish();
}

fn mail(i: usize) -> Mail {
    let class = ["critical", "high", "normal", "normal", "low"][i / DESTINATIONS.len() % 5];
    let domain = DESTINATIONS[i % DESTINATIONS.len()];
    Mail::new(&format!("m-{i}"), class, &format!("u{i}@{domain}"))
}

fn configure(fleet: &mut Fleet, from: Limits, to: Limits) {
    for (from, to) in from.toml().iter().zip(to.toml()) {
        fleet.reconfigure(from, &to);
    }
}

/// Replaces one pod: the new one is ready before the old one goes.
async fn roll(fleet: &Fleet, pods: &mut [Pod], at: usize, name: &str, ended: &mut Vec<Pod>) {
    let new = fleet.worker(&format!("{name}-{at}")).await;
    more(fleet, 10).await;
    let mut old = std::mem::replace(&mut pods[at], new);
    old.drain().await;
    ended.push(old);
    more(fleet, 10).await;
}

/// Waits until so many more have been accepted.
async fn more(fleet: &Fleet, count: u64) {
    fleet.accepted(fleet.sandbox.stats().accepted + count, Duration::from_secs(120)).await;
}
