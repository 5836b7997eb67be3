//! Pauses and limits among the directives.
//!
//! One without an end ends at [`Timestamp::MAX`]. A pause has the kind and the name of what it holds back as `scope` and
//! `value`; a limit has no scope, its whole name as `value`, and a `rate`.

use async_trait::async_trait;
use paceline_core::{LimitName, LimitOrder, Pause, PauseScope, Rate, Timestamp};
use serde_json::json;

use super::{Backend, Mode, Query, Row, Session, audit, ids, unknown};
use crate::{
    Directives, Error, Standing, Which,
    text::{KEY_BYTES, WORDS_BYTES, bounded},
};

#[async_trait]
impl<B: Backend> Directives for B {
    async fn pause(
        &self,
        scope: &PauseScope,
        until: Option<Timestamp>,
        by: &str,
        note: Option<&str>,
    ) -> Result<Standing<Pause>, Error> {
        call!(self, Mode::Write, |session| give(session, Key::pause(scope), None, until, by, note))
    }

    async fn resume(&self, scope: &PauseScope, by: &str, note: Option<&str>) -> Result<Option<Standing<Pause>>, Error> {
        call!(self, Mode::Write, |session| take_back(session, Key::pause(scope), by, note))
    }

    async fn pauses(&self, which: Which) -> Result<Vec<Standing<Pause>>, Error> {
        call!(self, Mode::Read, |session| list(session, which))
    }

    async fn set_limit(
        &self,
        name: &LimitName,
        rate: Rate,
        until: Option<Timestamp>,
        by: &str,
        note: Option<&str>,
    ) -> Result<Standing<LimitOrder>, Error> {
        call!(self, Mode::Write, |session| give(session, Key::limit(name), Some(rate), until, by, note))
    }

    async fn reset_limit(&self, name: &LimitName, by: &str, note: Option<&str>) -> Result<Option<Standing<LimitOrder>>, Error> {
        call!(self, Mode::Write, |session| take_back(session, Key::limit(name), by, note))
    }

    async fn limit_orders(&self, which: Which) -> Result<Vec<Standing<LimitOrder>>, Error> {
        call!(self, Mode::Read, |session| list(session, which))
    }

    async fn directives_version(&self) -> Result<i64, Error> {
        call!(self, Mode::Read, |session| version(session))
    }
}

/// What an order is about, as it is stored.
struct Key {
    scope: String,
    value: String,
}

impl Key {
    fn pause(scope: &PauseScope) -> Key {
        Key { scope: scope.kind().to_owned(), value: scope.name().to_owned() }
    }

    fn limit(name: &LimitName) -> Key {
        Key { scope: String::new(), value: name.to_string() }
    }

    /// As a person says it; the subject of the audit trail.
    fn subject(&self) -> String {
        format!("{} {}", self.scope, self.value).trim().to_owned()
    }
}

/// A kind of order.
trait Kind: Sized + Send {
    const KIND: &'static str;
    /// Begins its ids.
    const LETTER: char;
    /// What the audit trail says of one given, replaced, taken back.
    const ACTIONS: [&'static str; 3];

    fn read(row: &impl Row, since: Timestamp, until: Option<Timestamp>) -> Result<Self, sqlx::Error>;
    fn until(&self) -> Option<Timestamp>;
}

impl Kind for Pause {
    const KIND: &'static str = "pause";
    const LETTER: char = 'p';
    const ACTIONS: [&'static str; 3] = ["pause.added", "pause.changed", "pause.removed"];

    fn read(row: &impl Row, since: Timestamp, until: Option<Timestamp>) -> Result<Pause, sqlx::Error> {
        let scope = PauseScope::new(&row.text("scope")?, row.text("value")?).ok_or_else(|| unknown("a pause"))?;
        Ok(Pause { scope, since, until })
    }

    fn until(&self) -> Option<Timestamp> {
        self.until
    }
}

impl Kind for LimitOrder {
    const KIND: &'static str = "limit";
    const LETTER: char = 'l';
    const ACTIONS: [&'static str; 3] = ["limit.set", "limit.changed", "limit.reset"];

    fn read(row: &impl Row, since: Timestamp, until: Option<Timestamp>) -> Result<LimitOrder, sqlx::Error> {
        let name = row.text("value")?.parse().map_err(|_| unknown("a limit"))?;
        let rate = row.text("rate")?.parse().map_err(|_| unknown("a rate"))?;
        Ok(LimitOrder { name, rate, since, until })
    }

    fn until(&self) -> Option<Timestamp> {
        self.until
    }
}

async fn give<S: Session, K: Kind>(
    session: &mut S,
    key: Key,
    rate: Option<Rate>,
    until: Option<Timestamp>,
    by: &str,
    note: Option<&str>,
) -> Result<Standing<K>, Error> {
    if key.value.is_empty() || *bounded(&key.value, KEY_BYTES) != *key.value {
        return Err(Error::Refused("a name that is empty, longer than 512 bytes or holds NUL".to_owned()));
    }
    session.alone().await?;
    let now = session.now().await?;
    if until.is_some_and(|until| until <= now) {
        return Err(Error::Refused("an order that would have ended already".to_owned()));
    }
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    let end = until.unwrap_or(Timestamp::MAX);
    let rate = rate.map(|rate| rate.to_string());
    let [added, changed_to, _] = K::ACTIONS;
    let (id, action) = match standing::<S, K>(session, &key).await? {
        Some(order) if in_force(&order, now) => {
            session
                .execute(Query::with(
                    "update directives set since = $2, until = $3, actor = $4, note = $5, rate = $6 where id = $1",
                    [
                        order.id.as_str().into(),
                        now.into(),
                        end.into(),
                        by.as_ref().into(),
                        note.as_deref().into(),
                        rate.as_deref().into(),
                    ],
                ))
                .await?;
            (order.id, changed_to)
        }
        ended => {
            if let Some(order) = ended {
                let at = order.order.until().unwrap_or(now);
                session
                    .execute(Query::with("update directives set removed_at = $2 where id = $1", [order.id.into(), at.into()]))
                    .await?;
            }
            let mut id = ids::new(K::LETTER, now, rand::random());
            while find::<S, K>(session, &id).await?.is_some() {
                id = ids::new(K::LETTER, now, rand::random());
            }
            session
                .execute(Query::with(
                    "insert into directives (id, kind, scope, value, since, until, actor, note, rate)
                     values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                    [
                        id.as_str().into(),
                        K::KIND.into(),
                        key.scope.as_str().into(),
                        key.value.as_str().into(),
                        now.into(),
                        end.into(),
                        by.as_ref().into(),
                        note.as_deref().into(),
                        rate.as_deref().into(),
                    ],
                ))
                .await?;
            (id, added)
        }
    };
    changed(session).await?;
    let detail = json!({ "id": id, "rate": rate, "until": until.map(|u| u.to_string()) });
    audit::record(session, now, action, &key.subject(), &by, note.as_deref(), detail).await?;
    find(session, &id).await?.ok_or_else(|| Error::Unavailable("the order just given is not there".into()))
}

async fn take_back<S: Session, K: Kind>(
    session: &mut S,
    key: Key,
    by: &str,
    note: Option<&str>,
) -> Result<Option<Standing<K>>, Error> {
    session.alone().await?;
    let now = session.now().await?;
    let Some(order) = standing::<S, K>(session, &key).await?.filter(|order| in_force(order, now)) else { return Ok(None) };
    let (by, note) = (bounded(by, KEY_BYTES), note.map(|n| bounded(n, WORDS_BYTES)));
    session
        .execute(Query::with(
            "update directives set removed_at = $2, removed_by = $3 where id = $1",
            [order.id.as_str().into(), now.into(), by.as_ref().into()],
        ))
        .await?;
    changed(session).await?;
    let [_, _, removed] = K::ACTIONS;
    audit::record(session, now, removed, &key.subject(), &by, note.as_deref(), json!({ "id": order.id })).await?;
    find(session, &order.id).await
}

fn in_force<K: Kind>(order: &Standing<K>, now: Timestamp) -> bool {
    order.removed_at.is_none() && order.order.until().is_none_or(|until| now < until)
}

async fn list<S: Session, K: Kind>(session: &mut S, which: Which) -> Result<Vec<Standing<K>>, Error> {
    let mut query = of::<K>();
    if which == Which::InForce {
        let now = session.now().await?;
        query.push(" and removed_at is null and until > ").bind(now);
    }
    query.push(" order by since desc, id desc");
    select(session, query).await
}

/// The one that was not taken back, whether or not it has ended.
async fn standing<S: Session, K: Kind>(session: &mut S, key: &Key) -> Result<Option<Standing<K>>, Error> {
    if key.value.contains('\0') {
        return Ok(None);
    }
    let mut query = of::<K>();
    query.push(" and removed_at is null and scope = ").bind(key.scope.as_str());
    query.push(" and value = ").bind(key.value.as_str());
    Ok(select(session, query).await?.into_iter().next())
}

async fn find<S: Session, K: Kind>(session: &mut S, id: &str) -> Result<Option<Standing<K>>, Error> {
    let mut query = of::<K>();
    query.push(" and id = ").bind(id);
    Ok(select(session, query).await?.into_iter().next())
}

fn of<K: Kind>() -> Query {
    let mut query = Query::new(
        "select id, scope, value, since, until, actor, note, rate, removed_at, removed_by from directives where kind = ",
    );
    query.bind(K::KIND);
    query
}

async fn select<S: Session, K: Kind>(session: &mut S, query: Query) -> Result<Vec<Standing<K>>, Error> {
    let rows = session.fetch(query).await?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

fn read<K: Kind>(row: &impl Row) -> Result<Standing<K>, sqlx::Error> {
    let until = Some(row.time("until")?).filter(|until| *until < Timestamp::MAX);
    Ok(Standing {
        id: row.text("id")?,
        order: K::read(row, row.time("since")?, until)?,
        by: row.text("actor")?,
        note: row.opt_text("note")?,
        removed_at: row.opt_time("removed_at")?,
        removed_by: row.opt_text("removed_by")?,
    })
}

async fn version<S: Session>(session: &mut S) -> Result<i64, Error> {
    let rows = session.fetch(Query::new("select version from directive_versions where kind = 'standing'")).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.int("version"))?)
}

/// Every worker looks again.
async fn changed<S: Session>(session: &mut S) -> Result<(), Error> {
    session
        .execute(Query::new(
            "insert into directive_versions (kind, version) values ('standing', 1)
             on conflict (kind) do update set version = directive_versions.version + 1",
        ))
        .await?;
    Ok(())
}
