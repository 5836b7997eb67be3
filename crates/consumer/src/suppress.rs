//! Recipients that must not be mailed, on the way: they become dead letters of their own, the rest proceed.
//!
//! Everything is decided under a claim, as a call would be: what was sent already is never said to be suppressed.

use std::{sync::Arc, time::Duration};

use paceline_broker::HeaderValue;
use paceline_core::{
    Message, Reason,
    event::{Event, Kind as EventKind},
    journey::header,
    suppression::Kind,
};
use paceline_limiter::ledger::{Claim, Claimed, Recorded};
use tokio::time::sleep;

use crate::{
    context::Context,
    dead,
    engine::Input,
    item::Item,
    note::Note,
    pipeline::{self, RECHECK},
};

/// Recipients of a message that are on the list, by their positions; in order.
pub(crate) type HeldBack = Vec<(usize, Kind)>;

impl Context {
    /// Who of the recipients may not be mailed now.
    pub(crate) fn held_back(&self, item: &Item, message: &Message) -> HeldBack {
        self.suppressions.borrow().held_back(message, item.lane.class, self.now())
    }
}

/// Gives up a message that was read a moment ago and whose recipients are all on the list.
pub(crate) async fn whole(cx: Arc<Context>, mut item: Box<Item>) {
    let Some(_present) = cx.enter(&item.id) else {
        sleep(RECHECK).await;
        return cx.to_engine(Input::Ready(item));
    };
    let Ok(message) = item.message(cx.settings.max_message_bytes) else { return cx.to_engine(Input::Ready(item)) };
    let held_back = cx.held_back(&item, &message);
    if held_back.len() < message.recipient_count() {
        // The list has changed: it goes its usual way.
        item.parsed = Some(message);
        return cx.to_engine(Input::Ready(item));
    }
    let claim = cx.claim(&item);
    let claimed = cx.ledger.claim(claim.clone()).await;
    cx.note_limits(&claimed);
    match claimed {
        Ok(Claimed::Granted) => all(&cx, item, &message, &held_back, &claim).await,
        Ok(other) => {
            item.parsed = Some(message);
            pipeline::not_granted(&cx, item, claim, other).await;
        }
        Err(error) => {
            tracing::warn!(%error, "ledger: no claim; trying again");
            item.parsed = Some(message);
            sleep(Duration::from_millis(200)).await;
            cx.to_engine(Input::Ready(item));
        }
    }
}

/// Gives up a claimed message whose recipients are all on the list.
pub(crate) async fn all(cx: &Context, item: Box<Item>, message: &Message, held_back: &HeldBack, claim: &Claim) {
    let account = &cx.settings.accounts[item.account].name;
    let kind = held_back.first().map_or(Kind::Hard, |(_, kind)| *kind);
    let letter = dead::all_suppressed(&item, message, account, cx.now(), kind);
    cx.record(claim, Recorded::Dead { note: Note::dead(&letter, &[]) }).await;
    tell(cx, &item, message, message.recipient_count());
    pipeline::finish_dead(cx, item, letter).await;
}

/// Writes a dead letter for each of some recipients of a claimed message; the caller goes on without them. False where
/// one can never be written.
pub(crate) async fn some(cx: &Context, item: &Item, message: &Message, held_back: &HeldBack) -> bool {
    let account = &cx.settings.accounts[item.account].name;
    let mut recipients = message.recipients().enumerate();
    for (position, kind) in held_back {
        let Some((_, address)) = recipients.by_ref().find(|(i, _)| i == position) else { continue };
        let letter = dead::suppressed(item, message, account, cx.now(), (address, *kind));
        if !cx.settler.bury(&letter, &item.body, &item.properties).await {
            return false;
        }
    }
    tracing::info!(id = %item.id, lane = %item.lane, recipients = held_back.len(), reason = %Reason::Suppressed, "dead-lettered");
    tell(cx, item, message, held_back.len());
    true
}

fn tell(cx: &Context, item: &Item, message: &Message, recipients: usize) {
    let event = cx.event(EventKind::Suppressed, item, message);
    cx.emit(&Event { reason: Some(Reason::Suppressed), recipients, ..event }, &item.lane);
}

/// Goes on without the recipients at these positions: from here on the item is the smaller message. False where it
/// cannot be written again.
pub(crate) fn take_out(item: &mut Item, message: &mut Message, positions: &[usize]) -> bool {
    let gone: Vec<_> = message.recipients().enumerate().filter(|(i, _)| positions.contains(i)).map(|(_, r)| r.clone()).collect();
    message.remove_recipients(&gone);
    pipeline::lead_with_a_copy(message);
    match serde_json::to_vec(message) {
        Ok(body) => {
            item.journey.digest = Some(item.digest);
            let digest = HeaderValue::Text(format!("{:016x}", item.digest));
            item.properties.headers.insert(header::DIGEST.to_owned(), digest);
            item.body = body.into();
            true
        }
        Err(error) => {
            tracing::error!(%error, "a message cannot be written again and stays in its queue");
            false
        }
    }
}

/// Where a recipient stood before those at the positions `taken_out`, in ascending order, were taken out.
pub(crate) fn original_position(taken_out: &[usize], position: usize) -> usize {
    taken_out.iter().fold(position, |at, gone| if *gone <= at { at + 1 } else { at })
}

/// The inverse: where one who was not taken out stands now.
pub(crate) fn position_left(taken_out: &[usize], original: usize) -> usize {
    original - taken_out.iter().filter(|gone| **gone < original).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_before_and_after() {
        for taken_out in [&[][..], &[0], &[1, 2], &[0, 1, 4], &[5]] {
            let left: Vec<usize> = (0..6).filter(|i| !taken_out.contains(i)).collect();
            for (position, original) in left.iter().enumerate() {
                assert_eq!(original_position(taken_out, position), *original, "{taken_out:?} {position}");
                assert_eq!(position_left(taken_out, *original), position, "{taken_out:?} {original}");
            }
        }
    }
}
