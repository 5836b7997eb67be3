//! SIGTERM: a worker ends within its grace period, in order, and leaves everything it has not sent to the others.

use std::time::Duration;

use paceline_tests::{Fleet, Mail, Plan, Report, arrivals, publish, sized};

/// What the fleet is told; `Pod::drain` waits longer and fails where the worker does.
const GRACE: &str = "[worker]\ndrain_grace = \"10s\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_loses_and_doubles_nothing() {
    let (count, per_s) = sized((1_500, 150), (10_000, 800));
    let mut report = Report::new("drain");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\""),
        more: &format!("[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"40/s\"\n{GRACE}"),
        // Calls are under way whenever a worker is told to end.
        sandbox: "[[rule]]\ndomain = \"*\"\nthen = \"accept\"\ndelay = [\"20ms\", \"300ms\"]\n",
        ..Plan::default()
    })
    .await;
    // Some of it waits for a slow destination, most for the account: one lane, so that a worker that comes finds mail
    // that nobody holds yet.
    let mails = (0..count).map(|i| {
        let domain = if i % 8 == 0 { "gmail.com" } else { "one.example" };
        Mail::new(&format!("m-{i}"), "normal", &format!("u{i}@{domain}"))
    });
    publish(&*fleet.broker(), mails).await;
    let steady = fleet.worker("steady").await;
    for n in 0..3 {
        let mut leaving = fleet.worker(&format!("leaving-{n}")).await;
        let some = fleet.sandbox.stats().accepted + per_s / 2;
        fleet.accepted(some, Duration::from_secs(120)).await;
        let started = std::time::Instant::now();
        leaving.drain().await;
        report.timing(
            &format!("drain {n}, s"),
            format!("{:.2}", started.elapsed().as_secs_f64()),
            "≤ 10",
            started.elapsed().as_secs() < 10,
        );
    }
    let left = fleet.waiting().await;
    report.check("messages left after the last drain", left, "> 0", left > 0);
    fleet.settled(Duration::from_secs(240)).await;

    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    report.check("messages that arrived", accepted.len(), count, accepted.len() == count);
    report.check("requests in all", arrivals.len(), count, arrivals.len() == count);
    for n in 0..3 {
        let name = format!("leaving-{n}");
        let sent = arrivals.iter().filter(|a| a.pod() == name).count();
        report.check(&format!("sent by {name}"), sent, "> 0", sent > 0);
    }
    steady.assert_sound();
    report.finish();
}
