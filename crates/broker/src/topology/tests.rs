use std::collections::BTreeSet;

use super::*;

fn topology() -> Topology {
    Topology::new("paceline", [("google", vec!["gmail.com", "googlemail.com"]), ("yahoo", vec!["yahoo.com"])])
}

fn arguments(t: &Topology, queue: &str) -> Vec<(&'static str, String)> {
    let queue = t.queues.iter().find(|q| q.name == queue).unwrap_or_else(|| panic!("no queue {queue}"));
    let text = |a: &Argument| match a {
        Argument::Int(n) => n.to_string(),
        Argument::Text(t) => t.clone(),
    };
    queue.arguments.iter().map(|(k, v)| (*k, text(v))).collect()
}

fn reaches(t: &Topology, exchange: &str, key: &str) -> Vec<String> {
    t.bindings.iter().filter(|b| b.exchange == exchange && b.key == key).map(|b| b.queue.clone()).collect()
}

#[test]
fn exchanges_with_their_alternates() {
    let t = topology();
    let got: Vec<_> = t.exchanges.iter().map(|e| (e.name.as_str(), e.kind, e.alternate.as_deref())).collect();
    use ExchangeKind::*;
    for want in [
        ("paceline", Direct, Some("paceline.tail")),
        ("paceline.tail", Topic, Some("paceline.intake")),
        ("paceline.intake", Fanout, None),
        ("paceline.lanes", Direct, Some("paceline.intake")),
        ("paceline.events", Topic, None),
        ("paceline.delay.1s", Fanout, None),
        ("paceline.delay.4096s", Fanout, None),
    ] {
        assert!(got.contains(&want), "{want:?} in {got:?}");
    }
    assert_eq!(got.len(), 5 + 13);
    // An alternate is declared before it is named.
    for (at, exchange) in t.exchanges.iter().enumerate() {
        if let Some(alternate) = &exchange.alternate {
            assert!(t.exchanges[..at].iter().any(|e| e.name == *alternate), "{alternate}");
        }
    }
}

#[test]
fn queues_with_their_arguments() {
    let t = topology();
    let waiting = [("x-delivery-limit", "2000000000".to_owned()), ("x-queue-type", "quorum".to_owned())];
    for queue in
        ["paceline.lane.critical.google", "paceline.lane.low.tail", "paceline.intake", "paceline.dead", "paceline.feedback"]
    {
        assert_eq!(arguments(&t, queue), waiting, "{queue}");
    }
    assert_eq!(
        arguments(&t, "paceline.delay.64s"),
        [
            ("x-dead-letter-exchange", "paceline.lanes"),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-max-length", "5000000"),
            ("x-message-ttl", "64000"),
            ("x-overflow", "reject-publish"),
            ("x-queue-type", "quorum"),
        ]
        .map(|(k, v)| (k, v.to_owned()))
    );
    assert_eq!(arguments(&t, "paceline.refuse"), [("x-max-length", "0".to_owned()), ("x-overflow", "reject-publish".to_owned())]);
    let (flow, led_to) = flow(&t.names, Class::High, "google.tenant-acme");
    assert_eq!(flow, waiting_queue("paceline.flow.high.google.tenant-acme".to_owned()));
    assert_eq!((&*led_to.exchange, &*led_to.key), ("paceline.lanes", "high.flow.google.tenant-acme"));
    assert_eq!(t.queues.len(), 3 * 4 + 13 + 4);
    assert_eq!(t.lanes.len(), 3 * 4);
}

#[test]
fn keys_reach_their_lanes() {
    let t = topology();
    assert_eq!(reaches(&t, "paceline", "critical.gmail.com"), ["paceline.lane.critical.google"]);
    assert_eq!(reaches(&t, "paceline", "low.yahoo.com"), ["paceline.lane.low.yahoo"]);
    assert_eq!(reaches(&t, "paceline.tail", "normal.#"), ["paceline.lane.normal.tail"]);
    assert_eq!(reaches(&t, "paceline.lanes", "high.google"), ["paceline.lane.high.google"]);
    assert_eq!(reaches(&t, "paceline.lanes", "high.tail"), ["paceline.lane.high.tail"]);
    assert_eq!(reaches(&t, "paceline.delay.8s", ""), ["paceline.delay.8s"]);
    assert!(reaches(&t, "paceline", "critical.example.com").is_empty());
    let distinct: BTreeSet<_> = t.bindings.iter().collect();
    assert_eq!(distinct.len(), t.bindings.len());
}

#[test]
fn another_prefix_renames_everything() {
    let t = Topology::new("mail.eu", [("google", ["gmail.com"])]);
    let own = |name: &str| name == "mail.eu" || name.starts_with("mail.eu.");
    assert!(t.exchanges.iter().all(|e| own(&e.name) && e.alternate.as_deref().is_none_or(own)));
    assert!(t.queues.iter().all(|q| own(&q.name)));
    assert!(t.bindings.iter().all(|b| own(&b.exchange) && own(&b.queue)));
}

#[test]
fn a_moved_domain_and_a_dropped_lane_are_seen() {
    let before = Manifest::of(&topology());
    let after = Manifest::of(&Topology::new("paceline", [("google", ["gmail.com", "yahoo.com"])]));
    let stale = before.stale_bindings(&after);
    let low: Vec<_> = stale.iter().filter(|b| b.key.starts_with("low.")).map(|b| b.key.as_str()).collect();
    assert_eq!(low, ["low.googlemail.com", "low.yahoo.com", "low.yahoo"]);
    assert_eq!(before.stale_lanes(&after).len(), 4);
    assert!(after.stale_lanes(&after).is_empty() && after.stale_bindings(&after).is_empty());
}
