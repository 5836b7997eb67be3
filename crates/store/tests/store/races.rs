//! Several processes at once.

use std::collections::HashSet;

use paceline_store::{Filter, ItemOutcome, JobKind, JobState, Purge, State, StateFilter, Written};

use crate::stage::{Stage, all, at, bare, fill, hold, ids, order, replay_held, stored};

pub(crate) async fn several_may_start_at_once(stage: &dyn Stage) {
    stage.empty().await;
    let mut starts = Vec::new();
    for i in 0..8 {
        let store = stage.another().await;
        starts.push(tokio::spawn(async move { store.insert(&[stored(bare(&i.to_string(), at(0)), b"")]).await }));
    }
    for start in starts {
        assert_eq!(start.await.unwrap().unwrap(), [Written::New]);
    }
    assert_eq!(stage.another().await.list(&all()).await.unwrap().len(), 8);
}

pub(crate) async fn no_entry_is_in_two_jobs(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 300).await;
    let mut orders = Vec::new();
    for i in 0..12 {
        let store = stage.another().await;
        // Overlapping selections, and kinds.
        let filter = Filter { since: Some(at(i * 20)), limit: (i % 3 == 0).then_some(50), ..all() };
        let kind = if i % 2 == 0 { JobKind::Replay } else { JobKind::Discard };
        orders.push(tokio::spawn(async move { store.create(&order(kind, filter)).await }));
    }
    let mut jobs = Vec::new();
    for order in orders {
        jobs.extend(order.await.unwrap().unwrap());
    }
    let total: u64 = jobs.iter().map(|job| job.total).sum();
    let taken: u64 = stage.sql("select count(*) from dead_letter_job_items").await.parse().unwrap();
    let distinct: u64 = stage.sql("select count(distinct letter) from dead_letter_job_items").await.parse().unwrap();
    assert_eq!((taken, distinct), (total, total));
    let open = ids(&*store, State::Open).await.len() as u64;
    assert_eq!(open + total, 300);
    let names: HashSet<_> = jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(names.len(), jobs.len());
}

pub(crate) async fn no_item_is_counted_twice(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 200).await;
    let job = replay_held(&*store, "r").await;
    store.next(&job.id, "r", 200).await.unwrap();
    let mut settling = Vec::new();
    for i in 0..6u64 {
        let (store, id) = (stage.another().await, job.id.clone());
        settling.push(tokio::spawn(async move {
            for from in (1..=200u64).step_by(20) {
                // Each goes through all of it, in an order of its own.
                let outcomes: Vec<_> = (0..20).map(|n| ((from + 37 * i + n * (i + 1)) % 200 + 1, ItemOutcome::Done)).collect();
                store.settle(&id, "r", &outcomes).await.unwrap();
                let step: Vec<_> = (from..from + 20).map(|seq| (seq, ItemOutcome::Done)).collect();
                store.settle(&id, "r", &step).await.unwrap();
            }
        }));
    }
    for one in settling {
        one.await.unwrap();
    }
    let job = store.job(&job.id).await.unwrap().unwrap();
    assert_eq!((job.done, job.failed, job.state), (200, 0, JobState::Done));
    assert_eq!(ids(&*store, State::Replayed).await.len(), 200);
}

pub(crate) async fn purging_takes_nothing_from_a_job(stage: &dyn Stage) {
    let store = stage.empty().await;
    for round in 0..5 {
        fill(&*store, 3_000).await;
        let (purging, creating) = (stage.another().await, stage.another().await);
        let purge = Purge { before: at(3_000), state: StateFilter::All, by: "cron".to_owned(), note: None, dry_run: false };
        let purge = tokio::spawn(async move { purging.purge(&purge).await.unwrap() });
        let job = creating.create(&order(JobKind::Discard, all())).await.unwrap();
        let purged = purge.await.unwrap();
        let total = job.as_ref().map_or(0, |job| job.total);
        assert_eq!(purged + total, 3_000, "round {round}");
        let Some(job) = job else { continue };
        hold(&*store, &job.id, "r").await;
        while store.discard_next(&job.id, "r", 1_000).await.unwrap().left() > 0 {}
        let job = store.job(&job.id).await.unwrap().unwrap();
        assert_eq!((job.done, job.failed), (total, 0), "round {round}");
        assert_eq!(ids(&*store, State::Discarded).await.len() as u64, total, "round {round}");
        stage.sql("delete from dead_letters").await;
    }
}
