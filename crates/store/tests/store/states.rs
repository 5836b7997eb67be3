//! Where entries stand, and going through them.

use paceline_core::Reason;
use paceline_store::{Filter, ItemOutcome, JobKind, State, StateFilter, StoredDeadLetter};

use crate::stage::{Stage, all, at, bare, entry, fill, hold, ids, order, stored};

pub(crate) async fn every_state_is_shown_and_selected(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 5).await;
    let only = |id: &str| Filter { id: Some(id.to_owned()), ..all() };
    let job = |kind, id: &str| order(kind, only(id));
    let replaying = store.create(&job(JobKind::Replay, "1")).await.unwrap().unwrap();
    let discarding = store.create(&job(JobKind::Discard, "2")).await.unwrap().unwrap();
    let replayed = store.create(&job(JobKind::Replay, "3")).await.unwrap().unwrap();
    hold(&*store, &replayed.id, "r").await;
    let items = store.next(&replayed.id, "r", 10).await.unwrap();
    store.settle(&replayed.id, "r", &[(items[0].seq, ItemOutcome::Done)]).await.unwrap();
    let discarded = store.create(&job(JobKind::Discard, "4")).await.unwrap().unwrap();
    hold(&*store, &discarded.id, "r").await;
    store.discard_next(&discarded.id, "r", 10).await.unwrap();

    for (i, state) in State::ALL.into_iter().enumerate() {
        assert_eq!(ids(&*store, state).await, [i.to_string()], "{state}");
    }
    let everything = store.list(&Filter { state: StateFilter::All, ..all() }).await.unwrap();
    let shown: Vec<_> =
        everything.iter().map(|l| (l.status.state, l.status.job.as_deref(), l.status.settled_at.is_some())).collect();
    assert_eq!(
        shown,
        [
            (State::Discarded, Some(discarded.id.as_str()), true),
            (State::Replayed, Some(replayed.id.as_str()), true),
            (State::Discarding, Some(discarding.id.as_str()), false),
            (State::Replaying, Some(replaying.id.as_str()), false),
            (State::Open, None, false),
        ]
    );
    let unless_asked: Vec<_> = store.list(&all()).await.unwrap().into_iter().map(|l| l.entry.id).collect();
    assert_eq!(unless_asked, ["2", "1", "0"]);
    for (state, total) in [(StateFilter::Unsettled, 3), (StateFilter::All, 5), (StateFilter::Only(State::Replayed), 1)] {
        assert_eq!(store.stats(&Filter { state, ..all() }, &Default::default()).await.unwrap().total, total, "{state}");
    }
    let json = serde_json::to_value(&everything[0]).unwrap();
    assert_eq!((&json["id"], &json["state"], &json["job"]), (&"4".into(), &"discarded".into(), &discarded.id.into()));
}

pub(crate) async fn pages_lead_through_everything_once(stage: &dyn Stage) {
    let store = stage.empty().await;
    // Many died at one moment: the order is theirs by id.
    let letters: Vec<StoredDeadLetter> = (0..25).map(|i| stored(entry(&format!("{i:02}"), at(i / 10)), b"body")).collect();
    store.insert(&letters).await.unwrap();
    let except = Filter { except: vec![Reason::InvalidMessage, Reason::Expired], ..all() };
    store.insert(&[stored(bare("left out", at(1)), b"")]).await.unwrap();
    let listed: Vec<_> = store.list(&except).await.unwrap().into_iter().map(|l| l.entry.id).collect();
    assert_eq!(listed.len(), 25);
    for size in [1, 7, 25, 100] {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = store.page(&except, after.as_ref(), size).await.unwrap();
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.position());
            assert!(page.iter().all(|kept| &*kept.letter.body == b"body" && kept.status.state == State::Open));
            paged.extend(page.into_iter().map(|kept| kept.letter.entry.id));
        }
        assert_eq!(paged, listed, "pages of {size}");
    }
}

pub(crate) async fn a_page_is_bounded_in_bytes(stage: &dyn Stage) {
    let store = stage.empty().await;
    let large = vec![7u8; 12 << 20];
    for i in 0..4 {
        store.insert(&[stored(entry(&i.to_string(), at(i)), &large)]).await.unwrap();
    }
    let page = store.page(&all(), None, 100).await.unwrap();
    assert_eq!(page.iter().map(|kept| kept.letter.entry.id.as_str()).collect::<Vec<_>>(), ["3", "2"]);
    let page = store.page(&all(), Some(&page[1].position()), 1).await.unwrap();
    assert_eq!(page[0].letter.entry.id, "1");
    // What is given to a runner is bounded alike.
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    hold(&*store, &job.id, "r").await;
    let items = store.next(&job.id, "r", 100).await.unwrap();
    assert_eq!(items.iter().map(|item| item.seq).collect::<Vec<_>>(), [1, 2]);
    // One that is larger than the bound comes alone.
    store.insert(&[stored(entry("huge", at(9)), &vec![1u8; 40 << 20])]).await.unwrap();
    let page = store.page(&all(), None, 100).await.unwrap();
    assert_eq!((page.len(), page[0].letter.body.len()), (1, 40 << 20));
}
