//! Messages that travel together: granted ones of one account whose provider takes them in one call.
//!
//! Each has its own claim before the call, its own outcome and its own settlement; the call takes one place. Critical mail
//! goes alone, at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use paceline_core::{Class, Outcome, ProviderAnswer};
use paceline_provider::Attempt;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Grant, RECHECK,
    claim::{Out, Ready, Turn, claim_all, leave},
    finish::{Ended, finish_all},
    free, run, send,
};
use crate::{
    context::Context,
    item::{Item, KEEP_PARSED},
    metrics::AccountLabels,
    slots::{Granted, Slot},
};

/// Bodies of one batch, in bytes: well within what any provider takes, and little to hold.
const MOST_BYTES: usize = 4 << 20;

/// Batches that are being put together, by account and the provider's key.
#[derive(Default)]
pub(crate) struct Gather {
    open: HashMap<(usize, u64), Arc<Batch>>,
}

struct Batch {
    /// Leaves then at the latest.
    leaves: Instant,
    most: usize,
    /// `None` once it has left.
    mail: Mutex<Option<Mail>>,
    /// Nobody else can join it: it leaves now.
    complete: Notify,
}

#[derive(Default)]
struct Mail {
    members: Vec<(Box<Item>, Grant, Granted)>,
    bytes: usize,
}

impl Gather {
    /// Sets a granted message going, with others where that can be.
    pub(crate) fn set_going(&mut self, cx: &Arc<Context>, item: Box<Item>, grant: Grant, granted: Granted) {
        let Some(key) = key(cx, &item) else {
            let under_way = cx.board.begin(item.origin.lane);
            let run = run(cx.clone(), item, grant, granted);
            cx.tasks.spawn(async move {
                run.await;
                drop(under_way);
            });
            return;
        };
        let member = (item, grant, granted);
        let member = match self.open.get(&key) {
            Some(batch) => match batch.join(member) {
                Ok(()) => return,
                Err(member) => member,
            },
            None => member,
        };
        let account = &cx.settings.accounts[key.0];
        let batch = Arc::new(Batch::with(member, account.most_together(), account.batch_wait));
        self.open.insert(key, batch.clone());
        cx.tasks.spawn(batch.travel(cx.clone()));
    }

    /// Sends off what would wait for nobody, where there is no room for more until a call has ended, and forgets what has left.
    pub(crate) fn send_off(&mut self, cx: &Context) {
        self.open.retain(|_, batch| {
            let waits = batch.may_grow(cx);
            if !waits {
                batch.complete.notify_one();
            }
            waits
        });
    }
}

/// What the message may travel together by; `None`: alone.
fn key(cx: &Context, item: &Item) -> Option<(usize, u64)> {
    let account = &cx.settings.accounts[item.account];
    if account.most_together() < 2 || item.lane.class == Class::Critical || item.body.len() > KEEP_PARSED {
        return None;
    }
    Some((item.account, account.provider.batch_key(item.parsed.as_deref()?)?))
}

impl Batch {
    fn with(member: (Box<Item>, Grant, Granted), most: usize, wait: Duration) -> Batch {
        let (leaves, bytes) = (member.1.at + wait, member.0.body.len());
        Batch { leaves, most, mail: Mutex::new(Some(Mail { members: vec![member], bytes })), complete: Notify::new() }
    }

    /// Takes one more; gives it back where it does not fit or comes too late.
    fn join(&self, member: (Box<Item>, Grant, Granted)) -> Result<(), (Box<Item>, Grant, Granted)> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = member.0.body.len();
        match &mut *mail {
            Some(mail) if mail.members.len() < self.most && mail.bytes + bytes <= MOST_BYTES && member.1.at <= self.leaves => {
                mail.bytes += bytes;
                mail.members.push(member);
                if mail.members.len() == self.most {
                    self.complete.notify_one();
                }
                Ok(())
            }
            _ => Err(member),
        }
    }

    /// Whether there is room for another message where any of its own go to.
    fn may_grow(&self, cx: &Context) -> bool {
        let mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.as_ref().is_some_and(|mail| mail.members.iter().any(|(item, ..)| cx.has_room(item)))
    }

    async fn travel(self: Arc<Self>, cx: Arc<Context>) {
        tokio::select! {
            () = sleep_until(self.leaves) => {}
            () = self.complete.notified() => {}
        }
        let mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        // None goes before its date.
        let under_way: Vec<_> = mail.members.iter().map(|(item, ..)| cx.board.begin(item.origin.lane)).collect();
        if let Some(last) = mail.members.iter().map(|(_, grant, _)| grant.at).max() {
            sleep_until(last).await;
            carry(cx, mail).await;
        }
        drop(under_way);
    }
}

/// Carries a batch through its attempt.
async fn carry(cx: Arc<Context>, mail: Mail) {
    let bytes = mail.bytes;
    let mut turns = Vec::with_capacity(mail.members.len());
    let mut place = None;
    let mut guests = Vec::new();
    for (item, grant, granted) in mail.members {
        match cx.enter(&item.id) {
            Some(present) => {
                // One place for the call; those of the others are free.
                match place {
                    None => place = Some((granted, item.account, item.lane.class)),
                    Some(_) => guests.extend(granted.joins()),
                }
                turns.push(Turn { item, grant, present });
            }
            None => {
                let cx = cx.clone();
                cx.clone().tasks.spawn(async move {
                    sleep(RECHECK).await;
                    cx.give_back(item);
                });
            }
        }
    }
    let Some((granted, account, class)) = place else { return };
    let slot = cx.slots.acquire(granted, account, class, bytes).await.with(guests);
    let claimed = claim_all(&cx, turns).await;
    let mut ready = Vec::with_capacity(claimed.len());
    for one in claimed {
        // Others may have taken their time.
        match one.and_then(|one| if one.is_void(&cx) { one.give_up(Out::Late) } else { Ok(one) }) {
            Ok(one) => ready.push(one),
            Err(left) => drop(cx.tasks.spawn(leave(cx.clone(), left))),
        }
    }
    match ready.len() {
        0 => {}
        1 => {
            let Some(only) = ready.pop() else { return };
            send(&cx, only, slot).await;
        }
        _ => together(&cx, account, ready, slot).await,
    }
}

async fn together(cx: &Arc<Context>, account: usize, ready: Vec<Ready>, slot: Slot) {
    let account = &cx.settings.accounts[account];
    let started_at = cx.now();
    let clock = Instant::now();
    let in_flight = cx.metrics.in_flight.get_or_create_owned(&AccountLabels { account: account.name.clone() });
    in_flight.inc();
    let keys: Vec<_> = ready.iter().map(|one| one.turn.item.idempotency_key()).collect();
    let attempts: Vec<_> =
        ready.iter().zip(&keys).map(|(one, key)| Attempt { message: &one.message, idempotency_key: key }).collect();
    let outcomes = account.provider.send_batch(&attempts).await;
    drop(attempts);
    drop(keys);
    in_flight.dec();
    let call = Ended { started_at, together: true };
    let unknown = || Outcome::Uncertain { answer: ProviderAnswer::new("no_result", None, "the batch has no result for it") };
    let outcomes: Vec<_> = outcomes.into_iter().chain(std::iter::repeat_with(unknown)).take(ready.len()).collect();
    // Before the place is free: what follows from the answer holds for who takes it.
    for (one, outcome) in ready.iter().zip(&outcomes) {
        cx.observe(&one.turn.item, outcome, one.turn.grant.date_us, clock.elapsed());
    }
    free(cx, slot, outcomes.iter().flat_map(Outcome::parts));
    finish_all(cx, ready, outcomes, call).await;
}
