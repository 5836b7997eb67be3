//! A granted message, from its date to its settlement: claim, send alone or together with others, decide, settle.

mod batch;
mod claim;
mod finish;

use std::{sync::Arc, time::Duration};

use paceline_broker::Purpose;
use paceline_core::{
    Message, Outcome, Reason, Scope,
    event::{Event, Kind},
};
use paceline_limiter::{
    GRANT_LIFE_US,
    ledger::{Claim, Claimed, Recorded},
};
use paceline_provider::Attempt;
use tokio::time::{Instant, sleep, sleep_until};

pub(crate) use self::{batch::Gather, claim::not_granted};
use self::{
    claim::{Ready, Turn, claim, leave},
    finish::{Ended, finish},
};
use crate::{
    context::Context,
    dead,
    engine::Input,
    flows::Flow,
    item::Item,
    metrics::{AccountLabels, AttemptLabels},
    note::Note,
    settle::Onward,
    slots::{Granted, Slot},
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

/// A message whose flow could not be opened stays for so long before it is looked at again.
const REOPEN: Duration = Duration::from_secs(1);

/// Time between two tries of a ledger that does not answer.
const UNKNOWN: Duration = Duration::from_millis(200);

/// A refused connection keeps the fleet's slots of its call for so long: until it is known how many there may be, whoever got
/// them would be refused as well.
const CONNECTION_REFUSED: Duration = Duration::from_secs(1);

/// A claim outlives the longest call by this much.
const CLAIM_MARGIN: Duration = Duration::from_secs(5);

/// Carries one message through its attempt.
pub(crate) async fn run(cx: Arc<Context>, item: Box<Item>, grant: Grant, granted: Granted) {
    sleep_until(grant.at).await;
    // A message delivered again after a reconnect must wait for its first handler, which still runs.
    let Some(present) = cx.enter(&item.id) else {
        sleep(RECHECK).await;
        return cx.give_back(item);
    };
    let slot = cx.slots.acquire(granted, item.account, item.lane.class, item.body.len()).await;
    match claim(&cx, Turn { item, grant, present }).await {
        Ok(ready) => send(&cx, ready, slot).await,
        Err(left) => {
            drop(slot);
            leave(cx, left).await;
        }
    }
}

/// Makes the call of one message, and settles it by the outcome.
async fn send(cx: &Arc<Context>, ready: Ready, slot: Slot) {
    let account = &cx.settings.accounts[ready.turn.item.account];
    let started_at = cx.now();
    let clock = Instant::now();
    let in_flight = cx.metrics.in_flight.get_or_create_owned(&AccountLabels { account: account.name.clone() });
    in_flight.inc();
    let key = ready.turn.item.idempotency_key();
    let outcome = account.provider.send(Attempt { message: &ready.message, idempotency_key: &key }).await;
    drop(key);
    in_flight.dec();
    // Before the place is free: what follows from the answer holds for who takes it.
    cx.observe(&ready.turn.item, &outcome, ready.turn.grant.date_us, clock.elapsed());
    free(cx, slot, outcome.parts());
    finish(cx, ready, outcome, Ended { started_at, together: false }).await;
}

/// Frees the place of a call that has ended so.
fn free<'a>(cx: &Context, mut slot: Slot, mut outcomes: impl Iterator<Item = &'a Outcome>) {
    let turned_away = |outcome: &Outcome| matches!(outcome, Outcome::Throttled { scope: Scope::Connection, .. });
    if outcomes.any(turned_away)
        && let Some(give_back) = slot.keep_lease()
    {
        cx.tasks.spawn(async move {
            sleep(CONNECTION_REFUSED).await;
            give_back();
        });
    }
}

/// To the ladder, or straight back where the wait is short.
pub(crate) async fn retry(cx: &Context, item: Box<Item>) {
    pass_on(cx, item, Purpose::Retry).await;
}

/// To its flow, once: there it waits for what it needs, and keeps nobody.
pub(crate) async fn to_flow(cx: Arc<Context>, item: Box<Item>, flow: Arc<Flow>) {
    if !cx.flows.open(&flow).await {
        sleep(REOPEN).await;
        return cx.to_engine(Input::Ready(item));
    }
    let Item { body, properties, journey, settle, end, .. } = *item;
    let (body, properties, journey) = (&body, &properties, &journey);
    let onward = Onward { key: flow.key(), body, properties, journey, end: end.at, purpose: Purpose::Flow };
    cx.settler.onward(onward, cx.now(), settle).await;
}

pub(crate) async fn pass_on(cx: &Context, item: Box<Item>, purpose: Purpose) {
    let key = item.key();
    let Item { body, properties, journey, settle, end, .. } = *item;
    let onward = Onward { key, body: &body, properties: &properties, journey: &journey, end: end.at, purpose };
    cx.settler.onward(onward, cx.now(), settle).await;
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

/// Gives up a message whose time is over.
pub(crate) async fn give_up(cx: Arc<Context>, item: Box<Item>, reason: Reason) {
    let Some(_present) = cx.enter(&item.id) else {
        sleep(RECHECK).await;
        return cx.to_engine(Input::Ready(item));
    };
    give_up_here(&cx, item, reason).await;
}

/// Likewise, where nobody else in this worker handles it. Under a claim: what was sent already is never said to be too late.
async fn give_up_here(cx: &Arc<Context>, item: Box<Item>, reason: Reason) {
    let claim = cx.claim(&item);
    let claimed = cx.ledger.claim(claim.clone()).await;
    cx.note_limits(&claimed);
    match claimed {
        Ok(Claimed::Granted) => bury_claimed(cx, item, reason, Some(&claim)).await,
        Ok(other) => not_granted(cx, item, claim, other).await,
        Err(error) => {
            // Hundreds may be over at once while the ledger is away; readiness tells of that.
            tracing::debug!(%error, "ledger: no claim, so nothing is given up; trying again");
            sleep(UNKNOWN).await;
            cx.to_engine(Input::Ready(item));
        }
    }
}

/// Gives a message up without an attempt now.
pub(crate) async fn bury(cx: &Context, item: Box<Item>, reason: Reason) {
    bury_claimed(cx, item, reason, None).await;
}

async fn bury_claimed(cx: &Context, mut item: Box<Item>, reason: Reason, claim: Option<&Claim>) {
    let message = item.message(cx.settings.max_message_bytes).ok();
    let account = &cx.settings.accounts[item.account].name;
    let letter = dead::whole(&item, message.as_deref(), account, reason, cx.now());
    if let Some(claim) = claim {
        cx.record(claim, Recorded::Dead { note: Note::dead(&letter, &[]) }).await;
    }
    if let Some(message) = &message {
        let kind = if reason == Reason::Cancelled { Kind::Cancelled } else { Kind::Dead };
        let event = cx.event(kind, &item, message);
        cx.emit(&Event { reason: Some(reason), ..event }, &item.lane);
    }
    finish_dead(cx, item, letter).await;
}

pub(crate) async fn finish_dead(cx: &Context, item: Box<Item>, letter: paceline_core::DeadLetter) {
    tracing::info!(id = %item.id, lane = %item.lane, reason = %letter.reason, attempts = letter.attempts,
        code = letter.last_error.as_ref().map(|e| e.code.as_str()), "dead-lettered");
    if cx.settler.bury(&letter, &item.body, &item.properties).await {
        item.settle.ack();
    }
}

impl Context {
    /// Back to the lane's place in this worker, to wait for another grant.
    pub(crate) fn give_back(&self, item: Box<Item>) {
        self.metrics.void_grants.inc();
        self.to_engine(Input::Back(item));
    }

    /// The claim of the item's next attempt.
    pub(crate) fn claim(&self, item: &Item) -> Claim {
        Claim::new(
            item.id.clone(),
            item.journey.replay.clone(),
            // Calls whose claim was withdrawn have none.
            item.journey.attempts - item.unclaimed + 1,
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

    /// Likewise, those of messages that travelled together.
    pub(crate) async fn record_all(&self, mut results: Vec<(Claim, Recorded)>) {
        let mut pause = Duration::from_millis(100);
        loop {
            let answers = self.ledger.record_all(&results).await;
            answers.iter().for_each(|answer| self.note_limits(answer));
            let mut answers = answers.into_iter();
            let mut failed = None;
            results.retain(|_| match answers.next() {
                Some(Ok(())) => false,
                Some(Err(error)) => {
                    failed = Some(error);
                    true
                }
                None => true,
            });
            if results.is_empty() {
                return;
            }
            let error = failed.map(tracing::field::display);
            tracing::warn!(error, results = results.len(), "ledger: results not recorded; trying again");
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
