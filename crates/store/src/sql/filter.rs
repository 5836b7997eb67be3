//! Filters to SQL.

use super::Query;
use crate::{
    Filter, Position, State, StateFilter,
    text::{KEY_BYTES, bounded},
};

/// Holds for an entry of `dead_letters` in a live job.
pub(super) const LIVE: &str =
    "exists (select 1 from dead_letter_job_items i where i.letter = dead_letters.id and i.state = 'live')";

/// Holds for an entry of `dead_letters` that a job may take.
pub(super) const OPEN: &str = "(settled is null and not exists \
     (select 1 from dead_letter_job_items i where i.letter = dead_letters.id and i.state = 'live'))";

/// Adds `where …`, for a query on `dead_letters`; the filter's state and limit apart.
pub(super) fn push_where(query: &mut Query, filter: &Filter) {
    let key = |text: &str| bounded(text, KEY_BYTES).into_owned();
    query.push(" where true");
    if let Some(reason) = filter.reason {
        query.push(" and reason = ").bind(reason.as_str());
    }
    for reason in &filter.except {
        query.push(" and reason <> ").bind(reason.as_str());
    }
    if let Some(class) = filter.class {
        query.push(" and class = ").bind(class.as_str());
    }
    for (column, value) in
        [(" and destination = ", &filter.destination), (" and account = ", &filter.account), (" and tenant = ", &filter.tenant)]
    {
        if let Some(value) = value {
            query.push(column).bind(key(value));
        }
    }
    if let Some(since) = filter.since {
        query.push(" and died_at >= ").bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" and died_at < ").bind(until);
    }
    if let Some(id) = &filter.id {
        query.push(" and (id = ").bind(key(id)).push(" or message_id = ").bind(key(id)).push(")");
    }
}

/// Adds `and …` for the state.
pub(super) fn push_state(query: &mut Query, state: StateFilter) {
    // Literals, not values: the indexes are partial.
    let of_kind = |prefix: char| {
        format!(
            " and settled is null and exists (select 1 from dead_letter_job_items i where i.letter = dead_letters.id \
             and i.state = 'live' and i.job like '{prefix}-%')"
        )
    };
    let condition = match state {
        StateFilter::Unsettled => " and settled is null".to_owned(),
        StateFilter::All => return,
        StateFilter::Only(State::Open) => format!(" and {OPEN}"),
        StateFilter::Only(State::Replaying) => of_kind('r'),
        StateFilter::Only(State::Discarding) => of_kind('d'),
        StateFilter::Only(State::Replayed) => " and settled = 'replayed'".to_owned(),
        StateFilter::Only(State::Discarded) => " and settled = 'discarded'".to_owned(),
    };
    query.push(&condition);
}

/// Adds `and …`: what lists show after this place.
pub(super) fn push_after(query: &mut Query, after: &Position) {
    query.push(" and died_at <= ").bind(after.died_at);
    query.push(" and (died_at < ").bind(after.died_at).push(" or id > ").bind(after.id.as_str()).push(")");
}

/// Adds the order of lists, and the limit.
pub(super) fn push_latest(query: &mut Query, limit: Option<u32>) {
    query.push(" order by died_at desc, id");
    if let Some(limit) = limit {
        query.push(" limit ").bind(limit);
    }
}
