//! `dlq list|show|stats` against a PostgreSQL of their own.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use paceline_core::{Class, DeadLetter, Journey, Reason, Timestamp, dead_letter::DeadLetterError};
use paceline_store::{DeadLetters, Options, PostgresStore, StoredDeadLetter};
use paceline_testkit::Postgres;
use support::{Said, ops, paceline_in};

fn letter(n: u32, reason: Reason, destination: &str) -> StoredDeadLetter {
    let at = Timestamp::from(std::time::SystemTime::now()) - std::time::Duration::from_secs(u64::from(n) * 60);
    StoredDeadLetter {
        entry: DeadLetter {
            message_id: Some(format!("m-{n}")),
            to: Some("user@gmail.com".into()),
            class: Some(Class::High),
            destination: Some(destination.into()),
            domain: Some("gmail.com".into()),
            account: Some("main".into()),
            last_error: Some(DeadLetterError {
                code: "rate_limited".into(),
                http_status: Some(429),
                provider_message: "slow down".into(),
            }),
            ..DeadLetter::new(format!("d-{n}"), reason, &Journey::starting(at), at)
        },
        amqp_message_id: None,
        content_type: Some("application/json".into()),
        headers: serde_json::Map::new(),
        body: Bytes::from(format!("{{\"n\":{n}}}")),
    }
}

async fn paceline(url: &str, arguments: &[&str]) -> Said {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let url = url.to_owned();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        paceline_in(&ops(), &arguments, &[("PACELINE__STORE__URL", &url)], "")
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn list_show_stats() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let said = paceline(&url, &["dlq", "list", "--output", "json"]).await;
    assert_eq!((said.status, said.stdout.as_str()), (0, "[]\n"), "{said:?}");
    let store = PostgresStore::new(&url, Options::default()).unwrap();
    let letters: Vec<_> = (0..150)
        .map(|n| match n % 3 {
            0 => letter(n, Reason::RetryBudgetExhausted, "google"),
            1 => letter(n, Reason::Expired, "google"),
            _ => letter(n, Reason::RejectedRecipient, "tail"),
        })
        .collect();
    store.insert(&letters).await.unwrap();
    store.close().await;

    let count = |said: &Said| said.json().as_array().unwrap().len();
    for (filters, want) in [
        (&[][..], 100),
        (&["--limit", "1000"], 150),
        (&["--reason", "expired"], 50),
        (&["--destination", "google", "--limit", "500"], 100),
        (&["--reason", "expired", "--destination", "tail"], 0),
        (&["--class", "low"], 0),
        (&["--account", "main", "--limit", "3"], 3),
        (&["--tenant", "acme"], 0),
        (&["--id", "m-7"], 1),
        (&["--id", "d-7"], 1),
        (&["--until", "100min", "--limit", "1000"], 50),
        (&["--since", "2999-01-01T00:00:00Z"], 0),
    ] {
        let said = paceline(&url, &[&["dlq", "list", "--output", "json"], filters].concat()).await;
        assert_eq!((said.status, count(&said)), (0, want), "{filters:?}");
    }
    let said = paceline(&url, &["dlq", "list", "--limit", "1"]).await;
    assert!(said.stdout.starts_with("ID ") && said.stdout.contains("429 rate_limited: slow down"), "{said:?}");

    let shown = paceline(&url, &["dlq", "show", "m-7", "--output", "json"]).await.json();
    assert_eq!((&shown["id"], &shown["body"], &shown["reason"]), (&"d-7".into(), &"{\"n\":7}".into(), &"expired".into()));
    let said = paceline(&url, &["dlq", "show", "m-7"]).await;
    assert!(said.stdout.contains("provider_message") && said.stdout.trim_end().ends_with("{\"n\":7}"), "{said:?}");
    let said = paceline(&url, &["dlq", "show", "nobody"]).await;
    assert!(said.status == 1 && said.stderr.contains("no dead letter matches nobody"), "{said:?}");
    assert_eq!(paceline(&url, &["dlq", "show", "m-7", "--reason", "poison"]).await.status, 1);

    let stats = paceline(&url, &["dlq", "stats", "--output", "json"]).await.json();
    assert_eq!((&stats["total"], stats["by_reason"].as_array().unwrap().len()), (&150.into(), 3));
    let said = paceline(&url, &["dlq", "stats"]).await;
    assert!(said.stdout.starts_with("150 dead letters\n") && said.stdout.contains("gmail.com"), "{said:?}");

    postgres.stop().await;
    let said = paceline(&url, &["dlq", "list"]).await;
    assert!(said.status == 1 && said.stderr.contains("the store does not answer"), "{said:?}");
}
