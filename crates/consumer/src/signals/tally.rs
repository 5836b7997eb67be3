//! What came of this worker's calls since it last reported.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use paceline_core::{
    Outcome, Rejected, Scope,
    evidence::{Counts, SLOT_US},
    outcome::Suppress,
};
use tokio::sync::Notify;

/// No answer closes a destination for longer.
pub(super) const BLOCK_MOST: Duration = Duration::from_secs(86_400);
/// Refusals of one second that make its report urgent.
const FLOOD: u64 = 10;

/// Counts by account, destination and second of the grant.
pub(super) type News = HashMap<(usize, Arc<str>, u64), Counts>;

/// By account and destination: closed until then, on the limiter's clock.
pub(super) type Blocks = BTreeMap<(usize, Arc<str>), u64>;

/// Outcomes as they come, until they are reported.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    heard: Mutex<Heard>,
    urgent: Notify,
    /// Accounts that were refused, until when nothing is sent through them: known here before the engine has heard of it.
    refused: Mutex<HashMap<usize, u64>>,
}

#[derive(Debug, Default)]
struct Heard {
    news: News,
    blocks: Blocks,
    urgent: bool,
}

/// One call that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) account: usize,
    /// A named destination, or `tail`.
    pub(crate) destination: &'a Arc<str>,
    pub(crate) recipients: u64,
    /// The date of its grant.
    pub(crate) granted_us: u64,
    pub(crate) took: Duration,
    pub(crate) outcome: &'a Outcome,
    /// Whether rates follow what is refused.
    pub(crate) adaptive: bool,
}

impl Tally {
    pub(crate) fn add(&self, call: &Ended<'_>) {
        let counts = counts(call.outcome, call.recipients, call.took, call.adaptive);
        let mut heard = self.lock();
        let key = (call.account, call.destination.clone(), call.granted_us / SLOT_US);
        let sum = heard.news.entry(key).or_default();
        let refusals = |c: &Counts| c.throttled + c.throttled_account + c.throttled_connection;
        let before = refusals(sum);
        *sum += counts;
        if counts.refused > 0 || (before < FLOOD && refusals(sum) >= FLOOD) {
            heard.urgent = true;
            self.urgent.notify_one();
        }
    }

    /// The receiving side has said how long nothing of this sender is wanted.
    pub(crate) fn block(&self, account: usize, destination: &Arc<str>, until_us: u64) {
        let mut heard = self.lock();
        let until = heard.blocks.entry((account, destination.clone())).or_default();
        *until = until_us.max(*until);
        heard.urgent = true;
        self.urgent.notify_one();
    }

    /// The account itself was refused: this worker begins no other call before then, on the limiter's clock.
    pub(crate) fn refuse(&self, account: usize, until_us: u64) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let until = refused.entry(account).or_default();
        *until = until_us.max(*until);
    }

    /// Whether the account was refused and that still counts.
    pub(crate) fn refuses(&self, account: usize, now_us: u64) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(&account).is_some_and(|until_us| *until_us > now_us)
    }

    /// Comes back when something is worth reporting at once.
    pub(super) async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// Everything since the last time, and whether any of it is urgent.
    pub(super) fn take(&self) -> (News, Blocks, bool) {
        let Heard { news, blocks, urgent } = std::mem::take(&mut *self.lock());
        (news, blocks, urgent)
    }

    /// Puts back what could not be reported, but for what is too old to matter.
    pub(super) fn put_back(&self, news: News, oldest_us: u64) {
        let mut heard = self.lock();
        for (key, counts) in news.into_iter().filter(|((_, _, slot), _)| slot * SLOT_US >= oldest_us) {
            *heard.news.entry(key).or_default() += counts;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        // Each step leaves it whole.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one call counts as: its health by its chief part, its recipients each by their own. Bad recipients and messages are
/// answers like any other; what only asks to go slower is no failure.
fn counts(outcome: &Outcome, recipients: u64, took: Duration, adaptive: bool) -> Counts {
    let mut c = Counts { busy_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX), ..Counts::default() };
    match outcome.chief() {
        Outcome::Accepted { .. } => c.accepted = 1,
        Outcome::Rejected { what: Rejected::Account, .. } => c.refused = 1,
        // Such as a full mailbox: the code says temporary, and means one recipient.
        Outcome::Temporary { answer, .. } if answer.suppress != Suppress::No => c.answered = 1,
        Outcome::Temporary { .. } | Outcome::Uncertain { .. } | Outcome::ReputationBlock { .. } => c.failed = 1,
        Outcome::Throttled { .. } | Outcome::Greylisted { .. } | Outcome::Rejected { .. } | Outcome::Divided { .. } => {
            c.answered = 1;
        }
    }
    let each = if matches!(outcome, Outcome::Divided { .. }) { 1 } else { recipients };
    for part in outcome.parts() {
        match part {
            Outcome::Throttled { scope: Scope::Account, .. } if adaptive => c.throttled_account += each,
            Outcome::Throttled { scope: Scope::Destination, .. } if adaptive => c.throttled += each,
            Outcome::Throttled { scope: Scope::Connection, .. } if adaptive => c.throttled_connection += each,
            _ => {}
        }
    }
    c.passed = recipients.saturating_sub(c.throttled_account + c.throttled + c.throttled_connection);
    c
}

#[cfg(test)]
mod tests {
    use paceline_core::ProviderAnswer;

    use super::*;

    fn said() -> ProviderAnswer {
        ProviderAnswer::new("code", Some(400), "words")
    }

    fn throttled(scope: Scope) -> Outcome {
        Outcome::Throttled { scope, retry_after: None, answer: said() }
    }

    #[test]
    fn what_counts_as_what() {
        let rejected = |what| Outcome::Rejected { what, answer: said() };
        let temporary = |answer| Outcome::Temporary { retry_after: None, answer };
        let full = said().suppressing(Suppress::AfterRepeats);
        let plain = Counts { busy_ms: 20, ..Counts::default() };
        let passed = Counts { passed: 3, ..plain };
        for (outcome, want) in [
            (Outcome::accepted(None), Counts { accepted: 1, ..passed }),
            (temporary(said()), Counts { failed: 1, ..passed }),
            (temporary(full), Counts { answered: 1, ..passed }),
            (Outcome::Uncertain { answer: said() }, Counts { failed: 1, ..passed }),
            (Outcome::ReputationBlock { retry_after: None, answer: said() }, Counts { failed: 1, ..passed }),
            (Outcome::Greylisted { retry_after: None, answer: said() }, Counts { answered: 1, ..passed }),
            (rejected(Rejected::Recipients(vec![])), Counts { answered: 1, ..passed }),
            (rejected(Rejected::Message), Counts { answered: 1, ..passed }),
            (rejected(Rejected::Account), Counts { refused: 1, ..passed }),
            (throttled(Scope::Destination), Counts { answered: 1, throttled: 3, ..plain }),
            (throttled(Scope::Account), Counts { answered: 1, throttled_account: 3, ..plain }),
            (throttled(Scope::Connection), Counts { answered: 1, throttled_connection: 3, ..plain }),
            (throttled(Scope::Recipient), Counts { answered: 1, ..passed }),
        ] {
            assert_eq!(counts(&outcome, 3, Duration::from_millis(20), true), want, "{outcome:?}");
        }
        let email = || paceline_core::EmailAddress::parse("u@x.org").unwrap();
        let of = |parts: &[&Outcome]| Outcome::Divided {
            provider_id: None,
            each: parts.iter().map(|outcome| (email(), (*outcome).clone())).collect(),
        };
        let (slow, sent) = (throttled(Scope::Account), Outcome::accepted(None));
        for (outcome, want) in [
            (of(&[&slow, &sent, &slow]), Counts { accepted: 1, passed: 1, throttled_account: 2, ..plain }),
            (of(&[&slow, &slow, &slow]), Counts { answered: 1, throttled_account: 3, ..plain }),
        ] {
            assert_eq!(counts(&outcome, 3, Duration::from_millis(20), true), want, "{outcome:?}");
        }
        let fixed = counts(&throttled(Scope::Account), 3, Duration::from_millis(20), false);
        assert_eq!(fixed, Counts { answered: 1, ..passed }, "a rate that is not to follow refusals");
    }

    #[test]
    fn a_refused_account_a_flood_and_a_block_are_urgent() {
        let (tally, google) = (Tally::default(), Arc::<str>::from("google"));
        let add = |outcome: &Outcome, granted_us| {
            let took = Duration::ZERO;
            tally.add(&Ended { account: 0, destination: &google, recipients: 1, granted_us, took, outcome, adaptive: true });
        };
        let refused = Outcome::Rejected { what: Rejected::Account, answer: said() };
        add(&refused, 5 * SLOT_US);
        let (news, blocks, urgent) = tally.take();
        assert!(urgent && blocks.is_empty());
        assert_eq!(news[&(0, google.clone(), 5)].refused, 1);
        (1..FLOOD).for_each(|_| add(&throttled(Scope::Account), 6 * SLOT_US + 3));
        add(&throttled(Scope::Account), 7 * SLOT_US);
        assert!(!tally.take().2, "nine in one second, one in the next");
        (0..FLOOD).for_each(|_| add(&throttled(Scope::Account), 7 * SLOT_US));
        let (news, _, urgent) = tally.take();
        assert!(urgent);
        tally.put_back(news.clone(), 8 * SLOT_US);
        assert!(tally.take().0.is_empty(), "too old");
        tally.put_back(news.clone(), 7 * SLOT_US);
        assert_eq!(tally.take().0, news);
        tally.refuse(0, 9);
        tally.refuse(0, 7);
        assert!(tally.refuses(0, 8) && !tally.refuses(0, 9) && !tally.refuses(1, 8));
        tally.block(0, &google, 9);
        tally.block(0, &google, 7);
        assert_eq!(tally.take().1[&(0, google.clone())], 9);
    }
}
