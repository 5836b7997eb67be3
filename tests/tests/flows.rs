//! Fairness between tenants: a small tenant's mail does not wait until a large one's backlog has gone, a pin that cannot go
//! keeps nobody, and all of it survives a worker that is killed while mail moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use paceline_tests::{Fleet, Mail, Plan, Pod, Report, arrivals, now_us, publish, sized};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(240);

fn of(tenant: &str, i: u64) -> Mail {
    let domain = ["gmail.com", "one.example"][i as usize % 2];
    Mail::with(&format!("{tenant}-{i}"), "normal", &format!("u{i}@{domain}"), &[("tenant", json!(tenant))])
}

async fn moved(pods: &[&Pod]) -> f64 {
    let mut sum = 0.0;
    for pod in pods {
        sum += pod.metrics().await.sum("paceline_broker_publishes_total", |labels| labels.contains("purpose=\"flow\""));
    }
    sum
}

async fn a_small_tenant_beside_a_large_one(name: &'static str, tenants: &str) {
    let (large, small, per_s) = sized((3_000, 30, 6), (100_000, 100, 4));
    let mut report = Report::new(name);
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\"\nburst = {per_s}"),
        more: &format!("[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n{tenants}"),
        ..Plan::default()
    })
    .await;
    let pods = [fleet.worker("w1").await, fleet.worker("w2").await];
    // Alone: what it takes when nobody else is there.
    let since = tokio::time::Instant::now();
    publish(&*fleet.broker(), (0..small).map(|i| of("alone", i))).await;
    fleet.accepted(small, PATIENCE).await;
    let alone = since.elapsed();

    publish(&*fleet.broker(), (0..large).map(|i| of("large", i))).await;
    let since = tokio::time::Instant::now();
    publish(&*fleet.broker(), (0..small).map(|i| of("small", i))).await;
    let mut last = 0;
    paceline_tests::until("the small tenant's mail", PATIENCE, async || {
        let arrivals = fleet.arrivals().await;
        let times = arrivals.iter().filter(|a| a.accepted && a.id().starts_with("small-")).map(|a| a.at_us);
        last = times.clone().max().unwrap_or(0);
        times.count() as u64 >= small
    })
    .await;
    let beside = since.elapsed();
    let arrivals = fleet.arrivals().await;
    let before = arrivals.iter().filter(|a| a.id().starts_with("large-") && a.at_us <= last).count();
    report.figure("alone, s", format!("{:.1}", alone.as_secs_f64()));
    report.figure("beside the large one, s", format!("{:.1}", beside.as_secs_f64()));
    report.timing("beside ÷ alone", format!("{:.2}", beside.as_secs_f64() / alone.as_secs_f64()), "≤ 3", beside <= alone * 3);
    report.figure("of the large one before the last of the small one's", before);
    // In order, whatever the machine: far from all of what was ahead of it.
    report.check(
        "that is less than a third of what was ahead of it",
        before,
        format!("< {}", large / 3),
        (before as u64) < large / 3,
    );
    let hops = moved(&[&pods[0], &pods[1]]).await;
    report.check(
        "moves to a flow, once each at most",
        hops,
        format!("≤ {}", large + 2 * small),
        hops <= (large + 2 * small) as f64,
    );
    let twice: BTreeMap<_, _> =
        arrivals::accepted(&arrivals).into_iter().filter(|(_, n)| *n > 1).map(|(id, n)| (id.to_owned(), n)).collect();
    report.check("arrived twice", format!("{twice:?}"), "{}", twice.is_empty());
    pods.iter().for_each(Pod::assert_sound);
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_tenant_does_not_wait_for_a_large_one() {
    a_small_tenant_beside_a_large_one("flows", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_tenants_are_configured() {
    let tenants = "[[tenant]]\nname = \"large\"\nrate = \"50/s\"\n[[tenant]]\nname = \"small\"\nweight = 2\n";
    a_small_tenant_beside_a_large_one("flows-configured", tenants).await;
}

/// How long the sandbox takes to answer: what it has read and not answered at a kill is a call under way.
const ANSWER_MS: u64 = 50;
/// An answer on its way is not an answer yet.
const TRANSIT_US: u64 = 5_000;

/// Every message is sent, once, though workers are killed while mail moves to flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_loses_and_doubles_nothing_on_its_way_to_a_flow() {
    let (count, per_s, kills) = sized((1_500, 100, 2), (20_000, 400, 5));
    let mut report = Report::new("flows-kill");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{per_s}/s\"\nburst = 10\nconnect_timeout = \"1s\"\nread_timeout = \"2s\"\ntotal_timeout = \"2s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n[retry]\nbase = \"1s\"\nmax = \"4s\"\n",
        sandbox: &format!("[[rule]]\ndomain = \"*\"\nthen = \"accept\"\ndelay = [\"{ANSWER_MS}ms\", \"{ANSWER_MS}ms\"]\n"),
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let ids: Vec<String> = (0..count).map(|i| format!("{}-{i}", ["red", "blue"][i as usize % 2])).collect();
    publish(&*fleet.broker(), (0..count).map(|i| of(["red", "blue"][i as usize % 2], i))).await;
    let mut killed = Vec::new();
    for n in 0..kills {
        let name = format!("victim-{n}");
        let mut victim = fleet.worker(&name).await;
        let what = format!("victim {n} has moved some");
        paceline_tests::until(&what, PATIENCE, async || moved(&[&victim]).await >= 20.0).await;
        let from = now_us();
        victim.process.kill9().await;
        killed.push((name, from, now_us()));
        victim.assert_sound();
    }
    let survivor = fleet.worker("survivor").await;
    fleet.settled(PATIENCE).await;

    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    let letters = fleet.dead_letters().await;
    let dead: BTreeSet<&str> = letters.iter().filter_map(|l| l["message_id"].as_str()).collect();
    let lost: Vec<_> = ids.iter().filter(|id| !accepted.contains_key(id.as_str()) && !dead.contains(id.as_str())).collect();
    report.check("neither accepted nor dead-lettered", format!("{lost:?}"), "[]", lost.is_empty());
    // A call under way at a kill is sent again or left to a person; a move is neither.
    let mut open = 0;
    for (name, from, to) in &killed {
        let of = arrivals.iter().filter(|a| a.pod() == name);
        open += of.filter(|a| a.at_us <= *to && a.at_us + ANSWER_MS * 1000 + TRANSIT_US >= *from).count();
    }
    report.figure("calls under way at the kills", open);
    let twice: u64 = accepted.values().map(|n| n - 1).sum();
    report.check("arrived twice", twice, format!("≤ {open}"), twice <= open as u64);
    let uncertain = letters.iter().filter(|l| l["reason"] == "uncertain").count();
    report.check("left as uncertain", uncertain, format!("≤ {open}"), uncertain <= open);
    report.check("other dead letters", letters.len() - uncertain, 0, letters.len() == uncertain);
    [&survivor, &control].into_iter().for_each(Pod::assert_sound);
    report.finish();
}
