//! The suppression list.
//!
//! Whoever changes it holds the row of its version until the commit: versions are in the order of commits, so a reader
//! that has seen one has missed none before it.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use async_trait::async_trait;
use paceline_core::{
    EmailAddress, Timestamp,
    suppression::{Change, Entry, Kind, listed_form},
};
use serde_json::json;

use super::{Backend, Mode, Query, Row, Session, audit, unknown};
use crate::{
    Changes, Error, Merged, NewSuppression, Order, Suppression, SuppressionFilter, Suppressions, Trail, is_reason,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

/// Rows of one statement: SQLite takes 32,766 values.
const ROWS: usize = 1000;
/// How long a removal is remembered for workers that were away, and an ended entry for those who look.
const REMEMBERED: Duration = Duration::from_secs(7 * 86_400);
/// Forgotten with one change of the list, at most: a change is to be quick.
const FORGOTTEN: u32 = 1000;

#[async_trait]
impl<B: Backend> Suppressions for B {
    async fn suppress(&self, new: &[NewSuppression], trail: Option<&mut Trail>) -> Result<Vec<Merged>, Error> {
        if let Some(odd) = new.iter().find(|n| !is_reason(&n.reason)) {
            let reason: String = odd.reason.chars().take(64).collect();
            return Err(Error::Refused(format!("reason {reason:?}: write 1 to 64 of a-z 0-9 _ -")));
        }
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let (merged, trail_now) = call!(self, Mode::Write, |session| suppress(session, new, trail.as_deref().cloned()))?;
        if let (Some(trail), Some(now)) = (trail, trail_now) {
            *trail = now;
        }
        Ok(merged)
    }

    async fn unsuppress(&self, addresses: &[EmailAddress], by: &str, note: Option<&str>) -> Result<Vec<bool>, Error> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        call!(self, Mode::Write, |session| unsuppress(session, addresses, by, note))
    }

    async fn suppression(&self, address: &EmailAddress) -> Result<Option<Suppression>, Error> {
        let filter = SuppressionFilter { address: Some(address.clone()), ended: true, ..SuppressionFilter::default() };
        let found = self.suppressions(&filter, Order::Latest, None, 1).await?;
        Ok(found.into_iter().next())
    }

    async fn suppressions(
        &self,
        filter: &SuppressionFilter,
        order: Order,
        after: Option<i64>,
        max: u32,
    ) -> Result<Vec<Suppression>, Error> {
        call!(self, Mode::Read, |session| page(session, filter, order, after, max))
    }

    async fn suppressions_version(&self) -> Result<i64, Error> {
        call!(self, Mode::Read, |session| async { Ok(version(session, VERSION, "").await?) })
    }

    async fn suppression_changes(&self, after: i64, max: u32) -> Result<Changes, Error> {
        call!(self, Mode::Snapshot, |session| changes(session, after, max))
    }

    async fn refusals(&self, addresses: &[EmailAddress], since: Timestamp) -> Result<Vec<u64>, Error> {
        call!(self, Mode::Read, |session| refusals(session, addresses, since))
    }
}

const VERSION: &str = "suppression";
const FLOOR: &str = "suppression_floor";
const COLUMNS: &str = "address, kind, reason, source, note, actor, created_at, until, version, removed_at";

async fn suppress<S: Session>(
    session: &mut S,
    new: &[NewSuppression],
    mut trail: Option<Trail>,
) -> Result<(Vec<Merged>, Option<Trail>), Error> {
    let mut version = version(session, VERSION, S::FOR_UPDATE).await?;
    let now = session.now().await?;
    let addresses: Vec<String> = new.iter().map(|n| listed_form(&n.address)).collect();
    let mut listed = listed(session, &addresses).await?;
    let mut changed: HashMap<&String, Suppression> = HashMap::new();
    let mut answers = Vec::with_capacity(new.len());
    for (new, address) in new.iter().zip(&addresses) {
        let (merged, entry) = merge(listed.get(address), row(new, address, now), now);
        if let Some(entry) = entry {
            listed.insert(address.clone(), entry.clone());
            changed.insert(address, entry);
        }
        answers.push(merged);
    }
    if !changed.is_empty() {
        let mut rows: Vec<Suppression> = changed.into_values().collect();
        for row in &mut rows {
            version += 1;
            row.version = version;
        }
        put(session, &rows, None).await?;
        finish(session, version, now).await?;
    }
    if let Some(trail) = &mut trail {
        record(session, trail, new, &answers, now).await?;
    }
    Ok((answers, trail))
}

async fn unsuppress<S: Session>(
    session: &mut S,
    addresses: &[EmailAddress],
    by: &str,
    note: Option<&str>,
) -> Result<Vec<bool>, Error> {
    let mut version = version(session, VERSION, S::FOR_UPDATE).await?;
    let now = session.now().await?;
    let addresses: Vec<String> = addresses.iter().map(listed_form).collect();
    let mut listed = listed(session, &addresses).await?;
    let (mut rows, mut answers) = (Vec::new(), Vec::new());
    for address in &addresses {
        let entry = listed.remove(address);
        answers.push(entry.as_ref().is_some_and(|e| in_force(e, now)));
        // Of whoever is taken off nothing is kept that is not needed.
        if let Some(entry) = entry {
            version += 1;
            rows.push(Suppression { note: None, source: None, version, ..entry });
        }
    }
    if rows.is_empty() {
        return Ok(answers);
    }
    put(session, &rows, Some(now)).await?;
    finish(session, version, now).await?;
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    let (subject, detail) = match &rows[..] {
        [one] => (one.address.as_str(), json!({ "kind": one.kind, "reason": one.reason })),
        several => (SUBJECT, json!({ "removed": several.len() })),
    };
    audit::record(session, now, "suppression.removed", subject, &by, note.as_deref(), detail).await?;
    Ok(answers)
}

/// What the audit trail calls changes of several addresses.
const SUBJECT: &str = "suppressions";

/// What becomes of `new` beside the entry that is there, and the row to be written if any.
fn merge(old: Option<&Suppression>, new: Suppression, now: Timestamp) -> (Merged, Option<Suppression>) {
    let Some(old) = old.filter(|old| in_force(old, now)) else { return (Merged::Added, Some(new)) };
    // No end is the latest.
    let later = |a: Option<Timestamp>, b: Option<Timestamp>| Some(a?.max(b?));
    let until = later(old.until, new.until);
    match new.kind.cmp(&old.kind) {
        std::cmp::Ordering::Greater => (Merged::Hardened, Some(Suppression { until, ..new })),
        std::cmp::Ordering::Equal if until != old.until => (Merged::Extended, Some(Suppression { until, ..old.clone() })),
        _ => (Merged::Known, None),
    }
}

fn in_force(entry: &Suppression, now: Timestamp) -> bool {
    entry.until.is_none_or(|until| until > now)
}

fn row(new: &NewSuppression, address: &str, now: Timestamp) -> Suppression {
    let words = |text: &Option<String>, max| text.as_deref().map(|t| bounded(t, max).into_owned());
    Suppression {
        address: address.to_owned(),
        kind: new.kind,
        reason: new.reason.clone(),
        source: words(&new.source, KEY_BYTES),
        note: words(&new.note, WORDS_BYTES),
        by: bounded(&new.by, KEY_BYTES).into_owned(),
        created_at: new.created_at.map_or(now, |at| at.min(now)),
        until: new.until,
        version: 0,
    }
}

/// Rows of these addresses that are not removed, in force or ended.
async fn listed<S: Session>(session: &mut S, addresses: &[String]) -> Result<HashMap<String, Suppression>, Error> {
    let mut query = Query::new(format!("select {COLUMNS} from suppressions where removed_at is null and address "));
    let n = query.value(addresses.to_vec());
    query.push(&S::any(n));
    let rows = session.fetch(query).await?;
    let entries = rows.iter().map(|row| entry(row).map(|e| (e.address.clone(), e)));
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Writes rows over what there is; with `removed_at` as marks of a removal.
async fn put<S: Session>(session: &mut S, rows: &[Suppression], removed_at: Option<Timestamp>) -> Result<(), Error> {
    for rows in rows.chunks(ROWS) {
        let mut query = Query::new(format!("insert into suppressions ({COLUMNS}) values "));
        for (i, row) in rows.iter().enumerate() {
            query.push(if i == 0 { "(" } else { ", (" }).bind(row.address.as_str());
            query.push(", ").bind(row.kind.as_str()).push(", ").bind(row.reason.as_str());
            query.push(", ").bind(row.source.as_deref()).push(", ").bind(row.note.as_deref());
            query.push(", ").bind(row.by.as_str()).push(", ").bind(row.created_at).push(", ").bind(row.until);
            query.push(", ").bind(row.version).push(", ").bind(removed_at).push(")");
        }
        query.push(" on conflict (address) do update set ");
        for (i, column) in COLUMNS.split(", ").skip(1).enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(query.text, "{}{column} = excluded.{column}", if i == 0 { "" } else { ", " });
        }
        session.execute(query).await?;
    }
    Ok(())
}

/// The list is at this version now. What was removed or has ended long ago is forgotten, some of it with every change.
async fn finish<S: Session>(session: &mut S, version: i64, now: Timestamp) -> Result<(), Error> {
    set_version(session, VERSION, version).await?;
    let mut forgotten = 0;
    for column in ["removed_at", "until"] {
        let delete = format!(
            "delete from suppressions where address in (select address from suppressions where {column} < $1
             order by {column} limit {FORGOTTEN}) returning version"
        );
        let rows = session.fetch(Query::with(delete, [(now - REMEMBERED).into()])).await?;
        // Workers know by themselves when an entry ends: only removals count.
        if column == "removed_at" {
            for row in &rows {
                forgotten = forgotten.max(row.int("version")?);
            }
        }
    }
    if forgotten > 0 {
        let before = self::version(session, FLOOR, "").await?;
        set_version(session, FLOOR, forgotten.max(before)).await?;
    }
    Ok(())
}

async fn version<S: Session>(session: &mut S, kind: &str, lock: &str) -> Result<i64, sqlx::Error> {
    let text = format!("select version from directive_versions where kind = $1{lock}");
    let rows = session.fetch(Query::with(text, [kind.into()])).await?;
    rows.first().map_or(Ok(0), |row| row.int("version"))
}

async fn set_version<S: Session>(session: &mut S, kind: &str, version: i64) -> Result<(), Error> {
    let text = "update directive_versions set version = $2 where kind = $1";
    session.execute(Query::with(text, [kind.into(), version.into()])).await?;
    Ok(())
}

async fn record<S: Session>(
    session: &mut S,
    trail: &mut Trail,
    new: &[NewSuppression],
    answers: &[Merged],
    now: Timestamp,
) -> Result<(), Error> {
    for answer in answers {
        trail.counts[*answer as usize] += 1;
    }
    let [added, hardened, extended, known] = trail.counts;
    let counts = json!({
        "added": added, "hardened": hardened, "extended": extended, "known": known, "source": trail.source,
    });
    if let Some(id) = trail.id {
        return audit::update(session, id, counts).await;
    }
    let one = match (new, answers) {
        ([one], [answer]) => Some((listed_form(&one.address), one, answer)),
        _ => None,
    };
    let (subject, detail) = match one {
        // Only an order that is about one address bears its name.
        Some((address, one, answer)) if trail.action == Trail::ADDED => {
            let until = one.until.map(|t| t.to_string());
            (address, json!({ "result": answer, "kind": one.kind, "reason": one.reason, "until": until, "source": trail.source }))
        }
        _ => (SUBJECT.to_owned(), counts),
    };
    let (by, note) = (bounded(&trail.by, KEY_BYTES), trail.note.as_deref().map(|n| bounded(n, WORDS_BYTES)));
    trail.id = Some(audit::record(session, now, trail.action, &subject, &by, note.as_deref(), detail).await?);
    Ok(())
}

async fn page<S: Session>(
    session: &mut S,
    filter: &SuppressionFilter,
    order: Order,
    after: Option<i64>,
    max: u32,
) -> Result<Vec<Suppression>, Error> {
    let mut query = Query::new(format!("select {COLUMNS} from suppressions where removed_at is null"));
    if !filter.ended {
        let now = session.now().await?;
        query.push(" and (until is null or until > ").bind(now).push(")");
    }
    if let Some(kind) = filter.kind {
        query.push(" and kind = ").bind(kind.as_str());
    }
    for (column, value) in [(" and reason = ", &filter.reason), (" and source = ", &filter.source)] {
        if let Some(value) = value {
            query.push(column).bind(bounded(value, KEY_BYTES).into_owned());
        }
    }
    if let Some(address) = &filter.address {
        query.push(" and address = ").bind(listed_form(address));
    }
    if let Some(domain) = &filter.domain {
        // A domain holds none of a pattern's signs but this one.
        let pattern = format!("%@{}", domain.as_str().replace('_', "\\_"));
        query.push(" and address like ").bind(pattern).push(" escape '\\'");
    }
    if let Some(since) = filter.since {
        query.push(" and created_at >= ").bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" and created_at < ").bind(until);
    }
    let (beyond, by) = match order {
        Order::Latest => (" and version < ", " order by version desc"),
        Order::Earliest => (" and version > ", " order by version"),
    };
    if let Some(after) = after {
        query.push(beyond).bind(after);
    }
    query.push(by).push(" limit ").bind(max);
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(entry).collect::<Result<_, _>>()?)
}

async fn changes<S: Session>(session: &mut S, after: i64, max: u32) -> Result<Changes, Error> {
    let known = version(session, VERSION, "").await?;
    let forgotten = version(session, FLOOR, "").await?;
    let rows = session
        .fetch(Query::with(
            "select address, kind, until, version, removed_at from suppressions where version > $1 order by version limit $2",
            [after.into(), max.into()],
        ))
        .await?;
    let change = |row: &S::Row| {
        let listed = row.opt_time("removed_at")?.is_none();
        let entry = Entry { kind: kind(row)?, until: row.opt_time("until")? };
        Ok::<_, sqlx::Error>(Change { address: row.text("address")?, entry: listed.then_some(entry) })
    };
    let more = rows.len() >= max as usize;
    let last = rows.last().map(|row| row.int("version")).transpose()?;
    Ok(Changes {
        changes: rows.iter().map(change).collect::<Result<_, _>>()?,
        version: if more { last.unwrap_or(known) } else { known },
        more,
        forgotten,
    })
}

async fn refusals<S: Session>(session: &mut S, addresses: &[EmailAddress], since: Timestamp) -> Result<Vec<u64>, Error> {
    let addresses: Vec<String> = addresses.iter().map(listed_form).collect();
    let mut query = Query::new(
        "select lower(recipient) as recipient, count(*) as count from dead_letters
         where reason = 'rejected_recipient' and lower(recipient) ",
    );
    let n = query.value(addresses.clone());
    query.push(&S::any(n)).push(" and died_at >= ").bind(since).push(" group by lower(recipient)");
    let rows = session.fetch(query).await?;
    let counts = rows.iter().map(|row| Ok((row.text("recipient")?, row.count("count")?)));
    let counts = counts.collect::<Result<HashMap<_, _>, sqlx::Error>>()?;
    Ok(addresses.iter().map(|address| counts.get(address).copied().unwrap_or(0)).collect())
}

fn kind(row: &impl Row) -> Result<Kind, sqlx::Error> {
    row.text("kind")?.parse().map_err(|_| unknown("a kind of suppression"))
}

fn entry(row: &impl Row) -> Result<Suppression, sqlx::Error> {
    Ok(Suppression {
        address: row.text("address")?,
        kind: kind(row)?,
        reason: row.text("reason")?,
        source: row.opt_text("source")?,
        note: row.opt_text("note")?,
        by: row.text("actor")?,
        created_at: row.time("created_at")?,
        until: row.opt_time("until")?,
        version: row.int("version")?,
    })
}
