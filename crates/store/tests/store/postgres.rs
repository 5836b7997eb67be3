//! What only PostgreSQL goes through.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use paceline_store::{
    DeadLetters as _, Error, Filter, JobKind, Jobs as _, Options, Ping as _, PostgresStore, State, Store, Written,
};
use paceline_testkit::Postgres;

use crate::stage::{Stage, at, bare, conformance, entry, order, stored};

struct Server {
    server: Postgres,
    last: Mutex<String>,
}

#[async_trait]
impl Stage for Server {
    async fn empty(&self) -> Arc<dyn Store> {
        let url = self.server.database().await;
        *self.last.lock().unwrap() = url;
        self.another().await
    }

    async fn another(&self) -> Arc<dyn Store> {
        let url = self.last.lock().unwrap().clone();
        Arc::new(open(&url))
    }

    async fn sql(&self, sql: &str) -> String {
        let url = self.last.lock().unwrap().clone();
        self.server.sql(&url, sql).await.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_conforms() {
    let server = Postgres::start().await;
    conformance(&Server { last: Mutex::new(server.url()), server }).await;
}

fn open(url: &str) -> PostgresStore {
    PostgresStore::new(url, Options::default()).unwrap()
}

#[tokio::test]
async fn times_are_exact_on_the_servers_side_too() {
    let server = Postgres::start().await;
    open(&server.url()).insert(&[stored(entry("full", at(123_457)), b"{}")]).await.unwrap();
    let text = server.sql(&server.url(), "select died_at at time zone 'utc' from dead_letters where id = 'full'").await;
    assert_eq!(text.trim(), "2027-01-15 08:00:00.123457");
}

#[tokio::test]
async fn eight_processes_may_start_at_once() {
    let server = Postgres::start().await;
    let url = server.url();
    let starts = (0..8).map(|i| {
        let url = url.clone();
        tokio::spawn(async move {
            let store = open(&url);
            store.insert(&[stored(bare(&i.to_string(), at(0)), b"")]).await
        })
    });
    for start in starts.collect::<Vec<_>>() {
        assert_eq!(start.await.unwrap().unwrap(), [Written::New]);
    }
    assert_eq!(open(&url).list(&Filter::default()).await.unwrap().len(), 8);
    assert_eq!(server.sql(&url, "select count(*) from paceline_migrations").await.trim(), "6");
}

#[tokio::test]
async fn a_role_without_the_right_to_create_tables_works_on_a_current_schema() {
    let server = Postgres::start().await;
    let url = server.url();
    server.sql(&url, "create role reader login").await;
    server.sql(&url, "revoke create on schema public from public").await;
    let reader = open(&url.replace("postgres@", "reader@"));
    let before = reader.ping().await.unwrap_err();
    assert!(matches!(before, Error::Misconfigured(_)), "{}", before.in_full());
    open(&url).migrate().await.unwrap();
    server.sql(&url, "grant select on all tables in schema public to reader").await;
    assert!(reader.list(&Filter::default()).await.unwrap().is_empty());
    let refused = reader.insert(&[stored(bare("x", at(0)), b"")]).await.unwrap_err();
    assert!(matches!(refused, Error::Misconfigured(_)), "{}", refused.in_full());
}

#[tokio::test]
async fn a_database_away_is_told_within_bounds_and_found_again() {
    let server = Postgres::start().await;
    server.stop().await;
    let options = Options {
        acquire_timeout: Duration::from_secs(1),
        call_timeout: Duration::from_secs(2),
        migrate_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let store = PostgresStore::new(&server.url(), options).unwrap();
    let letter = [stored(bare("a", at(0)), b"1")];
    let away = |result: Result<(), Error>| match result.unwrap_err() {
        Error::Unavailable(_) => {}
        other => panic!("{}", other.in_full()),
    };
    away(store.ping().await);
    away(store.insert(&letter).await.map(|_| ()));
    server.start_again().await;
    assert_eq!(store.insert(&letter).await.unwrap(), [Written::New]);
    server.kill9().await;
    away(store.list(&Filter::default()).await.map(|_| ()));
    server.start_again().await;
    assert_eq!(store.insert(&letter).await.unwrap(), [Written::Known]);
    // Frozen: connections stand and nothing answers.
    server.freeze();
    away(store.ping().await);
    away(store.insert(&[stored(bare("b", at(0)), b"2")]).await.map(|_| ()));
    server.thaw();
    store.insert(&[stored(bare("b", at(0)), b"2")]).await.unwrap();
    assert_eq!(store.list(&Filter::default()).await.unwrap().len(), 2);

    let nowhere = open(&server.url().replace("/paceline", "/no_such_database"));
    assert!(matches!(nowhere.ping().await, Err(Error::Misconfigured(_))));
    // This server speaks no TLS.
    let encrypted = open(&format!("{}?sslmode=require", server.url()));
    let refused = encrypted.ping().await.unwrap_err();
    assert!(matches!(refused, Error::Misconfigured(_)) && refused.in_full().contains("sslmode"), "{}", refused.in_full());
}

#[tokio::test]
async fn a_database_of_the_first_version_is_upgraded_with_its_rows() {
    let server = Postgres::start().await;
    let url = server.url();
    let store = open(&url);
    store.migrate().await.unwrap();
    store.insert(&[stored(entry("old", at(0)), b"1")]).await.unwrap();
    store.close().await;
    // Back to what the first migration alone had made.
    for step in [
        "drop table dead_letter_jobs, dead_letter_job_items, operator_audit, directives, directive_versions, suppressions, learnt, \
         quotas",
        "drop index dead_letters_refused",
        "alter table dead_letters drop column settled, drop column settled_at, drop column job",
        "delete from paceline_migrations where version > 1",
    ] {
        server.sql(&url, step).await;
    }
    let columns = "select count(*) from information_schema.columns where table_name = 'dead_letters'";
    assert_eq!(server.sql(&url, columns).await.trim(), "26");

    let store = open(&url);
    store.insert(&[stored(entry("new", at(1)), b"2")]).await.unwrap();
    let states: Vec<_> =
        store.list(&Filter::default()).await.unwrap().into_iter().map(|l| (l.entry.id, l.status.state)).collect();
    assert_eq!(states, [("new".to_owned(), State::Open), ("old".to_owned(), State::Open)]);
    let job = store.create(&order(JobKind::Discard, Filter::default())).await.unwrap().unwrap();
    assert_eq!(job.total, 2);
    assert_eq!(server.sql(&url, "select count(*) from paceline_migrations").await.trim(), "6");
}
