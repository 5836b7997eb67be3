//! Pauses, limits that operators set, SIGHUP: in force for a running fleet, and after its restart.
#![expect(clippy::unwrap_used, reason = "helpers of a scenario fail by panicking")]

use std::time::Duration;

use paceline_tests::{
    Embedded, Fleet, Mail, Plan, Pod, Report,
    arrivals::Arrival,
    events, now_us, publish, sized, until,
    windows::{self, Limit, Use},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(150);
/// What the contract allows an order to take.
const SOON_US: u64 = 2_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_mail_waits_and_what_is_set_holds() {
    let mut report = Report::new("directives");
    let plan = Plan {
        account: "rate = \"100/s\"",
        more: "[tail]\nrate = \"1000/s\"\n[[destination]]\nname = \"google\"\nrate = \"1000/s\"\n",
        ..Plan::default()
    };
    let fleet = Fleet::start(plan).await;
    let heard = fleet.events().await;
    let backlog = sized(2_000, 10_000);
    publish(&*fleet.broker(), (0..backlog).map(|i| mail("g", i, "low", "gmail.com"))).await;
    let mut workers = vec![fleet.worker("w1").await, fleet.worker("w2").await];
    fleet.accepted(20, LONG).await;

    // Paused, with the others going on, and over a restart of all workers.
    fleet.command(&["pause", "destination", "google", "--note", "scenario"]).await;
    let paused_us = now_us();
    let before = stopped(&fleet, |a| a.domain == "gmail.com").await;
    late(&mut report, "a destination's pause", before.last_us, paused_us);
    ended(&mut report, std::mem::take(&mut workers)).await;
    workers.extend([fleet.worker("w3").await, fleet.worker("w4").await]);
    publish(&*fleet.broker(), (0..50).map(|i| mail("t", i, "low", "one.example"))).await;
    until("others go on", LONG, async || count(&fleet, |a| a.id().starts_with('t')).await == 50).await;
    let google = count(&fleet, |a| a.domain == "gmail.com").await;
    report.check("calls to the paused destination after a restart", google - before.count, 0, google == before.count);
    let shown = fleet.ask(&["limits", "show", "destination:google"]).await;
    report.check("limits show", &shown[0]["paused_by"], "the pause", shown[0]["paused_by"] == json!(["destination google"]));

    // Resumed at a rate that an operator has set: by the dates of grants, never faster.
    fleet.command(&["limits", "set", "destination:google", "10/s"]).await;
    fleet.command(&["resume", "destination", "google"]).await;
    let resumed_us = now_us();
    until("google goes on", LONG, async || count(&fleet, |a| a.domain == "gmail.com").await >= before.count + 60).await;
    let so_far = heard.so_far();
    let google = events::grants(so_far.iter().filter(|e| e.destination == "google"));
    let at_10: Vec<Use> = google.into_iter().filter(|(at, _)| *at > before.last_us).collect();
    let worst = windows::worst_excess(&at_10, Limit { per_s: 10, burst: 10 });
    report.check("worst window at 10/s, millionths over", worst, "≤ 0", worst <= 0 && at_10.len() >= 50);
    if let Some(first) = at_10.iter().map(|u| u.0).min() {
        let took_us = first.saturating_sub(resumed_us);
        report.timing("first grant after resume, s", took_us as f64 / 1e6, "≤ 2", took_us <= SOON_US);
    }

    // It ends by itself: at this rate the rest would take far longer than is waited for.
    fleet.command(&["limits", "set", "destination:google", "2/s", "--for", "3s"]).await;
    let accepted = fleet.sandbox.stats().accepted;
    fleet.accepted(accepted + 600, LONG).await;

    // An account, for critical mail as well.
    fleet.command(&["pause", "account", "main"]).await;
    let paused_us = now_us();
    let before = stopped(&fleet, |_| true).await;
    late(&mut report, "an account's pause", before.last_us, paused_us);
    publish(&*fleet.broker(), (0..10).map(|i| mail("c", i, "critical", "one.example"))).await;
    let left = (backlog + 60 - before.count) as u64;
    until("all else waits at the broker", LONG, async || fleet.waiting().await == left).await;
    fleet.command(&["resume", "account", "main"]).await;
    fleet.accepted((backlog + 60) as u64, LONG).await;
    fleet.settled(LONG).await;
    let all = fleet.arrivals().await;
    report.check("calls in all", all.len(), backlog + 60, all.len() == backlog + 60);
    let mut again = 0.0;
    for pod in &workers {
        let purposes = ["reroute", "retry", "delay"].map(|p| format!("purpose=\"{p}\""));
        let metrics = pod.metrics().await;
        again += metrics.sum("paceline_broker_publishes_total", |labels| purposes.iter().any(|p| labels.contains(p)));
    }
    report.check("published again", again, 0, again == 0.0);
    ended(&mut report, workers).await;
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_read_anew_holds_without_a_restart() {
    let mut report = Report::new("directives");
    let (fast, slow) = ("rate = \"100/s\"\nburst = 20", "rate = \"8/s\"\nburst = 2");
    let plan = Plan { account: fast, more: "[tail]\nrate = \"1000/s\"\n", ..Plan::default() };
    let mut fleet = Fleet::start(plan).await;
    let heard = fleet.events().await;
    let backlog = sized(2_500, 10_000);
    publish(&*fleet.broker(), (0..backlog).map(|i| mail("m", i, "low", &format!("d{}.example", i % 40)))).await;
    let mut workers = vec![fleet.worker("w1").await, fleet.worker("w2").await];
    fleet.accepted(50, LONG).await;

    // The newest configuration holds for the whole fleet from the first ask of a worker that has it.
    fleet.reconfigure(fast, slow);
    let told_us = now_us();
    let slow_us = reread(&fleet, &mut workers).await;
    report.timing("in force after SIGHUP, s", slow_us.saturating_sub(told_us) as f64 / 1e6, "≤ 2", slow_us <= told_us + SOON_US);
    let accepted = fleet.sandbox.stats().accepted;
    fleet.accepted(accepted + 60, LONG).await;
    let up_from = now_us();
    fleet.reconfigure(slow, fast);
    reread(&fleet, &mut workers).await;
    // At the slow rate this would take far longer than is waited for.
    fleet.accepted(accepted + 60 + 1_500, LONG).await;
    let grants = events::grants(&heard.so_far());
    let worst = windows::worst_excess(&grants, Limit { per_s: 100, burst: 20 });
    report.check("worst window of all at 100/s, millionths over", worst, "≤ 0", worst <= 0);
    let at_8: Vec<Use> = grants.into_iter().filter(|(at, _)| (slow_us + SOON_US..up_from).contains(at)).collect();
    let worst = windows::worst_excess(&at_8, Limit { per_s: 8, burst: 2 });
    report.check("worst window at 8/s, millionths over", worst, "≤ 0", worst <= 0 && at_8.len() >= 30);

    // What has a mistake changes nothing.
    fleet.reconfigure(fast, "rate = \"fast\"\nmax_age = 1");
    for pod in &mut workers {
        fleet.configure(pod);
        pod.process.hangup();
        let nothing = |log: &Value| log["message"].as_str().is_some_and(|m| m.contains("nothing is changed"));
        let said = pod.process.wait_for_log(LONG, nothing).await;
        report.check("mistakes named", &said["mistakes"], 2, said["mistakes"] == 2);
    }
    fleet.accepted(backlog as u64, LONG).await;
    fleet.settled(LONG).await;
    let all = fleet.arrivals().await;
    report.check("calls in all", all.len(), backlog, all.len() == backlog);
    ended(&mut report, workers).await;
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_system_obeys_too() {
    let plan = Plan { account: "rate = \"100/s\"", more: "[tail]\nrate = \"1000/s\"\n", ..Plan::default() };
    let system = Embedded::start(plan, &[]).await;
    let mut worker = system.worker().await;
    let refused = system.run(&["pause", "account", "other"]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("there is no account other; the configuration has main"), "{}", refused.stderr);
    system.command(&["pause", "class", "low"]).await;
    // The worker says when it follows, or it would be the machine's speed that is measured.
    worker.process.wait_for_log(LONG, |log| log["message"] == "pauses have changed" && log["pauses"] == 1).await;
    let mail = |id: &str, class: &str| {
        json!({"id": id, "class": class, "from": "a@sender.example", "to": ["u@one.example"], "subject": "Hello", "text": "Hello."})
            .to_string()
    };
    system.send([mail("low", "low")]).await;
    system.send((0..20).map(|i| mail(&format!("high-{i}"), "high"))).await;
    system.accepted(20, LONG).await;
    assert!(system.arrivals().await.iter().all(|a| a.id() != "low"));
    system.command(&["resume", "class", "low"]).await;
    system.accepted(21, LONG).await;
    assert_eq!(system.run(&["resume", "class", "low"]).await.status.code(), Some(1));
    system.settled(LONG).await;
    worker.drain().await;
}

fn mail(kind: &str, i: usize, class: &str, domain: &str) -> Mail {
    Mail::new(&format!("{kind}{i}"), class, &format!("u{i}@{domain}"))
}

async fn count(fleet: &Fleet, wanted: impl Fn(&Arrival) -> bool) -> usize {
    fleet.arrivals().await.iter().filter(|a| wanted(a)).count()
}

struct Stopped {
    count: usize,
    last_us: u64,
}

/// Waits until no more of them arrive.
async fn stopped(fleet: &Fleet, wanted: impl Fn(&Arrival) -> bool) -> Stopped {
    let mut before = usize::MAX;
    until("no more arrive", LONG, async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = count(fleet, &wanted).await;
        std::mem::replace(&mut before, now) == now
    })
    .await;
    let last_us = fleet.arrivals().await.iter().filter(|a| wanted(a)).map(|a| a.at_us).max().unwrap_or(0);
    Stopped { count: before, last_us }
}

fn late(report: &mut Report, what: &str, last_us: u64, ordered_us: u64) {
    let late_us = last_us.saturating_sub(ordered_us);
    report.timing(&format!("last call after {what}, s"), late_us as f64 / 1e6, "≤ 2", late_us <= SOON_US);
}

/// Tells all workers of the configuration as it is now; returns from when on, by the limiter's clock, it holds for all.
async fn reread(fleet: &Fleet, workers: &mut [Pod]) -> u64 {
    let mut since_us = 0;
    for pod in workers {
        let registered = |log: &Value| log["message"] == "limits registered with the fleet";
        let lines = pod.process.stderr_lines();
        let known = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).filter(registered);
        let newest = known.filter_map(|log| log["generation_us"].as_u64()).max().unwrap();
        fleet.configure(pod);
        pod.process.hangup();
        let newer = |log: &Value| registered(log) && log["generation_us"].as_u64() > Some(newest);
        since_us = pod.process.wait_for_log(LONG, newer).await["generation_us"].as_u64().unwrap();
    }
    since_us
}

async fn ended(report: &mut Report, workers: Vec<Pod>) {
    for mut pod in workers {
        pod.drain().await;
        report.figure(&format!("{} drained", pod.name), "yes");
    }
}
