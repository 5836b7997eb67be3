//! RabbitMQ, Redis and PostgreSQL each go away under load and come back: nothing is lost, work resumes by itself, and
//! `/readyz` says which one is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use paceline_tests::{Fleet, Mail, Plan, Pod, Report, arrivals, publish, sized, until};
use tokio::time::Instant;

/// Until readiness has noticed, and until it has recovered.
const NOTICE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_stop_and_start_cost_nothing() {
    let (away, per_s, before) = sized((Duration::from_secs(3), 100, 100), (Duration::from_secs(15), 500, 1_500));
    // Enough for all three outages with what leads up to each.
    let count = sized(2_500, 40_000);
    let mut report = Report::new("outages");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\"\nconnect_timeout = \"2s\"\nread_timeout = \"4s\"\ntotal_timeout = \"4s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n[retry]\nbase = \"1s\"\nmax = \"4s\"\n",
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    // Every tenth is refused, so that dead letters are written throughout.
    let ids: Vec<String> = (0..count).map(|i| format!("m-{i}")).collect();
    let mails: Vec<Mail> = ids
        .iter()
        .enumerate()
        .map(|(i, id)| {
            let to = if i % 10 == 3 { format!("sandbox+reject+_{i}@one.example") } else { format!("u{i}@gmail.com") };
            Mail::new(id, ["critical", "high", "normal", "low"][i % 4], &to)
        })
        .collect();
    let refused = (0..count).filter(|i| i % 10 == 3).count();
    // Producers go on while services come and go.
    let broker = fleet.broker();
    let publishing = tokio::spawn(async move {
        for some in mails.chunks(200) {
            publish(&*broker, some.iter().cloned()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });

    for service in ["rabbitmq", "redis", "postgres"] {
        let some = fleet.sandbox.stats().requests + before;
        until("load", NOTICE, async || fleet.sandbox.stats().requests >= some).await;
        stop(&fleet, service).await;
        let stopped = Instant::now();
        let (of_worker, of_control): (&[&str], &[&str]) = match service {
            "rabbitmq" => (&["broker"], &["broker"]),
            // They go on by themselves.
            "redis" => (&[], &[]),
            _ => (&[], &["store"]),
        };
        for worker in &workers {
            says(&mut report, service, worker, of_worker).await;
        }
        says(&mut report, service, &control, of_control).await;
        if service == "redis" {
            for worker in &workers {
                let what = format!("{} says that it is degraded", worker.name);
                until(&what, NOTICE, async || {
                    let detail = &worker.readiness().await.checks["limits"]["detail"];
                    detail.as_str().is_some_and(|said| said.starts_with("degraded"))
                })
                .await;
            }
        }
        tokio::time::sleep_until(stopped + away).await;
        start(&fleet, service).await;
        let back = Instant::now();
        for pod in workers.iter().chain([&control]) {
            until(&format!("{} ready after {service}", pod.name), NOTICE, async || pod.readiness().await.status == 200).await;
        }
        report.figure(&format!("{service}: all ready again after, s"), format!("{:.1}", back.elapsed().as_secs_f64()));
        let some = fleet.sandbox.stats().requests + before / 2;
        until("work after the outage", NOTICE, async || fleet.sandbox.stats().requests >= some).await;
        report.figure(&format!("{service}: at work again after, s"), format!("{:.1}", back.elapsed().as_secs_f64()));
    }
    publishing.await.unwrap();
    fleet.settled(Duration::from_secs(240)).await;

    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    let letters = fleet.dead_letters().await;
    let dead: BTreeSet<&str> = letters.iter().filter_map(|l| l["message_id"].as_str()).collect();
    let lost: Vec<_> = ids.iter().filter(|id| !accepted.contains_key(id.as_str()) && !dead.contains(id.as_str())).collect();
    report.check("neither accepted nor dead-lettered", format!("{lost:?}"), "[]", lost.is_empty());
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for letter in &letters {
        *reasons.entry(letter["reason"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let rejected = reasons.remove("rejected_recipient").unwrap_or(0);
    report.check("dead letters of refused recipients", rejected, refused, rejected == refused);
    report.figure("dead letters of other reasons", format!("{reasons:?}"));
    let twice: u64 = accepted.values().map(|n| n - 1).sum();
    report.figure("accepted more than once", twice);
    control.assert_sound();
    // That Redis is away is an alarm, by right.
    let unsound = |line: &String| {
        line.contains("panicked")
            || (line.contains("\"level\":\"ERROR\"") && !line.contains("Redis") && !line.contains("\"target\":\"lapin"))
    };
    let complaints: Vec<String> = workers.iter().flat_map(|w| w.process.stderr_lines()).filter(unsound).collect();
    report.check("complaints of workers, other than of Redis", format!("{complaints:?}"), "[]", complaints.is_empty());
    report.finish();
}

/// Waits until exactly what depends on the service is said to fail.
async fn says(report: &mut Report, service: &str, pod: &Pod, failing: &[&str]) {
    let end = Instant::now() + NOTICE;
    let what = format!("{service} away: {} says", pod.name);
    loop {
        let readiness = pod.readiness().await;
        // The dead-letter writer stands on both of its services: it may fail with either.
        let found: Vec<_> = readiness.failing().into_iter().filter(|name| *name != "dead_letters").map(str::to_owned).collect();
        if found == failing {
            return report.check(&what, format!("{} {found:?}", readiness.status), format!("{failing:?}"), true);
        }
        if Instant::now() > end {
            return report.check(&what, format!("{} {}", readiness.status, readiness.checks), format!("{failing:?}"), false);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stop(fleet: &Fleet, service: &str) {
    match service {
        "rabbitmq" => fleet.rabbitmq.stop().await,
        "redis" => fleet.redis.stop().await,
        _ => fleet.postgres.stop().await,
    }
}

async fn start(fleet: &Fleet, service: &str) {
    match service {
        "rabbitmq" => fleet.rabbitmq.start_again().await,
        "redis" => fleet.redis.start_again().await,
        _ => fleet.postgres.start_again().await,
    }
}
