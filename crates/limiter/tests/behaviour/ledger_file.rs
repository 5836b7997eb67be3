//! What the ledger in a file still knows when it is opened again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use paceline_limiter::{
    LimiterError,
    ledger::{Claim, Claimed, Ledger, Recorded, SqliteLedger},
};
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(86_400);

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    (dir, path)
}

fn claim(id: &str) -> Claim {
    Claim::new(id.into(), None, 1, 7, "w1".into(), Duration::from_secs(600))
}

fn sent(note: &str) -> Recorded {
    Recorded::Sent { note: note.into() }
}

#[tokio::test]
async fn results_stay_and_claims_of_a_dead_owner_expire_at_once() {
    let (_dir, path) = place();
    let ledger = SqliteLedger::open(&path, DAY).unwrap();
    for id in ["done", "open", "withdrawn"] {
        assert_eq!(ledger.claim(claim(id)).await, Ok(Claimed::Granted));
    }
    ledger.record(&claim("done"), sent("msg-1")).await.unwrap();
    let withdrawn = claim("withdrawn again");
    assert_eq!(ledger.claim(withdrawn.clone()).await, Ok(Claimed::Granted));
    ledger.release(&withdrawn).await.unwrap();
    assert!(matches!(ledger.claim(claim("open")).await, Ok(Claimed::Held { .. })), "its owner lives");
    drop(ledger);

    let ledger = SqliteLedger::open(&path, DAY).unwrap();
    assert_eq!(ledger.claim(claim("done")).await, Ok(Claimed::Done { attempt: 1, result: sent("msg-1") }));
    assert_eq!(ledger.claim(claim("open")).await, Ok(Claimed::Expired { lost: 1 }));
    assert!(matches!(ledger.claim(claim("open")).await, Ok(Claimed::Held { .. })), "taken over");
    assert_eq!(ledger.claim(claim("withdrawn again")).await, Ok(Claimed::Granted));
    drop(ledger);
    let ledger = SqliteLedger::open(&path, DAY).unwrap();
    assert_eq!(ledger.claim(claim("open")).await, Ok(Claimed::Expired { lost: 2 }));
}

#[tokio::test]
async fn only_one_has_it() {
    let (dir, path) = place();
    let ledger = SqliteLedger::open(&path, DAY).unwrap();
    let error = SqliteLedger::open(&path, DAY).unwrap_err();
    assert!(matches!(&error, LimiterError::Storage { reason } if reason.contains(&std::process::id().to_string())), "{error}");
    drop(ledger);
    SqliteLedger::open(&path, DAY).unwrap();
    let error = SqliteLedger::open(&dir.path().join("no/ledger.db"), DAY).unwrap_err();
    assert!(error.to_string().contains("create it"), "{error}");
}

/// The window is over for all but the last: they go while others come.
#[tokio::test]
async fn what_is_out_of_date_is_deleted() {
    let (_dir, path) = place();
    let ledger = Arc::new(SqliteLedger::open(&path, Duration::from_millis(1)).unwrap());
    for batch in 0..20 {
        let claims = (0..200).map(|i| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.claim(claim(&format!("m{batch}-{i}"))).await })
        });
        for claimed in claims.collect::<Vec<_>>() {
            assert_eq!(claimed.await.unwrap(), Ok(Claimed::Granted));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(ledger);
    let db = paceline_sqlite::reader(&path).unwrap();
    let left: i64 = db.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap();
    assert!((1..=1_000).contains(&left), "{left} of 4,000 entries left");
}

/// A claim that was granted to nobody is withdrawn.
#[tokio::test]
async fn a_caller_that_gave_up_leaves_no_claim() {
    let (_dir, path) = place();
    let ledger = SqliteLedger::open(&path, DAY).unwrap();
    for i in 0..50 {
        let id = format!("m{i}");
        // Polled once: the claim is queued, and whoever asked is gone.
        let asked = ledger.claim(claim(&id));
        assert!(futures_poll(asked).is_none());
        assert!(ledger.claim(claim("other")).await.is_ok());
        assert_eq!(ledger.claim(claim(&id)).await, Ok(Claimed::Granted), "{id}");
    }
}

fn futures_poll<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
