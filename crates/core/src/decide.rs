//! What to do next with a message, given what came of an attempt.

mod divided;

use std::time::Duration;

use crate::{
    Class, EmailAddress, Journey, LastError, Outcome, Policy, ProviderAnswer, Reason, Rejected, Timestamp, retry::backoff,
};

/// First wait after an answer that says "slow down" without saying for how long.
const THROTTLED_BASE: Duration = Duration::from_secs(2);
const THROTTLED_MAX: Duration = Duration::from_secs(300);
/// Wait of greylisted mail whose server names none.
const GREYLISTED: Duration = Duration::from_secs(300);
/// Wait after a reputation block without a time of its own.
const BLOCKED: Duration = Duration::from_secs(900);

/// Code of answers that speak of a full mailbox, and the longest wait after one.
const MAILBOX_FULL: &str = "mailbox_full";
const MAILBOX_FULL_MAX: Duration = Duration::from_secs(8 * 3600);

/// What Paceline does next with a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Disposition {
    /// Done. Recipients that were refused on the way become dead letters of their own.
    Complete { refused: Vec<GivenUp> },
    /// Try again no earlier than `at`.
    Retry { at: Timestamp },
    /// These recipients become dead letters; the others, if there are any, are tried again at once.
    Without { recipients: Vec<EmailAddress> },
    /// Some have it, some become dead letters; the others, if there are any, are tried again no earlier than `at`.
    Part { sent: Vec<EmailAddress>, dead: Vec<GivenUp>, at: Timestamp },
    /// The account was refused, not the message: at once through another one that may send it, or where it waits until this
    /// one is open again.
    Elsewhere,
    /// Give up.
    DeadLetter { reason: Reason },
}

/// A recipient that is given up on while others are not, or for another reason.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenUp {
    pub recipient: EmailAddress,
    pub reason: Reason,
    pub answer: ProviderAnswer,
}

/// What [`decide`] needs to know beside the outcome.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub class: Class,
    /// Recipients the call carried.
    pub recipients: usize,
    /// Whether an uncertain attempt may be repeated: the provider honours idempotency keys, or the class says so.
    pub resend_uncertain: bool,
    /// What its age is counted from: when it was published, or due where it was for later.
    pub born: Timestamp,
    /// When the call began.
    pub started_at: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// Uniform in [0, 1).
    pub jitter: f64,
}

/// Decides, and counts the attempt into `journey` (attempts, failures, times, last error).
///
/// Pure: the same arguments always give the same answer.
pub fn decide(attempt: &Attempt, journey: &mut Journey, outcome: &Outcome, policy: &Policy) -> Disposition {
    if let Outcome::Divided { each, .. } = outcome {
        return divided::decide_each(attempt, journey, each, policy);
    }
    let Attempt { class, born, now, jitter, .. } = *attempt;
    let policy = policy.of(class);
    journey.attempts += 1;
    journey.first_attempt_at.get_or_insert(attempt.started_at);
    journey.not_before = None;
    if let Some(error) = last_error(outcome) {
        journey.last_error = Some(error);
    }
    let wait = match outcome {
        Outcome::Accepted { refused, .. } => {
            let reason = Reason::RejectedRecipient;
            let given_up = |(recipient, answer): &(EmailAddress, ProviderAnswer)| GivenUp {
                recipient: recipient.clone(),
                reason,
                answer: answer.clone(),
            };
            return Disposition::Complete { refused: refused.iter().map(given_up).collect() };
        }
        Outcome::Rejected { what: Rejected::Message, .. } => return Disposition::DeadLetter { reason: Reason::RejectedMessage },
        Outcome::Rejected { what: Rejected::Recipients(gone), .. } => {
            // Of several recipients each gets a dead letter of its own, also where none is left.
            return if attempt.recipients > 1 && !gone.is_empty() {
                Disposition::Without { recipients: gone.clone() }
            } else {
                Disposition::DeadLetter { reason: Reason::RejectedRecipient }
            };
        }
        Outcome::Rejected { what: Rejected::Account, .. } => {
            return if now.since(born) >= policy.max_age {
                Disposition::DeadLetter { reason: Reason::RejectedAccount }
            } else {
                Disposition::Elsewhere
            };
        }
        Outcome::Throttled { retry_after, .. } => {
            // Refusals in a row, each longer than the last: budget is not spent, but neither is patience feigned.
            let n = journey.attempts - journey.failures;
            no_earlier(backoff(THROTTLED_BASE, THROTTLED_MAX, n, jitter), *retry_after, jitter)
        }
        Outcome::Greylisted { retry_after, .. } => no_earlier(Duration::ZERO, Some(retry_after.unwrap_or(GREYLISTED)), jitter),
        Outcome::ReputationBlock { retry_after, .. } => {
            // How long the block lasts is for the destination to wait out. The message comes back while it is of use: by
            // then another account may take it.
            let most = policy.max_age / 4;
            no_earlier(BLOCKED.min(most), retry_after.map(|asked| asked.min(most)), jitter)
        }
        Outcome::Temporary { .. } | Outcome::Uncertain { .. } | Outcome::Divided { .. } => {
            journey.failures += 1;
            let uncertain = matches!(outcome, Outcome::Uncertain { .. });
            if uncertain && !attempt.resend_uncertain {
                return Disposition::DeadLetter { reason: Reason::Uncertain };
            }
            if journey.failures >= policy.attempts {
                // A code that may pass, and words that will not: said again and again, they are believed.
                let gone = attempt.recipients == 1 && outcome.answer().is_some_and(|a| !a.suppress.is_no());
                let reason = if gone { Reason::RejectedRecipient } else { Reason::RetryBudgetExhausted };
                return Disposition::DeadLetter { reason };
            }
            let asked = match outcome {
                // A mailbox is emptied when its owner comes by: each wait is twice the last.
                Outcome::Temporary { retry_after, answer } if answer.code.starts_with(MAILBOX_FULL) => {
                    retry_after.map(|first| backoff(first, MAILBOX_FULL_MAX, journey.failures, 0.0))
                }
                Outcome::Temporary { retry_after, .. } => *retry_after,
                _ => None,
            };
            no_earlier(policy.gap(journey.failures, jitter), asked, jitter)
        }
    };
    let at = now + wait;
    if at.since(born) >= policy.max_age {
        return Disposition::DeadLetter { reason: journey.too_old() };
    }
    journey.not_before = Some(at);
    Disposition::Retry { at }
}

fn last_error(outcome: &Outcome) -> Option<LastError> {
    let at_end = match outcome {
        Outcome::Rejected { what: Rejected::Account, .. } => Some(Reason::RejectedAccount),
        Outcome::Uncertain { .. } => Some(Reason::Uncertain),
        _ => None,
    };
    Some(LastError { at_end, ..LastError::from(outcome.answer()?) })
}

/// The longer of the two; what the provider asked for gets up to a quarter more, so that not all come back at once.
fn no_earlier(own: Duration, asked: Option<Duration>, jitter: f64) -> Duration {
    // A provider's word is outside input: a day is the longest it can hold a message.
    let asked = asked.unwrap_or_default().min(Duration::from_secs(86_400));
    if asked > own { asked + asked.mul_f64(0.25 * jitter.clamp(0.0, 1.0)) } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scope;

    const T0: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn answer(status: u16) -> ProviderAnswer {
        ProviderAnswer::new("code", Some(status), "words")
    }

    fn temporary(after_s: Option<u64>) -> Outcome {
        Outcome::Temporary { retry_after: after_s.map(Duration::from_secs), answer: answer(503) }
    }

    fn attempt(class: Class, now: Timestamp) -> Attempt {
        let resend_uncertain = class <= Class::High;
        Attempt { class, recipients: 2, resend_uncertain, born: T0, started_at: now, now, jitter: 0.0 }
    }

    fn run(class: Class, outcome: &Outcome, journey: &mut Journey) -> Disposition {
        let attempt = Attempt { born: journey.enqueued_at, ..attempt(class, T0) };
        decide(&attempt, journey, outcome, &Policy::default())
    }

    fn in_s(s: u64) -> Disposition {
        Disposition::Retry { at: T0 + Duration::from_secs(s) }
    }

    #[test]
    fn one_attempt_each() {
        let dead = |reason| Disposition::DeadLetter { reason };
        let u = EmailAddress::parse("u@x.org").unwrap();
        let throttled = |s: Option<u64>| Outcome::Throttled {
            scope: Scope::Account,
            retry_after: s.map(Duration::from_secs),
            answer: answer(429),
        };
        let rejected = |what| Outcome::Rejected { what, answer: answer(400) };
        let blocked = |s: Option<u64>| Outcome::ReputationBlock { retry_after: s.map(Duration::from_secs), answer: answer(550) };
        let uncertain = Outcome::Uncertain { answer: ProviderAnswer::new("timeout", None, "") };
        for (class, outcome, want, failures) in [
            (Class::Normal, Outcome::accepted(None), Disposition::Complete { refused: vec![] }, 0),
            (Class::Normal, temporary(None), in_s(60), 1),
            (Class::Critical, temporary(None), in_s(5), 1),
            (Class::Critical, temporary(Some(30)), in_s(30), 1),
            (Class::Normal, temporary(Some(30)), in_s(60), 1),
            (Class::Critical, temporary(Some(1000)), dead(Reason::MaxAgeExceeded), 1),
            (Class::Normal, throttled(None), in_s(2), 0),
            (Class::Normal, throttled(Some(7)), in_s(7), 0),
            (Class::Normal, throttled(Some(u64::MAX)), dead(Reason::MaxAgeExceeded), 0),
            (Class::Low, throttled(Some(u64::MAX)), in_s(86_400), 0),
            (Class::Normal, Outcome::Greylisted { retry_after: None, answer: answer(451) }, in_s(300), 0),
            (Class::Normal, blocked(None), in_s(900), 0),
            (Class::Normal, blocked(Some(4 * 3600)), in_s(4 * 3600), 0),
            (Class::Normal, blocked(Some(86_400)), in_s(6 * 3600), 0),
            (Class::Critical, blocked(None), in_s(225), 0),
            (Class::Critical, blocked(Some(4 * 3600)), in_s(225), 0),
            (Class::Critical, blocked(Some(60)), in_s(225), 0),
            (Class::Normal, rejected(Rejected::Message), dead(Reason::RejectedMessage), 0),
            (Class::Normal, rejected(Rejected::Account), Disposition::Elsewhere, 0),
            (
                Class::Normal,
                rejected(Rejected::Recipients(vec![u.clone()])),
                Disposition::Without { recipients: vec![u.clone()] },
                0,
            ),
            (
                Class::Normal,
                rejected(Rejected::Recipients(vec![u.clone(), u.clone()])),
                Disposition::Without { recipients: vec![u.clone(), u] },
                0,
            ),
            (Class::Normal, rejected(Rejected::Recipients(vec![])), dead(Reason::RejectedRecipient), 0),
            (Class::Normal, uncertain.clone(), dead(Reason::Uncertain), 1),
            (Class::High, uncertain, in_s(60), 1),
        ] {
            let mut journey = Journey::starting(T0);
            assert_eq!(run(class, &outcome, &mut journey), want, "{class} {outcome:?}");
            assert_eq!((journey.attempts, journey.failures), (1, failures), "{class} {outcome:?}");
            assert_eq!(journey.first_attempt_at, Some(T0));
        }
    }

    #[test]
    fn the_budget_is_exactly_spent() {
        let mut journey = Journey::starting(T0);
        for n in 1..5 {
            assert!(matches!(run(Class::Normal, &temporary(None), &mut journey), Disposition::Retry { .. }), "{n}");
        }
        // Throttled in between costs nothing.
        let throttled = Outcome::Throttled { scope: Scope::Account, retry_after: None, answer: answer(429) };
        assert!(matches!(run(Class::Normal, &throttled, &mut journey), Disposition::Retry { .. }));
        assert_eq!(
            run(Class::Normal, &temporary(None), &mut journey),
            Disposition::DeadLetter { reason: Reason::RetryBudgetExhausted }
        );
        assert_eq!((journey.attempts, journey.failures), (6, 5));
    }

    #[test]
    fn a_full_mailbox_gets_longer_and_longer_waits() {
        let mut journey = Journey::starting(T0);
        let full = ProviderAnswer::new("mailbox_full", Some(452), "4.2.2");
        let full = Outcome::Temporary { retry_after: Some(Duration::from_secs(3600)), answer: full };
        for hours in [1, 2, 4, 8] {
            assert_eq!(run(Class::Normal, &full, &mut journey), in_s(hours * 3600));
        }
        assert_eq!(run(Class::Normal, &full, &mut journey), Disposition::DeadLetter { reason: Reason::RetryBudgetExhausted });
    }

    #[test]
    fn a_recipient_that_is_unknown_for_now_is_refused_in_the_end() {
        let unknown = answer(450).suppressing(crate::Suppress::AfterRepeats);
        let outcome = Outcome::Temporary { retry_after: None, answer: unknown };
        for (recipients, reason) in [(1, Reason::RejectedRecipient), (2, Reason::RetryBudgetExhausted)] {
            let mut journey = Journey::starting(T0);
            let attempt = Attempt { recipients, ..attempt(Class::Normal, T0) };
            let mut decided = || decide(&attempt, &mut journey, &outcome, &Policy::default());
            assert!((1..5).all(|_| matches!(decided(), Disposition::Retry { .. })));
            assert_eq!(decided(), Disposition::DeadLetter { reason });
        }
    }

    #[test]
    fn age_ends_it_whatever_the_outcome() {
        let old = T0 - Duration::from_secs(25 * 3600);
        let refused = Outcome::Rejected { what: Rejected::Account, answer: answer(401) };
        // Not merely old: it may have been sent.
        let lost = Outcome::Uncertain { answer: answer(0) };
        for (outcome, reason) in [
            (temporary(None), Reason::MaxAgeExceeded),
            (refused.clone(), Reason::RejectedAccount),
            (lost.clone(), Reason::Uncertain),
        ] {
            assert_eq!(run(Class::High, &outcome, &mut Journey::starting(old)), Disposition::DeadLetter { reason });
        }
        // Nor is what becomes too old while it waits after that, until something else is said.
        let mut journey = Journey::starting(T0);
        for (outcome, reason) in
            [(refused, Reason::RejectedAccount), (temporary(None), Reason::MaxAgeExceeded), (lost, Reason::Uncertain)]
        {
            run(Class::High, &outcome, &mut journey);
            assert_eq!(journey.too_old(), reason);
        }
    }

    #[test]
    fn mail_for_later_is_new_when_its_time_has_come() {
        let mut journey = Journey::starting(T0 - Duration::from_secs(25 * 3600));
        let attempt = attempt(Class::Normal, T0);
        assert_eq!(decide(&attempt, &mut journey, &temporary(None), &Policy::default()), in_s(60));
    }
}
