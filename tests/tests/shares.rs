//! Workers that saturate an account ask the limiter rarely, use all of the account, and share it by class.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use paceline_tests::{Fleet, Mail, Plan, Pod, Report, arrivals::Arrival, publish, sized};

/// The contract's shares: high, normal, low.
const SHARES: [(&str, u64); 3] = [("high", 8), ("normal", 3), ("low", 1)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saturated_account_is_shared_by_class_and_asked_rarely() {
    let (workers, per_s, seconds) = sized((3, 240, 10), (8, 1_000, 40));
    let mut report = Report::new("shares");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n\
               [[destination]]\nname = \"microsoft\"\nrate = \"5000/s\"\n",
        ..Plan::default()
    })
    .await;
    // Each class keeps a backlog throughout, with a quarter to spare.
    let mails = SHARES.iter().flat_map(|(class, share)| {
        let count = per_s * seconds * share / 12 * 5 / 4;
        (0..count).map(move |i| {
            let domain = ["gmail.com", "outlook.com", "one.example"][i as usize % 3];
            Mail::new(&format!("{class}-{i}"), class, &format!("u{i}@{domain}"))
        })
    });
    publish(&*fleet.broker(), mails).await;
    let names: Vec<String> = (0..workers).map(|n| format!("w{n}")).collect();
    let pods = join_all(names.iter().map(|name| fleet.worker(name))).await;

    // The first seconds, in which lanes open and bursts are spent, are not the steady state.
    let from = sample(&fleet, &pods, per_s * seconds / 5).await;
    let to = sample(&fleet, &pods, per_s * seconds).await;
    let span_s = (to.at - from.at).as_secs_f64();
    let sent = (to.accepted - from.accepted) as f64;
    let calls: Vec<f64> = to.calls.iter().zip(&from.calls).map(|(to, from)| to - from).collect();
    let busiest = calls.iter().copied().fold(0.0, f64::max) / span_s;
    report.timing("limiter calls a second, busiest worker", format!("{busiest:.1}"), "≤ 50", busiest <= 50.0);
    let each = calls.iter().sum::<f64>() / sent;
    report.timing("limiter calls a message", format!("{each:.3}"), "< 0.5", each < 0.5);
    let used = sent / span_s / per_s as f64;
    report.timing("part of the account's rate used", format!("{used:.4}"), "≥ 0.98", used >= 0.98);

    let all = fleet.arrivals().await;
    let window: Vec<&Arrival> = all[from.accepted as usize..to.accepted as usize].iter().collect();
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for arrival in &window {
        *counts.entry(arrival.id().split('-').next().unwrap_or_default()).or_default() += 1.0;
    }
    let tolerance = sized(0.25, 0.10);
    for (class, share) in SHARES {
        let part = counts.get(class).copied().unwrap_or(0.0) / window.len() as f64 * 12.0;
        let holds = (part / share as f64 - 1.0).abs() <= tolerance;
        report.check(
            &format!("share of {class}, twelfths"),
            format!("{part:.2}"),
            format!("{share} ± {:.0} %", tolerance * 100.0),
            holds,
        );
    }
    pods.iter().for_each(Pod::assert_sound);
    report.finish();
}

struct Sample {
    at: tokio::time::Instant,
    accepted: u64,
    calls: Vec<f64>,
}

/// The state of the fleet once so many were accepted.
async fn sample(fleet: &Fleet, pods: &[Pod], accepted: u64) -> Sample {
    fleet.accepted(accepted, Duration::from_secs(240)).await;
    let calls = join_all(pods.iter().map(async |pod| pod.metrics().await.total("paceline_limiter_calls_total"))).await;
    Sample { at: tokio::time::Instant::now(), accepted: fleet.sandbox.stats().accepted, calls }
}
