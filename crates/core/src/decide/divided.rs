//! An attempt whose recipients were answered differently.

use super::{Attempt, Disposition, GivenUp, decide, last_error};
use crate::{EmailAddress, Journey, LastError, Outcome, Policy, ProviderAnswer, Reason, Timestamp};

/// Decides for each recipient as if it were alone, with the history they share. Those that come back do so together: at the
/// earliest of their times, so that nobody waits for another's full mailbox, but with the class's own gap where budget is
/// spent.
pub(super) fn decide_each(
    attempt: &Attempt,
    journey: &mut Journey,
    each: &[(EmailAddress, Outcome)],
    policy: &Policy,
) -> Disposition {
    let before = journey.clone();
    let (mut sent, mut dead): (Vec<EmailAddress>, Vec<GivenUp>) = (Vec::new(), Vec::new());
    let mut earliest: Option<Timestamp> = None;
    let mut words: Option<(u8, LastError)> = None;
    let mut at_end: Option<Reason> = None;
    let alone = Attempt { recipients: 1, ..*attempt };
    journey.attempts += 1;
    journey.first_attempt_at.get_or_insert(attempt.started_at);
    journey.not_before = None;
    for (recipient, outcome) in each {
        let mut own = before.clone();
        let at = match decide(&alone, &mut own, outcome, policy) {
            Disposition::Complete { .. } => {
                sent.push(recipient.clone());
                continue;
            }
            Disposition::DeadLetter { reason } => {
                let answer = outcome.answer().cloned().unwrap_or_else(|| ProviderAnswer::new(outcome.label(), None, ""));
                dead.push(GivenUp { recipient: recipient.clone(), reason, answer });
                continue;
            }
            Disposition::Retry { at } => at,
            // As soon as an account takes it.
            Disposition::Elsewhere | Disposition::Without { .. } | Disposition::Part { .. } => attempt.now,
        };
        earliest = Some(earliest.map_or(at, |other| other.min(at)));
        journey.failures = journey.failures.max(own.failures);
        // What is remembered is what they come back for; greylisting passes by itself.
        let rank = u8::from(matches!(outcome, Outcome::Greylisted { .. }));
        let error = last_error(outcome);
        // That one of them may have it outweighs what is known of the others.
        let own_end = error.as_ref().and_then(|e| e.at_end);
        at_end = own_end.filter(|reason| at_end.is_none() || *reason == Reason::Uncertain).or(at_end);
        if let Some(error) = error
            && words.as_ref().is_none_or(|(other, _)| rank < *other)
        {
            words = Some((rank, error));
        }
    }
    let Some(earliest) = earliest else {
        journey.last_error = dead.first().map(|d| LastError::from(&d.answer)).or(before.last_error);
        return if sent.is_empty() {
            Disposition::Part { sent, dead, at: attempt.now }
        } else {
            Disposition::Complete { refused: dead }
        };
    };
    journey.last_error = words.map(|(_, error)| LastError { at_end, ..error }).or(before.last_error);
    let gap = (journey.failures > before.failures).then(|| policy.of(attempt.class).gap(journey.failures, attempt.jitter));
    let at = gap.map_or(earliest, |gap| earliest.max(attempt.now + gap));
    journey.not_before = Some(at).filter(|at| *at > attempt.now);
    if sent.is_empty() && dead.is_empty() { Disposition::Retry { at } } else { Disposition::Part { sent, dead, at } }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Class, Rejected, Scope};

    const T0: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn email(name: &str) -> EmailAddress {
        EmailAddress::parse(&format!("{name}@x.org")).unwrap()
    }

    fn answer(code: &str) -> ProviderAnswer {
        ProviderAnswer::new(code, Some(450), "words")
    }

    fn outcome(word: &str) -> Outcome {
        let s = |s: u64| Some(Duration::from_secs(s));
        match word {
            "sent" => Outcome::accepted(Some("Q1".into())),
            "gone" => Outcome::Rejected { what: Rejected::Recipients(vec![email("gone")]), answer: answer("gone") },
            "spam" => Outcome::Rejected { what: Rejected::Message, answer: answer("spam") },
            "grey" => Outcome::Greylisted { retry_after: None, answer: answer("grey") },
            "soon" => Outcome::Greylisted { retry_after: s(10), answer: answer("soon") },
            "slow" => Outcome::Throttled { scope: Scope::Recipient, retry_after: None, answer: answer("slow") },
            "full" => Outcome::Temporary { retry_after: s(3600), answer: answer("mailbox_full") },
            "later" => Outcome::Temporary { retry_after: None, answer: answer("later") },
            "lost" => Outcome::Uncertain { answer: answer("lost") },
            "account" => Outcome::Rejected { what: Rejected::Account, answer: answer("account") },
            other => panic!("{other}"),
        }
    }

    /// The disposition as one line, and the journey after it. Each word is a recipient's name, too.
    fn run(class: Class, words: &str, journey: &mut Journey) -> String {
        let each: Vec<_> = words.split(' ').map(|w| (email(w), outcome(w))).collect();
        let attempt = Attempt {
            class,
            recipients: each.len(),
            resend_uncertain: class.resends_uncertain(),
            born: journey.enqueued_at,
            started_at: T0,
            now: T0,
            jitter: 0.0,
        };
        let names = |list: &[EmailAddress]| list.iter().map(|e| format!(" {}", e.local())).collect::<String>();
        let given_up = |dead: &[GivenUp]| {
            let one = |d: &GivenUp| {
                assert_eq!(d.answer, *outcome(d.recipient.local()).answer().unwrap(), "its own words");
                format!(" {}:{}", d.recipient.local(), d.reason)
            };
            dead.iter().map(one).collect::<String>()
        };
        match decide(&attempt, journey, &Outcome::Divided { provider_id: None, each }, &Policy::default()) {
            Disposition::Complete { refused } => format!("complete, dead{}", given_up(&refused)),
            Disposition::Retry { at } => format!("retry in {}", at.since(T0).as_secs()),
            Disposition::Part { sent, dead, at } => {
                format!("sent{}, dead{}, others in {}", names(&sent), given_up(&dead), at.since(T0).as_secs())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_recipient_has_its_own_fate() {
        for (class, words, want, failures, last) in [
            (Class::Normal, "sent gone", "complete, dead gone:rejected_recipient", 0, "gone"),
            (Class::Normal, "sent gone grey", "sent sent, dead gone:rejected_recipient, others in 300", 0, "grey"),
            (Class::Normal, "sent later", "sent sent, dead, others in 60", 1, "later"),
            (Class::Normal, "grey later", "retry in 60", 1, "later"),
            (Class::Normal, "soon later", "retry in 60", 1, "later"),
            (Class::Normal, "grey full", "retry in 300", 1, "mailbox_full"),
            (Class::Normal, "full later", "retry in 60", 1, "mailbox_full"),
            (Class::Normal, "slow full", "retry in 60", 1, "slow"),
            (Class::Normal, "slow grey", "retry in 2", 0, "slow"),
            (Class::Normal, "gone gone", "sent, dead gone:rejected_recipient gone:rejected_recipient, others in 0", 0, "gone"),
            (Class::Normal, "spam grey", "sent, dead spam:rejected_message, others in 300", 0, "grey"),
            (Class::Normal, "lost gone", "sent, dead lost:uncertain gone:rejected_recipient, others in 0", 0, "lost"),
            (Class::High, "lost gone", "sent, dead gone:rejected_recipient, others in 60", 1, "lost"),
            (Class::Normal, "sent account", "sent sent, dead, others in 0", 0, "account"),
        ] {
            let mut journey = Journey::starting(T0);
            assert_eq!(run(class, words, &mut journey), want, "{words}");
            assert_eq!((journey.attempts, journey.failures), (1, failures), "{words}");
            assert_eq!(journey.last_error.map(|e| e.code).as_deref(), Some(last), "{words}");
            let due = want.rsplit(' ').next().and_then(|s| s.parse().ok()).filter(|s: &u64| *s > 0);
            assert_eq!(journey.not_before.map(|at| at.since(T0).as_secs()), due, "{words}");
        }
    }

    #[test]
    fn who_has_no_budget_left_ends_and_the_others_go_on() {
        let mut journey = Journey { attempts: 4, failures: 4, ..Journey::starting(T0) };
        let got = run(Class::Normal, "sent later grey", &mut journey);
        assert_eq!(got, "sent sent, dead later:retry_budget_exhausted, others in 300");
        assert_eq!((journey.attempts, journey.failures), (5, 4), "what the dead one spent is not the others'");
        let mut old = Journey::starting(T0 - Duration::from_secs(25 * 3600));
        let got = run(Class::Normal, "sent later gone", &mut old);
        assert_eq!(got, "complete, dead later:max_age_exceeded gone:rejected_recipient");
        let mut journey = Journey::starting(T0);
        run(Class::High, "later lost grey", &mut journey);
        assert_eq!((journey.too_old(), &*journey.last_error.unwrap().code), (Reason::Uncertain, "later"), "one may have it");
    }
}
