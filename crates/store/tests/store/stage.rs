//! What the cases share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use paceline_core::{Class, DeadLetter, Journey, Reason, Timestamp, dead_letter::DeadLetterError};
use paceline_store::{Filter, Job, JobKind, Leased, NewJob, State, StateFilter, Store, StoredDeadLetter};
use serde_json::Map;

/// A database on trial.
#[async_trait]
pub(crate) trait Stage: Send + Sync {
    /// A store on a new database with nothing in it.
    async fn empty(&self) -> Arc<dyn Store>;

    /// Another process's store on the database given last.
    async fn another(&self) -> Arc<dyn Store>;

    /// SQL behind the stores' backs, in the database given last: the rows as lines.
    async fn sql(&self, sql: &str) -> String;
}

/// Runs every case on a database of its own.
pub(crate) async fn conformance(stage: &dyn Stage) {
    macro_rules! cases {
        ($($case:path),+ $(,)?) => {
            $(
                println!("case {}", stringify!($case));
                $case(stage).await;
            )+
        };
    }
    cases!(
        crate::learnt::what_was_learnt_last_is_kept,
        crate::quotas::what_quotas_had_granted_last_is_kept_while_it_counts,
        crate::letters::an_entry_comes_back_as_it_was,
        crate::letters::bodies_are_kept_byte_for_byte,
        crate::letters::an_id_is_stored_once_and_a_stolen_one_is_told,
        crate::letters::hostile_text_is_stored_bounded,
        crate::letters::every_filter_selects,
        crate::letters::stats_count_and_show_bursts,
        crate::letters::ten_thousand_entries_are_written_and_counted_in_seconds,
        crate::states::every_state_is_shown_and_selected,
        crate::states::pages_lead_through_everything_once,
        crate::states::a_page_is_bounded_in_bytes,
        crate::jobs::a_job_takes_what_is_open_in_order_of_death,
        crate::jobs::a_limit_takes_the_latest_that_are_open,
        crate::jobs::settled_once_whatever_is_said_twice,
        crate::jobs::what_failed_is_open_again,
        crate::jobs::a_discard_needs_no_bodies,
        crate::jobs::an_entry_deleted_by_hand_does_not_hold_a_job_up,
        crate::jobs::an_order_is_kept_as_given,
        crate::jobs::ten_thousand_entries_are_settled_in_seconds,
        crate::life::one_runner_at_a_time,
        crate::life::what_a_crash_left_is_given_again,
        crate::life::a_cancelled_job_lets_go_of_what_nobody_has,
        crate::life::a_cancelled_job_of_a_lost_runner_says_what_may_have_gone_out,
        crate::life::every_step_leaves_a_trail,
        crate::races::several_may_start_at_once,
        crate::races::no_entry_is_in_two_jobs,
        crate::races::no_item_is_counted_twice,
        crate::races::purging_takes_nothing_from_a_job,
        crate::purge::what_is_old_goes_and_the_rest_stays,
        crate::purge::leftovers_of_ended_work_go_too,
        crate::cancels::an_order_is_given_renewed_and_taken_back,
        crate::cancels::an_order_ends_by_itself,
        crate::cancels::the_version_tells_every_change,
        crate::cancels::orders_given_at_once_are_one,
        crate::directives::a_pause_is_ordered_changed_and_ended,
        crate::directives::a_limit_is_set_changed_and_taken_back,
        crate::directives::orders_end_by_themselves,
        crate::directives::the_version_tells_every_change,
        crate::suppressions::an_address_is_listed_once_by_its_firmest_entry,
        crate::suppressions::an_entry_ends_and_a_later_one_takes_its_place,
        crate::suppressions::who_is_taken_off_is_off,
        crate::suppressions::every_filter_selects,
        crate::suppressions::pages_lead_through_all,
        crate::suppressions::workers_learn_every_change,
        crate::suppressions::what_was_removed_long_ago_is_forgotten,
        crate::suppressions::many_at_once_lose_nothing,
        crate::suppressions::an_order_leaves_one_trail,
        crate::suppressions::refusals_are_counted_by_address,
    );
}

pub(crate) fn at(us: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000 + us)
}

pub(crate) fn entry(id: &str, died_at: Timestamp) -> DeadLetter {
    DeadLetter {
        message_id: Some(format!("m-{id}")),
        to: Some("user@gmail.com".to_owned()),
        class: Some(Class::High),
        destination: Some("google".to_owned()),
        domain: Some("gmail.com".to_owned()),
        account: Some("ses-eu".to_owned()),
        tenant: Some("acme".to_owned()),
        stream: Some("receipts".to_owned()),
        field: Some("to[0]".to_owned()),
        detail: Some("in words".to_owned()),
        first_attempt_at: Some(at(1)),
        last_attempt_at: Some(died_at),
        attempts: 5,
        last_error: Some(DeadLetterError {
            code: "rate_limited".to_owned(),
            http_status: Some(429),
            provider_message: "Account daily quota exceeded".to_owned(),
        }),
        replay: Some("r1".to_owned()),
        ..DeadLetter::new(id.to_owned(), Reason::RetryBudgetExhausted, &Journey::starting(at(0)), died_at)
    }
}

pub(crate) fn bare(id: &str, died_at: Timestamp) -> DeadLetter {
    DeadLetter::new(id.to_owned(), Reason::InvalidMessage, &Journey::starting(at(0)), died_at)
}

pub(crate) fn stored(entry: DeadLetter, body: &[u8]) -> StoredDeadLetter {
    StoredDeadLetter { entry, amqp_message_id: None, content_type: None, headers: Map::new(), body: Bytes::copy_from_slice(body) }
}

/// Stores entries `0`, `1`, …, that died in this order.
pub(crate) async fn fill(store: &dyn Store, count: i64) {
    for from in (0..count).step_by(500) {
        let letters: Vec<_> =
            (from..count.min(from + 500)).map(|i| stored(entry(&i.to_string(), at(i)), i.to_string().as_bytes())).collect();
        store.insert(&letters).await.unwrap();
    }
}

/// Everybody and everything.
pub(crate) fn all() -> Filter {
    Filter::default()
}

pub(crate) fn order(kind: JobKind, filter: Filter) -> NewJob {
    NewJob { kind, filter, rate: None, by: "ada@ops".to_owned(), note: Some("after the outage".to_owned()) }
}

/// A replay of everything open, held by `runner`.
pub(crate) async fn replay_held(store: &dyn Store, runner: &str) -> Job {
    let job = store.create(&order(JobKind::Replay, all())).await.unwrap().unwrap();
    hold(store, &job.id, runner).await;
    job
}

pub(crate) async fn hold(store: &dyn Store, job: &str, runner: &str) {
    let leased = store.lease(job, runner, Duration::from_secs(600)).await.unwrap();
    assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
}

/// Ids of entries in one state, the latest first.
pub(crate) async fn ids(store: &dyn Store, state: State) -> Vec<String> {
    let filter = Filter { state: StateFilter::Only(state), ..all() };
    store.list(&filter).await.unwrap().into_iter().map(|l| l.entry.id).collect()
}

/// Waits for what must become true, within a time that is never short.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
