//! A worker's memory does not grow with the backlog, nor with the size of messages beyond its budget.

use std::time::Duration;

use paceline_tests::{Fleet, Mail, Plan, Pod, Report, publish, sized};
use serde_json::json;
use tokio::time::Instant;

const PLAN: Plan<'static> = Plan {
    provider: None,
    account: "",
    broker: "",
    more: "[tail]\nrate = \"20000/s\"\n[[destination]]\nname = \"google\"\nrate = \"20000/s\"\n\
           [[destination]]\nname = \"microsoft\"\nrate = \"20000/s\"\n",
    sandbox: "",
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_messages() {
    measure("memory, 2 kB", sized(20_000, 300_000), 2_000, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages() {
    measure("memory, 9 MB", sized(40, 500), 9_000_000, 400).await;
}

async fn measure(scenario: &'static str, count: usize, bytes: usize, most_mib: u64) {
    let mut report = Report::new(scenario);
    let fleet = Fleet::start(PLAN).await;
    let text = "x".repeat(bytes);
    let mails = (0..count).map(|i| {
        let domain = ["gmail.com", "outlook.com", "one.example"][i % 3];
        Mail::with(&format!("m-{i}"), ["high", "normal", "low"][i / 3 % 3], &format!("u{i}@{domain}"), &[("text", json!(text))])
    });
    publish(&*fleet.broker(), mails).await;
    let worker = fleet.worker("w").await;
    let started = Instant::now();
    let samples = sample(&fleet, &worker, count as u64).await;
    let took_s = started.elapsed().as_secs_f64();

    let mib = |kib: u64| kib as f64 / 1024.0;
    let peak = mib(worker.process.peak_rss_kib());
    report.figure("messages a second", format!("{:.0}", count as f64 / took_s));
    report.check("peak resident memory, MiB", format!("{peak:.0}"), format!("≤ {most_mib}"), peak <= most_mib as f64);
    // Flat: after the first third, in which it warms up, no part is higher than the others by more than a quarter.
    let third = samples.len() / 3;
    let highest = |part: &[u64]| part.iter().copied().max().map_or(0.0, mib);
    let (middle, last) = (highest(&samples[third..2 * third]), highest(&samples[2 * third..]));
    report.figure("highest in each third, MiB", format!("{:.0}, {middle:.0}, {last:.0}", highest(&samples[..third])));
    let flat = last <= middle * 1.25;
    report.check("last third ÷ middle third", format!("{:.2}", last / middle), "≤ 1.25", flat);
    worker.assert_sound();
    report.finish();
}

/// Resident memory until all has arrived.
async fn sample(fleet: &Fleet, worker: &Pod, count: u64) -> Vec<u64> {
    let end = Instant::now() + Duration::from_secs(300);
    let mut samples = Vec::new();
    while fleet.sandbox.stats().accepted < count {
        samples.push(worker.process.rss_kib());
        assert!(Instant::now() < end, "{} of {count} accepted", fleet.sandbox.stats().accepted);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    samples
}
