//! Retention.

use paceline_core::{Selector, Timestamp};
use paceline_store::{Filter, ItemOutcome, JobKind, Purge, State, StateFilter, Which};

use crate::stage::{Stage, all, at, fill, hold, ids, order};

fn older_than(before: Timestamp, state: StateFilter) -> Purge {
    Purge { before, state, by: "cron".to_owned(), note: Some("retention".to_owned()), dry_run: false }
}

pub(crate) async fn what_is_old_goes_and_the_rest_stays(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 2_500).await;
    let some = |from, to| Filter { since: Some(at(from)), until: Some(at(to)), ..all() };
    // 0..10 are discarded, 10..20 are in a live job.
    let job = store.create(&order(JobKind::Discard, some(0, 10))).await.unwrap().unwrap();
    hold(&*store, &job.id, "r").await;
    store.discard_next(&job.id, "r", 100).await.unwrap();
    store.create(&order(JobKind::Replay, some(10, 20))).await.unwrap().unwrap();

    let discarded = older_than(at(5), StateFilter::Only(State::Discarded));
    assert_eq!(store.purge(&Purge { dry_run: true, ..discarded.clone() }).await.unwrap(), 5);
    assert_eq!(ids(&*store, State::Discarded).await.len(), 10, "only counted");
    assert_eq!(store.purge(&discarded).await.unwrap(), 5);
    assert_eq!(ids(&*store, State::Discarded).await, ["9", "8", "7", "6", "5"]);
    assert_eq!(store.purge(&older_than(at(5), StateFilter::All)).await.unwrap(), 0);
    assert_eq!(store.purge(&older_than(at(100), StateFilter::Only(State::Replaying))).await.unwrap(), 0);

    let old = older_than(at(2_400), StateFilter::All);
    assert_eq!(store.purge(&Purge { dry_run: true, ..old.clone() }).await.unwrap(), 2_385);
    assert_eq!(store.purge(&old).await.unwrap(), 2_385);
    let kept = store.list(&Filter { state: StateFilter::All, ..all() }).await.unwrap();
    assert_eq!(kept.len(), 110);
    assert_eq!(ids(&*store, State::Replaying).await.len(), 10, "a live job keeps its own");
    assert!(store.get("9").await.unwrap().is_none() && store.get("2400").await.unwrap().is_some());

    let trail = store.audit(Some("dead-letters"), 10).await.unwrap();
    let told: Vec<_> = trail.iter().map(|e| (e.action.as_str(), e.by.as_str(), e.detail["deleted"].as_u64())).collect();
    assert_eq!(
        told,
        [("purge", "cron", Some(2_385)), ("purge", "cron", Some(5))],
        "one entry for one purge, however many batches"
    );
    assert_eq!(trail[0].note.as_deref(), Some("retention"));
}

pub(crate) async fn leftovers_of_ended_work_go_too(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 2).await;
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    hold(&*store, &job.id, "r").await;
    store.next(&job.id, "r", 10).await.unwrap();
    let failed = |seq| (seq, ItemOutcome::Failed("no".to_owned()));
    store.settle(&job.id, "r", &[failed(1), failed(2)]).await.unwrap();
    let order = store.add_cancel(&Selector::Id("m".to_owned()), at(1_000_000), "ada", None).await.unwrap();
    store.remove_cancel(&order.id, "ada", None).await.unwrap();

    store.purge(&older_than(job.created_at, StateFilter::All)).await.unwrap();
    assert_eq!(store.failures(&job.id, 10).await.unwrap().len(), 2, "not older");
    assert_eq!(store.cancels(Which::All).await.unwrap().len(), 1);
    // Beyond now, so that what ended just now is old.
    store.purge(&older_than(at(0), StateFilter::Only(State::Discarded))).await.unwrap();
    assert!(store.failures(&job.id, 10).await.unwrap().is_empty());
    assert!(store.cancels(Which::All).await.unwrap().is_empty());
    assert_eq!(store.job(&job.id).await.unwrap().unwrap().failed, 2, "jobs and the trail stay");
}
