//! One suite for every ledger.

use std::{sync::Arc, time::Duration};

use paceline_limiter::{
    LimiterError,
    ledger::{Claim, Claimed, Ledger, LocalLedger, Recorded, RedisLedger, SqliteLedger},
    redis::RedisClient,
};
use paceline_testkit::Redis;

const HOLD: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn claim(id: &str, attempt: u32) -> Claim {
    Claim::new(id.into(), None, attempt, 7, "w1".into(), HOLD)
}

fn sent(note: &str) -> Recorded {
    Recorded::Sent { note: note.into() }
}

pub(crate) async fn conformance(ledger: &dyn Ledger) {
    // A redelivery while the first handler runs, then after its result.
    let first = claim("redelivered", 1);
    assert_eq!(ledger.claim(first.clone()).await, Ok(Claimed::Granted));
    assert!(matches!(ledger.claim(claim("redelivered", 1)).await, Ok(Claimed::Held { until_us }) if until_us > 0));
    assert_eq!(ledger.claim(first.clone()).await, Ok(Claimed::Granted), "the same handling asks again");
    ledger.record(&first, sent("msg-1")).await.unwrap();
    let done = Claimed::Done { attempt: 1, result: sent("msg-1") };
    assert_eq!(ledger.claim(claim("redelivered", 1)).await, Ok(done.clone()));
    ledger.record(&first, Recorded::Retry { note: String::new() }).await.unwrap();
    assert_eq!(ledger.claim(claim("redelivered", 1)).await, Ok(done), "sent stays sent");

    // A retry is the next attempt; the one before it is done for ever.
    let first = claim("retried", 1);
    assert_eq!(ledger.claim(first.clone()).await, Ok(Claimed::Granted));
    ledger.record(&first, Recorded::Retry { note: "429".into() }).await.unwrap();
    let retried = Recorded::Retry { note: "429".into() };
    assert_eq!(ledger.claim(claim("retried", 1)).await, Ok(Claimed::Done { attempt: 1, result: retried }));
    let second = Claim::new("retried".into(), None, 2, 8, "w2".into(), HOLD);
    assert_eq!(ledger.claim(second.clone()).await, Ok(Claimed::Granted), "fewer recipients, another digest");
    let on_its_way = Claimed::Done { attempt: 2, result: Recorded::Retry { note: String::new() } };
    assert_eq!(ledger.claim(claim("retried", 1)).await, Ok(on_its_way));
    ledger.record(&first, Recorded::Dead { note: "late".into() }).await.unwrap();
    assert!(matches!(ledger.claim(claim("retried", 2)).await, Ok(Claimed::Held { .. })), "an old result changes nothing");
    ledger.record(&second, Recorded::Dead { note: "rejected_message".into() }).await.unwrap();
    let dead = Claimed::Done { attempt: 2, result: Recorded::Dead { note: "rejected_message".into() } };
    assert_eq!(ledger.claim(claim("retried", 1)).await, Ok(dead));

    // But what went out went out: a first attempt given up for lost that reports late ends the message.
    let lost = Claim::new("given up".into(), None, 1, 7, "w1".into(), Duration::ZERO);
    assert_eq!(ledger.claim(lost.clone()).await, Ok(Claimed::Granted));
    assert_eq!(ledger.claim(claim("given up", 2)).await, Ok(Claimed::Granted));
    ledger.record(&lost, sent("late")).await.unwrap();
    let done = Claimed::Done { attempt: 1, result: sent("late") };
    for attempt in [1, 2, 3] {
        assert_eq!(ledger.claim(claim("given up", attempt)).await, Ok(done.clone()));
    }

    // Another message under the same id.
    let other = Claim::new("retried".into(), None, 1, 9, "w1".into(), HOLD);
    assert_eq!(ledger.claim(other).await, Ok(Claimed::Conflict));

    // Nobody knows: the claim ran out.
    let brief = |owner: &str| Claim::new("uncertain".into(), None, 1, 7, owner.into(), Duration::ZERO);
    assert_eq!(ledger.claim(brief("w1")).await, Ok(Claimed::Granted));
    assert_eq!(ledger.claim(brief("w2")).await, Ok(Claimed::Expired { lost: 1 }));
    assert_eq!(ledger.claim(claim("uncertain", 1)).await, Ok(Claimed::Expired { lost: 2 }));
    assert!(matches!(ledger.claim(brief("w2")).await, Ok(Claimed::Held { .. })), "taken over");

    // Withdrawn: no call was made.
    let first = claim("withdrawn", 1);
    assert_eq!(ledger.claim(first.clone()).await, Ok(Claimed::Granted));
    ledger.release(&claim("withdrawn", 1)).await.unwrap();
    assert!(matches!(ledger.claim(claim("withdrawn", 1)).await, Ok(Claimed::Held { .. })), "another handling's");
    ledger.release(&first).await.unwrap();
    let again = claim("withdrawn", 1);
    assert_eq!(ledger.claim(again.clone()).await, Ok(Claimed::Granted));
    ledger.release(&first).await.unwrap();
    assert!(matches!(ledger.claim(claim("withdrawn", 1)).await, Ok(Claimed::Held { .. })), "a late withdrawal");
    ledger.record(&again, sent("")).await.unwrap();
    ledger.release(&again).await.unwrap();
    assert!(matches!(ledger.claim(claim("withdrawn", 1)).await, Ok(Claimed::Done { .. })), "a result stays");

    // A replay is a claim of its own; the original's redelivery is still done.
    let replay = |batch: &str, digest| Claim::new("redelivered".into(), Some(batch.into()), 1, digest, "w1".into(), HOLD);
    let copy = replay("batch-1", 99);
    assert_eq!(ledger.claim(copy.clone()).await, Ok(Claimed::Granted));
    assert!(matches!(ledger.claim(claim("redelivered", 1)).await, Ok(Claimed::Done { .. })));
    ledger.record(&copy, sent("msg-2")).await.unwrap();
    assert_eq!(ledger.claim(replay("batch-1", 99)).await, Ok(Claimed::Done { attempt: 1, result: sent("msg-2") }));
    assert_eq!(ledger.claim(replay("batch-2", 99)).await, Ok(Claimed::Granted));

    // A result whose claim was forgotten still counts.
    ledger.record(&claim("forgotten", 3), sent("msg-3")).await.unwrap();
    assert_eq!(ledger.claim(claim("forgotten", 2)).await, Ok(Claimed::Done { attempt: 3, result: sent("msg-3") }));

    // Of messages that travel together each has an answer of its own, in order; more of them than go in one script call.
    assert_eq!((ledger.claim_all(vec![]).await, ledger.record_all(&[]).await), (vec![], vec![]));
    let many: Vec<Claim> = (0..300).map(|n| claim(&format!("together-{n}"), 1)).collect();
    ledger.record(&many[1], sent("before")).await.unwrap();
    let answers = ledger.claim_all(many.clone()).await;
    let known = Claimed::Done { attempt: 1, result: sent("before") };
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &Ok(if n == 1 { known.clone() } else { Claimed::Granted }), "{n} of {}", answers.len());
    }
    let results: Vec<_> = many.iter().enumerate().map(|(n, claim)| (claim.clone(), sent(&n.to_string()))).collect();
    assert_eq!(ledger.record_all(&results).await, vec![Ok(()); 300]);
    let last = Claimed::Done { attempt: 1, result: sent("299") };
    assert_eq!(ledger.claim(claim("together-299", 1)).await, Ok(last));

    // Of messages of one call only those are done that a result is recorded of, whichever attempts they are.
    let call = |hold| {
        let mut call = [("call-1", None, 1), ("call-2", None, 2), ("call-1", Some("batch-1".to_owned()), 1), ("call-3", None, 1)]
            .map(|(id, replay, attempt)| Claim::new(id.into(), replay, attempt, 7, "w1".into(), hold));
        Claim::join(&mut call);
        call
    };
    let of_call = call(HOLD);
    assert_eq!(ledger.claim_all(of_call.to_vec()).await, [const { Ok(Claimed::Granted) }; 4]);
    let note = |claim: &Claim| sent(&format!("{} {:?}", claim.id, claim.replay));
    let results: Vec<_> = of_call[..3].iter().map(|claim| (claim.clone(), note(claim))).collect();
    assert_eq!(ledger.record_all(&results).await, [Ok(()), Ok(()), Ok(())]);
    for again in &call(HOLD)[..3] {
        let done = Claimed::Done { attempt: again.attempt, result: note(again) };
        assert_eq!(ledger.claim(again.clone()).await, Ok(done.clone()));
        let later = Claim::new(again.id.clone(), again.replay.clone(), 9, 7, "w1".into(), HOLD);
        assert_eq!(ledger.claim(later).await, Ok(done), "what went out went out");
    }
    assert!(matches!(ledger.claim(claim("call-3", 1)).await, Ok(Claimed::Held { .. })));
    ledger.record(&of_call[3], Recorded::Dead { note: "no".into() }).await.unwrap();
    let dead = Claimed::Done { attempt: 1, result: Recorded::Dead { note: "no".into() } };
    assert_eq!(ledger.claim(claim("call-3", 1)).await, Ok(dead));
}

/// A call whose claims ran out and were given to others is told of all the same.
async fn late_results_of_a_call(ledger: &dyn Ledger) {
    let mut late: Vec<Claim> =
        ["late-1", "late-2"].map(|id| Claim::new(id.into(), None, 1, 7, "w1".into(), Duration::ZERO)).to_vec();
    Claim::join(&mut late);
    assert_eq!(ledger.claim_all(late.clone()).await, [Ok(Claimed::Granted), Ok(Claimed::Granted)]);
    assert_eq!(ledger.claim(claim("late-1", 1)).await, Ok(Claimed::Expired { lost: 1 }));
    let results: Vec<_> = late.into_iter().map(|claim| (claim, sent("late"))).collect();
    assert_eq!(ledger.record_all(&results).await, [Ok(()), Ok(())]);
    for id in ["late-1", "late-2"] {
        assert_eq!(ledger.claim(claim(id, 1)).await, Ok(Claimed::Done { attempt: 1, result: sent("late") }), "{id}");
    }
}

#[tokio::test]
async fn local() {
    let ledger = LocalLedger::new(DAY);
    conformance(&ledger).await;
    late_results_of_a_call(&ledger).await;
}

#[tokio::test]
async fn sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(&dir.path().join("ledger.db"), DAY).unwrap();
    conformance(&ledger).await;
    late_results_of_a_call(&ledger).await;
}

#[tokio::test]
async fn redis() {
    let redis = Redis::start().await;
    let ledger = RedisLedger::new(RedisClient::new(&redis.url(), "ledger").unwrap(), DAY);
    conformance(&ledger).await;
    late_results_of_a_call(&ledger).await;
}

#[tokio::test]
async fn an_entry_is_forgotten_after_the_window() {
    let local = LocalLedger::new(Duration::ZERO);
    assert_eq!(local.claim(claim("m", 1)).await, Ok(Claimed::Granted));
    assert_eq!(local.claim(claim("m", 1)).await, Ok(Claimed::Granted));

    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteLedger::open(&dir.path().join("ledger.db"), Duration::ZERO).unwrap();
    assert_eq!(sqlite.claim(claim("m", 1)).await, Ok(Claimed::Granted));
    assert_eq!(sqlite.claim(claim("m", 1)).await, Ok(Claimed::Granted));

    let redis = Redis::start().await;
    let ledger = RedisLedger::new(RedisClient::new(&redis.url(), "p").unwrap(), Duration::from_secs(100));
    assert_eq!(ledger.claim(claim("m", 1)).await, Ok(Claimed::Granted));
    let left: u64 = redis.command("TTL {p}:sent:m").parse().unwrap();
    assert!((90..=100).contains(&left), "{left} s");
}

/// Concurrent calls travel together, and each gets its own answer.
#[tokio::test]
async fn calls_are_committed_in_groups() {
    let redis = Redis::start().await;
    let ledger: Arc<dyn Ledger> = Arc::new(RedisLedger::new(RedisClient::new(&redis.url(), "group").unwrap(), DAY));
    let tasks: Vec<_> = (0..2_000)
        .map(|i| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let claim = claim(&format!("m{i}"), 1);
                assert_eq!(ledger.claim(claim.clone()).await, Ok(Claimed::Granted));
                ledger.record(&claim, sent(&format!("note {i}"))).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let done = Claimed::Done { attempt: 1, result: sent("note 1234") };
    assert_eq!(ledger.claim(claim("m1234", 1)).await, Ok(done));
    let stats = redis.command("INFO stats");
    let reads: u64 = stats.lines().find_map(|l| l.strip_prefix("total_reads_processed:")?.trim().parse().ok()).unwrap();
    assert!(reads < 400, "the server read from its connections {reads} times for 4,000 operations");
}

/// A claim that may stand on the server although its caller was told otherwise is withdrawn; results are kept until
/// the server is back.
#[tokio::test]
async fn an_outage_leaves_no_claim_behind_and_loses_no_result() {
    let redis = Redis::start().await;
    let ledger = Arc::new(RedisLedger::new(RedisClient::new(&redis.url(), "outage").unwrap(), DAY));
    let before = claim("before", 1);
    assert_eq!(ledger.claim(before.clone()).await, Ok(Claimed::Granted));

    redis.freeze();
    assert!(matches!(ledger.claim(claim("during", 1)).await, Err(LimiterError::TimedOut { .. })));
    let recording = tokio::spawn({
        let (ledger, before) = (ledger.clone(), before.clone());
        async move { ledger.record(&before, sent("kept")).await }
    });
    assert!(ledger.claim(claim("meanwhile", 1)).await.is_err());
    let together = vec![claim("together-1", 1), claim("together-2", 1)];
    assert!(ledger.claim_all(together.clone()).await.iter().all(Result::is_err));
    redis.thaw();
    recording.await.unwrap().unwrap();
    assert_eq!(ledger.claim_all(together).await, [Ok(Claimed::Granted), Ok(Claimed::Granted)]);
    assert_eq!(ledger.claim(claim("before", 1)).await, Ok(Claimed::Done { attempt: 1, result: sent("kept") }));
    assert_eq!(ledger.claim(claim("during", 1)).await, Ok(Claimed::Granted));
    assert_eq!(ledger.claim(claim("meanwhile", 1)).await, Ok(Claimed::Granted));
}
