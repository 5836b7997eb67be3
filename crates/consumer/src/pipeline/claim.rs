//! From the grant's date to the call: what still stands against it, and the claim.

use std::sync::Arc;

use futures_util::future::join_all;
use paceline_broker::Purpose;
use paceline_core::{
    Disposition, EmailAddress, GivenUp, InvalidMessage, Message, Outcome, ProviderAnswer, Reason,
    decide::{self, decide},
    lane::HOLD_MAX,
};
use paceline_limiter::ledger::{Claim, Claimed, LedgerError, Recorded};
use tokio::time::sleep;

use super::{
    Grant, UNKNOWN, bury,
    finish::{bury_recipients, part, without},
    finish_dead, give_up_here, pass_on, retry,
};
use crate::{
    context::{Context, Present},
    dead,
    item::Item,
    note::{Dead, Note},
    suppress::{self, HeldBack},
};

/// A granted message that nobody else in this worker handles.
pub(super) struct Turn {
    pub(super) item: Box<Item>,
    pub(super) grant: Grant,
    pub(super) present: Present,
}

/// A claimed message, ready for its call.
pub(super) struct Ready {
    pub(super) turn: Turn,
    pub(super) message: Box<Message>,
    pub(super) claim: Claim,
    /// Positions of recipients that were taken out: they are on the suppression list.
    pub(super) suppressed: Vec<usize>,
}

/// Why there is no call now.
pub(super) enum Out {
    Over(Reason),
    Cancelled,
    /// It was valid when it came; only a change of the size limit could bring this about.
    Invalid(InvalidMessage),
    /// The grant came to use too late, or its account has closed since.
    Void,
    /// Likewise, after the claim.
    Late(Claim),
    NotGranted(Claim, Claimed),
    /// The ledger does not answer.
    Unknown(LedgerError),
    /// Nobody of its recipients may be mailed.
    Suppressed(HeldBack, Claim),
    /// It can never be passed on, and stays in its queue.
    Stuck,
}

/// A granted message that nothing stands against, and the claim it needs.
pub(super) struct Candidate {
    turn: Turn,
    message: Box<Message>,
    claim: Claim,
}

/// A message that is not called for now, and why.
pub(super) type Left = Box<(Turn, Out)>;

/// Claims the message's next attempt, unless something stands against the call.
pub(super) async fn claim(cx: &Arc<Context>, turn: Turn) -> Result<Ready, Left> {
    let candidate = candidate(cx, turn)?;
    let answer = cx.ledger.claim(candidate.claim.clone()).await;
    let (ready, held_back) = candidate.claimed(cx, answer)?;
    ready.without(cx, held_back).await
}

/// The same for messages that travel together.
pub(super) async fn claim_all(cx: &Arc<Context>, turns: Vec<Turn>) -> Vec<Result<Ready, Left>> {
    let mut out = Vec::with_capacity(turns.len());
    let mut candidates = Vec::with_capacity(turns.len());
    for turn in turns {
        match candidate(cx, turn) {
            Ok(candidate) => candidates.push(candidate),
            Err(left) => out.push(Err(left)),
        }
    }
    Claim::join(candidates.iter_mut().map(|candidate| &mut candidate.claim));
    let answers = cx.ledger.claim_all(candidates.iter().map(|candidate| candidate.claim.clone()).collect()).await;
    let mut parted = Vec::new();
    for (candidate, answer) in candidates.into_iter().zip(answers) {
        match candidate.claimed(cx, answer) {
            Ok((ready, held_back)) if held_back.is_empty() => out.push(Ok(ready)),
            Ok((ready, held_back)) => parted.push(ready.without(cx, held_back)),
            Err(left) => out.push(Err(left)),
        }
    }
    out.extend(join_all(parted).await);
    out
}

/// Whether anything stands against the call before it is claimed.
fn candidate(cx: &Arc<Context>, mut turn: Turn) -> Result<Candidate, Left> {
    let out = |turn, out| Err(Box::new((turn, out)));
    if let Some(reason) = turn.item.over(cx.now()) {
        return out(turn, Out::Over(reason));
    }
    let message = match turn.item.message(cx.settings.max_message_bytes) {
        Ok(message) => message,
        Err(problem) => return out(turn, Out::Invalid(problem)),
    };
    if cx.cancels.borrow().covers(&message, &turn.item.journey, cx.now()) {
        turn.item.parsed = Some(message);
        return out(turn, Out::Cancelled);
    }
    if turn.grant.is_void() || cx.closed(&turn.item) {
        turn.item.parsed = Some(message);
        return out(turn, Out::Void);
    }
    let claim = cx.claim(&turn.item);
    Ok(Candidate { turn, message, claim })
}

impl Candidate {
    /// What the ledger said to its claim; with recipients that are on the suppression list, which it must go without.
    fn claimed(mut self, cx: &Context, answer: Result<Claimed, LedgerError>) -> Result<(Ready, HeldBack), Left> {
        cx.note_limits(&answer);
        let out = match answer {
            Ok(Claimed::Granted) => None,
            Ok(other) => Some(Out::NotGranted(self.claim.clone(), other)),
            Err(error) => Some(Out::Unknown(error)),
        };
        if let Some(out) = out {
            self.turn.item.parsed = Some(self.message);
            return Err(Box::new((self.turn, out)));
        }
        let ready = Ready { turn: self.turn, message: self.message, claim: self.claim, suppressed: Vec::new() };
        let held_back = cx.held_back(&ready.turn.item, &ready.message);
        if held_back.len() == ready.message.recipient_count() {
            return ready.give_up(|claim| Out::Suppressed(held_back, claim));
        }
        if held_back.is_empty() && ready.is_void(cx) {
            return ready.give_up(Out::Late);
        }
        Ok((ready, held_back))
    }
}

impl Ready {
    /// Whether the grant came to use too late, or something on the way has closed since.
    pub(super) fn is_void(&self, cx: &Context) -> bool {
        self.turn.grant.is_void() || cx.closed(&self.turn.item)
    }

    /// Goes without these recipients, each of whom becomes a dead letter.
    async fn without(mut self, cx: &Arc<Context>, held_back: HeldBack) -> Result<Ready, Left> {
        if held_back.is_empty() {
            return Ok(self);
        }
        if !suppress::some(cx, &self.turn.item, &self.message, &held_back).await {
            return self.give_up(|_| Out::Stuck);
        }
        if self.is_void(cx) {
            return self.give_up(Out::Late);
        }
        self.suppressed = held_back.into_iter().map(|(position, _)| position).collect();
        let Ready { turn, message, suppressed, .. } = &mut self;
        if !suppress::take_out(&mut turn.item, message, suppressed) {
            return self.give_up(|_| Out::Stuck);
        }
        Ok(self)
    }

    /// Without a call after all.
    pub(super) fn give_up<T>(self, out: impl FnOnce(Claim) -> Out) -> Result<T, Left> {
        let Ready { mut turn, message, claim, .. } = self;
        turn.item.parsed = Some(message);
        Err(Box::new((turn, out(claim))))
    }
}

/// Sends a message on its way that is not called for now.
pub(super) async fn leave(cx: Arc<Context>, left: Left) {
    let (Turn { mut item, present, .. }, out) = *left;
    match out {
        Out::Over(reason) => give_up_here(&cx, item, reason).await,
        Out::Cancelled => bury(&cx, item, Reason::Cancelled).await,
        Out::Invalid(problem) => {
            let letter = dead::invalid(&item.journey, Some(&item.id), &problem, cx.now());
            finish_dead(&cx, item, letter).await;
        }
        Out::Void => cx.give_back(item),
        Out::Late(claim) => {
            if let Err(error) = cx.ledger.release(&claim).await {
                tracing::warn!(%error, "ledger: claim not withdrawn; it runs out by itself");
            }
            cx.give_back(item);
        }
        Out::NotGranted(claim, answer) => not_granted(&cx, item, claim, answer).await,
        Out::Unknown(error) => {
            tracing::warn!(%error, "ledger: no claim, so no call; trying again");
            sleep(UNKNOWN).await;
            cx.give_back(item);
        }
        Out::Suppressed(held_back, claim) => {
            let Ok(message) = item.message(cx.settings.max_message_bytes) else { return };
            suppress::all(&cx, item, &message, &held_back, &claim).await;
        }
        Out::Stuck => {}
    }
    drop(present);
}

/// The claim was refused: somebody is at it, was at it, or was done with it.
pub(crate) async fn not_granted(cx: &Arc<Context>, mut item: Box<Item>, claim: Claim, answer: Claimed) {
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
            // Nobody knows through which account: only where there is but one would it know the repeat for one.
            let known = item.choices.len() == 1 && cx.settings.accounts[item.account].knows_repeats();
            let resend = known || item.lane.class.resends_uncertain();
            let attempt = decide::Attempt {
                class: item.lane.class,
                recipients: item.recipients,
                resend_uncertain: resend,
                born: item.end.born,
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
                // It went out; those who were refused then may not have been buried.
                Recorded::Sent { note } if !note.is_empty() && attempt == claim.attempt => match Note::read(&note) {
                    Note::Sent { refused, mut dead, suppressed } => {
                        dead.extend(refused.into_iter().map(|(at, answer)| (at, Reason::RejectedRecipient, answer)));
                        sent_without(cx, item, dead, &suppressed).await;
                    }
                    _ => item.settle.ack(),
                },
                // A later attempt exists, or this one went out: nothing is left to do.
                Recorded::Sent { .. } => item.settle.ack(),
                _ if attempt > claim.attempt => item.settle.ack(),
                // The result was recorded, but perhaps not passed on: pass it on again. Claims and ids make one of two.
                Recorded::Retry { note } => match Note::read(&note) {
                    Note::Retry { journey, gone, dead, sent, suppressed } => {
                        item.journey = journey.resume(item.journey);
                        if gone.is_empty() && dead.is_empty() && sent.is_empty() && suppressed.is_empty() {
                            return retry(cx, item).await;
                        }
                        let Ok(mut message) = item.message(cx.settings.max_message_bytes) else { return retry(cx, item).await };
                        let recipients: Vec<EmailAddress> = message.recipients().cloned().collect();
                        let sent: Vec<_> = sent.iter().filter_map(|at| recipients.get(*at).cloned()).collect();
                        let dead = given_up(&recipients, dead);
                        let gone: Vec<usize> =
                            gone.iter().map(|original| suppress::position_left(&suppressed, *original)).collect();
                        if !suppressed.is_empty() && !suppress::take_out(&mut item, &mut message, &suppressed) {
                            return;
                        }
                        if !(sent.is_empty() && dead.is_empty()) {
                            part(cx, item, &mut message, &sent, &dead).await;
                        } else if gone.is_empty() {
                            retry(cx, item).await;
                        } else {
                            without(cx, item, &mut message, &gone).await;
                        }
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

/// The message was accepted for all but these recipients (by position in the message as it came).
async fn sent_without(cx: &Context, mut item: Box<Item>, dead: Vec<Dead>, suppressed: &[usize]) {
    let Ok(mut message) = item.message(cx.settings.max_message_bytes) else { return item.settle.ack() };
    let recipients: Vec<EmailAddress> = message.recipients().cloned().collect();
    if !suppressed.is_empty() && !suppress::take_out(&mut item, &mut message, suppressed) {
        return;
    }
    if bury_recipients(cx, &item, &message, &given_up(&recipients, dead)).await {
        item.settle.ack();
    }
}

/// Who is given up on, of the recipients of the message as it came.
fn given_up(recipients: &[EmailAddress], dead: Vec<Dead>) -> Vec<GivenUp> {
    let one = |(at, reason, answer): Dead| Some(GivenUp { recipient: recipients.get(at)?.clone(), reason, answer });
    dead.into_iter().filter_map(one).collect()
}
