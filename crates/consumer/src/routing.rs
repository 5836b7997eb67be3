//! Which account a message goes through: of those that may send it, the first that is open.
//!
//! Chosen when it arrives, and again while it waits and its account closes. Where all are closed it stays with the one it
//! prefers, and waits in its lane.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use paceline_classifier::{Classifier, Routes};
use paceline_core::{
    Class, InvalidMessage, Journey, Lane, Message,
    lane::{HOLD_MAX, TAIL},
};
use paceline_limiter::{BucketSpec, Cost, Why, pacer::Hint};
use tokio::sync::watch;

use crate::{
    limits::{self, Limits},
    settings::Settings,
    standing::Standing,
};

/// What a message meets, and what it costs there.
pub(crate) type Charges = (Arc<[BucketSpec]>, Cost);

/// An account that is closed for no longer than this is waited for.
pub(crate) const PATIENCE_US: u64 = HOLD_MAX.as_micros() as u64;

pub(crate) struct Routing {
    routes: Routes,
    limits: watch::Receiver<Arc<Limits>>,
    classifier: Arc<Classifier>,
    accounts: Vec<(Arc<str>, bool)>,
    standing: watch::Receiver<Arc<Standing>>,
    /// Limits that the limiter says have nothing for a class, and until when: spent quotas, closures unheard of here.
    spent: RwLock<HashMap<(Arc<str>, Class), u64>>,
    /// When the next message may be sent to a bucket that is being probed.
    probes: Mutex<HashMap<Arc<str>, u64>>,
}

impl Routing {
    pub(crate) fn new(
        settings: &Settings,
        limits: watch::Receiver<Arc<Limits>>,
        classifier: Arc<Classifier>,
        standing: watch::Receiver<Arc<Standing>>,
    ) -> Routing {
        // A call that may have been carried out is told from a new one where it was made alone, by its key.
        let accounts = settings.accounts.iter().map(|a| (a.name.clone(), a.knows_repeats())).collect();
        let routes = settings.routes.clone();
        Routing { routes, limits, classifier, accounts, standing, spent: RwLock::default(), probes: Mutex::default() }
    }

    /// The accounts that may send the message, the preferred one first.
    ///
    /// # Errors
    /// None may: the message is not one that can be sent.
    pub(crate) fn choices(&self, message: &Message, lane: &Lane, journey: &Journey) -> Result<Arc<[usize]>, InvalidMessage> {
        let choices = self.routes.choices(message, lane.class, &lane.destination)?;
        // What may have been accepted is recognised there alone.
        let tried = journey.account.as_deref().and_then(|name| self.accounts.iter().position(|(a, _)| **a == *name));
        Ok(match tried.filter(|a| self.accounts[*a].1 && choices.contains(a)) {
            Some(tried) => Arc::new([tried]),
            None => choices,
        })
    }

    /// The first of `choices` that is open, else the first; what the message meets there; and the limits that say so.
    pub(crate) fn choose(
        &self,
        choices: &[usize],
        message: &Message,
        class: Class,
        now_us: u64,
    ) -> (usize, Charges, Arc<Limits>) {
        let limits = self.limits.borrow().clone();
        let charges = |account: usize| limits.of(account, message, &self.classifier);
        let preferred = choices.first().copied().unwrap_or(0);
        if choices.len() < 2 {
            return (preferred, charges(preferred), limits);
        }
        let standing = self.standing.borrow().clone();
        let mut fallback = None;
        for &account in choices {
            let charges = charges(account);
            if limits::too_large_for(&charges).is_some() {
                continue;
            }
            if self.is_open(&standing, &charges.0, class, now_us) {
                return (account, charges, limits);
            }
            fallback.get_or_insert((account, charges));
        }
        let (account, charges) = fallback.unwrap_or_else(|| (preferred, charges(preferred)));
        (account, charges, limits)
    }

    /// Accounts that would take mail of a lane now, by position; one that is being probed counts as closed.
    pub(crate) fn open_for(&self, lane: &Lane, now_us: u64) -> Vec<bool> {
        let standing = self.standing.borrow().clone();
        let closed = |key: &Arc<str>| {
            let effect = standing.at(key);
            effect.no_burst || effect.closed_until_us > now_us + PATIENCE_US || self.is_spent(key, lane.class, now_us)
        };
        let limits = self.limits.borrow().clone();
        let open = |(a, (name, _)): (usize, &(Arc<str>, bool))| {
            let pair = limits::pair_key(name, &lane.destination).into();
            !closed(&pair) && !limits.own(a, &lane.destination).iter().any(|b| closed(&b.key))
        };
        self.accounts.iter().enumerate().map(open).collect()
    }

    /// Whether mail that meets these is kept for long by a limit of its account's own.
    pub(crate) fn is_bound(&self, buckets: &[BucketSpec], class: Class, hint: Option<&Hint>, now_us: u64) -> bool {
        let Some(account) = buckets.first().map(|b| &b.key) else { return false };
        if let Some(hint) = hint
            && matches!(hint.why, Why::Quota | Why::Closed)
            && hint.retry_at_us > now_us + PATIENCE_US
            && is_of(&hint.bucket, account)
        {
            self.note_spent(hint.bucket.clone(), class, hint.retry_at_us);
        }
        let standing = self.standing.borrow();
        own(buckets).iter().any(|key| standing.closed(key, now_us + PATIENCE_US) || self.is_spent(key, class, now_us))
    }

    fn is_open(&self, standing: &Standing, buckets: &[BucketSpec], class: Class, now_us: u64) -> bool {
        let own = own(buckets);
        let closed = |key: &Arc<str>| standing.closed(key, now_us + PATIENCE_US) || self.is_spent(key, class, now_us);
        if own.iter().any(closed) {
            return false;
        }
        // As much as probes it, and no more, goes to what is being probed.
        own.iter().all(|key| {
            let effect = standing.at(key);
            !effect.no_burst || self.probes(key, effect.rate_per_s.unwrap_or(1.0), now_us)
        })
    }

    fn probes(&self, key: &Arc<str>, per_s: f64, now_us: u64) -> bool {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let due = probes.entry(key.clone()).or_default();
        let is_due = *due <= now_us;
        if is_due {
            *due = now_us + (1e6 / per_s).clamp(1.0, 60e6) as u64;
        }
        is_due
    }

    fn note_spent(&self, key: Arc<str>, class: Class, until_us: u64) {
        self.spent.write().unwrap_or_else(PoisonError::into_inner).insert((key, class), until_us);
    }

    fn is_spent(&self, key: &Arc<str>, class: Class, now_us: u64) -> bool {
        let spent = self.spent.read().unwrap_or_else(PoisonError::into_inner);
        !spent.is_empty() && spent.get(&(key.clone(), class)).is_some_and(|until| *until > now_us)
    }
}

/// The keys that an account's own closures are known by, of these limits: their own, and the one for all of its tail.
fn own(buckets: &[BucketSpec]) -> Vec<Arc<str>> {
    let Some(account) = buckets.first().map(|b| &b.key) else { return Vec::new() };
    let mut own: Vec<Arc<str>> = buckets.iter().map(|b| &b.key).filter(|key| is_of(key, account)).cloned().collect();
    if let Some(name) = account.strip_prefix("account:")
        && own.iter().any(|key| key.starts_with(&limits::tail_prefix(name)))
    {
        own.push(limits::pair_key(name, TAIL).into());
    }
    own
}

/// Whether a limit belongs to the account with that key: its own, or one for part of its mail.
fn is_of(key: &str, account: &str) -> bool {
    key.strip_prefix(account).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_limit() {
        for (key, yes) in [
            ("account:a", true),
            ("account:a:quota:d", true),
            ("account:a:destination:google", true),
            ("account:ab", false),
            ("account:b", false),
            ("destination:google", false),
        ] {
            assert_eq!(is_of(key, "account:a"), yes, "{key}");
        }
    }
}
