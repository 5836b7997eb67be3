//! Selections frozen, and settled once.

use std::time::Instant;

use paceline_core::{Class, DeadLetter, Reason};
use paceline_store::{Error, Filter, ItemOutcome, JobKind, JobState, NewJob, Plan, State, StateFilter};

use crate::stage::{Stage, all, at, bare, entry, fill, hold, ids, order, replay_held, stored};

pub(crate) async fn a_job_takes_what_is_open_in_order_of_death(stage: &dyn Stage) {
    let store = stage.empty().await;
    let of = |id: &str, message: Option<&str>, us| DeadLetter { message_id: message.map(str::to_owned), ..entry(id, at(us)) };
    let unsure = |id: &str, reason, us| DeadLetter { reason, ..entry(id, at(us)) };
    let letters = [
        of("late", Some("m"), 30),
        of("early", Some("m"), 10),
        of("middle", Some("other"), 20),
        of("nameless", None, 40),
        of("nameless too", None, 50),
        of("latest", Some("m"), 60),
        unsure("unsure", Reason::Uncertain, 70),
        unsure("poison", Reason::Poison, 80),
        unsure("expired", Reason::Expired, 90),
    ];
    let letters: Vec<_> = letters.into_iter().map(|e| stored(e.clone(), e.id.as_bytes())).collect();
    store.insert(&letters).await.unwrap();

    let selection = Filter { class: Some(Class::High), except: vec![Reason::Expired], ..all() };
    let plan = store.plan(&selection).await.unwrap();
    assert_eq!((plan.total, plan.uncertain, plan.settled), (8, 2, 0));
    assert_eq!((plan.oldest, plan.newest), (Some(at(10)), Some(at(80))));
    let by_reason: Vec<_> = plan.by_reason.iter().map(|r| (r.reason, r.count)).collect();
    assert_eq!(by_reason, [(Reason::RetryBudgetExhausted, 6), (Reason::Poison, 1), (Reason::Uncertain, 1)]);
    assert!(store.jobs(10).await.unwrap().is_empty(), "a plan leaves nothing behind");

    let job = store.create(&order(JobKind::Replay, selection.clone())).await.unwrap().unwrap();
    assert_eq!((job.total, job.done, job.failed, job.left(), job.state), (8, 0, 0, 8, JobState::Running));
    assert!(job.id.starts_with("r-") && job.id.len() <= 32, "{}", job.id);
    assert_eq!(store.job(&job.id).await.unwrap().as_ref(), Some(&job));
    // What dies now is not part of it.
    store.insert(&[stored(of("newcomer", Some("m"), 5), b"")]).await.unwrap();

    hold(&*store, &job.id, "r").await;
    let items = store.next(&job.id, "r", 100).await.unwrap();
    let given: Vec<_> = items.iter().map(|i| (i.seq, i.copy, i.letter.entry.id.as_str())).collect();
    assert_eq!(
        given,
        [
            (1, 0, "early"),
            (2, 0, "middle"),
            (3, 1, "late"),
            (4, 0, "nameless"),
            (5, 0, "nameless too"),
            (6, 2, "latest"),
            (7, 0, "unsure"),
            (8, 0, "poison"),
        ]
    );
    let early = letters.iter().find(|l| l.entry.id == "early").unwrap();
    assert_eq!(items[0].letter, *early, "whole");

    let first: Vec<_> = items[..3].iter().map(|i| (i.seq, ItemOutcome::Done)).collect();
    let after = store.settle(&job.id, "r", &first).await.unwrap();
    assert_eq!((after.done, after.left(), after.state), (3, 5, JobState::Running));
    assert_eq!(store.next(&job.id, "r", 2).await.unwrap().iter().map(|i| i.seq).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(ids(&*store, State::Replayed).await, ["late", "middle", "early"]);
    let plan = store.plan(&selection).await.unwrap();
    assert_eq!((plan.total, plan.settled), (1, 8), "replayed and in a live job are not taken again");

    let rest: Vec<_> = items[3..].iter().map(|i| (i.seq, ItemOutcome::Done)).collect();
    let after = store.settle(&job.id, "r", &rest).await.unwrap();
    assert_eq!((after.done, after.left(), after.state, after.owner.clone()), (8, 0, JobState::Done, None));
    assert!(after.finished_at.is_some_and(|t| t >= after.created_at));
    assert_eq!(store.job(&job.id).await.unwrap(), Some(after));
    assert!(store.next(&job.id, "r", 10).await.unwrap().is_empty());

    let second = store.create(&order(JobKind::Replay, selection)).await.unwrap().unwrap();
    assert_eq!(second.total, 1, "the newcomer");
    let settled = Filter { id: Some("early".to_owned()), state: StateFilter::All, ..all() };
    assert_eq!(store.create(&order(JobKind::Discard, settled.clone())).await.unwrap(), None);
    assert_eq!(store.plan(&settled).await.unwrap(), Plan { settled: 1, ..Plan::default() });
    let order_of_making: Vec<_> = store.jobs(10).await.unwrap().into_iter().map(|j| j.id).collect();
    assert_eq!(order_of_making, [second.id, job.id]);
    assert_eq!(store.jobs(1).await.unwrap().len(), 1);
}

pub(crate) async fn a_limit_takes_the_latest_that_are_open(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 10).await;
    let latest = Filter { limit: Some(4), ..all() };
    assert_eq!(store.plan(&latest).await.unwrap().total, 4);
    for (want, total) in [(["6", "7", "8", "9"].as_slice(), 4), (&["2", "3", "4", "5"], 4), (&["0", "1"], 2)] {
        let job = store.create(&order(JobKind::Replay, latest.clone())).await.unwrap().unwrap();
        assert_eq!(job.total, total);
        hold(&*store, &job.id, "r").await;
        let items = store.next(&job.id, "r", 10).await.unwrap();
        assert_eq!(items.iter().map(|i| i.letter.entry.id.as_str()).collect::<Vec<_>>(), want);
    }
    assert_eq!(store.create(&order(JobKind::Replay, latest)).await.unwrap(), None);
    assert_eq!(store.plan(&Filter { limit: Some(0), ..all() }).await.unwrap().total, 0);
}

pub(crate) async fn settled_once_whatever_is_said_twice(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 3).await;
    let job = replay_held(&*store, "r").await;
    store.next(&job.id, "r", 10).await.unwrap();
    let (done, failed) = (ItemOutcome::Done, ItemOutcome::Failed("late".to_owned()));
    let said = [(1, done.clone()), (1, done.clone()), (1, failed.clone())];
    // A runner that lost its lease did what it did.
    assert_eq!(store.settle(&job.id, "somebody else", &said[..2]).await.unwrap().done, 1);
    let job = store.settle(&job.id, "r", &said).await.unwrap();
    assert_eq!((job.done, job.failed), (1, 0));
    let job = store.settle(&job.id, "r", &[(2, failed.clone()), (2, failed), (2, done.clone()), (99, done)]).await.unwrap();
    assert_eq!((job.done, job.failed, job.left(), job.state), (1, 1, 1, JobState::Running));
    let unknown = store.settle("r-no-such-job", "r", &[(1, ItemOutcome::Done)]).await;
    assert!(matches!(unknown, Err(Error::Refused(_))), "{unknown:?}");
}

pub(crate) async fn what_failed_is_open_again(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 3).await;
    let job = replay_held(&*store, "r").await;
    store.next(&job.id, "r", 10).await.unwrap();
    let why = format!("no route\0{}", "x".repeat(10_000));
    let outcomes = [(1, ItemOutcome::Failed(why)), (2, ItemOutcome::Done), (3, ItemOutcome::Failed("too large".to_owned()))];
    let after = store.settle(&job.id, "r", &outcomes).await.unwrap();
    assert_eq!((after.done, after.failed, after.state), (1, 2, JobState::Done), "nothing is left, so the job ends");
    let failures = store.failures(&job.id, 10).await.unwrap();
    assert_eq!(failures.iter().map(|f| (f.seq, f.id.as_str())).collect::<Vec<_>>(), [(1, "0"), (3, "2")]);
    assert!(failures[0].error.starts_with("no route") && failures[0].error.chars().count() <= 4096);
    assert_eq!(store.failures(&job.id, 1).await.unwrap().len(), 1);
    assert_eq!(ids(&*store, State::Open).await, ["2", "0"]);
    let again = replay_held(&*store, "r").await;
    assert_eq!(again.total, 2);
}

pub(crate) async fn a_discard_needs_no_bodies(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 10).await;
    let job = store.create(&order(JobKind::Discard, all())).await.unwrap().unwrap();
    assert!(job.id.starts_with("d-"));
    assert_eq!(store.discard_next(&job.id, "r", 4).await.unwrap().done, 0, "not without holding it");
    hold(&*store, &job.id, "r").await;
    assert_eq!(store.discard_next(&job.id, "r", 4).await.unwrap().done, 4);
    assert_eq!(ids(&*store, State::Discarded).await, ["3", "2", "1", "0"]);
    assert_eq!(store.discard_next(&job.id, "another", 4).await.unwrap().done, 4);
    assert_eq!(store.discard_next(&job.id, "r", 4).await.unwrap().left(), 2);
    let job = store.discard_next(&job.id, "r", 4).await.unwrap();
    assert_eq!((job.done, job.state), (10, JobState::Done));
    assert_eq!(store.discard_next(&job.id, "r", 4).await.unwrap(), job);

    fill(&*store, 11).await;
    let replay = replay_held(&*store, "r").await;
    let refused = store.discard_next(&replay.id, "r", 4).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

pub(crate) async fn an_entry_deleted_by_hand_does_not_hold_a_job_up(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 3).await;
    let job = replay_held(&*store, "r").await;
    stage.sql("delete from dead_letters where id <> '1'").await;
    let items = store.next(&job.id, "r", 10).await.unwrap();
    assert_eq!(items.iter().map(|i| i.seq).collect::<Vec<_>>(), [2]);
    let job = store.settle(&job.id, "r", &[(2, ItemOutcome::Done)]).await.unwrap();
    assert_eq!((job.done, job.failed, job.state), (1, 2, JobState::Done));
    assert!(store.failures(&job.id, 10).await.unwrap()[0].error.contains("gone"));
}

pub(crate) async fn an_order_is_kept_as_given(stage: &dyn Stage) {
    let store = stage.empty().await;
    store.insert(&[stored(entry("a", at(5)), b""), stored(bare("b", at(5)), b"")]).await.unwrap();
    let text = |t: &str| Some(t.to_owned());
    let filter = Filter {
        state: StateFilter::Only(State::Open),
        reason: Some(Reason::RetryBudgetExhausted),
        except: vec![Reason::Expired],
        class: Some(Class::High),
        destination: text("google"),
        account: text("ses-eu"),
        tenant: text("acme"),
        since: Some(at(0)),
        until: Some(at(9)),
        id: text("m-a"),
        limit: Some(7),
    };
    let new = NewJob { rate: Some("20/s".parse().unwrap()), note: None, ..order(JobKind::Replay, filter.clone()) };
    let job = store.create(&new).await.unwrap().unwrap();
    assert_eq!((job.total, job.filter, job.rate, job.note), (1, filter, new.rate, None));

    let hostile = "é\0\u{1b}".repeat(3_000);
    let filter = Filter { except: vec![Reason::Expired], tenant: Some(hostile.clone()), ..all() };
    assert_eq!(store.create(&order(JobKind::Discard, filter)).await.unwrap(), None);
    let new = NewJob { by: hostile.clone(), note: Some(hostile.clone()), ..order(JobKind::Discard, all()) };
    let job = store.create(&new).await.unwrap().unwrap();
    assert!(job.by.chars().count() <= 512 && job.by.starts_with("é\u{fffd}"));
    assert!(job.note.unwrap().chars().count() <= 4096);
    for id in ["", "r", "a\0b", hostile.as_str()] {
        assert_eq!(store.job(id).await.unwrap(), None);
        assert_eq!(store.cancel(id, "x", None).await.unwrap(), None);
        assert!(store.next(id, "x", 1).await.unwrap().is_empty() && store.failures(id, 1).await.unwrap().is_empty());
        store.release(id, "x").await.unwrap();
    }
}

pub(crate) async fn ten_thousand_entries_are_settled_in_seconds(stage: &dyn Stage) {
    let store = stage.empty().await;
    fill(&*store, 10_000).await;
    let begun = Instant::now();
    assert_eq!(store.plan(&all()).await.unwrap().total, 10_000);
    let planned = begun.elapsed();
    let half = Filter { limit: Some(5_000), ..all() };
    let job = store.create(&order(JobKind::Replay, half)).await.unwrap().unwrap();
    let created = begun.elapsed();
    hold(&*store, &job.id, "r").await;
    let mut seen = 0;
    loop {
        let items = store.next(&job.id, "r", 50).await.unwrap();
        if items.is_empty() {
            break;
        }
        for item in &items {
            seen += 1;
            assert_eq!(item.seq, seen, "each once, in order");
        }
        let outcomes: Vec<_> = items.iter().map(|i| (i.seq, ItemOutcome::Done)).collect();
        store.settle(&job.id, "r", &outcomes).await.unwrap();
    }
    let replayed = begun.elapsed();
    assert_eq!(store.job(&job.id).await.unwrap().unwrap().state, JobState::Done);
    let rest = store.create(&order(JobKind::Discard, all())).await.unwrap().unwrap();
    hold(&*store, &rest.id, "r").await;
    while store.discard_next(&rest.id, "r", 1_000).await.unwrap().left() > 0 {}
    println!(
        "10,000 planned in {planned:?}, 5,000 selected in {:?}, replayed by 50 in {:?}, 5,000 discarded in {:?}",
        created - planned,
        replayed - created,
        begun.elapsed() - replayed
    );
    assert_eq!(store.plan(&all()).await.unwrap(), Plan { settled: 10_000, ..Plan::default() });
}
