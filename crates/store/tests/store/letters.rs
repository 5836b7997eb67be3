//! Dead letters: kept as they were, found, counted.

use std::time::Duration;
use std::time::Instant;

use paceline_core::{Class, DeadLetter, Reason, Timestamp, dead_letter::DeadLetterError};
use paceline_store::{Burst, BurstKind, BurstRule, Error, Filter, StoredDeadLetter, Written};
use serde_json::json;

use crate::stage::{Stage, at, bare, entry, stored};

pub(crate) async fn an_entry_comes_back_as_it_was(stage: &dyn Stage) {
    let store = stage.empty().await;
    let full = StoredDeadLetter {
        amqp_message_id: Some("amqp-1".to_owned()),
        content_type: Some("application/json".to_owned()),
        headers: json!({"x-a": 7, "x-b": {"base64": "/w=="}, "x-c": "é", "x-d": true}).as_object().unwrap().clone(),
        ..stored(entry("full", at(123_457)), b"{}")
    };
    let ends = DeadLetter {
        enqueued_at: Timestamp::from_micros(1),
        died_at: Timestamp::MAX,
        first_attempt_at: Some(Timestamp::from_micros(Timestamp::MAX.as_micros() - 1)),
        attempts: u32::MAX,
        last_error: Some(DeadLetterError { code: String::new(), http_status: Some(u16::MAX), provider_message: String::new() }),
        ..bare("ends", at(0))
    };
    let letters = [full, stored(bare("bare", at(0)), b""), stored(ends, b"x")];
    assert_eq!(store.insert(&letters).await.unwrap(), [Written::New; 3]);
    for letter in &letters {
        assert_eq!(store.get(&letter.entry.id).await.unwrap().as_ref(), Some(letter));
    }
    assert_eq!(store.get("nobody").await.unwrap(), None);
    assert_eq!(store.insert(&[]).await.unwrap(), []);
}

pub(crate) async fn bodies_are_kept_byte_for_byte(stage: &dyn Stage) {
    let store = stage.empty().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..10_485_760u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let bodies: [&[u8]; 5] = [b"", b"\0\0", b"{\"id\":\"\xff\"}", &every_byte, &large];
    let letters: Vec<_> = bodies.iter().enumerate().map(|(i, b)| stored(bare(&i.to_string(), at(0)), b)).collect();
    store.insert(&letters).await.unwrap();
    for letter in &letters {
        assert!(store.get(&letter.entry.id).await.unwrap().unwrap().body == letter.body, "{}", letter.entry.id);
    }
}

pub(crate) async fn an_id_is_stored_once_and_a_stolen_one_is_told(stage: &dyn Stage) {
    let store = stage.empty().await;
    let (a, b, stolen) = (stored(bare("a", at(0)), b"1"), stored(bare("b", at(0)), b"2"), stored(bare("a", at(9)), b"other"));
    assert_eq!(store.insert(&[b.clone(), a.clone(), b.clone()]).await.unwrap(), [Written::New, Written::New, Written::Known]);
    let again = store.insert(&[stolen.clone(), a.clone(), stored(bare("c", at(0)), b"3")]).await.unwrap();
    assert_eq!(again, [Written::IdTaken, Written::Known, Written::New]);
    assert_eq!(store.get("a").await.unwrap().unwrap(), a, "the first stays");
    let twins = [stored(bare("d", at(0)), b"4"), stored(bare("d", at(0)), b"5")];
    assert_eq!(store.insert(&twins).await.unwrap(), [Written::New, Written::IdTaken]);
}

pub(crate) async fn hostile_text_is_stored_bounded(stage: &dyn Stage) {
    let store = stage.empty().await;
    // Pseudo-random, so that compression does not hide a row too large for an index.
    let mut x = 1u64;
    let mut long = String::new();
    while long.len() < 100_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        long.extend(char::from_u32(0x4e00 + (x >> 40) as u32 % 20_000));
    }
    let nul = "a\0b; drop table dead_letters; --'".to_owned();
    for (id, text) in [("long", &long), ("nul", &nul)] {
        let hostile = DeadLetter {
            message_id: Some(text.clone()),
            to: Some(text.clone()),
            destination: Some(text.clone()),
            domain: Some(text.clone()),
            account: Some(text.clone()),
            tenant: Some(text.clone()),
            stream: Some(text.clone()),
            field: Some(text.clone()),
            detail: Some(text.clone()),
            replay: Some(text.clone()),
            last_error: Some(DeadLetterError { code: text.clone(), http_status: Some(429), provider_message: text.clone() }),
            ..bare(id, at(0))
        };
        let letter = StoredDeadLetter {
            amqp_message_id: Some(text.clone()),
            content_type: Some(text.clone()),
            headers: [(text.clone(), json!([text.clone()]))].into_iter().collect(),
            ..stored(hostile, text.as_bytes())
        };
        assert_eq!(store.insert(std::slice::from_ref(&letter)).await.unwrap(), [Written::New]);
        let back = store.get(id).await.unwrap().unwrap();
        assert_eq!(back.body, letter.body);
        assert!(back.entry.tenant.as_ref().unwrap().len() <= 512);
        // A filter is bounded in the same way, so the entry is still found.
        for filter in [
            Filter { tenant: Some(text.clone()), ..Filter::default() },
            Filter { destination: Some(text.clone()), ..Filter::default() },
            Filter { account: Some(text.clone()), ..Filter::default() },
            Filter { id: Some(text.clone()), ..Filter::default() },
        ] {
            assert_eq!(store.list(&filter).await.unwrap().len(), 1, "{filter:?}");
        }
        store.stats(&Filter::default(), &BurstRule { min: 1, ..BurstRule::default() }).await.unwrap();
    }
    for id in ["", "a\0", &"x".repeat(201)] {
        assert!(matches!(store.insert(&[stored(bare(id, at(0)), b"")]).await, Err(Error::Refused(_))), "{id:?}");
    }
}

pub(crate) async fn every_filter_selects(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = DeadLetter {
        reason: Reason::Expired,
        class: Some(Class::Low),
        destination: Some("tail".to_owned()),
        account: None,
        tenant: None,
        ..entry("other", at(10))
    };
    let twin = DeadLetter { message_id: Some("m-first".to_owned()), ..entry("twin", at(30)) };
    let letters = [stored(entry("first", at(20)), b""), stored(other, b""), stored(twin, b""), stored(bare("bare", at(40)), b"")];
    store.insert(&letters).await.unwrap();
    let text = |t: &str| Some(t.to_owned());
    let all = Filter::default();
    for (filter, want) in [
        (all.clone(), vec!["bare", "twin", "first", "other"]),
        (Filter { limit: Some(2), ..all.clone() }, vec!["bare", "twin"]),
        (Filter { limit: Some(0), ..all.clone() }, vec![]),
        (Filter { reason: Some(Reason::Expired), ..all.clone() }, vec!["other"]),
        (Filter { class: Some(Class::High), ..all.clone() }, vec!["twin", "first"]),
        (Filter { destination: text("tail"), ..all.clone() }, vec!["other"]),
        (Filter { account: text("ses-eu"), ..all.clone() }, vec!["twin", "first"]),
        (Filter { tenant: text("acme"), ..all.clone() }, vec!["twin", "first"]),
        (Filter { tenant: text("' or true --"), ..all.clone() }, vec![]),
        (Filter { since: Some(at(20)), ..all.clone() }, vec!["bare", "twin", "first"]),
        (Filter { until: Some(at(20)), ..all.clone() }, vec!["other"]),
        (Filter { since: Some(at(20)), until: Some(at(21)), ..all.clone() }, vec!["first"]),
        (Filter { id: text("twin"), ..all.clone() }, vec!["twin"]),
        (Filter { id: text("m-first"), ..all.clone() }, vec!["twin", "first"]),
        (Filter { class: Some(Class::High), id: text("m-first"), until: Some(at(25)), ..all.clone() }, vec!["first"]),
    ] {
        let got: Vec<String> = store.list(&filter).await.unwrap().into_iter().map(|e| e.entry.id).collect();
        assert_eq!(got, want, "{filter:?}");
        assert_eq!(store.stats(&filter, &BurstRule::default()).await.unwrap().total, want.len() as u64, "{filter:?}");
    }
}

pub(crate) async fn stats_count_and_show_bursts(stage: &dyn Stage) {
    const SECOND: i64 = 1_000_000;
    let store = stage.empty().await;
    let failed = |id: String, domain: &str, status: u16, us: i64| {
        let last_error = DeadLetterError { code: "x".to_owned(), http_status: Some(status), provider_message: String::new() };
        let e = DeadLetter { domain: Some(domain.to_owned()), last_error: Some(last_error), ..entry(&id, at(us)) };
        stored(e, b"")
    };
    let mut letters = Vec::new();
    for i in 0..12i64 {
        letters.push(failed(format!("a{i}"), "gmail.com", 429, i * 60 * SECOND)); // each exactly the gap apart: one burst
        letters.push(failed(format!("b{i}"), "gmail.com", 500 + i as u16, i * SECOND)); // 5xx of the same domain: its own
        letters.push(failed(format!("c{i}"), "slow.example", 503, i * 61 * SECOND)); // too far apart
        letters.push(failed(format!("d{i}"), "ok.example", 404, i)); // another status
    }
    letters.extend((0..9).map(|i| failed(format!("e{i}"), "few.example", 429, i))); // too few
    letters.extend((0..10).map(|i| failed(format!("f{i}"), "gmail.com", 429, 3600 * SECOND + i))); // a second burst
    letters.push(stored(bare("g", at(5)), b""));
    store.insert(&letters).await.unwrap();

    let stats = store.stats(&Filter::default(), &BurstRule::default()).await.unwrap();
    assert_eq!(stats.total, 68);
    assert_eq!((stats.oldest, stats.newest), (Some(at(0)), Some(at(3600 * SECOND + 9))));
    let by_reason: Vec<_> = stats.by_reason.iter().map(|r| (r.reason, r.count)).collect();
    assert_eq!(by_reason, [(Reason::RetryBudgetExhausted, 67), (Reason::InvalidMessage, 1)]);
    let counts: Vec<_> = stats.counts.iter().map(|c| (c.domain.as_deref(), c.destination.as_deref(), c.count)).collect();
    assert_eq!(
        counts,
        [
            (Some("gmail.com"), Some("google"), 34),
            (Some("slow.example"), Some("google"), 12),
            (Some("ok.example"), Some("google"), 12),
            (Some("few.example"), Some("google"), 9),
            (None, None, 1),
        ]
    );
    let burst = |kind, count, from: i64, to: i64| Burst {
        kind,
        destination: Some("google".to_owned()),
        domain: "gmail.com".to_owned(),
        count,
        started_at: at(from),
        ended_at: at(to),
    };
    let (throttled, broken) = (BurstKind::TooManyRequests, BurstKind::ServerError);
    assert_eq!(
        stats.bursts,
        [
            burst(throttled, 10, 3600 * SECOND, 3600 * SECOND + 9),
            burst(throttled, 12, 0, 11 * 60 * SECOND),
            burst(broken, 12, 0, 11 * SECOND),
        ]
    );
    assert_eq!(serde_json::to_value(&stats.bursts[0]).unwrap()["kind"], "429");
    let all_of_it = BurstRule { gap: Duration::MAX, min: 1 };
    assert_eq!(store.stats(&Filter::default(), &all_of_it).await.unwrap().bursts.len(), 4);
}

pub(crate) async fn ten_thousand_entries_are_written_and_counted_in_seconds(stage: &dyn Stage) {
    let store = stage.empty().await;
    store.ping().await.unwrap();
    let body = vec![b'x'; 2000];
    let begun = Instant::now();
    for batch in 0..50i64 {
        let letters: Vec<_> = (0..200).map(|i| stored(entry(&format!("{batch}-{i}"), at(batch * 200 + i)), &body)).collect();
        assert_eq!(store.insert(&letters).await.unwrap(), [Written::New; 200]);
    }
    let written = begun.elapsed();
    let stats = store.stats(&Filter::default(), &BurstRule::default()).await.unwrap();
    assert_eq!((stats.total, stats.bursts.len()), (10_000, 1));
    println!("10,000 entries: written in {written:?}, counted in {:?}", begun.elapsed() - written);
}
