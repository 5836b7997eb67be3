//! Refused recipients onto the suppression list, by what their dead letters say.

use std::{sync::Arc, time::Duration};

use paceline_core::{DeadLetter, EmailAddress, Message, Reason, Suppress, Timestamp, suppression::Kind};
use paceline_store::{Error, NewSuppression, StoredDeadLetter, Suppressions};

use crate::jobs::is_about_one;

/// Refusals that may pass count together within this time.
const REPEATS_WITHIN: Duration = Duration::from_secs(30 * 86_400);
/// Characters kept of what the provider said.
const NOTE_CHARS: usize = 200;

/// What puts refused recipients on the suppression list, as hard entries without an end.
#[derive(Clone)]
pub struct AutoSuppress {
    pub list: Arc<dyn Suppressions>,
    /// Refusals with a temporary reply code (SMTP 4xx), within 30 days, that make an entry.
    pub repeats: u32,
}

/// A recipient that was refused for who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    address: EmailAddress,
    /// Otherwise it takes repeats.
    for_good: bool,
    account: Option<String>,
    words: String,
}

impl AutoSuppress {
    /// Lists those who are to be listed, whose dead letters are stored. Doing it again changes nothing.
    pub(crate) async fn list(&self, refused: &[Refused], now: Timestamp) -> Result<(), Error> {
        let doubtful: Vec<EmailAddress> = refused.iter().filter(|r| !r.for_good).map(|r| r.address.clone()).collect();
        let mut counts = Vec::new();
        if !doubtful.is_empty() {
            counts = self.list.refusals(&doubtful, now - REPEATS_WITHIN).await?;
        }
        let mut counts = counts.into_iter();
        let mut enough = |r: &&Refused| r.for_good || counts.next().is_some_and(|n| n >= u64::from(self.repeats));
        let entries: Vec<NewSuppression> = refused.iter().filter(&mut enough).map(entry).collect();
        self.list.suppress(&entries, None).await.map(drop)
    }
}

fn entry(refused: &Refused) -> NewSuppression {
    NewSuppression {
        address: refused.address.clone(),
        kind: Kind::Hard,
        reason: "bounce".to_owned(),
        source: refused.account.clone(),
        note: Some(refused.words.chars().take(NOTE_CHARS).collect()),
        by: "paceline".to_owned(),
        until: None,
        created_at: None,
    }
}

/// Who a dead letter says is not to be mailed any more, if it does.
///
/// Only what was said about one recipient counts: where several were refused together, nobody knows for whom the words
/// were. What the answer itself was understood to say goes before its reply code.
pub(crate) fn refused(letter: &StoredDeadLetter) -> Option<Refused> {
    let DeadLetter { reason: Reason::RejectedRecipient, to: Some(to), last_error: Some(error), .. } = &letter.entry else {
        return None;
    };
    let status = error.http_status?;
    let words = error.provider_message.as_str();
    let for_good = match status {
        _ if letter.entry.suppress == Suppress::Now => true,
        _ if letter.entry.suppress == Suppress::AfterRepeats => false,
        // SMTP's temporary codes, by a rule that knows better than the code.
        421 | 450..=459 | 471 => false,
        // The sender or what was sent is not wanted: that says nothing of the mailbox.
        500..=599 if error.code == "relay_denied" || names_policy(words) => return None,
        _ => true,
    };
    let one = is_about_one(&letter.entry)
        || Message::parse(&letter.body, letter.amqp_message_id.as_deref(), usize::MAX).is_ok_and(|m| m.recipient_count() == 1);
    let address = EmailAddress::parse(to).ok().filter(|_| one)?;
    Some(Refused { address, for_good, account: letter.entry.account.clone(), words: words.to_owned() })
}

/// Whether the words hold an enhanced status code 5.7.x (RFC 3463: security or policy).
fn names_policy(words: &str) -> bool {
    words.split_whitespace().any(|word| word.trim_start_matches(['#', '(', '[']).starts_with("5.7."))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use paceline_core::{Journey, dead_letter::DeadLetterError};
    use serde_json::Map;

    use super::*;

    fn letter(id: &str, to: &str, status: Option<u16>, code: &str, words: &str) -> StoredDeadLetter {
        let now = Timestamp::from_secs(1_800_000_000);
        let entry = DeadLetter {
            message_id: Some("m1".to_owned()),
            to: Some(to.to_owned()),
            account: Some("relay".to_owned()),
            last_error: Some(DeadLetterError { code: code.to_owned(), http_status: status, provider_message: words.to_owned() }),
            ..DeadLetter::new(id.to_owned(), Reason::RejectedRecipient, &Journey::starting(now), now)
        };
        let body = Bytes::from_static(br#"{"id":"m1","from":"a@x.org","to":["u@x.org"],"text":"x"}"#);
        StoredDeadLetter { entry, amqp_message_id: None, content_type: None, headers: Map::new(), body }
    }

    #[test]
    fn what_is_said_of_a_mailbox_counts_and_what_is_said_of_us_does_not() {
        for (status, code, words, want) in [
            (Some(550), "recipient_refused", "5.1.1 no such user", Some(true)),
            (Some(550), "recipient_refused", "unrouteable address", Some(true)),
            (Some(400), "invalid_recipient", "does not contain a valid address", Some(true)),
            (Some(422), "rejected_recipient", "unknown", Some(true)),
            (Some(450), "recipient_refused", "4.1.1 unknown in local recipient table", Some(false)),
            (Some(550), "recipient_refused", "5.7.1 message refused by policy", None),
            (Some(554), "recipient_refused", "rejected (5.7.606 banned)", None),
            (Some(554), "relay_denied", "relay access denied", None),
            (None, "unsupported", "the server does not take addresses that are not ASCII", None),
        ] {
            let refused = refused(&letter("d", "u@x.org", status, code, words));
            assert_eq!(refused.map(|r| r.for_good), want, "{status:?} {code} {words}");
        }
        for (status, words, suppress, want) in [
            (550, "5.7.1 message refused by policy", Suppress::Now, true),
            (550, "5.1.1 no such user", Suppress::AfterRepeats, false),
            (450, "4.1.1 unknown", Suppress::Now, true),
        ] {
            let mut marked = letter("d", "u@x.org", Some(status), "recipient_refused", words);
            marked.entry.suppress = suppress;
            assert_eq!(refused(&marked).map(|r| r.for_good), Some(want), "{status} {words} {suppress:?}");
        }
        let mut other = letter("d", "u@x.org", Some(550), "recipient_refused", "");
        other.entry.reason = Reason::RejectedMessage;
        assert_eq!(refused(&other), None);
    }

    #[test]
    fn several_refused_together_are_left_alone() {
        let pair = Bytes::from_static(br#"{"id":"m1","from":"a@x.org","to":["u@x.org","v@x.org"],"text":"x"}"#);
        // One of several has an entry of their own; an entry about all of them bears this id.
        let own = StoredDeadLetter { body: pair.clone(), ..letter("of v", "v@x.org", Some(550), "recipient_refused", "") };
        assert_eq!(refused(&own).unwrap().address.to_string(), "v@x.org");
        let whole = crate::jobs::entry_id("m1", "", "", 0);
        let all = StoredDeadLetter { body: pair, ..letter(&whole, "u@x.org", Some(550), "recipient_refused", "") };
        assert_eq!(refused(&all), None);
        let single = letter(&whole, "U@x.org", Some(550), "recipient_refused", "");
        assert_eq!(refused(&single).unwrap().address.to_string(), "U@x.org");
        assert_eq!(refused(&letter(&whole, "no address", Some(550), "recipient_refused", "")), None);
    }
}
