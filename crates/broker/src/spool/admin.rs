//! The topology in the file: comparing, declaring, binding and removing, each within a transaction.

use std::collections::{BTreeMap, HashMap, HashSet};

use paceline_sqlite::rusqlite::{Connection, OptionalExtension, Result, params};
use serde_json::{Map, Value};

use super::{
    hub::Known,
    keeper::Transaction,
    lines::{MAX_QUEUE, last_place, parts, place},
};
use crate::{
    Applied, BrokerError, Drift, Topology,
    topology::{Argument, Binding, Exchange, ExchangeKind, Manifest, Queue},
};

/// Messages moved in one transaction.
const MOVED_AT_ONCE: i64 = 500;

pub(super) fn kind_of(text: &str) -> ExchangeKind {
    match text {
        "fanout" => ExchangeKind::Fanout,
        "topic" => ExchangeKind::Topic,
        _ => ExchangeKind::Direct,
    }
}

fn kind_text(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Topic => "topic",
    }
}

/// Arguments by name; what is no number and no text is left out.
pub(super) fn parse_arguments(json: &str) -> BTreeMap<String, Argument> {
    let object: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let argument = |value: Value| match value {
        Value::String(text) => Some(Argument::Text(text)),
        Value::Number(number) => number.as_i64().map(Argument::Int),
        _ => None,
    };
    object.into_iter().filter_map(|(name, value)| Some((name, argument(value)?))).collect()
}

fn write_arguments(queue: &Queue) -> String {
    let value = |argument: &Argument| match argument {
        Argument::Int(number) => Value::from(*number),
        Argument::Text(text) => Value::from(text.as_str()),
    };
    let object: Map<String, Value> = queue.arguments.iter().map(|(name, a)| ((*name).to_owned(), value(a))).collect();
    Value::Object(object).to_string()
}

/// Everything declared, read at once.
struct Declared {
    exchanges: HashMap<String, (ExchangeKind, Option<String>)>,
    queues: HashMap<String, (i64, BTreeMap<String, Argument>)>,
    bindings: HashSet<(String, String, i64)>,
    manifest: Manifest,
}

impl Declared {
    fn read(db: &Connection, prefix: &str) -> Result<Declared> {
        let mut exchanges = db.prepare("SELECT name, kind, alternate FROM exchange")?;
        let exchanges = exchanges.query_map([], |row| Ok((row.get(0)?, (kind_of(&row.get::<_, String>(1)?), row.get(2)?))))?;
        let exchanges = exchanges.collect::<Result<_>>()?;
        let mut queues = db.prepare("SELECT name, id, arguments FROM queue")?;
        let queues = queues.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, parse_arguments(&row.get::<_, String>(2)?)))))?;
        let queues = queues.collect::<Result<_>>()?;
        let mut bindings = db.prepare("SELECT exchange, key, queue FROM binding")?;
        let bindings = bindings.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_>>()?;
        let manifest = db.prepare("SELECT manifest FROM applied WHERE prefix = ?")?.query_row([prefix], |row| row.get(0));
        let manifest = manifest.optional()?.and_then(|json: String| serde_json::from_str(&json).ok()).unwrap_or_default();
        Ok(Declared { exchanges, queues, bindings, manifest })
    }

    fn has(&self, b: &Binding) -> bool {
        let queue = self.queues.get(&b.queue).map(|(id, _)| *id);
        queue.is_some_and(|queue| self.bindings.contains(&(b.exchange.clone(), b.key.clone(), queue)))
    }

    fn different(&self, topology: &Topology) -> Vec<Drift> {
        let mut drift = Vec::new();
        for wanted in &topology.exchanges {
            if let Some((kind, alternate)) = self.exchanges.get(&wanted.name)
                && (*kind, alternate) != (wanted.kind, &wanted.alternate)
            {
                let detail = format!("kind {kind:?}, alternate {alternate:?}");
                drift.push(Drift::Different { name: format!("exchange {}", wanted.name), detail });
            }
        }
        for wanted in &topology.queues {
            if let Some((_, arguments)) = self.queues.get(&wanted.name)
                && !(arguments.len() == wanted.arguments.len()
                    && wanted.arguments.iter().all(|(name, value)| arguments.get(*name) == Some(value)))
            {
                let differs = |(name, value): &(&&str, &Argument)| arguments.get(**name) != Some(*value);
                let named = wanted.arguments.iter().find(differs).map_or("another", |(name, _)| name);
                let detail = format!("inequivalent arg '{named}'");
                drift.push(Drift::Different { name: format!("queue {}", wanted.name), detail });
            }
        }
        drift
    }
}

pub(super) fn check(db: &Connection, topology: &Topology) -> Result<Vec<Drift>> {
    let declared = Declared::read(db, topology.names.prefix())?;
    let missing = |there: bool, what: String| (!there).then_some(Drift::Missing(what));
    let exchanges = topology.exchanges.iter().map(|e| (declared.exchanges.contains_key(&e.name), format!("exchange {}", e.name)));
    let queues = topology.queues.iter().map(|q| (declared.queues.contains_key(&q.name), format!("queue {}", q.name)));
    let bindings = topology.bindings.iter().map(|b| (declared.has(b), b.to_string()));
    let mut drift: Vec<_> = exchanges.chain(queues).chain(bindings).filter_map(|(there, what)| missing(there, what)).collect();
    drift.extend(declared.different(topology));
    let wanted = Manifest::of(topology);
    drift.extend(declared.manifest.stale_bindings(&wanted).iter().map(|b| Drift::Unnamed(b.to_string())));
    drift.extend(declared.manifest.stale_lanes(&wanted).into_iter().map(|lane| Drift::Unnamed(format!("queue {lane}"))));
    Ok(drift)
}

/// Declares and binds what is missing and unbinds what is not named any more. Also the lanes that are not.
pub(super) fn apply(
    t: &mut Transaction<'_>,
    topology: &Topology,
) -> Result<std::result::Result<(Applied, Vec<String>), BrokerError>> {
    let declared = Declared::read(t.db, topology.names.prefix())?;
    for drift in declared.different(topology) {
        if let Drift::Different { name, detail } = drift {
            return Ok(Err(BrokerError::Different { name, detail }));
        }
    }
    let mut applied = Applied::default();
    let mut note = |new: bool, what: String| if new { applied.created.push(what) } else { applied.present += 1 };
    for exchange in &topology.exchanges {
        note(declare_exchange(t.db, exchange)?, format!("exchange {}", exchange.name));
    }
    for queue in &topology.queues {
        note(declare_queue(t.db, queue)?, format!("queue {}", queue.name));
    }
    for binding in &topology.bindings {
        note(bind(t.db, binding)?, binding.to_string());
    }
    let wanted = Manifest::of(topology);
    for stale in declared.manifest.stale_bindings(&wanted) {
        unbind(t.db, &stale)?;
        applied.removed.push(stale.to_string());
    }
    let stale: Vec<_> =
        declared.manifest.stale_lanes(&wanted).into_iter().filter(|lane| declared.queues.contains_key(lane)).collect();
    // Until they are empty and gone, the next one must know of these lanes.
    remember(t.db, topology, &stale)?;
    t.topology_changed()?;
    Ok(Ok((applied, stale)))
}

/// Records what now holds.
pub(super) fn remember(db: &Connection, topology: &Topology, left: &[String]) -> Result<()> {
    let mut manifest = Manifest::of(topology);
    manifest.lanes.extend(left.iter().cloned());
    let json = serde_json::to_string(&manifest).unwrap_or_default();
    db.execute("INSERT OR REPLACE INTO applied VALUES (?, ?)", [topology.names.prefix(), &json]).map(drop)
}

fn declare_exchange(db: &Connection, exchange: &Exchange) -> Result<bool> {
    let new = params![exchange.name, kind_text(exchange.kind), exchange.alternate];
    db.prepare_cached("INSERT OR IGNORE INTO exchange VALUES (?, ?, ?)")?.execute(new).map(|count| count > 0)
}

/// Whether it was not there before.
pub(super) fn declare_queue(db: &Connection, queue: &Queue) -> Result<bool> {
    let ttl_ms = match queue.arguments.get("x-message-ttl") {
        Some(Argument::Int(ms)) => Some(*ms),
        _ => None,
    };
    let new = params![queue.name, write_arguments(queue), ttl_ms, MAX_QUEUE];
    // The lowest id that is free, so that they never run out.
    let sql = "INSERT INTO queue (id, name, arguments, ttl_ms)
               SELECT coalesce(min(q.id), 0) + 1, ?1, ?2, ?3
               FROM (SELECT 0 AS id UNION ALL SELECT id FROM queue) AS q
               WHERE q.id < ?4 AND NOT EXISTS (SELECT 1 FROM queue WHERE id = q.id + 1)
               ON CONFLICT (name) DO NOTHING";
    db.prepare_cached(sql)?.execute(new).map(|count| count > 0)
}

pub(super) fn bind(db: &Connection, b: &Binding) -> Result<bool> {
    let sql = "INSERT OR IGNORE INTO binding SELECT ?, ?, id FROM queue WHERE name = ?";
    db.prepare_cached(sql)?.execute([&b.exchange, &b.key, &b.queue]).map(|count| count > 0)
}

fn unbind(db: &Connection, b: &Binding) -> Result<()> {
    let sql = "DELETE FROM binding WHERE exchange = ? AND key = ? AND queue = (SELECT id FROM queue WHERE name = ?)";
    db.prepare_cached(sql)?.execute([&b.exchange, &b.key, &b.queue]).map(drop)
}

/// A queue by name.
pub(super) fn known(db: &Connection, name: &str) -> Result<Option<Known>> {
    let mut statement = db.prepare_cached("SELECT id, tail, handed FROM queue WHERE name = ?")?;
    let known = |row: &paceline_sqlite::rusqlite::Row<'_>| {
        Ok(Known { id: row.get(0)?, name: name.into(), tail: row.get(1)?, handed: row.get(2)? })
    };
    statement.query_row([name], known).optional()
}

/// The rest of the names of queues that begin with `prefix`.
pub(super) fn names(db: &Connection, prefix: &str) -> Result<Vec<String>> {
    let mut names = db.prepare_cached("SELECT name FROM queue ORDER BY name")?;
    let names = names.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>>>()?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect())
}

/// Messages stored in a queue, with its id.
pub(super) fn depth(db: &Connection, name: &str) -> Result<Option<(i64, u64)>> {
    let mut statement = db.prepare_cached("SELECT id, depth FROM queue WHERE name = ?")?;
    let depth = statement.query_row([name], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?))).optional()?;
    Ok(depth.map(|(id, depth)| (id, u64::try_from(depth).unwrap_or(0))))
}

/// One step of emptying a queue.
pub(super) struct Moved {
    pub(super) numbers: Vec<i64>,
    /// Everything up to here has been looked at; `None` when that was all.
    pub(super) next: Option<i64>,
}

/// Moves what nobody holds of a queue to where `exchange` leads with the keys it has, from `after` on.
pub(super) fn move_out(t: &mut Transaction<'_>, queue: i64, exchange: &str, after: i64) -> Result<Moved> {
    let mut heads = t.db.prepare_cached("SELECT id, key FROM message WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?")?;
    let range = [place(queue, after + 1), last_place(queue), MOVED_AT_ONCE];
    let heads = heads.query_map(range, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let heads = heads.collect::<Result<Vec<_>>>()?;
    let taken = t.hub.taken(queue);
    let mut moved = Moved { numbers: Vec::new(), next: heads.last().map(|(id, _)| parts(*id).1) };
    for (id, key) in heads {
        let number = parts(id).1;
        let Ok(queues) = t.routes.targets(exchange, &key) else { continue };
        let refused = queues.is_empty() || queues.contains(&queue);
        if refused || taken.contains(&number) {
            continue;
        }
        t.lines.move_to(t.db, t.routes, id, &queues, t.now_us)?;
        moved.numbers.push(number);
    }
    Ok(moved)
}

/// Removes a queue that holds nothing; whether it did.
pub(super) fn remove(t: &mut Transaction<'_>, queue: i64) -> Result<bool> {
    if t.lines.depth(t.db, queue)? > 0 || !t.hub.begin_removal(queue) {
        return Ok(false);
    }
    t.removed.push(queue);
    t.lines.forget(queue);
    t.db.execute("DELETE FROM binding WHERE queue = ?", [queue])?;
    t.db.execute("DELETE FROM queue WHERE id = ?", [queue])?;
    t.topology_changed()?;
    Ok(true)
}

/// Mail on the ladder waits no longer than its rung says, also when the clock has been set back since.
pub(super) fn mend_dues(t: &mut Transaction<'_>) -> Result<()> {
    for (rung, latest) in rungs_ahead(t.db, t.now_us)? {
        t.db.execute(
            "UPDATE message SET due_us = min(due_us, ?) WHERE id BETWEEN ? AND ?",
            [latest, place(rung, 0), last_place(rung)],
        )?;
    }
    Ok(())
}

/// Rungs whose last message is due later than one that came now would be, with the due time of the latter.
pub(super) fn rungs_ahead(db: &Connection, now_us: i64) -> Result<Vec<(i64, i64)>> {
    let mut rungs = db.prepare_cached("SELECT id, ttl_ms FROM queue WHERE ttl_ms IS NOT NULL")?;
    let rungs = rungs.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?.collect::<Result<Vec<_>>>()?;
    let mut ahead = Vec::new();
    for (rung, ttl_ms) in rungs {
        let mut last = db.prepare_cached("SELECT due_us FROM message WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1")?;
        let last = last.query_row([place(rung, 0), last_place(rung)], |row| row.get::<_, Option<i64>>(0)).optional()?.flatten();
        let latest = now_us.saturating_add(ttl_ms.saturating_mul(1000));
        if last.is_some_and(|due| due > latest) {
            ahead.push((rung, latest));
        }
    }
    Ok(ahead)
}
