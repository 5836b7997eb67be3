//! Jobs held, lost, run on and cancelled.

use std::time::Duration;

use paceline_store::{ItemOutcome, JobKind, JobState, Leased, State};

use crate::stage::{Stage, all, fill, hold, ids, order, replay_held, until};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(30);

pub(crate) async fn one_runner_at_a_time(stage: &dyn Stage) {
    let store = stage.empty().await;
    let other = stage.another().await;
    fill(&*store, 3).await;
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    assert_eq!(store.abandoned(10).await.unwrap(), std::slice::from_ref(&job));
    let Leased::Yes(until_then) = store.lease(&job.id, "a", LONG).await.unwrap() else { panic!("not leased") };
    assert!(store.abandoned(10).await.unwrap().is_empty());
    let taken = other.lease(&job.id, "b", LONG).await.unwrap();
    assert_eq!(taken, Leased::Taken { owner: "a".to_owned(), until: until_then });
    assert!(other.next(&job.id, "b", 10).await.unwrap().is_empty());
    let held = store.job(&job.id).await.unwrap().unwrap();
    assert_eq!((held.owner.as_deref(), held.leased_until), (Some("a"), Some(until_then)));

    // Renewed by its holder, for less this time; then it ends.
    assert!(matches!(store.lease(&job.id, "a", SHORT).await.unwrap(), Leased::Yes(_)));
    until("the lease ends", async || matches!(other.lease(&job.id, "b", LONG).await.unwrap(), Leased::Yes(_))).await;
    assert!(store.next(&job.id, "a", 10).await.unwrap().is_empty(), "what the first runner had is the second's");
    assert!(matches!(store.lease(&job.id, "a", LONG).await.unwrap(), Leased::Taken { .. }));
    store.release(&job.id, "a").await.unwrap();
    assert_eq!(other.next(&job.id, "b", 10).await.unwrap().len(), 3, "only its holder gives it back");
    other.release(&job.id, "b").await.unwrap();
    assert_eq!(store.abandoned(10).await.unwrap().len(), 1);
    hold(&*store, &job.id, "a").await;

    let done: Vec<_> = (1..=3).map(|seq| (seq, ItemOutcome::Done)).collect();
    store.settle(&job.id, "a", &done).await.unwrap();
    assert_eq!(other.lease(&job.id, "b", LONG).await.unwrap(), Leased::Ended(JobState::Done));
    assert_eq!(other.lease("r-20261122-nobody", "b", LONG).await.unwrap(), Leased::Unknown);
    assert!(store.abandoned(10).await.unwrap().is_empty());
}

pub(crate) async fn what_a_crash_left_is_given_again(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 10).await;
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    assert!(matches!(store.lease(&job.id, "doomed", SHORT).await.unwrap(), Leased::Yes(_)));
    // The runner has items, settles some, and is gone.
    let mut held = Vec::new();
    until("the runner has items", async || {
        store.lease(&job.id, "doomed", SHORT).await.unwrap();
        held = store.next(&job.id, "doomed", 4).await.unwrap();
        !held.is_empty()
    })
    .await;
    store.settle(&job.id, "doomed", &[(1, ItemOutcome::Done), (2, ItemOutcome::Done)]).await.unwrap();
    drop(store);

    let heir = stage.another().await;
    until("the job is abandoned", async || !heir.abandoned(10).await.unwrap().is_empty()).await;
    hold(&*heir, &job.id, "heir").await;
    let again = heir.next(&job.id, "heir", 4).await.unwrap();
    assert_eq!(again[..2], held[2..], "the same items under the same numbers, so that the same claims meet them");
    assert_eq!(again.iter().map(|i| i.seq).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(heir.job(&job.id).await.unwrap().unwrap().done, 2);
}

pub(crate) async fn a_cancelled_job_lets_go_of_what_nobody_has(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 10).await;
    let job = replay_held(&*store, "r").await;
    store.next(&job.id, "r", 4).await.unwrap();
    store.settle(&job.id, "r", &[(1, ItemOutcome::Done)]).await.unwrap();
    let cancelled = store.cancel(&job.id, "bob", Some("wrong template")).await.unwrap().unwrap();
    assert_eq!((cancelled.state, cancelled.cancelled_by.as_deref()), (JobState::Cancelled, Some("bob")));
    assert_eq!((cancelled.done, cancelled.left()), (1, 9));
    assert_eq!(ids(&*store, State::Replaying).await, ["3", "2", "1"], "the runner has them");
    assert_eq!(ids(&*store, State::Open).await, ["9", "8", "7", "6", "5", "4"]);

    // The runner learns it, settles what it published, and gives the job back.
    assert_eq!(store.lease(&job.id, "r", LONG).await.unwrap(), Leased::Ended(JobState::Cancelled));
    assert!(store.next(&job.id, "r", 4).await.unwrap().is_empty());
    let after = store.settle(&job.id, "r", &[(2, ItemOutcome::Done)]).await.unwrap();
    assert_eq!((after.done, after.state), (2, JobState::Cancelled));
    store.release(&job.id, "r").await.unwrap();
    assert_eq!(ids(&*store, State::Open).await.len(), 8);
    assert_eq!(ids(&*store, State::Replayed).await, ["1", "0"]);
    assert!(store.failures(&job.id, 10).await.unwrap().is_empty());

    let again = store.cancel(&job.id, "carol", None).await.unwrap().unwrap();
    assert_eq!(again.cancelled_by.as_deref(), Some("bob"), "cancelled once");
    assert!(store.abandoned(10).await.unwrap().is_empty());
    let discard = store.create(&order(JobKind::Discard, all())).await.unwrap().unwrap();
    assert_eq!(discard.total, 8);
    store.cancel(&discard.id, "bob", None).await.unwrap();
    assert_eq!(ids(&*store, State::Open).await.len(), 8);
}

pub(crate) async fn a_cancelled_job_of_a_lost_runner_says_what_may_have_gone_out(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 4).await;
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    until("the runner has items", async || {
        store.lease(&job.id, "lost", SHORT).await.unwrap();
        !store.next(&job.id, "lost", 2).await.unwrap().is_empty()
    })
    .await;
    store.cancel(&job.id, "bob", None).await.unwrap();
    until("the lease ends", async || {
        store.lease(&job.id, "anybody", LONG).await.unwrap();
        ids(&*store, State::Open).await.len() == 4
    })
    .await;
    let failures = store.failures(&job.id, 10).await.unwrap();
    assert_eq!(failures.iter().map(|f| f.id.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    assert!(failures[0].error.contains("may have gone out"));
    let job = store.job(&job.id).await.unwrap().unwrap();
    assert_eq!((job.done, job.failed), (0, 0));

    // It was only slow, and tells what it did after another job took the entries.
    let second = replay_held(&*store, "r").await;
    assert_eq!(second.total, 4);
    let job = store.settle(&job.id, "lost", &[(1, ItemOutcome::Done)]).await.unwrap();
    assert_eq!((job.done, job.state), (1, JobState::Cancelled));
    let items = store.next(&second.id, "r", 10).await.unwrap();
    assert_eq!(items.iter().map(|i| i.letter.entry.id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"], "not twice");
    let rest: Vec<_> = items.iter().map(|i| (i.seq, ItemOutcome::Done)).collect();
    let second = store.settle(&second.id, "r", &rest).await.unwrap();
    assert_eq!((second.done, second.failed, second.state), (3, 1, JobState::Done));
}

pub(crate) async fn every_step_leaves_a_trail(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 3).await;
    assert!(store.audit(None, 10).await.unwrap().is_empty());
    let first = replay_held(&*store, "r").await;
    store.cancel(&first.id, "bob", Some("too early")).await.unwrap();
    store.release(&first.id, "r").await.unwrap();
    let second = replay_held(&*store, "r").await;
    let done: Vec<_> = (1..=3).map(|seq| (seq, ItemOutcome::Done)).collect();
    store.settle(&second.id, "r", &done).await.unwrap();
    let trail = store.audit(None, 10).await.unwrap();
    let told: Vec<_> = trail.iter().map(|e| (e.action.as_str(), e.subject.as_str(), e.by.as_str(), e.note.as_deref())).collect();
    let (one, two) = (first.id.as_str(), second.id.as_str());
    assert_eq!(
        told,
        [
            ("replay.done", two, "ada@ops", Some("after the outage")),
            ("replay.created", two, "ada@ops", Some("after the outage")),
            ("replay.cancelled", one, "bob", Some("too early")),
            ("replay.created", one, "ada@ops", Some("after the outage")),
        ]
    );
    assert!(trail.is_sorted_by(|a, b| a.at >= b.at));
    assert_eq!(trail[0].detail["done"], 3);
    assert_eq!((&trail[1].detail["total"], &trail[1].detail["filter"]), (&3.into(), &serde_json::json!({})));
    assert_eq!(store.audit(Some(one), 10).await.unwrap(), trail[2..]);
    assert_eq!(store.audit(None, 1).await.unwrap(), trail[..1]);
}
