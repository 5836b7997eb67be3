//! One granted message, from its date to its settlement: claim, send, decide, settle.

use std::{sync::Arc, time::Duration};

use paceline_broker::Purpose;
use paceline_core::{
    Disposition, EmailAddress, LastError, Message, Outcome, ProviderAnswer, Reason,
    decide::{self, decide},
    event::{Event, Kind},
    lane::HOLD_MAX,
};
use paceline_limiter::{
    GRANT_LIFE_US,
    ledger::{Claim, Claimed, Recorded},
};
use paceline_provider::Attempt;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    context::Context,
    dead,
    engine::Input,
    item::Item,
    metrics::{AccountLabels, AttemptLabels},
    note::Note,
    settle::Onward,
    slots::Granted,
    suppress,
};

/// A grant: when it may be used, on this machine's clock and on the limiter's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) at: Instant,
    pub(crate) date_us: u64,
}

impl Grant {
    /// Whether it came to use too late; its tokens stay spent.
    fn is_void(&self) -> bool {
        Instant::now() > self.at + Duration::from_micros(GRANT_LIFE_US)
    }
}

/// Time between two looks at whether the first handler of a message is done.
pub(crate) const RECHECK: Duration = Duration::from_millis(500);

/// A claim outlives the longest call by this much.
const CLAIM_MARGIN: Duration = Duration::from_secs(5);

/// Carries one message through its attempt.
pub(crate) async fn run(cx: Arc<Context>, mut item: Item, grant: Grant, granted: Granted) {
    sleep_until(grant.at).await;
    // A message delivered again after a reconnect must wait for its first handler, which still runs.
    let Some(_present) = cx.enter(&item.id) else {
        sleep(RECHECK).await;
        return cx.give_back(item);
    };
    let account = &cx.settings.accounts[item.account];
    let slot = cx.slots.acquire(granted, item.account, item.lane.class, item.body.len()).await;
    if item.expired(cx.now()) {
        drop(slot);
        return bury(&cx, item, Reason::Expired).await;
    }
    let mut message = match item.message(cx.settings.max_message_bytes) {
        Ok(message) => message,
        // It was valid when it came; only a change of the size limit could bring this about.
        Err(problem) => {
            let letter = dead::invalid(&item.journey, Some(&item.id), &problem, cx.now());
            return finish_dead(&cx, item, letter).await;
        }
    };
    let cancelled = cx.cancels.borrow().covers(&message, &item.journey, cx.now());
    if cancelled {
        drop(slot);
        item.parsed = Some(message);
        return bury(&cx, item, Reason::Cancelled).await;
    }
    if grant.is_void() || cx.closed(&item) {
        item.parsed = Some(message);
        return cx.give_back(item);
    }
    let claim = cx.claim(&item);
    let claimed = cx.ledger.claim(claim.clone()).await;
    cx.note_limits(&claimed);
    match claimed {
        Ok(Claimed::Granted) => {}
        Ok(other) => {
            drop(slot);
            item.parsed = Some(message);
            return not_granted(&cx, item, claim, other).await;
        }
        Err(error) => {
            drop(slot);
            tracing::warn!(%error, "ledger: no claim, so no call; trying again");
            item.parsed = Some(message);
            sleep(Duration::from_millis(200)).await;
            return cx.give_back(item);
        }
    }
    let held_back = cx.held_back(&item, &message);
    if held_back.len() == message.recipient_count() {
        drop(slot);
        return suppress::all(&cx, item, &message, &held_back, &claim).await;
    }
    if !held_back.is_empty() && !suppress::some(&cx, &item, &message, &held_back).await {
        return;
    }
    if grant.is_void() || cx.closed(&item) {
        if let Err(error) = cx.ledger.release(&claim).await {
            tracing::warn!(%error, "ledger: claim not withdrawn; it runs out by itself");
        }
        item.parsed = Some(message);
        return cx.give_back(item);
    }
    let suppressed: Vec<usize> = held_back.into_iter().map(|(position, _)| position).collect();
    if !suppressed.is_empty() && !suppress::take_out(&mut item, &mut message, &suppressed) {
        return;
    }

    let started_at = cx.now();
    let clock = Instant::now();
    let in_flight = cx.metrics.in_flight.get_or_create_owned(&AccountLabels { account: account.name.clone() });
    in_flight.inc();
    let outcome = account.provider.send(Attempt { message: &message, idempotency_key: &item.idempotency_key() }).await;
    in_flight.dec();
    // Before the place is free: what follows from the answer holds for who takes it.
    cx.observe(&item, &outcome, grant.date_us, clock.elapsed());
    drop(slot);

    let attempt = decide::Attempt {
        class: item.lane.class,
        recipients: message.recipient_count(),
        resend_uncertain: account.provider.idempotent() || item.lane.class.resends_uncertain(),
        started_at,
        now: cx.now(),
        jitter: cx.world.chance(),
    };
    let disposition = decide(&attempt, &mut item.journey, &outcome, &cx.current().policy);
    cx.count(&item, &outcome);
    let provider_id = match &outcome {
        Outcome::Accepted { provider_id, .. } => provider_id.as_deref(),
        _ => None,
    };
    match disposition {
        Disposition::Complete { refused } => {
            cx.record(&claim, Recorded::Sent { note: String::new() }).await;
            if !bury_recipients(&cx, &item, &message, &refused).await {
                return;
            }
            let granted = Some(grant.date_us);
            let event = cx.event(Kind::Sent, &item, &message);
            cx.emit(&Event { granted_at_us: granted, provider_id, error: None, ..event }, &item.lane);
            tracing::debug!(id = %item.id, lane = %item.lane, attempts = item.journey.attempts, "sent");
            item.settle.ack();
        }
        Disposition::Retry { at } => {
            cx.record(&claim, Recorded::Retry { note: Note::retry(&item.journey, &suppressed) }).await;
            let kind = if item.journey.failures > 0 && spent(&outcome) { Kind::Retrying } else { Kind::Throttled };
            let event = cx.event(kind, &item, &message);
            let error = item.journey.last_error.as_ref();
            cx.emit(&Event { granted_at_us: Some(grant.date_us), retry_at: Some(at), error, ..event }, &item.lane);
            tracing::info!(id = %item.id, lane = %item.lane, attempts = item.journey.attempts, failures = item.journey.failures,
                outcome = outcome.label(), code = item.journey.last_error.as_ref().map(|e| e.code.as_str()),
                status = item.journey.last_error.as_ref().and_then(|e| e.status), retry_at = %at, "trying again later");
            retry(&cx, item).await;
        }
        Disposition::Without { recipients } => {
            let gone: Vec<usize> =
                message.recipients().enumerate().filter(|(_, r)| recipients.contains(r)).map(|(i, _)| i).collect();
            // A redelivery would bring the message as it came.
            let originals: Vec<usize> = gone.iter().map(|i| suppress::original_position(&suppressed, *i)).collect();
            cx.record(&claim, Recorded::Retry { note: Note::without(&item.journey, &originals, &suppressed) }).await;
            if gone.len() == message.recipient_count() {
                let event = cx.event(Kind::Dead, &item, &message);
                let error = item.journey.last_error.as_ref();
                let reason = Some(Reason::RejectedRecipient);
                cx.emit(&Event { granted_at_us: Some(grant.date_us), reason, error, ..event }, &item.lane);
            }
            without(&cx, item, &mut message, &gone).await;
        }
        Disposition::DeadLetter { reason } => {
            let letter = dead::whole(&item, Some(&message), &account.name, reason, cx.now());
            cx.record(&claim, Recorded::Dead { note: Note::dead(&letter, &suppressed) }).await;
            let event = cx.event(Kind::Dead, &item, &message);
            let error = item.journey.last_error.as_ref();
            cx.emit(&Event { granted_at_us: Some(grant.date_us), reason: Some(reason), error, ..event }, &item.lane);
            finish_dead(&cx, item, letter).await;
        }
    }
}

fn spent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Temporary { .. } | Outcome::Uncertain { .. })
}

/// The claim was refused: somebody is at it, was at it, or was done with it.
pub(crate) async fn not_granted(cx: &Arc<Context>, mut item: Item, claim: Claim, answer: Claimed) {
    match answer {
        Claimed::Granted => unreachable!("handled by the caller"),
        Claimed::Held { until_us } => {
            // Another worker's call, under way or died with it.
            let wait = cx.until(until_us);
            if wait <= HOLD_MAX {
                sleep(wait).await;
                return cx.give_back(item);
            }
            item.journey.not_before = Some(cx.now() + wait);
            pass_on(cx, item, Purpose::Delay).await;
        }
        Claimed::Expired { lost } => {
            // The worker that held the claim died between call and record: as good as a call without an answer.
            let answer = ProviderAnswer::new("worker_lost", None, "a worker ended between the call and its record");
            tracing::warn!(id = %item.id, lost, "claim without a result: sent or not, nobody knows");
            let outcome = Outcome::Uncertain { answer };
            let now = cx.now();
            let resend = cx.settings.accounts[item.account].provider.idempotent() || item.lane.class.resends_uncertain();
            let attempt = decide::Attempt {
                class: item.lane.class,
                recipients: item.recipients,
                resend_uncertain: resend,
                started_at: now,
                now,
                jitter: cx.world.chance(),
            };
            let disposition = decide(&attempt, &mut item.journey, &outcome, &cx.current().policy);
            cx.count(&item, &outcome);
            match disposition {
                Disposition::Retry { .. } => {
                    cx.record(&claim, Recorded::Retry { note: Note::retry(&item.journey, &[]) }).await;
                    retry(cx, item).await;
                }
                _ => {
                    let reason = if lost >= POISON { Reason::Poison } else { reason_of(&disposition) };
                    let message = item.message(cx.settings.max_message_bytes).ok();
                    let account = &cx.settings.accounts[item.account].name;
                    let letter = dead::whole(&item, message.as_deref(), account, reason, now);
                    cx.record(&claim, Recorded::Dead { note: Note::dead(&letter, &[]) }).await;
                    finish_dead(cx, item, letter).await;
                }
            }
        }
        Claimed::Done { attempt, result } => {
            cx.metrics.duplicates.inc();
            tracing::debug!(id = %item.id, attempt, "already settled; no call made");
            match result {
                // A later attempt exists, or this one went out: nothing is left to do.
                Recorded::Sent { .. } => item.settle.ack(),
                _ if attempt > claim.attempt => item.settle.ack(),
                // The result was recorded, but perhaps not passed on: pass it on again. Claims and ids make one of two.
                Recorded::Retry { note } => match Note::read(&note) {
                    Note::Retry { journey, gone, suppressed } => {
                        item.journey = journey.resume(item.journey);
                        if gone.is_empty() && suppressed.is_empty() {
                            return retry(cx, item).await;
                        }
                        let Ok(mut message) = item.message(cx.settings.max_message_bytes) else { return retry(cx, item).await };
                        let gone: Vec<usize> =
                            gone.iter().map(|original| suppress::position_left(&suppressed, *original)).collect();
                        if !suppressed.is_empty() && !suppress::take_out(&mut item, &mut message, &suppressed) {
                            return;
                        }
                        if gone.is_empty() { retry(cx, item).await } else { without(cx, item, &mut message, &gone).await }
                    }
                    _ => item.settle.ack(),
                },
                Recorded::Dead { note } => match Note::read(&note) {
                    Note::Dead { mut letter, suppressed } => {
                        let mut message = item.message(cx.settings.max_message_bytes).ok();
                        if let Some(message) = message.as_mut().filter(|_| !suppressed.is_empty())
                            && !suppress::take_out(&mut item, message, &suppressed)
                        {
                            return;
                        }
                        letter.to = message.and_then(|m| m.to.first().map(|to| to.email.to_string()));
                        finish_dead(cx, item, *letter).await;
                    }
                    _ => bury(cx, item, Reason::Uncertain).await,
                },
            }
        }
        Claimed::Conflict => bury(cx, item, Reason::IdConflict).await,
    }
}

/// Claims lost in a row before a message counts as poison.
const POISON: u32 = 3;

fn reason_of(disposition: &Disposition) -> Reason {
    match disposition {
        Disposition::DeadLetter { reason } => *reason,
        _ => Reason::Uncertain,
    }
}

/// To the ladder, or straight back where the wait is short.
pub(crate) async fn retry(cx: &Context, item: Item) {
    pass_on(cx, item, Purpose::Retry).await;
}

pub(crate) async fn pass_on(cx: &Context, item: Item, purpose: Purpose) {
    let onward = Onward { lane: &item.lane, body: &item.body, properties: &item.properties, journey: &item.journey, purpose };
    cx.settler.onward(onward, cx.now(), item.settle).await;
}

/// Recipients (by position) become dead letters; the others go on as a message of their own.
async fn without(cx: &Arc<Context>, mut item: Item, message: &mut Message, gone: &[usize]) {
    let error = item.journey.last_error.clone();
    let answer = error.as_ref().map_or_else(
        || ProviderAnswer::new("rejected_recipient", None, ""),
        |e: &LastError| ProviderAnswer::new(&e.code, e.status, &e.message),
    );
    let recipients: Vec<EmailAddress> =
        message.recipients().enumerate().filter(|(i, _)| gone.contains(i)).map(|(_, r)| r.clone()).collect();
    let refused: Vec<_> = recipients.iter().map(|r| (r.clone(), answer.clone())).collect();
    if !bury_recipients(cx, &item, message, &refused).await {
        return;
    }
    message.remove_recipients(&recipients);
    if !lead_with_a_copy(message) {
        return item.settle.ack();
    }
    item.journey.digest = Some(item.digest);
    let body = match serde_json::to_vec(message) {
        Ok(body) => bytes::Bytes::from(body),
        Err(error) => return tracing::error!(%error, "a message cannot be written again and stays in its queue"),
    };
    let lane = cx.classifier.classify(message, &item.lane.to_string()).lane;
    let onward =
        Onward { lane: &lane, body: &body, properties: &item.properties, journey: &item.journey, purpose: Purpose::Retry };
    cx.settler.onward(onward, cx.now(), item.settle).await;
}

/// Where no `to` is left, only copies: they are not what the message was for, but they were asked for. False where nobody
/// is left.
pub(crate) fn lead_with_a_copy(message: &mut Message) -> bool {
    if message.to.is_empty() {
        let copies = if message.cc.is_empty() { &mut message.bcc } else { &mut message.cc };
        if copies.is_empty() {
            return false;
        }
        let first = copies.remove(0);
        message.to.push(first);
    }
    true
}

async fn bury_recipients(cx: &Context, item: &Item, message: &Message, refused: &[(EmailAddress, ProviderAnswer)]) -> bool {
    let account = &cx.settings.accounts[item.account].name;
    for (address, answer) in refused {
        let letter = dead::rejected(item, message, account, cx.now(), (address, answer));
        if !cx.settler.bury(&letter, &item.body, &item.properties).await {
            return false;
        }
    }
    true
}

/// Gives a message up without an attempt now.
pub(crate) async fn bury(cx: &Context, mut item: Item, reason: Reason) {
    let message = item.message(cx.settings.max_message_bytes).ok();
    let account = &cx.settings.accounts[item.account].name;
    let letter = dead::whole(&item, message.as_deref(), account, reason, cx.now());
    if let Some(message) = &message {
        let kind = if reason == Reason::Cancelled { Kind::Cancelled } else { Kind::Dead };
        let event = cx.event(kind, &item, message);
        cx.emit(&Event { reason: Some(reason), ..event }, &item.lane);
    }
    finish_dead(cx, item, letter).await;
}

pub(crate) async fn finish_dead(cx: &Context, item: Item, letter: paceline_core::DeadLetter) {
    tracing::info!(id = %item.id, lane = %item.lane, reason = %letter.reason, attempts = letter.attempts,
        code = letter.last_error.as_ref().map(|e| e.code.as_str()), "dead-lettered");
    if cx.settler.bury(&letter, &item.body, &item.properties).await {
        item.settle.ack();
    }
}

impl Context {
    /// Back to the lane's place in this worker, to wait for another grant.
    pub(crate) fn give_back(&self, item: Item) {
        self.metrics.void_grants.inc();
        self.to_engine(Input::Back(item));
    }

    /// The claim of the item's next attempt.
    pub(crate) fn claim(&self, item: &Item) -> Claim {
        Claim::new(
            item.id.to_string(),
            item.journey.replay.clone(),
            item.journey.attempts + 1,
            item.digest,
            self.settings.worker_id.clone(),
            self.settings.accounts[item.account].total_timeout + CLAIM_MARGIN,
        )
    }

    /// Stores a result; does not return before it is stored, since an unrecorded result must not be acknowledged.
    pub(crate) async fn record(&self, claim: &Claim, result: Recorded) {
        let mut pause = Duration::from_millis(100);
        loop {
            let recorded = self.ledger.record(claim, result.clone()).await;
            self.note_limits(&recorded);
            let Err(error) = recorded else { return };
            tracing::warn!(%error, "ledger: result not recorded; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn count(&self, item: &Item, outcome: &Outcome) {
        let labels = AttemptLabels {
            class: item.lane.class.as_str(),
            destination: item.lane.destination.clone(),
            account: self.settings.accounts[item.account].name.clone(),
            outcome: outcome.label(),
        };
        self.metrics.attempts.get_or_create(&labels).inc();
        self.board.ended(item.origin.lane, item.account, &item.lane.destination, outcome);
    }

    pub(crate) fn event<'a>(&'a self, event: Kind, item: &'a Item, message: &'a Message) -> Event<'a> {
        Event {
            event,
            id: &item.id,
            class: item.lane.class,
            destination: &item.lane.destination,
            domain: item.domain.as_str(),
            account: Some(&self.settings.accounts[item.account].name),
            tenant: message.tenant.as_deref(),
            stream: message.stream.as_deref(),
            tags: &message.tags,
            metadata: &message.metadata,
            at: self.now(),
            attempts: item.journey.attempts,
            recipients: message.recipient_count(),
            granted_at_us: None,
            provider_id: None,
            reason: None,
            retry_at: None,
            error: None,
        }
    }
}
