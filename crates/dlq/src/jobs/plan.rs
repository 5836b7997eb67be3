//! What a job would do, said before anybody orders it.

use paceline_core::{Rate, Reason, Timestamp};
use paceline_store::{DeadLetters, Error, Filter, JobKind, Jobs, Kept, Plan, ReasonCount};
use serde::{Deserialize, Serialize};

/// Reasons whose entries would die again as they are: a general selection leaves them out of a replay.
pub const LEFT_OUT: [Reason; 1] = [Reason::InvalidMessage];

/// Bodies are read for their `expires_at` where a selection is no larger than this.
const MAX_READ: u64 = 20_000;
const PAGE: u32 = 500;

/// What a job over a selection would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proposal {
    pub kind: JobKind,
    #[serde(flatten)]
    pub plan: Plan,
    /// Match as well, and are not taken unless they are asked for by reason or id: they would die again.
    pub left_out: Vec<ReasonCount>,
    /// Of those taken, mail that has passed its `expires_at` and would die again; `None` where the selection is too
    /// large to read, and for a discard.
    pub expired: Option<u64>,
    pub rate: Option<Rate>,
    /// How long it takes at that rate.
    pub estimated_s: Option<f64>,
}

/// The selection of a job: what `filter` says, but for what a replay leaves out unless asked.
pub fn selection(kind: JobKind, mut filter: Filter) -> Filter {
    if kind == JobKind::Replay && filter.reason.is_none() && filter.id.is_none() {
        filter.except.extend(LEFT_OUT);
    }
    filter
}

/// What a job over [`selection`] would do. Changes nothing.
pub async fn propose<S: Jobs + DeadLetters + ?Sized>(
    store: &S,
    kind: JobKind,
    filter: &Filter,
    rate: Option<Rate>,
    now: Timestamp,
) -> Result<Proposal, Error> {
    let taken = selection(kind, filter.clone());
    let plan = store.plan(&taken).await?;
    let mut left_out = Vec::new();
    if taken.except != filter.except {
        for reason in LEFT_OUT {
            let count = store.plan(&Filter { reason: Some(reason), limit: None, ..filter.clone() }).await?.total;
            left_out.extend((count > 0).then_some(ReasonCount { reason, count }));
        }
    }
    let readable = kind == JobKind::Replay && plan.total <= MAX_READ;
    let expired = if readable { Some(expired(store, &taken, now).await?) } else { None };
    let estimated_s = rate.map(|rate| plan.total as f64 / rate.as_per_second());
    Ok(Proposal { kind, plan, left_out, expired, rate, estimated_s })
}

async fn expired<S: DeadLetters + ?Sized>(store: &S, filter: &Filter, now: Timestamp) -> Result<u64, Error> {
    let filter = Filter { state: paceline_store::StateFilter::Only(paceline_store::State::Open), ..filter.clone() };
    let (mut count, mut after, mut left) = (0, None, filter.limit.unwrap_or(u32::MAX));
    while left > 0 {
        let page = store.page(&filter, after.as_ref(), PAGE.min(left)).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.position());
        left = left.saturating_sub(u32::try_from(page.len()).unwrap_or(left));
        count += page.iter().filter(|kept| has_expired(kept, now)).count() as u64;
    }
    Ok(count)
}

fn has_expired(kept: &Kept, now: Timestamp) -> bool {
    #[derive(Deserialize)]
    struct Until {
        expires_at: Option<Timestamp>,
    }
    // What is no message has no time either.
    serde_json::from_slice::<Until>(&kept.letter.body).is_ok_and(|m| m.expires_at.is_some_and(|at| at <= now))
}
