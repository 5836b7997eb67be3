//! What became of every message.

use std::{collections::BTreeMap, ops::Range};

use paceline_broker::Purpose;
use paceline_core::{Class, DeadLetter, Reason};

/// A message: its load, and its place in it.
pub(crate) type Id = (usize, usize);

/// Every message of a run.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) loads: Vec<LoadBook>,
    pub(crate) phases: Vec<PhaseBook>,
    /// Dead letters and calls that belong to no message of this run: none may be.
    pub(crate) strangers: u64,
    /// Messages that have come to their end.
    pub(crate) done: usize,
}

#[derive(Debug)]
pub(crate) struct LoadBook {
    pub(crate) name: String,
    pub(crate) class: Class,
    pub(crate) recipients: u32,
    pub(crate) mail: Vec<Mail>,
    /// Answers of receivers, by what they meant.
    pub(crate) answers: BTreeMap<&'static str, u64>,
    /// Publishes by workers.
    pub(crate) published: BTreeMap<&'static str, u64>,
    pub(crate) dead: BTreeMap<&'static str, u64>,
}

/// A part of the run.
#[derive(Debug)]
pub(crate) struct PhaseBook {
    pub(crate) name: String,
    pub(crate) during_us: Range<u64>,
    pub(crate) answers: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Mail {
    pub(crate) submitted_us: u64,
    /// First acceptance, or 0.
    pub(crate) sent_us: u64,
    /// Calls that were carried out.
    pub(crate) accepted: u16,
    /// Calls whose worker died before their result was recorded, and answers that got lost.
    pub(crate) unheard: u16,
    pub(crate) hops: u16,
    /// Recipients that got it, and those that became dead letters of their own.
    pub(crate) got: u64,
    pub(crate) gone: u64,
    /// The message as a whole was given up.
    pub(crate) buried: bool,
    /// Of the first call that was carried out.
    key: u64,
    /// Another key was used for the same message.
    rekeyed: bool,
}

/// The id that a message travels under.
pub(crate) fn text((load, n): Id) -> String {
    format!("{load}-{n}")
}

pub(crate) fn parse(id: &str) -> Option<Id> {
    let (load, n) = id.split_once('-')?;
    Some((load.parse().ok()?, n.parse().ok()?))
}

/// The name that recipient `k` of a message has.
pub(crate) fn recipient(k: u32) -> String {
    format!("r{k}")
}

pub(crate) fn bit(local: &str) -> u64 {
    local.strip_prefix('r').and_then(|k| k.parse::<u32>().ok()).and_then(|k| 1_u64.checked_shl(k)).unwrap_or(0)
}

impl LoadBook {
    pub(crate) fn new(name: &str, class: Class, recipients: u32) -> LoadBook {
        let (answers, published, dead) = Default::default();
        LoadBook { name: name.to_owned(), class, recipients, mail: Vec::new(), answers, published, dead }
    }
}

impl Book {
    pub(crate) fn of(&mut self, id: &str) -> Option<&mut Mail> {
        let found = parse(id).and_then(|(load, n)| self.loads.get_mut(load)?.mail.get_mut(n));
        if found.is_none() {
            self.strangers += 1;
        }
        found
    }

    /// A call was carried out.
    pub(crate) fn accepted<'a>(&mut self, id: &str, key: u64, recipients: impl Iterator<Item = &'a str>, now_us: u64) {
        self.change(id, |mail| {
            if mail.accepted == 0 {
                (mail.sent_us, mail.key) = (now_us, key);
            }
            mail.rekeyed |= mail.key != key;
            mail.accepted = mail.accepted.saturating_add(1);
            mail.got |= recipients.map(bit).fold(0, |a, b| a | b);
        });
    }

    /// Does something to a message, and counts it where that was its end.
    fn change<T>(&mut self, id: &str, change: impl FnOnce(&mut Mail) -> T) -> Option<T> {
        let recipients = parse(id).and_then(|(load, _)| self.loads.get(load)).map_or(0, |l| l.recipients);
        let mail = self.of(id)?;
        let before = mail.is_done(recipients);
        let done = change(mail);
        let ended = !before && mail.is_done(recipients);
        self.done += usize::from(ended);
        Some(done)
    }

    /// Whether a call with this key was carried out before.
    pub(crate) fn knows(&self, id: &str, key: u64) -> bool {
        let mail = parse(id).and_then(|(load, n)| self.loads.get(load)?.mail.get(n));
        mail.is_some_and(|m| m.accepted > 0 && m.key == key)
    }

    pub(crate) fn unheard(&mut self, id: &str) {
        if let Some(mail) = self.of(id) {
            mail.unheard = mail.unheard.saturating_add(1);
        }
    }

    pub(crate) fn answered(&mut self, id: &str, label: &'static str, now_us: u64) {
        for phase in self.phases.iter_mut().filter(|p| p.during_us.contains(&now_us)) {
            *phase.answers.entry(label).or_default() += 1;
        }
        if let Some(load) = parse(id).and_then(|(load, _)| self.loads.get_mut(load)) {
            *load.answers.entry(label).or_default() += 1;
        }
    }

    pub(crate) fn published(&mut self, id: &str, purpose: Purpose) {
        let Some(mail) = self.of(id) else { return };
        if purpose != Purpose::Dead {
            mail.hops = mail.hops.saturating_add(1);
        }
        if let Some(load) = parse(id).and_then(|(load, _)| self.loads.get_mut(load)) {
            *load.published.entry(purpose.as_str()).or_default() += 1;
        }
    }

    pub(crate) fn dead(&mut self, letter: &DeadLetter) {
        let id = letter.message_id.clone().unwrap_or_default();
        // The same letter may be written twice around a crash; it has one id, and is one entry in the store.
        let new = self.change(&id, |mail| match letter.reason {
            Reason::RejectedRecipient | Reason::Suppressed => {
                let bit = letter.to.as_deref().and_then(|to| to.split('@').next()).map_or(0, bit);
                let new = mail.gone & bit == 0;
                mail.gone |= bit;
                new
            }
            _ => !std::mem::replace(&mut mail.buried, true),
        });
        if new == Some(true)
            && let Some(load) = parse(&id).and_then(|(load, _)| self.loads.get_mut(load))
        {
            *load.dead.entry(letter.reason.as_str()).or_default() += 1;
        }
    }

    pub(crate) fn submitted(&self) -> usize {
        self.loads.iter().map(|l| l.mail.len()).sum()
    }

    /// Whether every message so far has come to its end.
    pub(crate) fn is_done(&self) -> bool {
        self.done == self.submitted()
    }
}

impl Mail {
    pub(crate) fn submitted(now_us: u64) -> Mail {
        Mail {
            submitted_us: now_us,
            sent_us: 0,
            accepted: 0,
            unheard: 0,
            hops: 1,
            got: 0,
            gone: 0,
            buried: false,
            key: 0,
            rekeyed: false,
        }
    }

    pub(crate) fn is_done(&self, recipients: u32) -> bool {
        self.buried || (self.got | self.gone).count_ones() >= recipients
    }

    /// How old it was when it was first sent; 0 where it was not.
    pub(crate) fn age_us(&self) -> u64 {
        self.sent_us.saturating_sub(self.submitted_us)
    }

    /// Sent more often than once.
    pub(crate) fn is_doubled(&self) -> bool {
        self.accepted > 1
    }

    /// Twice without a call whose result got lost, or under two keys.
    pub(crate) fn is_wrongly_doubled(&self) -> bool {
        self.accepted > self.unheard.saturating_add(1) || (self.accepted > 1 && self.rekeyed)
    }

    /// Both sent and given up, though no result was lost.
    pub(crate) fn is_contradicted(&self) -> bool {
        self.unheard == 0 && (self.got & self.gone != 0 || (self.buried && self.got != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paceline_core::{Journey, Timestamp};

    fn book() -> Book {
        let load = LoadBook { mail: vec![Mail::submitted(5); 2], ..LoadBook::new("l", Class::Normal, 2) };
        Book { loads: vec![load], ..Book::default() }
    }

    fn letter(id: &str, reason: Reason, to: &str) -> DeadLetter {
        let t = Timestamp::from_secs(1);
        DeadLetter {
            message_id: Some(id.into()),
            to: Some(to.into()),
            ..DeadLetter::new("x".into(), reason, &Journey::starting(t), t)
        }
    }

    #[test]
    fn a_message_ends_by_its_recipients_or_as_a_whole() {
        let mut b = book();
        b.accepted("0-0", 7, ["r0"].into_iter(), 9);
        assert!(!b.loads[0].mail[0].is_done(2));
        b.dead(&letter("0-0", Reason::RejectedRecipient, "r1@a.example"));
        b.dead(&letter("0-0", Reason::RejectedRecipient, "r1@a.example"));
        assert!(b.loads[0].mail[0].is_done(2) && !b.is_done());
        assert_eq!(b.loads[0].dead, [("rejected_recipient", 1)].into());
        b.dead(&letter("0-1", Reason::Expired, "r0@a.example"));
        assert!(b.is_done() && !b.loads[0].mail[1].is_contradicted());
        b.accepted("0-1", 7, ["r0", "r1"].into_iter(), 9);
        assert!(b.loads[0].mail[1].is_contradicted());
        b.dead(&letter("7-1", Reason::Expired, "r0@a.example"));
        assert_eq!(b.strangers, 1);
    }

    #[test]
    fn doubles_need_a_lost_result_and_the_same_key() {
        let mut b = book();
        for _ in 0..2 {
            b.accepted("0-0", 7, ["r0"].into_iter(), 9);
        }
        assert!(b.loads[0].mail[0].is_wrongly_doubled() && b.knows("0-0", 7) && !b.knows("0-0", 8));
        b.unheard("0-0");
        assert!(b.loads[0].mail[0].is_doubled() && !b.loads[0].mail[0].is_wrongly_doubled());
        b.unheard("0-0");
        b.accepted("0-0", 8, ["r0"].into_iter(), 9);
        assert!(b.loads[0].mail[0].is_wrongly_doubled());
    }
}
