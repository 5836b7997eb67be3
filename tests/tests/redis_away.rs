//! Redis is killed under load and comes back empty, and Redis is cut off from some of the workers only: mail goes on all
//! the same, by shares, and over the whole run no span exceeds a limit on the dates of grants.
//!
//! Twice: with quotas that leave room, so that workers by themselves have something to send, one of them longer than the run
//! (were it not told again to the empty Redis, nothing would go any more); and with a quota that is spent in a fifth of its
//! length, where all that matters is whether what becomes free is given.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use paceline_testkit::Proxy;
use paceline_tests::{
    Fleet, Mail, Plan, Pod, Report, arrivals,
    events::{self, Event, Events},
    now_us, publish, sized, until,
    windows::{self, Limit, Quota, Use},
};

/// Until a worker has noticed, waited for the others and gone on by itself, or come back.
const NOTICE: Duration = Duration::from_secs(90);
/// All of the mail.
const PATIENCE: Duration = Duration::from_secs(400);
/// Nobody is silent for longer: 9 s until all have noticed and go by themselves, or until an empty Redis is told.
const SILENT_S: f64 = 12.0;
const MINUTE_US: u64 = 60_000_000;
const DOMAINS: [(&str, &str); 4] =
    [("google", "gmail.com"), ("microsoft", "outlook.com"), ("yahoo", "yahoo.com"), ("tail", "one.example")];

struct Scale {
    workers: usize,
    /// So many of them lose Redis while the others keep it.
    cut: usize,
    account: Limit,
    per_min: u64,
    /// Far more than the run takes.
    per_hour: u64,
    messages: usize,
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
            outage: Duration::from_secs(10),
        },
        Scale {
            workers: 8,
            cut: 3,
            account: Limit { per_s: 500, burst: 100 },
            per_min: 25_000,
            per_hour: 100_000,
            messages: 60_000,
            outage: Duration::from_secs(20),
        },
    );
    // Sent by those without Redis before it comes back.
    let by_themselves = sized(40, 200);
    let mut report = Report::new("redis_away");
    let run = Run::start(of).await;
    let Run { of, fleet, workers, .. } = &run;
    let all: Vec<&Pod> = workers.iter().collect();
    sent(fleet, of.account.per_s * 3).await;

    // Some lose it; the others go on.
    let (away, others) = all.split_at(of.cut);
    run.cut().await;
    degraded(away, true).await;
    let before = by_pod(fleet).await;
    goes_on(fleet, &before, away, by_themselves / of.workers as u64).await;
    goes_on(fleet, &before, others, by_themselves).await;
    for pod in others {
        report.check(&format!("{} sees Redis", pod.name), degraded_now(pod).await, 0, degraded_now(pod).await == 0.0);
        report.check("it is ready", pod.readiness().await.status, 200, pod.readiness().await.status == 200);
    }
    for pod in away {
        let readiness = pod.readiness().await;
        let said = readiness.checks["limits"]["detail"].as_str().unwrap_or_default().to_owned();
        report.check("who does not is ready, and says so", &said, "degraded", said.starts_with("degraded"));
    }
    run.heal().await;
    sent(fleet, of.account.per_s).await;

    // All lose it, and it comes back empty.
    fleet.redis.kill9().await;
    let killed = tokio::time::Instant::now();
    degraded(&all, true).await;
    let before = by_pod(fleet).await;
    goes_on(fleet, &before, &all, by_themselves / of.workers as u64).await;
    tokio::time::sleep_until(killed + of.outage).await;
    fleet.redis.start_again_empty().await;
    let back_us = now_us();
    degraded(&all, false).await;
    let grants = run.ends(&mut report, back_us).await;
    let (from, longest) = windows::longest_idle(&grants, &[]);
    let (from_s, longest_s) = (since_s(from, back_us), longest as f64 / 1e6);
    report.timing("longest time without any grant, s", format!("{longest_s:.1}"), "≤ 12", longest_s <= SILENT_S);
    report.figure("it began, s after Redis was back", format!("{from_s:.1}"));
    for pod in &run.workers {
        let alarms = pod.process.stderr_lines().iter().filter(|line| line.contains("goes on by its own share")).count();
        report.check(&format!("{}: alarms", pod.name), alarms, "≥ 1", alarms >= 1);
    }
    report.finish();
}

/// A quota that is spent long before its length is over. What comes free of it while Redis is away goes to those by themselves,
/// half of it; the rest goes when Redis is back, so that as much is granted as if it had never been away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_spent_goes_on_when_it_would_have() {
    let of = sized(
        Scale {
            workers: 3,
            cut: 1,
            account: Limit { per_s: 200, burst: 60 },
            per_min: 2_000,
            per_hour: 100_000,
            messages: 2_600,
            outage: Duration::from_secs(18),
        },
        Scale {
            workers: 8,
            cut: 3,
            account: Limit { per_s: 500, burst: 100 },
            per_min: 6_000,
            per_hour: 1_000_000,
            messages: 22_800,
            outage: Duration::from_secs(20),
        },
    );
    let mut report = Report::new("redis_away");
    let run = Run::start(of).await;
    let Run { of, fleet, workers, .. } = &run;
    let all: Vec<&Pod> = workers.iter().collect();
    sent(fleet, 1).await;
    // A little after its grant.
    let begun = Instant::now();
    let at = |s: u64| tokio::time::sleep_until((begun + Duration::from_secs(s)).into());

    // While it is being spent some lose Redis, and are back before it comes free again.
    sent(fleet, of.per_min / 4).await;
    run.cut().await;
    degraded(&all[..of.cut], true).await;
    at(18).await;
    run.heal().await;

    // Redis is gone when the quota comes free again: all that there is to tell of it is what has been granted.
    at(48).await;
    fleet.redis.kill9().await;
    let killed = tokio::time::Instant::now();
    degraded(&all, true).await;
    tokio::time::sleep_until(killed + of.outage).await;
    fleet.redis.start_again_empty().await;
    let back_us = now_us();
    degraded(&all, false).await;
    let grants = run.ends(&mut report, back_us).await;

    let first = grants[0].0;
    let within = |from: u64, until: u64| grants.iter().filter(|g| (from..until).contains(&g.0)).map(|g| g.1).sum::<u64>();
    // They see slot by slot what comes free.
    let free = within(first, back_us - MINUTE_US - MINUTE_US / 200);
    let meanwhile = within(first + MINUTE_US, back_us);
    let share = meanwhile as f64 / free as f64;
    report.figure("of the quota came free while Redis was away", free);
    report.timing("of that granted meanwhile, by themselves", format!("{share:.2}"), "≥ 0.35", share >= 0.35);
    // An ideal limiter: all there is, every minute.
    let most = of_quota(of.per_min);
    let minutes = of.messages as u64 / most;
    let in_time = within(first, first + minutes * MINUTE_US);
    let share = in_time as f64 / (minutes * most) as f64;
    report.timing("granted of what an ideal limiter grants", format!("{share:.3}"), "≥ 0.97", share >= 0.97);
    for minute in 0..=minutes {
        let granted = within(first + minute * MINUTE_US, first + (minute + 1) * MINUTE_US);
        report.figure(&format!("granted in minute {}", minute + 1), format!("{granted} of {most}"));
    }
    report.finish();
}

/// Workers over a Redis that each of them sees through a proxy of its own, and all of the mail.
struct Run {
    of: Scale,
    fleet: Fleet,
    heard: Events,
    proxies: Vec<Proxy>,
    workers: Vec<Pod>,
}

impl Run {
    async fn start(of: Scale) -> Run {
        let destination = of.destination();
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
            let environment = [("PACELINE__LIMITS__URL", &*proxy.url(&fleet.redis.url()))];
            workers.push(fleet.worker_with(&format!("w{n}"), &environment).await);
            proxies.push(proxy);
        }
        // Now, so that each of them holds some of it.
        publish(&*fleet.broker(), mails).await;
        Run { of, fleet, heard, proxies, workers }
    }

    /// Redis is cut off from some.
    async fn cut(&self) {
        for proxy in &self.proxies[..self.of.cut] {
            proxy.cut().await;
        }
    }

    /// Until all see it again.
    async fn heal(&self) {
        for proxy in &self.proxies[..self.of.cut] {
            proxy.heal().await;
        }
        degraded(&self.workers.iter().collect::<Vec<_>>(), false).await;
    }

    /// Everything is sent, once, at the first attempt and within every limit, and nobody waited for long who need not have.
    /// The grants, in order.
    async fn ends(&self, report: &mut Report, back_us: u64) -> Vec<Use> {
        let Run { of, fleet, heard, workers, .. } = self;
        fleet.settled(PATIENCE).await;
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
        let mut grants = events::grants(&heard);
        grants.sort_unstable();
        let worst = windows::worst_excess(&grants, of.account);
        report.check("account: worst window of grant dates, millionths over", worst, "≤ 0", worst <= 0);
        let most = windows::most_within(&grants, MINUTE_US);
        report.check("account: most within a minute", most, format!("≤ {}", of.per_min), most <= of.per_min);
        for (name, _) in DOMAINS {
            let grants = events::grants(heard.iter().filter(|e| e.destination == name));
            let worst = windows::worst_excess(&grants, of.destination());
            report.check(&format!("{name}: worst window of grant dates, millionths over"), worst, "≤ 0", worst <= 0);
        }
        let quotas = [(of.per_min, MINUTE_US), (of.per_hour, 60 * MINUTE_US)];
        // The last of it may be left for want of a lane that has not gone to rest.
        let quotas = quotas.map(|(most, length_us)| Quota { most: of_quota(most) * 98 / 100, length_us });
        let (from, idle) = windows::longest_idle(&grants, &quotas);
        let (from_s, idle_s) = (since_s(from, back_us), idle as f64 / 1e6);
        report.timing("longest without a grant while quotas had room, s", format!("{idle_s:.1}"), "≤ 12", idle_s <= SILENT_S);
        report.figure("it began, s after Redis was back", format!("{from_s:.1}"));
        let told = |pod: &Pod| pod.process.stderr_lines().iter().any(|l| l.contains("was told what it had lost"));
        report.figure("workers that told Redis of quotas", workers.iter().filter(|pod| told(pod)).count());
        for pod in workers {
            let panics = pod.process.stderr_lines().iter().filter(|line| line.contains("panicked")).count();
            report.check(&format!("{}: panics", pod.name), panics, 0, panics == 0);
        }
        grants
    }
}

impl Scale {
    fn destination(&self) -> Limit {
        Limit { per_s: self.account.per_s / 2, burst: self.account.per_s / 2 }
    }
}

/// What mail that is not critical may use of a quota, `limits.quota_reserve` being as it is unless configured.
fn of_quota(limit: u64) -> u64 {
    limit - limit / 20
}

fn since_s(at_us: u64, from_us: u64) -> f64 {
    (at_us as f64 - from_us as f64) / 1e6
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
