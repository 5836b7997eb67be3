//! Who is accounted for: what was published, what the sandbox saw of it, and what the store holds. Pure.
//!
//! Nothing here comes from the worker's own counters: they are compared with it in the end.

use std::collections::HashMap;

use paceline_core::{Class, Reason};

use super::{
    arrivals::Arrival,
    plan::{Fate, Group, Mail},
};

/// A lane of the demo: class and position of the destination in [`super::stage::PLACES`].
pub(crate) type LaneKey = (Class, usize);

/// One message's history, from outside.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) lane: LaneKey,
    pub(crate) group: Option<Group>,
    pub(crate) garbage: bool,
    /// Just before it was first given to the broker; microseconds of the Unix epoch.
    pub(crate) published_us: Option<u64>,
    /// How often the broker took it.
    pub(crate) copies: u32,
    pub(crate) calls: u32,
    pub(crate) first_call_us: Option<u64>,
    pub(crate) accepted: u32,
    pub(crate) accepted_us: Option<u64>,
    pub(crate) dead: Vec<Reason>,
}

/// What can be said of a message in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// Accepted by the sandbox, once.
    Complete,
    /// Not accepted, and among the dead letters, once.
    Dead,
    /// Neither.
    Missing,
    /// Accepted, or dead, more than once; or both.
    Twice,
}

impl Entry {
    pub(crate) fn account(&self) -> Account {
        match (self.accepted, self.dead.len()) {
            (1, 0) => Account::Complete,
            (0, 1) => Account::Dead,
            (0, 0) => Account::Missing,
            _ => Account::Twice,
        }
    }

    /// From its publishing to its acceptance, in microseconds.
    pub(crate) fn latency_us(&self) -> Option<u64> {
        Some(self.accepted_us?.saturating_sub(self.published_us?))
    }

    /// Called for, and neither accepted nor given up on yet.
    pub(crate) fn is_trying_again(&self) -> bool {
        self.calls > 0 && self.account() == Account::Missing
    }
}

/// One call at the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) at_us: u64,
    pub(crate) lane: LaneKey,
    pub(crate) status: Option<u16>,
}

/// Calls by what came of them, as the arrivals file has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) calls: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) throttled: u64,
    pub(crate) unanswered: u64,
    /// Known by their key and not taken again.
    pub(crate) repeated: u64,
}

/// Everything known.
#[derive(Debug, Default)]
pub(crate) struct Books {
    entries: Vec<Entry>,
    by_id: HashMap<String, usize>,
    calls: Vec<Call>,
    pub(crate) seen: Seen,
    /// Calls, and dead letters, of messages that nobody published.
    strangers: [u64; 2],
}

impl Books {
    pub(crate) fn new(mail: &[Mail]) -> Books {
        let entry = |m: &Mail| Entry {
            id: m.id.clone(),
            lane: (m.class, m.place),
            group: m.group,
            garbage: m.fate == Fate::Garbage,
            published_us: None,
            copies: 0,
            calls: 0,
            first_call_us: None,
            accepted: 0,
            accepted_us: None,
            dead: vec![],
        };
        let by_id = mail.iter().enumerate().map(|(i, m)| (m.id.clone(), i)).collect();
        Books { entries: mail.iter().map(entry).collect(), by_id, ..Books::default() }
    }

    /// In the order of the plan.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// In the order of arrival.
    pub(crate) fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The broker has the message at this position of the plan; `at_us` is when it was first offered.
    pub(crate) fn published(&mut self, index: usize, at_us: u64) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.copies += 1;
            entry.published_us = Some(entry.published_us.map_or(at_us, |known| known.min(at_us)));
        }
    }

    /// A line of the arrivals file.
    pub(crate) fn arrived(&mut self, arrival: &Arrival) {
        self.seen.calls += 1;
        self.seen.accepted += u64::from(arrival.accepted);
        match arrival.result.as_str() {
            "refused" => self.seen.refused += 1,
            "duplicate" => self.seen.repeated += 1,
            "hung" | "dropped" => self.seen.unanswered += 1,
            _ => {}
        }
        self.seen.throttled += u64::from(arrival.status == Some(429));
        let entry = arrival.id.as_ref().and_then(|id| self.by_id.get(id)).and_then(|i| self.entries.get_mut(*i));
        let Some(entry) = entry else {
            self.strangers[0] += 1;
            return;
        };
        entry.calls += 1;
        entry.first_call_us.get_or_insert(arrival.at_us);
        if arrival.accepted {
            entry.accepted += 1;
            entry.accepted_us.get_or_insert(arrival.at_us);
        }
        self.calls.push(Call { at_us: arrival.at_us, lane: entry.lane, status: arrival.status });
    }

    /// What the store holds, all of it, by message id: replaces what was known before.
    pub(crate) fn buried<'a>(&mut self, dead: impl IntoIterator<Item = (Option<&'a str>, Reason)>) {
        self.entries.iter_mut().for_each(|entry| entry.dead.clear());
        self.strangers[1] = 0;
        for (id, reason) in dead {
            match id.and_then(|id| self.by_id.get(id)).and_then(|i| self.entries.get_mut(*i)) {
                Some(entry) => entry.dead.push(reason),
                None => self.strangers[1] += 1,
            }
        }
    }

    /// Calls and dead letters of messages that nobody published.
    pub(crate) fn strangers(&self) -> u64 {
        self.strangers.iter().sum()
    }

    /// Messages accepted so far.
    pub(crate) fn complete(&self) -> usize {
        self.entries.iter().filter(|e| e.accepted > 0).count()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn mail(id: &str, class: Class, place: usize) -> Mail {
        let (id, domain) = (id.to_owned(), super::super::stage::PLACES[place].domains[0]);
        Mail { at: Duration::ZERO, id, class, place, domain, fate: Fate::Plain, group: None }
    }

    pub(crate) fn arrival(at_us: u64, id: &str, result: &str) -> Arrival {
        let status = match result {
            "accepted" | "duplicate" => Some(200),
            "refused" => Some(503),
            _ => None,
        };
        Arrival { at_us, id: Some(id.into()), status, accepted: matches!(result, "accepted" | "dropped"), result: result.into() }
    }

    #[test]
    fn a_message_is_complete_or_dead_and_nothing_else_will_do() {
        let ids = ["sent", "retried", "lost", "dead", "missing", "doubled", "both", "dead-twice"];
        let mut books = Books::new(&ids.map(|id| mail(id, Class::Low, 0)));
        (0..ids.len()).for_each(|i| books.published(i, 100));
        for (at, id, result) in [
            (200, "sent", "accepted"),
            (201, "retried", "refused"),
            (202, "retried", "accepted"),
            (203, "lost", "dropped"),
            (204, "lost", "duplicate"),
            (205, "dead", "refused"),
            (206, "missing", "refused"),
            (207, "doubled", "accepted"),
            (208, "doubled", "accepted"),
            (209, "both", "accepted"),
        ] {
            books.arrived(&arrival(at, id, result));
        }
        let dead = ["dead", "both", "dead-twice", "dead-twice"].map(|id| (Some(id), Reason::Expired));
        books.buried(dead);
        books.buried(dead);
        let accounts: Vec<_> = books.entries().iter().map(Entry::account).collect();
        use Account::{Complete, Dead, Missing, Twice};
        assert_eq!(accounts, [Complete, Complete, Complete, Dead, Missing, Twice, Twice, Twice]);
        assert_eq!(books.entries()[1].latency_us(), Some(102));
        let seen = Seen { calls: 10, accepted: 6, refused: 3, throttled: 0, unanswered: 1, repeated: 1 };
        assert_eq!((books.seen, books.complete(), books.strangers()), (seen, 5, 0));
        assert!(books.entries()[4].is_trying_again() && !books.entries()[3].is_trying_again());
    }

    #[test]
    fn strangers_are_told() {
        let mut books = Books::new(&[mail("a", Class::High, 1)]);
        books.arrived(&arrival(1, "b", "accepted"));
        books.arrived(&Arrival { id: None, ..arrival(1, "b", "accepted") });
        books.buried([(None, Reason::InvalidMessage), (Some("a"), Reason::Expired)]);
        assert_eq!(books.strangers(), 3);
        assert_eq!(books.entries()[0].account(), Account::Dead);
    }

    #[test]
    fn a_copy_counts_from_the_first() {
        let mut books = Books::new(&[mail("a", Class::High, 1)]);
        books.published(0, 7);
        books.published(0, 5);
        assert_eq!((books.entries()[0].published_us, books.entries()[0].copies), (Some(5), 2));
    }
}
