//! Dead letters as the worker writes them.

use paceline_core::{
    DeadLetter, EmailAddress, GivenUp, InvalidMessage, Journey, LastError, Message, Reason, Suppress, Timestamp,
    suppression::Kind,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::item::Item;

/// A message that cannot be read, or whose fields do not hold.
pub(crate) fn invalid(journey: &Journey, message_id: Option<&str>, problem: &InvalidMessage, now: Timestamp) -> DeadLetter {
    // Two deliveries of one body may be two messages: nothing here names them apart, so each gets an id by chance.
    let id = format!("{:032x}", rand::random::<u128>());
    DeadLetter {
        message_id: message_id.map(|id| id.chars().filter(|c| !c.is_control()).take(256).collect()),
        field: Some(problem.field.clone()),
        detail: Some(problem.problem.clone()),
        ..DeadLetter::new(id, Reason::InvalidMessage, journey, now)
    }
}

/// The whole message is given up on.
pub(crate) fn whole(item: &Item, message: Option<&Message>, account: &str, reason: Reason, now: Timestamp) -> DeadLetter {
    letter(item, message, account, reason, now, message.and_then(|m| m.to.first()).map(|m| &m.email), "")
}

/// One recipient of several is given up on, as a provider answered.
pub(crate) fn given_up(item: &Item, message: &Message, account: &str, now: Timestamp, of: &GivenUp) -> DeadLetter {
    let GivenUp { recipient: address, reason, answer } = of;
    let letter = recipient(item, message, account, *reason, now, address);
    DeadLetter { last_error: Some((&LastError::from(answer)).into()), suppress: answer.suppress, ..letter }
}

/// One recipient of several is on the suppression list.
pub(crate) fn suppressed(
    item: &Item,
    message: &Message,
    account: &str,
    now: Timestamp,
    (address, kind): (&EmailAddress, Kind),
) -> DeadLetter {
    let letter = recipient(item, message, account, Reason::Suppressed, now, address);
    DeadLetter { detail: Some(listed(kind)), last_error: None, suppress: Suppress::No, ..letter }
}

/// All recipients are on the suppression list, the first `to` as an entry of this kind.
pub(crate) fn all_suppressed(item: &Item, message: &Message, account: &str, now: Timestamp, kind: Kind) -> DeadLetter {
    let letter = whole(item, Some(message), account, Reason::Suppressed, now);
    DeadLetter { detail: Some(listed(kind)), last_error: None, suppress: Suppress::No, ..letter }
}

fn listed(kind: Kind) -> String {
    format!("on the suppression list, as a {kind} entry")
}

fn recipient(
    item: &Item,
    message: &Message,
    account: &str,
    reason: Reason,
    now: Timestamp,
    address: &EmailAddress,
) -> DeadLetter {
    letter(item, Some(message), account, reason, now, Some(address), &address.to_string())
}

fn letter(
    item: &Item,
    message: Option<&Message>,
    account: &str,
    reason: Reason,
    now: Timestamp,
    to: Option<&EmailAddress>,
    whose: &str,
) -> DeadLetter {
    let journey = &item.journey;
    // The same give-up, decided again after a crash, is the same entry.
    let conflict = if reason == Reason::IdConflict { item.digest } else { 0 };
    let name = format!("{}\0{}\0{}\0{conflict:x}", item.id, journey.replay.as_deref().unwrap_or(""), whose);
    DeadLetter {
        message_id: Some(item.id.to_string()),
        to: to.map(|a| a.to_string()),
        class: Some(item.lane.class),
        destination: Some(item.lane.destination.to_string()),
        domain: Some(to.map_or(item.domain.as_str(), |a| a.domain().as_str()).to_owned()),
        account: Some(account.to_owned()).filter(|_| journey.attempts > 0),
        tenant: message.and_then(|m| m.tenant.clone()),
        stream: message.and_then(|m| m.stream.clone()),
        last_attempt_at: Some(now).filter(|_| journey.attempts > 0),
        ..DeadLetter::new(format!("{:032x}", xxh3_128(name.as_bytes())), reason, journey, now)
    }
}
