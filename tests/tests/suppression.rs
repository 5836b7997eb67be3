//! Listed recipients get no mail, from the first message on and whatever becomes of the store; everybody else does.
//! Who is refused for good is listed without being asked.
#![expect(clippy::unwrap_used, reason = "helpers of a scenario fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    time::{Duration, Instant, SystemTime},
};

use paceline_core::{
    Class, Message, SuppressionSet, Timestamp,
    suppression::{Change, Entry, Kind},
};
use paceline_tests::{Fleet, Mail, Plan, Pod, Report, publish, sized, until};
use serde_json::json;

const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_recipients_get_no_mail() {
    let count = sized(5_000, 100_000);
    let plan = Plan {
        account: "rate = \"5000/s\"",
        more: "[tail]\nrate = \"5000/s\"\n",
        sandbox: "[[rule]]\nto = \"nobody@*\"\nthen = \"reject\"\n",
        ..Plan::default()
    };
    let fleet = Fleet::start(plan).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bounces.txt");
    std::fs::write(&file, (0..count).map(|i| format!("Gone{i}@one.example\n")).collect::<String>()).unwrap();
    let imported = fleet.ask(&["suppress", "import", file.to_str().unwrap(), "--reason", "bounce"]).await;
    assert_eq!((&imported["added"], &imported["refused_count"]), (&json!(count), &json!(0)));

    let control = fleet.control().await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    for worker in &workers {
        assert_eq!(worker.metrics().await.total("paceline_suppressed_addresses"), f64::from(count), "known before it is ready");
        let check = &worker.readiness().await.checks["suppressions"];
        assert_eq!((&check["ok"], &check["detail"]), (&json!(true), &json!(null)));
    }
    let some: Vec<Mail> = (0..200)
        .map(|i| {
            let gone = format!("gone{}@one.example", i * 7 % count);
            match i % 4 {
                0 => Mail::new(&format!("fine-{i}"), "high", &format!("u{i}@one.example")),
                1 => Mail::new(&format!("gone-{i}"), "normal", &gone),
                2 => Mail::new(&format!("gone-{i}"), "critical", &gone),
                _ => Mail::with(&format!("fine-{i}"), "low", &gone, &[("to", json!([gone, format!("u{i}@two.example")]))]),
            }
        })
        .collect();
    publish(&*fleet.broker(), some).await;
    fleet.accepted(100, LONG).await;
    fleet.settled(LONG).await;
    assert_eq!(reasons(&fleet).await, [("suppressed".to_owned(), 150)].into());

    // A change reaches all workers, and holds while the store is away.
    fleet.ask(&["suppress", "add", "late@one.example", "--kind", "soft"]).await;
    knows(&workers, f64::from(count) + 1.0).await;
    fleet.postgres.stop().await;
    publish(&*fleet.broker(), ["late", "gone5", "u"].map(|who| Mail::new(who, "high", &format!("{who}@one.example")))).await;
    fleet.accepted(101, LONG).await;
    until("the worker says that the store is away", LONG, async || {
        let readiness = workers[0].readiness().await;
        let said = readiness.checks["suppressions"]["detail"].as_str().unwrap_or_default().to_owned();
        readiness.status == 200 && said.starts_with("the list last known holds")
    })
    .await;
    fleet.postgres.start_again().await;
    fleet.settled(LONG).await;
    assert_eq!(reasons(&fleet).await["suppressed"], 152);

    // Refused once, listed: the next one makes no call.
    publish(&*fleet.broker(), [Mail::new("first", "high", "nobody@three.example")]).await;
    knows(&workers, f64::from(count) + 2.0).await;
    let listed = fleet.ask(&["suppress", "list", "--address", "Nobody@three.example"]).await;
    assert_eq!(
        (&listed[0]["kind"], &listed[0]["reason"], &listed[0]["by"]),
        (&json!("hard"), &json!("bounce"), &json!("paceline"))
    );
    let calls = fleet.sandbox.stats().requests;
    publish(&*fleet.broker(), [Mail::new("second", "high", "nobody@three.example")]).await;
    until("dead letters", LONG, async || reasons(&fleet).await["suppressed"] == 153).await;
    assert_eq!(fleet.sandbox.stats().requests, calls);

    // Off the list, what died is sent again.
    fleet.command(&["suppress", "remove", "late@one.example", "--note", "asked for it"]).await;
    knows(&workers, f64::from(count) + 1.0).await;
    fleet.command(&["dlq", "replay", "--id", "late", "--yes"]).await;
    fleet.accepted(102, LONG).await;
    fleet.settled(LONG).await;

    let arrivals = fleet.arrivals().await;
    let accepted: BTreeMap<&str, u32> =
        arrivals.iter().filter(|a| a.accepted).map(|a| (a.id(), u32::try_from(a.recipients).unwrap())).collect();
    let ids: BTreeSet<&str> = accepted.keys().copied().collect();
    assert!(ids.iter().all(|id| id.starts_with("fine-") || ["u", "late"].contains(id)), "{ids:?}");
    assert!(accepted.values().all(|recipients| *recipients == 1), "the rest of a message goes alone: {accepted:?}");
    workers.iter().chain([&control]).for_each(Pod::assert_sound);
}

/// What a worker does with each message beside all else: looks at its recipients when it comes, and right before the call.
#[test]
fn looking_costs_next_to_nothing() {
    let mut report = Report::new("suppression");
    let listed = sized(5_000, 100_000);
    let now: Timestamp = SystemTime::now().into();
    let address = |i: u32| format!("some.user{i}@mail{}.example.com", i % 1000);
    let change = |i| Change { address: address(i), entry: Some(Entry { kind: Kind::Hard, until: None }) };
    let mut set = SuppressionSet::new(u64::from(std::process::id()), false);
    for page in (0..listed).step_by(10_000) {
        set = set.after((page..listed.min(page + 10_000)).map(change), now);
    }
    // As a worker knows it that has heard of a change since.
    let set = set.after([change(listed)], now);
    assert_eq!(set.len(), listed as usize + 1);
    for recipients in [1, 10] {
        let messages: Vec<Message> = (0..20_000)
            .map(|n| {
                // Every other one is to nobody listed, the others to listed ones alone.
                let first = if n % 2 == 0 { n * 7 } else { listed + 1 + n * recipients };
                let to: Vec<_> = (first..first + recipients).map(|i| address(if n % 2 == 0 { i % listed } else { i })).collect();
                let body = json!({"id": format!("m{n}"), "from": "a@example.com", "to": to, "text": "x"}).to_string();
                Message::parse(body.as_bytes(), None, 10_000).unwrap()
            })
            .collect();
        let look = |message: &&Message| {
            let all = black_box(set.holds_back_all(message, Class::Normal, now));
            all | !black_box(set.held_back(message, Class::Normal, now)).is_empty()
        };
        let mut rounds: Vec<f64> = (0..9)
            .map(|_| {
                let begun = Instant::now();
                let held_back = messages.iter().filter(look).count();
                let took = begun.elapsed().as_secs_f64() * 1e6 / messages.len() as f64;
                assert_eq!(held_back, messages.len() / 2);
                took
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        let (median, worst) = (rounds[rounds.len() / 2], rounds[rounds.len() - 1]);
        let what = |of: &str| format!("{of} µs for both looks at a message of {recipients}, {listed} listed");
        if recipients == 1 {
            report.timing(&what("median"), format!("{median:.3}"), "< 2", median < 2.0);
        } else {
            report.figure(&what("median"), format!("{median:.3}"));
        }
        report.figure(&what("slowest round's"), format!("{worst:.3}"));
    }
    report.finish();
}

/// Dead letters by reason.
async fn reasons(fleet: &Fleet) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for letter in fleet.dead_letters().await {
        *reasons.entry(letter["reason"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    reasons
}

/// Waits until every worker knows of so many listed addresses.
async fn knows(workers: &[Pod], count: f64) {
    for worker in workers {
        let what = format!("{} knows of {count}", worker.name);
        until(&what, LONG, async || worker.metrics().await.total("paceline_suppressed_addresses") == count).await;
    }
}
