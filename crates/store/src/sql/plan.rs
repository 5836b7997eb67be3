//! Selections: what a job would take, and taking it.

use serde_json::{Value as Json, json};

use super::{Query, Row as _, Session, audit, entry, filter, ids, job_rows};
use crate::{
    Error, Filter, Job, NewJob, Plan, ReasonCount,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

pub(super) async fn plan<S: Session>(session: &mut S, selection: &Filter) -> Result<Plan, Error> {
    let mut query = Query::new("with picked as (select reason, died_at");
    push_open(&mut query, selection);
    query.push(
        ") select reason, count(*) as count, min(died_at) as oldest, max(died_at) as newest from picked
           group by reason order by count desc, reason",
    );
    let mut plan = Plan::default();
    for row in session.fetch(query).await? {
        let (reason, count) = (entry::reason(&row)?, row.count("count")?);
        let (oldest, newest) = (row.time("oldest")?, row.time("newest")?);
        plan.total += count;
        plan.uncertain += if Plan::is_uncertain(reason) { count } else { 0 };
        plan.oldest = Some(plan.oldest.map_or(oldest, |o| o.min(oldest)));
        plan.newest = Some(plan.newest.map_or(newest, |n| n.max(newest)));
        plan.by_reason.push(ReasonCount { reason, count });
    }
    // Two counts: each has an index of its own.
    for condition in ["settled is not null".to_owned(), format!("settled is null and {}", filter::LIVE)] {
        let mut query = Query::new("select count(*) as count from dead_letters");
        filter::push_where(&mut query, selection);
        query.push(" and ").push(&condition);
        for row in session.fetch(query).await? {
            plan.settled += row.count("count")?;
        }
    }
    Ok(plan)
}

/// Freezes what is open of the selection.
pub(super) async fn create<S: Session>(session: &mut S, new: &NewJob) -> Result<Option<Job>, Error> {
    // One selection at a time, and no purge meanwhile: what one sees open stays open until it has it.
    session.alone().await?;
    let now = session.now().await?;
    let by = bounded(&new.by, KEY_BYTES);
    let note = new.note.as_deref().map(|n| bounded(n, WORDS_BYTES).into_owned());
    let selection = serde_json::to_value(&new.filter).map_err(|_| Error::Refused("a filter that is no JSON".to_owned()))?;
    let selection = crate::text::without_nul(&selection);
    let mut id = ids::new(new.kind.letter(), now, rand::random());
    while job_rows::find(session, &id).await?.is_some() {
        id = ids::new(new.kind.letter(), now, rand::random());
    }

    let mut query = Query::new("insert into dead_letter_job_items (job, seq, letter, copy) select ");
    query.bind(id.as_str()).push(
        ", row_number() over (order by died_at, id), id, case when message_id is null then 0
           else row_number() over (partition by message_id order by died_at, id) - 1 end
         from (select id, message_id, died_at",
    );
    push_open(&mut query, &new.filter);
    query.push(") as picked");
    let total = session.execute(query).await?;
    if total == 0 {
        return Ok(None);
    }
    if total >= 1000 {
        session.items_grew().await?;
    }
    session
        .execute(Query::with(
            "insert into dead_letter_jobs (id, kind, state, actor, note, filter, rate, total, created_at)
             values ($1, $2, 'running', $3, $4, $5, $6, $7, $8)",
            [
                id.as_str().into(),
                new.kind.as_str().into(),
                by.as_ref().into(),
                note.clone().into(),
                selection.clone().into(),
                new.rate.map(|r| r.to_string()).into(),
                total.into(),
                now.into(),
            ],
        ))
        .await?;
    let mut detail = json!({ "total": total, "filter": given(&selection) });
    if let Some(rate) = new.rate {
        detail["rate"] = rate.to_string().into();
    }
    audit::record(session, now, &format!("{}.created", new.kind), &id, &by, note.as_deref(), detail).await?;
    Ok(job_rows::find(session, &id).await?.map(|row| row.job))
}

/// Adds ` from …`: what is open of the selection.
fn push_open(query: &mut Query, selection: &Filter) {
    query.push(" from dead_letters");
    filter::push_where(query, selection);
    query.push(" and ").push(filter::OPEN);
    if selection.limit.is_some() {
        filter::push_latest(query, selection.limit);
    }
}

/// What a filter says, without what it leaves open.
fn given(filter: &Json) -> Json {
    let says = |value: &Json| !value.is_null() && !value.as_array().is_some_and(Vec::is_empty);
    let fields = filter.as_object().into_iter().flatten().filter(|(name, value)| *name != "state" && says(value));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect::<serde_json::Map<_, _>>().into()
}
