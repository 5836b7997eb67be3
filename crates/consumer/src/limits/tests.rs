use async_trait::async_trait;
use paceline_classifier::{DestinationSpec, Destinations, Routes};
use paceline_core::{Domain, Outcome, Policy, RetryPolicy};
use paceline_provider::{Attempt, Provider};

use super::*;
use crate::settings::Account;

struct Nobody;

#[async_trait]
impl Provider for Nobody {
    async fn send(&self, _: Attempt<'_>) -> Outcome {
        Outcome::accepted(None)
    }

    fn idempotent(&self) -> bool {
        false
    }
}

fn limit(rate: &str) -> Limit {
    Limit { rate: rate.parse().unwrap(), burst: 10 }
}

fn named(name: &str, quota: &[&str]) -> Named {
    Named { name: name.into(), limit: Some(limit("5/s")), quota: quota.iter().map(|q| q.parse().unwrap()).collect() }
}

pub(crate) fn settings() -> Settings {
    let destination = |name: &str, fleet: bool| Destination {
        name: name.into(),
        limit: Some(limit("50/s")),
        max_rate: None,
        warmup_start: None,
        fleet: fleet.then(|| limit("70/s")),
        quota: vec![],
        concurrency: None,
    };
    let policy = RetryPolicy { attempts: 1, base: Duration::ZERO, max: Duration::ZERO, max_age: Duration::ZERO };
    Settings {
        worker_id: "w".into(),
        prefix: "paceline".into(),
        accounts: vec![Account {
            name: "main".into(),
            provider: Arc::new(Nobody),
            limit: Some(limit("100/s")),
            max_rate: None,
            adaptive: true,
            warmup: None,
            quota: vec![],
            concurrency: 1,
            fleet_concurrency: None,
            total_timeout: Duration::from_secs(30),
            batch: 1,
            batch_wait: Duration::ZERO,
        }],
        destinations: vec![destination("google", true), destination("yahoo", false)],
        routes: Routes::all(["main"]),
        tail: limit("300/h"),
        tenants: vec![],
        senders: vec![],
        recipient: None,
        reserve: 0.0,
        quota_reserve: 0.1,
        policy: Policy::new([policy; 4]),
        circuit: Default::default(),
        concurrency: 1,
        held_bytes: 0,
        max_message_bytes: 0,
        flows: Default::default(),
        drain_grace: Duration::ZERO,
    }
}

fn of(settings: &Settings, from: &str, to: &[&str]) -> Vec<(BucketSpec, u64)> {
    let spec = |name: &str, domains: &[&str]| DestinationSpec {
        name: name.into(),
        domains: domains.iter().map(|d| Domain::parse(d).unwrap()).collect(),
    };
    let specs = vec![spec("google", &["gmail.com", "googlemail.com"]), spec("yahoo", &["yahoo.com"])];
    let classifier = Classifier::new(vec![], Destinations::new(specs).unwrap());
    let body = serde_json::json!({"id": "1", "from": from, "to": to, "subject": "s", "text": "t", "tenant": "Acme"});
    let message = Message::parse(body.to_string().as_bytes(), None, 100_000).unwrap();
    let (buckets, cost) = Limits::new(settings).of(0, &message, &classifier);
    buckets.iter().enumerate().map(|(k, b)| (b.clone(), cost.at(k))).collect()
}

/// `key cost`, with `~` where the limit is narrower than the lane.
fn shown(found: &[(BucketSpec, u64)]) -> Vec<String> {
    found.iter().map(|(b, cost)| format!("{}{} {cost}", if b.narrow { "~" } else { "" }, b.key)).collect()
}

const FROM: &str = "News@Shop.example";

#[test]
fn the_usual_message_meets_its_account_destination_and_fleet() {
    let found = of(&settings(), FROM, &["a@gmail.com"]);
    assert_eq!(shown(&found), ["account:main 1", "account:main:destination:google 1", "destination:google 1"]);
    assert_eq!(shown(&of(&settings(), FROM, &["a@b.example"])), ["account:main 1", "~account:main:domain:b.example 1"]);
}

#[test]
fn each_destination_is_charged_its_own_recipients() {
    let to = ["a@yahoo.com", "b@gmail.com", "c@googlemail.com", "d@tail.example", "e@tail.example", "f@tail.example"];
    let expected = [
        "account:main 6",
        "account:main:destination:yahoo 1",
        // The lane is yahoo's: what the others suffer from is not its.
        "~account:main:destination:google 2",
        "~destination:google 2",
        "~account:main:domain:tail.example 3",
    ];
    assert_eq!(shown(&of(&settings(), FROM, &to)), expected);
}

#[test]
fn quotas_and_calls_at_a_time_come_after_the_rates() {
    let mut settings = settings();
    settings.accounts[0].quota = vec!["1000/h".parse().unwrap(), "20000/d".parse().unwrap()];
    settings.accounts[0].fleet_concurrency = Some(7);
    settings.destinations[0].quota = vec!["400/h".parse().unwrap()];
    settings.destinations[0].concurrency = Some(3);
    settings.destinations[0].limit = None;
    let found = of(&settings, FROM, &["a@gmail.com", "b@gmail.com"]);
    let expected = [
        "account:main 2",
        "account:main:destination:google 2",
        "destination:google 2",
        "account:main:quota:h 2",
        "account:main:quota:d 2",
        "account:main:concurrency 2",
        "account:main:destination:google:quota:h 2",
        "account:main:destination:google:concurrency 2",
    ];
    assert_eq!(shown(&found), expected);
    let kind = |at: usize| found[at].0.kind;
    assert_eq!(kind(3), Kind::Window { length_us: 3_600_000_000, limit: 1_000, reserve: 100 });
    assert_eq!(kind(5), Kind::Slots { limit: 7, life_us: 35_000_000 });
    // The tail meets those of the account too.
    let tail = of(&settings, FROM, &["a@b.example"]);
    assert_eq!(shown(&tail).len(), 5);
}

#[test]
fn tenants_senders_and_recipients_have_limits_of_their_own() {
    let mut settings = settings();
    settings.tenants = vec![named("acme", &["9/d"]), named("other", &[])];
    settings.senders = vec![named("shop.example", &[]), named("news@shop.example", &[]), named("news@other.example", &[])];
    settings.recipient = Some(named("", &["2/d"]));
    let found = of(&settings, FROM, &["a@gmail.com", "A@GMail.com"]);
    let shown = shown(&found);
    let expected = [
        "account:main 2",
        "account:main:destination:google 2",
        "destination:google 2",
        "~tenant:acme 2",
        "~tenant:acme:quota:d 2",
        "~sender:shop.example 2",
        "~sender:news@shop.example 2",
    ];
    assert_eq!(shown[..7], expected);
    // One person, written twice; and nobody can read who.
    assert_eq!(shown.len(), 9);
    assert!(shown[7].starts_with("~recipient:") && shown[7].ends_with(" 2") && !shown[7].contains("gmail"), "{}", shown[7]);
    assert!(shown[8].contains(":quota:d"));
    assert!(
        found
            .iter()
            .all(|(b, _)| !matches!(b.kind, Kind::Rate { shared: true, .. }) || b.narrow || b.key.starts_with("destination"))
    );
}

#[test]
fn what_a_quota_never_allows_is_known_at_once() {
    let mut settings = settings();
    settings.accounts[0].quota = vec!["900/d".parse().unwrap()];
    settings.destinations[0].quota = vec!["1/h".parse().unwrap()];
    let too_large = |to: &[&str]| {
        let (buckets, costs): (Vec<_>, Vec<_>) = of(&settings, FROM, to).into_iter().unzip();
        too_large_for(&(buckets.into(), Cost::Each(costs.iter().map(|c| *c as u32).collect())))
    };
    assert_eq!(too_large(&["a@gmail.com", "b@yahoo.com", "c@yahoo.com"]), None);
    let quota = too_large(&["a@gmail.com", "b@yahoo.com", "c@gmail.com"]).unwrap();
    assert_eq!(&*quota, "account:main:destination:google:quota:h");
}

#[test]
fn every_recipient_may_have_a_domain_and_limits_of_its_own() {
    let mut settings = settings();
    settings.recipient = Some(named("", &["2/h", "5/d"]));
    let to: Vec<String> = (0..50).map(|i| format!("a@d{i}.example")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let found = of(&settings, FROM, &to);
    assert_eq!(found.len(), 1 + 50 + 150);
    assert!(found.len() < paceline_limiter::MAX_LANE_BUCKETS);
    assert_eq!(found[0].1, 50);
    assert!(found[1..].iter().all(|(_, cost)| *cost == 1));
}
