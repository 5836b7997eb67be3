//! Workers that saturate an account ask the limiter rarely, use all of the account, and share it by class.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use paceline_tests::{Fleet, Mail, Plan, Pod, Report, arrivals::Arrival, now_us, publish, sized, until};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(240);

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

/// A large message of the first class, while eight lanes have more than the account lets go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_critical_message_passes_eight_busy_lanes() {
    let (workers, per_s, seconds, probes) = sized((2, 120, 20, 3), (8, 1_000, 60, 10));
    let mut report = Report::new("shares-critical");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n\
               [[destination]]\nname = \"microsoft\"\nrate = \"5000/s\"\n[[destination]]\nname = \"yahoo\"\nrate = \"5000/s\"\n",
        ..Plan::default()
    })
    .await;
    let backlog: u64 = per_s * seconds;
    let mails = (0..backlog).map(|i| {
        let (class, domain) =
            (["high", "normal"][i as usize % 2], ["gmail.com", "outlook.com", "yahoo.com", "one.example"][i as usize / 2 % 4]);
        Mail::new(&format!("busy-{i}"), class, &format!("u{i}@{domain}"))
    });
    publish(&*fleet.broker(), mails).await;
    let names: Vec<String> = (0..workers).map(|n| format!("w{n}")).collect();
    let pods = join_all(names.iter().map(|name| fleet.worker(name))).await;
    // The burst is spent, and every lane waits.
    fleet.accepted(per_s * 3, PATIENCE).await;

    let (mut slowest_us, mut passed_most) = (0, 0);
    for n in 0..probes {
        let id = format!("critical-{n}");
        let to: Vec<String> = (0..50).map(|i| format!("c{i}@gmail.com")).collect();
        let (from, before) = (now_us(), fleet.sandbox.stats().accepted);
        publish(&*fleet.broker(), [Mail::with(&id, "critical", "c0@gmail.com", &[("to", json!(to))])]).await;
        let mut at_us = 0;
        until(&id, PATIENCE, async || {
            at_us = fleet.arrivals().await.iter().find(|a| a.accepted && a.id() == id).map_or(0, |a| a.at_us);
            at_us > 0
        })
        .await;
        let later = fleet.arrivals().await.iter().filter(|a| a.accepted && a.at_us < at_us).count() as u64;
        slowest_us = slowest_us.max(at_us.saturating_sub(from));
        passed_most = passed_most.max(later.saturating_sub(before));
    }
    report.timing("slowest, s", format!("{:.2}", slowest_us as f64 / 1e6), "≤ 2", slowest_us <= 2_000_000);
    // Whatever the machine's speed: it does not wait for what waits.
    let bound = backlog / 4;
    report.check("most that went meanwhile", passed_most, format!("< {bound}"), passed_most < bound);
    let left = fleet.waiting().await;
    report.check("left in the lanes at the end", left, "> 0", left > 0);
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
    fleet.accepted(accepted, PATIENCE).await;
    let calls = join_all(pods.iter().map(async |pod| pod.metrics().await.total("paceline_limiter_calls_total"))).await;
    Sample { at: tokio::time::Instant::now(), accepted: fleet.sandbox.stats().accepted, calls }
}
