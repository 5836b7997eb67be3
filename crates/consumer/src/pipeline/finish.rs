//! What came of a call: decided, recorded, passed on.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use paceline_broker::Purpose;
use paceline_core::{
    Disposition, EmailAddress, GivenUp, Journey, LastError, Message, Outcome, ProviderAnswer, Reason, Timestamp,
    decide::{self, decide},
    event::{Event, Kind},
};
use paceline_limiter::ledger::{Claim, Recorded};

use super::{
    Grant,
    claim::{Ready, Turn},
    finish_dead, lead_with_a_copy, retry,
};
use crate::{
    context::{Context, Present},
    dead,
    engine::Input,
    item::Item,
    note::{Dead, Note},
    settle::Onward,
    suppress,
};

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) started_at: Timestamp,
    /// With other messages: a repeat of it would not be known for one.
    pub(super) together: bool,
}

/// Mail waits so long for an account that refused it, where its claim could not be withdrawn.
const ACCOUNT_REFUSED: Duration = Duration::from_secs(30);

/// A message whose call has ended, and what follows for it.
struct Decided {
    item: Box<Item>,
    grant: Grant,
    present: Present,
    message: Box<Message>,
    claim: Claim,
    suppressed: Vec<usize>,
    outcome: Outcome,
    disposition: Disposition,
    /// Budget it had spent before.
    failures: u32,
}

/// Settles a message by what came of its call.
pub(super) async fn finish(cx: &Arc<Context>, ready: Ready, outcome: Outcome, call: Ended) {
    carry_out(cx, Decided::by(cx, ready, outcome, call)).await;
}

/// Settles messages that travelled together. Those that are simply sent are recorded together.
pub(super) async fn finish_all(cx: &Arc<Context>, ready: Vec<Ready>, outcomes: Vec<Outcome>, call: Ended) {
    let mut sent = Vec::with_capacity(ready.len());
    let mut results = Vec::with_capacity(ready.len());
    let mut others = Vec::new();
    for (ready, outcome) in ready.into_iter().zip(outcomes) {
        let decided = Decided::by(cx, ready, outcome, call);
        match &decided.disposition {
            Disposition::Complete { refused } if refused.is_empty() => {
                results.push((decided.claim.clone(), decided.sent(&[])));
                sent.push(decided);
            }
            _ => others.push(carry_out(cx, decided)),
        }
    }
    let all_sent = async {
        if !results.is_empty() {
            cx.record_all(results).await;
        }
        sent.into_iter().for_each(|one| one.settle_sent(cx));
    };
    tokio::join!(all_sent, join_all(others));
}

impl Decided {
    fn by(cx: &Context, ready: Ready, outcome: Outcome, call: Ended) -> Decided {
        let Ready { turn: Turn { mut item, grant, present }, message, claim, suppressed } = ready;
        let account = &cx.settings.accounts[item.account];
        let known = account.provider.idempotent() && !call.together;
        let attempt = decide::Attempt {
            class: item.lane.class,
            recipients: message.recipient_count(),
            resend_uncertain: known || item.lane.class.resends_uncertain(),
            born: item.end.born,
            started_at: call.started_at,
            now: cx.now(),
            jitter: cx.world.chance(),
        };
        let failures = item.journey.failures;
        let disposition = decide(&attempt, &mut item.journey, &outcome, &cx.current().policy);
        let repeat_there = known && matches!(outcome, Outcome::Uncertain { .. });
        item.journey.account = repeat_there.then(|| account.name.to_string());
        cx.count(&item, &outcome);
        Decided { item, grant, present, message, claim, suppressed, outcome, disposition, failures }
    }

    /// The record of its having been sent, to all but these.
    fn sent(&self, refused: &[GivenUp]) -> Recorded {
        Recorded::Sent { note: Note::sent(ends(&self.message, refused, &self.suppressed), &self.suppressed) }
    }

    /// It is sent, and recorded as that.
    fn settle_sent(self, cx: &Context) {
        let Decided { item, grant, present, message, outcome, .. } = self;
        let event = cx.event(Kind::Sent, &item, &message);
        let (granted_at_us, provider_id) = (Some(grant.date_us), outcome.provider_id());
        cx.emit(&Event { granted_at_us, provider_id, error: None, ..event }, &item.lane);
        tracing::debug!(id = %item.id, lane = %item.lane, attempts = item.journey.attempts, "sent");
        item.settle.ack();
        drop(present);
    }
}

/// Records what was decided, passes on what is left of the message, acknowledges it.
async fn carry_out(cx: &Arc<Context>, decided: Decided) {
    if let Disposition::Complete { refused } = &decided.disposition {
        cx.record(&decided.claim, decided.sent(refused)).await;
        if bury_recipients(cx, &decided.item, &decided.message, refused).await {
            decided.settle_sent(cx);
        }
        return;
    }
    let Decided { item, grant, present, mut message, claim, suppressed, outcome, disposition, failures } = decided;
    let provider_id = outcome.provider_id();
    let granted_at_us = Some(grant.date_us);
    match disposition {
        // Above.
        Disposition::Complete { .. } => {}
        Disposition::Retry { at } => {
            cx.record(&claim, Recorded::Retry { note: Note::retry(&item.journey, &suppressed) }).await;
            let kind = if item.journey.failures > failures { Kind::Retrying } else { Kind::Throttled };
            let event = cx.event(kind, &item, &message);
            let error = item.journey.last_error.as_ref();
            cx.emit(&Event { granted_at_us, retry_at: Some(at), error, ..event }, &item.lane);
            tracing::info!(id = %item.id, lane = %item.lane, attempts = item.journey.attempts, failures = item.journey.failures,
                outcome = outcome.label(), code = item.journey.last_error.as_ref().map(|e| e.code.as_str()),
                status = item.journey.last_error.as_ref().and_then(|e| e.status), retry_at = %at, "trying again later");
            retry(cx, item).await;
        }
        Disposition::Elsewhere => {
            let event = cx.event(Kind::Throttled, &item, &message);
            cx.emit(&Event { granted_at_us, error: item.journey.last_error.as_ref(), ..event }, &item.lane);
            elsewhere(cx, item, message, &claim, &suppressed).await;
        }
        Disposition::Without { recipients } => {
            let gone: Vec<usize> =
                message.recipients().enumerate().filter(|(_, r)| recipients.contains(r)).map(|(i, _)| i).collect();
            // A redelivery would bring the message as it came.
            let originals: Vec<usize> = gone.iter().map(|i| suppress::original_position(&suppressed, *i)).collect();
            cx.record(&claim, Recorded::Retry { note: Note::without(&item.journey, &originals, &suppressed) }).await;
            if gone.len() == message.recipient_count() {
                let event = cx.event(Kind::Dead, &item, &message);
                let (reason, error) = (Some(Reason::RejectedRecipient), item.journey.last_error.as_ref());
                cx.emit(&Event { granted_at_us, reason, error, ..event }, &item.lane);
            }
            without(cx, item, &mut message, &gone).await;
        }
        Disposition::Part { sent, dead, at } => {
            let had: Vec<usize> = positions(&message, &sent).collect();
            let originals = had.iter().map(|i| suppress::original_position(&suppressed, *i)).collect();
            let note = Note::part(&item.journey, originals, ends(&message, &dead, &suppressed), &suppressed);
            cx.record(&claim, Recorded::Retry { note }).await;
            let event = cx.event(Kind::Sent, &item, &message);
            let error = item.journey.last_error.as_ref();
            let others = event.recipients - had.len() - positions_given_up(&message, &dead).count();
            if !had.is_empty() {
                cx.emit(&Event { granted_at_us, provider_id, recipients: had.len(), ..event }, &item.lane);
            }
            if others > 0 {
                let event =
                    cx.event(if item.journey.failures > failures { Kind::Retrying } else { Kind::Throttled }, &item, &message);
                cx.emit(&Event { granted_at_us, retry_at: Some(at), recipients: others, error, ..event }, &item.lane);
            } else if had.is_empty() {
                let event = cx.event(Kind::Dead, &item, &message);
                let reason = dead.first().map(|d| d.reason);
                cx.emit(&Event { granted_at_us, reason, error, ..event }, &item.lane);
            }
            tracing::info!(id = %item.id, lane = %item.lane, attempts = item.journey.attempts, sent = had.len(), dead = dead.len(),
                others, retry_at = %at, "recipients were answered differently");
            part(cx, item, &mut message, &sent, &dead).await;
        }
        Disposition::DeadLetter { reason } => {
            let account = &cx.settings.accounts[item.account].name;
            let letter = dead::whole(&item, Some(&message), account, reason, cx.now());
            cx.record(&claim, Recorded::Dead { note: Note::dead(&letter, &suppressed) }).await;
            let event = cx.event(Kind::Dead, &item, &message);
            let error = item.journey.last_error.as_ref();
            cx.emit(&Event { granted_at_us, reason: Some(reason), error, ..event }, &item.lane);
            finish_dead(cx, item, letter).await;
        }
    }
    drop(present);
}

/// The account was refused and the message certainly not taken: as if no call had been made, it goes back to its place in
/// this worker, to be routed again.
async fn elsewhere(cx: &Arc<Context>, mut item: Box<Item>, message: Box<Message>, claim: &Claim, suppressed: &[usize]) {
    // Where there is no other account it comes back later: meanwhile mail that was not refused probes this one. A smaller
    // message than what is in the queue must be published.
    let withdrawn = if suppressed.is_empty() && item.choices.len() > 1 { cx.ledger.release(claim).await.is_ok() } else { false };
    if withdrawn {
        item.unclaimed += 1;
        item.refused_by = Some(item.account);
        item.parsed = Some(message);
        return cx.to_engine(Input::Back(item));
    }
    item.journey = Journey { not_before: Some(cx.now() + ACCOUNT_REFUSED), ..item.journey };
    cx.record(claim, Recorded::Retry { note: Note::retry(&item.journey, suppressed) }).await;
    retry(cx, item).await;
}

/// Where these recipients stand in the message.
fn positions(message: &Message, of: &[EmailAddress]) -> impl Iterator<Item = usize> {
    message.recipients().enumerate().filter(|(_, r)| of.contains(r)).map(|(i, _)| i)
}

/// Likewise, those that are given up on.
fn positions_given_up(message: &Message, dead: &[GivenUp]) -> impl Iterator<Item = usize> {
    message.recipients().enumerate().filter(|(_, r)| dead.iter().any(|d| d.recipient == **r)).map(|(i, _)| i)
}

/// The ends of recipients, by where they stand in the message as it came.
fn ends(message: &Message, dead: &[GivenUp], suppressed: &[usize]) -> Vec<Dead> {
    let end = |GivenUp { recipient, reason, answer }: &GivenUp| {
        let at = message.recipients().position(|r| r == recipient)?;
        Some((suppress::original_position(suppressed, at), *reason, answer.clone()))
    };
    dead.iter().filter_map(end).collect()
}

/// Recipients (by position) become dead letters; the others go on as a message of their own.
pub(super) async fn without(cx: &Arc<Context>, item: Box<Item>, message: &mut Message, gone: &[usize]) {
    let answer = item.journey.last_error.as_ref().map_or_else(
        || ProviderAnswer::new("rejected_recipient", None, ""),
        |e: &LastError| ProviderAnswer::new(&e.code, e.status, &e.message).suppressing(e.suppress),
    );
    let gone = message.recipients().enumerate().filter(|(i, _)| gone.contains(i)).map(|(_, r)| r.clone());
    let reason = Reason::RejectedRecipient;
    let dead: Vec<GivenUp> = gone.map(|recipient| GivenUp { recipient, reason, answer: answer.clone() }).collect();
    part(cx, item, message, &[], &dead).await;
}

/// Some recipients become dead letters, some have the message; the others go on as a message of their own.
pub(super) async fn part(cx: &Arc<Context>, mut item: Box<Item>, message: &mut Message, sent: &[EmailAddress], dead: &[GivenUp]) {
    if !bury_recipients(cx, &item, message, dead).await {
        return;
    }
    let done: Vec<EmailAddress> = sent.iter().chain(dead.iter().map(|d| &d.recipient)).cloned().collect();
    message.remove_recipients(&done);
    if !lead_with_a_copy(message) {
        return item.settle.ack();
    }
    item.journey.digest = Some(item.digest);
    let body = match serde_json::to_vec(message) {
        Ok(body) => bytes::Bytes::from(body),
        Err(error) => return tracing::error!(%error, "a message cannot be written again and stays in its queue"),
    };
    let lane = cx.classifier.classify(message, &item.lane.to_string()).lane;
    let onward = Onward {
        key: lane.to_string(),
        body: &body,
        properties: &item.properties,
        journey: &item.journey,
        end: item.end.at,
        purpose: Purpose::Retry,
    };
    cx.settler.onward(onward, cx.now(), item.settle).await;
}

pub(super) async fn bury_recipients(cx: &Context, item: &Item, message: &Message, dead: &[GivenUp]) -> bool {
    let account = &cx.settings.accounts[item.account].name;
    for given_up in dead {
        let letter = dead::given_up(item, message, account, cx.now(), given_up);
        if !cx.settler.bury(&letter, &item.body, &item.properties).await {
            return false;
        }
    }
    true
}
