//! Redis is killed under load and comes back empty, and Redis is cut off from some of the workers only: mail goes on all
//! the same, by shares, and over the whole run no span exceeds a limit on the dates of grants. One of the quotas is longer
//! than the run: were it not told again to the empty Redis, nothing would go any more.

use std::{collections::BTreeMap, time::Duration};

use paceline_testkit::Proxy;
use paceline_tests::{
    Fleet, Mail, Plan, Pod, Report, arrivals,
    events::{self, Event},
    now_us, publish, sized, until,
    windows::{self, Limit},
};

/// Until a worker has noticed, waited for the others and gone on by itself, or come back.
const NOTICE: Duration = Duration::from_secs(90);
const DOMAINS: [(&str, &str); 4] =
    [("google", "gmail.com"), ("microsoft", "outlook.com"), ("yahoo", "yahoo.com"), ("tail", "one.example")];

struct Scale {
    workers: usize,
    /// So many of them lose Redis while the others keep it.
    cut: usize,
    account: Limit,
    per_min: u64,
    per_hour: u64,
    messages: usize,
    /// Sent by those without Redis before it comes back.
    alone: u64,
    outage: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_on_without_redis_and_limits_hold() {
    let of = sized(
        Scale {
            workers: 3,
            cut: 1,
            account: Limit { per_s: 200, burst: 60 },
            per_min: 10_000,
            per_hour: 12_000,
            messages: 6_000,
            alone: 40,
            outage: Duration::from_secs(10),
        },
        Scale {
            workers: 8,
            cut: 3,
            account: Limit { per_s: 500, burst: 100 },
            per_min: 25_000,
            per_hour: 100_000,
            messages: 60_000,
            alone: 200,
            outage: Duration::from_secs(20),
        },
    );
    let destination = Limit { per_s: of.account.per_s / 2, burst: of.account.per_s / 2 };
    let mut report = Report::new("redis_away");
    let section = |name: &str| format!("[[destination]]\nname = \"{name}\"\nrate = \"{}/s\"\n", destination.per_s);
    let fleet = Fleet::start(Plan {
        account: &format!(
            "rate = \"{}/s\"\nburst = {}\nquota = [\"{}/min\", \"{}/h\"]",
            of.account.per_s, of.account.burst, of.per_min, of.per_hour
        ),
        more: &format!(
            "{}{}{}[tail]\nrate = \"{}/s\"\nburst = {}\n",
            section("google"),
            section("microsoft"),
            section("yahoo"),
            destination.per_s,
            destination.burst
        ),
        ..Plan::default()
    })
    .await;
    let heard = fleet.events().await;
    let mails = (0..of.messages).map(|i| {
        let class = ["high", "normal", "normal", "low"][i / 4 % 4];
        Mail::new(&format!("m{i}"), class, &format!("u{i}@{}", DOMAINS[i % 4].1))
    });
    let (mut proxies, mut workers) = (vec![], vec![]);
    for n in 0..of.workers {
        let proxy = Proxy::to(("127.0.0.1", fleet.redis.port())).await;
        workers.push(fleet.worker_with(&format!("w{n}"), &[("PACELINE__LIMITS__URL", &proxy.url(&fleet.redis.url()))]).await);
        proxies.push(proxy);
    }
    // Now, so that each of them holds some of it.
    publish(&*fleet.broker(), mails).await;
    let all: Vec<&Pod> = workers.iter().collect();
    sent(&fleet, of.account.per_s * 3).await;

    // Some lose it; the others go on.
    let (away, others) = all.split_at(of.cut);
    for proxy in &proxies[..of.cut] {
        proxy.cut().await;
    }
    degraded(away, true).await;
    let before = by_pod(&fleet).await;
    goes_on(&fleet, &before, away, of.alone / of.workers as u64).await;
    goes_on(&fleet, &before, others, of.alone).await;
    for pod in others {
        report.check(&format!("{} sees Redis", pod.name), degraded_now(pod).await, 0, degraded_now(pod).await == 0.0);
        report.check("it is ready", pod.readiness().await.status, 200, pod.readiness().await.status == 200);
    }
    for pod in away {
        let readiness = pod.readiness().await;
        let said = readiness.checks["limits"]["detail"].as_str().unwrap_or_default().to_owned();
        report.check("who does not is ready, and says so", &said, "degraded", said.starts_with("degraded"));
    }
    for proxy in &proxies[..of.cut] {
        proxy.heal().await;
    }
    degraded(&all, false).await;
    sent(&fleet, of.account.per_s).await;

    // All lose it, and it comes back empty.
    fleet.redis.kill9().await;
    let killed = tokio::time::Instant::now();
    degraded(&all, true).await;
    let before = by_pod(&fleet).await;
    goes_on(&fleet, &before, &all, of.alone / of.workers as u64).await;
    tokio::time::sleep_until(killed + of.outage).await;
    fleet.redis.start_again_empty().await;
    let back_us = now_us();
    degraded(&all, false).await;
    fleet.settled(Duration::from_secs(400)).await;

    let arrived = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrived);
    report.check("messages accepted", accepted.len(), of.messages, accepted.len() == of.messages);
    report.check("calls", arrived.len(), of.messages, arrived.len() == of.messages);
    let letters = fleet.dead_letters().await.len();
    report.check("dead letters", letters, 0, letters == 0);
    until("every event", Duration::from_secs(20), async || heard.count() >= of.messages).await;
    let heard: Vec<Event> = heard.so_far();
    let spent = heard.iter().filter(|e| e.event != "sent" || e.attempts != 1).count();
    report.check("events other than sent at the first attempt", spent, 0, spent == 0);
    let grants = events::grants(&heard);
    let worst = windows::worst_excess(&grants, of.account);
    report.check("account: worst window of grant dates, millionths over", worst, "≤ 0", worst <= 0);
    let most = most_within(&grants, 60_000_000);
    report.check("account: most within a minute", most, format!("≤ {}", of.per_min), most <= of.per_min);
    for (name, _) in DOMAINS {
        let grants = events::grants(heard.iter().filter(|e| e.destination == name));
        let worst = windows::worst_excess(&grants, destination);
        report.check(&format!("{name}: worst window of grant dates, millionths over"), worst, "≤ 0", worst <= 0);
    }
    let (from, longest) = longest_silence_s(&grants);
    report.timing("longest time without any grant, s", format!("{longest:.1}"), "≤ 12", longest <= 12.0);
    report.figure("it began, s after Redis was back", format!("{:.1}", (from as f64 - back_us as f64) / 1e6));
    let told = |pod: &Pod| pod.process.stderr_lines().iter().filter(|l| l.contains("was told what it had lost")).count();
    report.figure("workers that told Redis of quotas", workers.iter().filter(|pod| told(pod) > 0).count());
    for pod in &workers {
        let lines = pod.process.stderr_lines();
        let panics = lines.iter().filter(|line| line.contains("panicked")).count();
        report.check(&format!("{}: panics", pod.name), panics, 0, panics == 0);
        let alarms = lines.iter().filter(|line| line.contains("goes on by its own share")).count();
        report.check(&format!("{}: alarms", pod.name), alarms, "≥ 1", alarms >= 1);
    }
    report.finish();
}

async fn degraded_now(pod: &Pod) -> f64 {
    pod.metrics().await.total("paceline_limits_degraded")
}

async fn degraded(pods: &[&Pod], whether: bool) {
    for pod in pods {
        let what = format!("{} degraded: {whether}", pod.name);
        until(&what, NOTICE, async || (degraded_now(pod).await == 1.0) == whether).await;
    }
}

/// Until so many more have been sent.
async fn sent(fleet: &Fleet, more: u64) {
    let wanted = fleet.sandbox.stats().requests + more;
    until("mail is sent", NOTICE, async || fleet.sandbox.stats().requests >= wanted).await;
}

async fn by_pod(fleet: &Fleet) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for arrival in fleet.arrivals().await {
        *counts.entry(arrival.pod().to_owned()).or_default() += 1;
    }
    counts
}

/// Until each of these has sent so many more.
async fn goes_on(fleet: &Fleet, before: &BTreeMap<String, u64>, pods: &[&Pod], more: u64) {
    let of = |counts: &BTreeMap<String, u64>, pod: &Pod| counts.get(&pod.name).copied().unwrap_or(0);
    until("those go on", NOTICE, async || {
        let now = by_pod(fleet).await;
        pods.iter().all(|pod| of(&now, pod) >= of(before, pod) + more)
    })
    .await;
}

/// The largest sum of costs in any span of that length.
fn most_within(grants: &[windows::Use], length_us: u64) -> u64 {
    let mut uses = grants.to_vec();
    uses.sort_unstable();
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for &(date, cost) in &uses {
        sum += cost;
        while uses[first].0 + length_us < date {
            sum -= uses[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

/// From when, and for how long.
fn longest_silence_s(grants: &[windows::Use]) -> (u64, f64) {
    let mut dates: Vec<u64> = grants.iter().map(|g| g.0).collect();
    dates.sort_unstable();
    let (length, from) = dates.windows(2).map(|pair| (pair[1] - pair[0], pair[0])).max().unwrap_or_default();
    (from, length as f64 / 1e6)
}
