//! Cancel orders among the directives.

use async_trait::async_trait;
use paceline_core::{
    Timestamp,
    cancel::{Cancel, Selector},
};
use serde_json::json;

use super::{Backend, Mode, Query, Row, Session, audit, ids, unknown};
use crate::{
    CancelOrder, Cancels, Error, Which,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

#[async_trait]
impl<B: Backend> Cancels for B {
    async fn add_cancel(
        &self,
        selector: &Selector,
        until: Timestamp,
        by: &str,
        note: Option<&str>,
    ) -> Result<CancelOrder, Error> {
        call!(self, Mode::Write, |session| add(session, selector, until, by, note))
    }

    async fn remove_cancel(&self, id: &str, by: &str, note: Option<&str>) -> Result<Option<CancelOrder>, Error> {
        call!(self, Mode::Write, |session| remove(session, id, by, note))
    }

    async fn cancels(&self, which: Which) -> Result<Vec<CancelOrder>, Error> {
        call!(self, Mode::Read, |session| list(session, which))
    }

    async fn cancels_version(&self) -> Result<i64, Error> {
        call!(self, Mode::Read, |session| version(session))
    }
}

async fn add<S: Session>(
    session: &mut S,
    selector: &Selector,
    until: Timestamp,
    by: &str,
    note: Option<&str>,
) -> Result<CancelOrder, Error> {
    // Never cut short: a shorter word would be about other mail.
    let value = selector.value();
    if value.is_empty() || *bounded(value, KEY_BYTES) != *value {
        return Err(Error::Refused("a selector that is empty, longer than 512 bytes or holds NUL".to_owned()));
    }
    session.alone().await?;
    let now = session.now().await?;
    if until <= now {
        return Err(Error::Refused("an order that would have ended already".to_owned()));
    }
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    let standing = select(
        session,
        Query::with(
            format!("{SELECT} and scope = $1 and value = $2 and removed_at is null"),
            [selector.kind().into(), value.into()],
        ),
    )
    .await?;
    let standing = standing.into_iter().next();
    let (id, until, action) = match standing {
        Some(order) if order.cancel.until > now => {
            let until = until.max(order.cancel.until);
            session
                .execute(Query::with(
                    "update directives set since = $2, until = $3, actor = $4, note = $5 where id = $1",
                    [order.id.as_str().into(), now.into(), until.into(), by.as_ref().into(), note.as_deref().into()],
                ))
                .await?;
            (order.id, until, "cancel.renewed")
        }
        ended => {
            if let Some(order) = ended {
                session
                    .execute(Query::with(
                        "update directives set removed_at = $2 where id = $1",
                        [order.id.into(), order.cancel.until.into()],
                    ))
                    .await?;
            }
            let mut id = ids::new('c', now, rand::random());
            while find(session, &id).await?.is_some() {
                id = ids::new('c', now, rand::random());
            }
            session
                .execute(Query::with(
                    "insert into directives (id, kind, scope, value, since, until, actor, note)
                     values ($1, 'cancel', $2, $3, $4, $5, $6, $7)",
                    [
                        id.as_str().into(),
                        selector.kind().into(),
                        value.into(),
                        now.into(),
                        until.into(),
                        by.as_ref().into(),
                        note.as_deref().into(),
                    ],
                ))
                .await?;
            (id, until, "cancel.added")
        }
    };
    changed(session).await?;
    let detail = json!({ "selector": selector, "until": until.to_string() });
    audit::record(session, now, action, &id, &by, note.as_deref(), detail).await?;
    find(session, &id).await?.ok_or_else(|| Error::Unavailable("the order just given is not there".into()))
}

async fn remove<S: Session>(session: &mut S, id: &str, by: &str, note: Option<&str>) -> Result<Option<CancelOrder>, Error> {
    session.alone().await?;
    let Some(order) = find(session, id).await? else { return Ok(None) };
    let now = session.now().await?;
    if order.removed_at.is_some() || order.cancel.until <= now {
        return Ok(Some(order));
    }
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    session
        .execute(Query::with(
            "update directives set removed_at = $2, removed_by = $3 where id = $1",
            [id.into(), now.into(), by.as_ref().into()],
        ))
        .await?;
    changed(session).await?;
    let detail = json!({ "selector": order.cancel.selector });
    audit::record(session, now, "cancel.removed", id, &by, note.as_deref(), detail).await?;
    find(session, id).await
}

async fn list<S: Session>(session: &mut S, which: Which) -> Result<Vec<CancelOrder>, Error> {
    let mut query = Query::new(SELECT);
    if which == Which::InForce {
        let now = session.now().await?;
        query.push(" and removed_at is null and until > ").bind(now);
    }
    query.push(" order by since desc, id desc");
    select(session, query).await
}

async fn version<S: Session>(session: &mut S) -> Result<i64, Error> {
    let rows = session.fetch(Query::new("select version from directive_versions where kind = 'cancel'")).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.int("version"))?)
}

/// Every worker looks again.
async fn changed<S: Session>(session: &mut S) -> Result<(), Error> {
    session
        .execute(Query::new(
            "insert into directive_versions (kind, version) values ('cancel', 1)
             on conflict (kind) do update set version = directive_versions.version + 1",
        ))
        .await?;
    Ok(())
}

const SELECT: &str = "select id, scope, value, since, until, actor, note, removed_at, removed_by from directives \
     where kind = 'cancel'";

async fn find<S: Session>(session: &mut S, id: &str) -> Result<Option<CancelOrder>, Error> {
    if id.contains('\0') {
        return Ok(None);
    }
    let orders = select(session, Query::with(format!("{SELECT} and id = $1"), [id.into()])).await?;
    Ok(orders.into_iter().next())
}

async fn select<S: Session>(session: &mut S, query: Query) -> Result<Vec<CancelOrder>, Error> {
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(order).collect::<Result<_, _>>()?)
}

fn order(row: &impl Row) -> Result<CancelOrder, sqlx::Error> {
    let selector = Selector::new(&row.text("scope")?, row.text("value")?).ok_or_else(|| unknown("a cancel order"))?;
    Ok(CancelOrder {
        id: row.text("id")?,
        cancel: Cancel { selector, since: row.time("since")?, until: row.time("until")? },
        by: row.text("actor")?,
        note: row.opt_text("note")?,
        removed_at: row.opt_time("removed_at")?,
        removed_by: row.opt_text("removed_by")?,
    })
}
