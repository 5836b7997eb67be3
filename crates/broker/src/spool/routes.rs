//! Exchanges, bindings and queues as they are in the file, for looking up where a message goes.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use paceline_sqlite::rusqlite::{Connection, Result};

use super::admin::{kind_of, parse_arguments};
use crate::{
    memory::routing::topic_matches,
    topology::{Argument, ExchangeKind},
};

/// A copy of the topology in the file; `version` says of which.
#[derive(Default)]
pub(super) struct Routes {
    pub(super) version: i64,
    exchanges: HashMap<String, Exchange>,
    by_name: HashMap<Arc<str>, i64>,
    queues: HashMap<i64, Rules>,
}

struct Exchange {
    kind: ExchangeKind,
    alternate: Option<String>,
    /// By key, or by pattern.
    bindings: HashMap<String, Vec<i64>>,
}

/// What a queue does by its arguments.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) name: Arc<str>,
    pub(super) ttl_us: Option<i64>,
    pub(super) max_length: Option<i64>,
    /// The exchange by which messages leave at the end of their time.
    pub(super) expired_to: Option<String>,
}

impl Routes {
    pub(super) fn load(db: &Connection, version: i64) -> Result<Routes> {
        let mut routes = Routes { version, ..Routes::default() };
        let mut statement = db.prepare_cached("SELECT id, name, arguments FROM queue")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
            let arguments = parse_arguments(&row.get::<_, String>(2)?);
            let number = |name: &str| match arguments.get(name) {
                Some(Argument::Int(n)) => Some(*n),
                _ => None,
            };
            let rules = Rules {
                name: name.into(),
                ttl_us: number("x-message-ttl").map(|ms| ms.saturating_mul(1000)),
                max_length: number("x-max-length"),
                expired_to: match arguments.get("x-dead-letter-exchange") {
                    Some(Argument::Text(exchange)) => Some(exchange.clone()),
                    _ => None,
                },
            };
            routes.by_name.insert(rules.name.clone(), id);
            routes.queues.insert(id, rules);
        }
        let mut statement = db.prepare_cached("SELECT name, kind, alternate FROM exchange")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let kind = kind_of(&row.get::<_, String>(1)?);
            let exchange = Exchange { kind, alternate: row.get(2)?, bindings: HashMap::new() };
            routes.exchanges.insert(row.get(0)?, exchange);
        }
        let mut statement = db.prepare_cached("SELECT exchange, key, queue FROM binding")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(exchange) = routes.exchanges.get_mut(&row.get::<_, String>(0)?) {
                exchange.bindings.entry(row.get(1)?).or_default().push(row.get(2)?);
            }
        }
        Ok(routes)
    }

    pub(super) fn queue(&self, name: &str) -> Option<i64> {
        self.by_name.get(name).copied()
    }

    pub(super) fn rules(&self, queue: i64) -> Option<&Rules> {
        self.queues.get(&queue)
    }

    /// The queues a key reaches, by alternates where nothing is bound; the empty exchange leads to the queue of that
    /// name. `Err` says what is not there.
    pub(super) fn targets<'a>(&'a self, exchange: &str, key: &str) -> std::result::Result<Cow<'a, [i64]>, String> {
        if exchange.is_empty() {
            let queue = self.queue(key).ok_or_else(|| format!("queue {key}"))?;
            return Ok(Cow::Owned(vec![queue]));
        }
        let mut next = self.exchanges.get(exchange);
        if next.is_none() {
            return Err(format!("exchange {exchange}"));
        }
        while let Some(state) = next {
            let found = state.targets(key);
            if !found.is_empty() {
                return Ok(found);
            }
            next = state.alternate.as_deref().and_then(|name| self.exchanges.get(name));
        }
        Ok(Cow::Borrowed(&[]))
    }
}

impl Exchange {
    fn targets(&self, key: &str) -> Cow<'_, [i64]> {
        let matching: Vec<_> = match self.kind {
            ExchangeKind::Direct => return self.bindings.get(key).map_or(Cow::Borrowed(&[]), |queues| queues[..].into()),
            ExchangeKind::Fanout => self.bindings.values().collect(),
            ExchangeKind::Topic => {
                self.bindings.iter().filter(|(pattern, _)| topic_matches(pattern, key)).map(|(_, queues)| queues).collect()
            }
        };
        let mut queues: Vec<i64> = matching.into_iter().flatten().copied().collect();
        queues.sort_unstable();
        queues.dedup();
        queues.into()
    }
}
