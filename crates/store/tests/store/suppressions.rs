//! The suppression list.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use paceline_core::{
    Domain, EmailAddress, Reason, Timestamp,
    suppression::{Entry, Kind, listed_form},
};
use paceline_store::{Error, Merged, NewSuppression, Order, Store, Suppression, SuppressionFilter, Trail};

use crate::stage::{Stage, at, entry, stored, until};

fn from_now(d: Duration) -> Timestamp {
    Timestamp::from(SystemTime::now()) + d
}

const DAY: Duration = Duration::from_secs(86_400);

fn address(text: &str) -> EmailAddress {
    EmailAddress::parse(text).unwrap()
}

fn hard(text: &str) -> NewSuppression {
    NewSuppression {
        address: address(text),
        kind: Kind::Hard,
        reason: "bounce".to_owned(),
        source: Some("ses-eu".to_owned()),
        note: None,
        by: "ada".to_owned(),
        until: None,
        created_at: None,
    }
}

fn soft(text: &str, until: Option<Timestamp>) -> NewSuppression {
    NewSuppression { kind: Kind::Soft, reason: "mailbox_full".to_owned(), until, ..hard(text) }
}

async fn add(store: &dyn Store, new: NewSuppression) -> Merged {
    store.suppress(&[new], None).await.unwrap()[0]
}

async fn of(store: &dyn Store, text: &str) -> Suppression {
    store.suppression(&address(text)).await.unwrap().unwrap()
}

async fn listed(store: &dyn Store, filter: &SuppressionFilter) -> Vec<String> {
    let all = store.suppressions(filter, Order::Latest, None, 10_000).await.unwrap();
    all.into_iter().map(|s| s.address).collect()
}

/// What a worker knows, that follows the changes from `version` on.
async fn follow(store: &dyn Store, known: &mut BTreeMap<String, Entry>, version: i64, page: u32) -> i64 {
    let mut version = version;
    loop {
        let read = store.suppression_changes(version, page).await.unwrap();
        assert!(read.version >= version && read.changes.len() <= page as usize);
        version = read.version;
        for change in read.changes {
            match change.entry {
                Some(entry) => known.insert(change.address, entry),
                None => known.remove(&change.address),
            };
        }
        if !read.more {
            return version;
        }
    }
}

pub(crate) async fn an_address_is_listed_once_by_its_firmest_entry(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    assert_eq!(store.suppression(&address("u@x.org")).await.unwrap(), None);
    let (soon, later) = (from_now(DAY), from_now(3 * DAY));
    assert_eq!(add(&*store, soft("U@x.org", Some(soon))).await, Merged::Added);
    assert_eq!(add(&*other, soft("u@X.org", Some(soon))).await, Merged::Known);
    assert_eq!(add(&*other, soft("u@x.org", Some(later))).await, Merged::Extended);
    assert_eq!(add(&*other, soft("u@x.org", Some(soon))).await, Merged::Known, "nothing ends sooner by being said twice");
    let one = of(&*store, "u@x.org").await;
    assert_eq!((one.address.as_str(), one.kind, one.until), ("u@x.org", Kind::Soft, Some(later)));
    assert_eq!((one.reason.as_str(), one.source.as_deref(), one.by.as_str()), ("mailbox_full", Some("ses-eu"), "ada"));

    let firmer = NewSuppression { until: Some(soon), note: Some("5.1.1".to_owned()), by: "bob".to_owned(), ..hard("u@x.org") };
    assert_eq!(add(&*store, firmer).await, Merged::Hardened);
    let one = of(&*other, "u@x.org").await;
    assert_eq!(
        (one.kind, one.reason.as_str(), one.by.as_str(), one.note.as_deref()),
        (Kind::Hard, "bounce", "bob", Some("5.1.1"))
    );
    assert_eq!(one.until, Some(later), "the later end counts");
    assert_eq!(add(&*store, soft("u@x.org", None)).await, Merged::Known, "a weaker one changes nothing");
    assert_eq!(add(&*store, hard("u@x.org")).await, Merged::Extended);
    let one = of(&*store, "u@x.org").await;
    assert_eq!((one.until, one.by.as_str()), (None, "bob"), "first said, only longer");

    // Several words about one address in one call: as if said one after the other.
    let said = store.suppress(&[soft("v@x.org", None), hard("V@x.org"), hard("v@x.org")], None).await.unwrap();
    assert_eq!(said, [Merged::Added, Merged::Hardened, Merged::Known]);
    assert_eq!(of(&*store, "v@x.org").await.kind, Kind::Hard);
    let old = NewSuppression { created_at: Some(at(-5_000_000)), ..hard("w@x.org") };
    add(&*store, NewSuppression { note: Some("a\0b".to_owned()), ..old.clone() }).await;
    let one = of(&*store, "w@x.org").await;
    assert!(one.created_at <= from_now(Duration::ZERO) && one.note.as_deref() == Some("a\u{fffd}b"), "{one:?}");

    for reason in ["", "Bounce", "a b", "ä", &"x".repeat(65)] {
        let refused =
            store.suppress(&[hard("ok@x.org"), NewSuppression { reason: reason.to_owned(), ..old.clone() }], None).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{reason}: {refused:?}");
    }
    assert_eq!(store.suppression(&address("ok@x.org")).await.unwrap(), None, "all or none");
    let odd = "ÉCOLE+tag@bücher.example";
    assert_eq!(add(&*store, hard(odd)).await, Merged::Added);
    assert_eq!(of(&*store, "école+tag@xn--bcher-kva.example").await.address, listed_form(&address(odd)));
    assert_eq!(store.suppress(&[], None).await.unwrap(), []);
}

pub(crate) async fn an_entry_ends_and_a_later_one_takes_its_place(stage: &dyn Stage) {
    let store = stage.empty().await;
    let yesterday = Some(from_now(Duration::ZERO) - DAY);
    add(&*store, NewSuppression { until: yesterday, ..hard("u@x.org") }).await;
    assert_eq!(listed(&*store, &SuppressionFilter::default()).await, [""; 0]);
    let ended = SuppressionFilter { ended: true, ..SuppressionFilter::default() };
    assert_eq!(listed(&*store, &ended).await, ["u@x.org"]);
    assert_eq!(store.unsuppress(&[address("u@x.org")], "ada", None).await.unwrap(), [false], "it was not in force");
    add(&*store, NewSuppression { until: yesterday, ..hard("u@x.org") }).await;
    assert_eq!(add(&*store, soft("u@x.org", None)).await, Merged::Added, "what has ended counts for nothing");
    assert_eq!(of(&*store, "u@x.org").await.kind, Kind::Soft);
}

pub(crate) async fn who_is_taken_off_is_off(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    store.suppress(&[hard("a@x.org"), hard("b@x.org")], None).await.unwrap();
    let off = other.unsuppress(&[address("A@x.org"), address("nobody@x.org")], "bob", Some("asked for it")).await.unwrap();
    assert_eq!(off, [true, false]);
    assert_eq!(store.suppression(&address("a@x.org")).await.unwrap(), None);
    assert_eq!(listed(&*store, &SuppressionFilter { ended: true, ..SuppressionFilter::default() }).await, ["b@x.org"]);
    assert_eq!(store.unsuppress(&[address("a@x.org")], "bob", None).await.unwrap(), [false]);
    assert_eq!(add(&*store, soft("a@x.org", None)).await, Merged::Added);
    assert_eq!(of(&*other, "a@x.org").await.kind, Kind::Soft);
    let told = store.audit(Some("a@x.org"), 10).await.unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (told[0].action.as_str(), told[0].by.as_str(), told[0].note.as_deref()),
        ("suppression.removed", "bob", Some("asked for it"))
    );
    assert_eq!(store.unsuppress(&[], "bob", None).await.unwrap(), [false; 0]);
}

pub(crate) async fn every_filter_selects(stage: &dyn Stage) {
    let store = stage.empty().await;
    let old = NewSuppression { created_at: Some(Timestamp::from_secs(1_700_000_000)), ..hard("old@x.org") };
    let full = NewSuppression { source: None, ..soft("full@sub.x.org", Some(from_now(DAY))) };
    let odd = NewSuppression { reason: "complaint".to_owned(), source: Some("it's \"é\"".to_owned()), ..hard("o'dd@a_b.org") };
    store.suppress(&[old, full, odd, hard("x@axb.org")], None).await.unwrap();
    let f = SuppressionFilter::default;
    let domain = |text: &str| Some(Domain::parse(text).unwrap());
    let then = Some(Timestamp::from_secs(1_750_000_000));
    for (filter, want) in [
        (f(), vec!["full@sub.x.org", "o'dd@a_b.org", "old@x.org", "x@axb.org"]),
        (SuppressionFilter { kind: Some(Kind::Soft), ..f() }, vec!["full@sub.x.org"]),
        (SuppressionFilter { reason: Some("complaint".to_owned()), ..f() }, vec!["o'dd@a_b.org"]),
        (SuppressionFilter { source: Some("it's \"é\"".to_owned()), ..f() }, vec!["o'dd@a_b.org"]),
        (SuppressionFilter { domain: domain("x.org"), ..f() }, vec!["old@x.org"]),
        (SuppressionFilter { domain: domain("a_b.org"), ..f() }, vec!["o'dd@a_b.org"]),
        (SuppressionFilter { address: Some(address("OLD@x.org")), ..f() }, vec!["old@x.org"]),
        (SuppressionFilter { until: then, ..f() }, vec!["old@x.org"]),
        (SuppressionFilter { since: then, kind: Some(Kind::Hard), ..f() }, vec!["o'dd@a_b.org", "x@axb.org"]),
        (SuppressionFilter { source: Some("a\0b".to_owned()), ..f() }, vec![]),
    ] {
        let mut got = listed(&*store, &filter).await;
        got.sort();
        assert_eq!(got, want, "{filter:?}");
    }
    let json = serde_json::to_value(of(&*store, "o'dd@a_b.org").await).unwrap();
    assert_eq!((&json["kind"], &json["reason"], &json["until"]), (&"hard".into(), &"complaint".into(), &serde_json::Value::Null));
    assert!(json.get("version").is_none());
}

pub(crate) async fn pages_lead_through_all(stage: &dyn Stage) {
    let store = stage.empty().await;
    let many: Vec<_> = (0..2500).map(|i| hard(&format!("u{i}@x.org"))).collect();
    assert_eq!(store.suppress(&many, None).await.unwrap(), [Merged::Added; 2500]);
    for order in [Order::Latest, Order::Earliest] {
        let (mut seen, mut after) = (BTreeSet::new(), None);
        loop {
            let page = store.suppressions(&SuppressionFilter::default(), order, after, 700).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.version);
            if order == Order::Earliest && seen.is_empty() {
                // What changes between two pages comes again, and hides nothing.
                add(&*store, soft("late@x.org", None)).await;
                store.unsuppress(&[address("late@x.org")], "ada", None).await.unwrap();
            }
            for entry in page {
                assert!(seen.insert(entry.address));
            }
        }
        assert_eq!(seen.len(), 2500, "{order:?}");
    }
}

pub(crate) async fn workers_learn_every_change(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    let mut known = BTreeMap::new();
    let first = follow(&*other, &mut known, 0, 100).await;
    assert_eq!((known.len(), first), (0, other.suppressions_version().await.unwrap()));
    let many: Vec<_> = (0..250).map(|i| hard(&format!("u{i}@x.org"))).collect();
    store.suppress(&many, None).await.unwrap();
    assert!(other.suppressions_version().await.unwrap() > first);
    let second = follow(&*other, &mut known, first, 100).await;
    assert_eq!((known.len(), second), (250, other.suppressions_version().await.unwrap()));

    store.suppress(&many, None).await.unwrap();
    assert_eq!(other.suppressions_version().await.unwrap(), second, "nothing changed");
    store.unsuppress(&[address("u7@x.org")], "ada", None).await.unwrap();
    let end = from_now(DAY);
    add(&*store, soft("new@x.org", Some(end))).await;
    let changes = other.suppression_changes(second, 100).await.unwrap();
    assert_eq!((changes.changes.len(), changes.more), (2, false), "only what changed");
    follow(&*other, &mut known, second, 1).await;
    let mut anew = BTreeMap::new();
    follow(&*store, &mut anew, 0, 100).await;
    assert_eq!(known, anew);
    assert!(!known.contains_key("u7@x.org"));
    assert_eq!(known["new@x.org"], Entry { kind: Kind::Soft, until: Some(end) });
}

pub(crate) async fn what_was_removed_long_ago_is_forgotten(stage: &dyn Stage) {
    let store = stage.empty().await;
    store.suppress(&[hard("a@x.org"), hard("b@x.org"), soft("c@x.org", Some(from_now(DAY)))], None).await.unwrap();
    let before = store.suppressions_version().await.unwrap();
    store.unsuppress(&[address("a@x.org")], "ada", None).await.unwrap();
    let removed = store.suppressions_version().await.unwrap();
    assert_eq!(store.suppression_changes(before, 10).await.unwrap().forgotten, 0);
    // A month passes.
    let long_ago = "update suppressions set removed_at = created_at where removed_at is not null";
    let set_back = if stage.sql("select cast(created_at as text) from suppressions limit 1").await.contains('-') {
        "update suppressions set removed_at = removed_at - interval '30 days', until = until - interval '30 days'"
    } else {
        "update suppressions set removed_at = removed_at - 2592000000000, until = until - 2592000000000"
    };
    stage.sql(long_ago).await;
    stage.sql(set_back).await;
    add(&*store, hard("d@x.org")).await;
    let count = stage.sql("select cast(count(*) as text) from suppressions").await;
    assert_eq!(count, "2", "the mark of the removal and what has ended are gone");
    let changes = store.suppression_changes(before, 10).await.unwrap();
    assert_eq!(changes.forgotten, removed, "whoever knows less begins anew");
    assert!(store.suppression_changes(removed, 10).await.unwrap().forgotten <= removed);
}

pub(crate) async fn many_at_once_lose_nothing(stage: &dyn Stage) {
    let store = stage.empty().await;
    let mut adding = Vec::new();
    for n in 0..6u32 {
        let store = stage.another().await;
        adding.push(tokio::spawn(async move {
            for i in 0..20u32 {
                // Half of them are said by everybody.
                let own = hard(&format!("own{n}-{i}@x.org"));
                store.suppress(&[hard(&format!("shared{i}@x.org")), own], None).await.unwrap();
            }
        }));
    }
    // A worker that follows meanwhile misses none.
    let (mut known, mut version) = (BTreeMap::new(), 0);
    until("all are known", async || {
        version = follow(&*store, &mut known, version, 7).await;
        known.len() == 140
    })
    .await;
    for one in adding {
        one.await.unwrap();
    }
    assert_eq!(listed(&*store, &SuppressionFilter::default()).await.len(), 140);
}

pub(crate) async fn an_order_leaves_one_trail(stage: &dyn Stage) {
    let store = stage.empty().await;
    let order = |action| Trail::new(action, "ada".to_owned(), Some("moved house".to_owned()), Some("old-list.txt".to_owned()));
    let mut import = order(Trail::IMPORTED);
    for from in [0, 150] {
        let portion: Vec<_> = (from..from + 200).map(|i| hard(&format!("u{i}@x.org"))).collect();
        store.suppress(&portion, Some(&mut import)).await.unwrap();
    }
    let [entry] = &store.audit(Some("suppressions"), 10).await.unwrap()[..] else { panic!("one entry for the whole import") };
    assert_eq!(
        (entry.action.as_str(), entry.by.as_str(), entry.note.as_deref()),
        ("suppression.imported", "ada", Some("moved house"))
    );
    assert_eq!((&entry.detail["added"], &entry.detail["known"]), (&350.into(), &50.into()));
    assert_eq!(entry.detail["source"], "old-list.txt");
    store.suppress(&[soft("One@x.org", None)], Some(&mut order(Trail::ADDED))).await.unwrap();
    let [entry] = &store.audit(Some("one@x.org"), 10).await.unwrap()[..] else { panic!("not told under its address") };
    assert_eq!((entry.action.as_str(), &entry.detail["result"]), ("suppression.added", &"added".into()));
    add(&*store, hard("silent@x.org")).await;
    assert_eq!(store.audit(None, 10).await.unwrap().len(), 2, "what no operator ordered is no audit entry");
}

pub(crate) async fn refusals_are_counted_by_address(stage: &dyn Stage) {
    let store = stage.empty().await;
    let refused = |id: &str, to: &str, us: i64, reason: Reason| {
        let mut entry = entry(id, at(us));
        (entry.to, entry.reason) = (Some(to.to_owned()), reason);
        stored(entry, b"{}")
    };
    let letters = [
        refused("1", "U@x.org", 10, Reason::RejectedRecipient),
        refused("2", "u@x.org", 20, Reason::RejectedRecipient),
        refused("3", "u@x.org", 30, Reason::Expired),
        refused("4", "u@x.org", 1, Reason::RejectedRecipient),
        refused("5", "v@x.org", 30, Reason::RejectedRecipient),
    ];
    store.insert(&letters).await.unwrap();
    let who = ["u@X.org", "nobody@x.org", "v@x.org"].map(address);
    assert_eq!(store.refusals(&who, at(10)).await.unwrap(), [2, 0, 1]);
}
