//! The engine: the one task that holds all waiting messages, asks the limiter, and sets granted ones going.

mod over;
mod room;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use paceline_core::{CancelSet, InvalidMessage, Timestamp};
use paceline_limiter::{
    BucketSpec, Kind, Limiter, LimiterError, Reply, Why,
    clock::ServerClock,
    pacer::{Call, Head, Pacer, Standing as Stands},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, interval, sleep, sleep_until},
};

use self::over::earliest;
use crate::{
    context::Context,
    dead,
    item::Item,
    lane::LaneHandle,
    limits::{self, Limits},
    metrics::LaneLabels,
    pipeline::{self, Gather, Grant},
    routing::Routing,
    slots::Lease,
    standing::{Effect, Source, Standing},
    view::{Sight, View},
};

/// What the engine is told.
pub(crate) enum Input {
    /// A message that waits for its limits.
    Ready(Box<Item>),
    /// A message whose grant came to nothing.
    Back(Box<Item>),
    /// A lane is about to be consumed; lanes are counted in the order of these.
    Lane(Arc<LaneHandle>),
    /// The consumer of a lane is gone, and with it what it delivered and nobody is sending.
    Lost { lane: usize, epoch: u64 },
    /// Give back everything held for a lane, in the order of delivery.
    #[expect(clippy::vec_box, reason = "they are boxed before and after")]
    TakeBack { lane: usize, reply: oneshot::Sender<Vec<Box<Item>>> },
    /// A scope said "slow down".
    Hold { bucket: Arc<str>, wait: Duration },
    /// All that `source` has to say about limits, in place of what it said before.
    Stand { source: Source, effects: HashMap<Arc<str>, Effect> },
    /// Limits have changed: all that waits is judged by these.
    Limits(Arc<Limits>),
    /// A granted message's call has ended, or was not made: the fleet's slots it held are free.
    Ended { buckets: Arc<[BucketSpec]> },
    /// No more grants: the worker drains.
    Stop { reply: oneshot::Sender<()> },
    /// Since when the fleet has this worker's configuration.
    Generation(u64),
    /// Answered when the limiter has been told of every call that has ended.
    Told { reply: oneshot::Sender<()> },
}

/// A lane whose head waits longer than this gives its mail back to the broker and rests.
const REST: Duration = Duration::from_secs(10);
/// No rest is longer: limits may change meanwhile.
const REST_MOST: Duration = Duration::from_secs(60);
/// Mail that a limit narrower than its lane keeps for longer than this is parked on the ladder for its turn.
const PARK: Duration = paceline_core::lane::HOLD_MAX;
/// Turns on the ladder are at most so far ahead, so that nothing is nailed to an old rate.
const TURN_MOST: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(250);
/// Heads in one call to the limiter where messages travel together, and more of them go between two calls.
const HEADS_TOGETHER: usize = 1_000;

type Answer = (Call, Result<Reply, LimiterError>, Instant);

pub(crate) struct Engine {
    cx: Arc<Context>,
    limiter: Arc<dyn Limiter>,
    limits: Arc<Limits>,
    routing: Arc<Routing>,
    gather: Gather,
    standing: Standing,
    /// What is closed, until when.
    closed: HashMap<Arc<str>, u64>,
    /// What binds the lanes that were last sent to rest.
    resting: Vec<Option<Arc<str>>>,
    pacer: Pacer<Box<Item>>,
    lanes: Vec<Arc<LaneHandle>>,
    /// Lanes that have held mail pinned to one of several accounts.
    pinned: Vec<bool>,
    /// Consumers up to this epoch are gone, by lane.
    lost: Vec<u64>,
    /// Messages ended, sampled over the last tenth of a second.
    ended: VecDeque<(Instant, u64)>,
    stopped: bool,
    told: Option<oneshot::Sender<()>>,
    /// The fleet knows this worker's configuration: nothing is asked before, or limits of an old one might come back.
    registered: bool,
    /// The limiter said that its past is lost.
    past_lost: bool,
    /// When the time of the first of the mail held for each lane is over, or earlier.
    ends: Vec<Option<Timestamp>>,
    cancels: watch::Receiver<Arc<CancelSet>>,
    view: View,
}

impl Engine {
    pub(crate) fn new(cx: Arc<Context>, limiter: Arc<dyn Limiter>, limits: Arc<Limits>, routing: Arc<Routing>) -> Engine {
        let pacer = Pacer::new(&cx.settings.worker_id);
        let pacer = if cx.settings.sends_together() { pacer.with_max_heads(HEADS_TOGETHER) } else { pacer };
        let cancels = cx.cancels.clone();
        Engine {
            cx,
            limiter,
            limits,
            routing,
            gather: Gather::default(),
            standing: Standing::default(),
            closed: HashMap::new(),
            resting: Vec::new(),
            pacer,
            lanes: Vec::new(),
            pinned: Vec::new(),
            lost: Vec::new(),
            ended: VecDeque::new(),
            stopped: false,
            told: None,
            registered: false,
            past_lost: false,
            ends: Vec::new(),
            cancels,
            view: View::default(),
        }
    }

    /// Runs until every sender of `inputs` is gone.
    pub(crate) async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        self.set_clock().await;
        let mut batch = Vec::with_capacity(256);
        let mut call: Option<JoinHandle<Answer>> = None;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now_us = self.now_us();
            let wake = match (call.is_some(), self.stopped) {
                (true, _) => None,
                (false, false) if !self.registered => None,
                (false, false) => self.pacer.next_call_at(now_us),
                // Nothing is asked any more, but others wait for what ends here.
                (false, true) => self.pacer.report_at(now_us),
            };
            if call.is_none()
                && self.pacer.report_at(now_us).is_none()
                && let Some(reply) = self.told.take()
            {
                let _ = reply.send(());
            }
            let mut starved = false;
            if wake.is_some_and(|at| at <= now_us) {
                let wanted = if self.stopped { 0 } else { self.wanted() };
                let mut rooms = self.cx.rooms();
                match self.pacer.begin_within(now_us, wanted, |item, most| rooms(item, most)) {
                    Some(ask) => call = Some(self.ask(ask)),
                    None => starved = true,
                }
            }
            let wake = wake
                .filter(|_| call.is_none() && !starved)
                .map(|at| Instant::now() + Duration::from_micros(at.saturating_sub(now_us)));
            tokio::select! {
                biased;
                answer = async { match &mut call { Some(c) => c.await, None => std::future::pending().await } } => {
                    call = None;
                    match answer {
                        Ok(answer) => self.answered(answer),
                        Err(error) => tracing::error!(%error, "limiter call ended"),
                    }
                }
                n = inputs.recv_many(&mut batch, 256) => {
                    if n == 0 {
                        return;
                    }
                    for input in batch.drain(..) {
                        self.input(input);
                    }
                }
                () = async { match wake { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                () = self.cx.slots.freed(), if starved => {}
                // Even without anything freed, look again: what was begun may have grown less.
                () = sleep(Duration::from_millis(20)), if starved => {}
                _ = tick.tick() => self.tick(),
            }
        }
    }

    /// The limiter's clock must be known before anything is asked. Waits for the limiter as long as it takes.
    async fn set_clock(&self) {
        let mut pause = Duration::from_millis(100);
        loop {
            let answer = self.limiter.now_us().await;
            self.cx.note_limits(&answer);
            match answer {
                Ok(now_us) => return self.observe_clock(now_us, Instant::now()),
                Err(error) => tracing::warn!(%error, "nothing is sent before the limiter has answered"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn observe_clock(&self, now_us: u64, at: Instant) {
        let mut clock = self.cx.clock.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *clock = Some(ServerClock::new(now_us, at.into_std()));
    }

    fn now_us(&self) -> u64 {
        self.cx.limiter_now_us().unwrap_or(0)
    }

    /// Asks in a task of its own: a call that waits for its answer must not hold up what arrives.
    fn ask(&self, call: Call) -> JoinHandle<Answer> {
        let limiter = self.limiter.clone();
        self.cx.metrics.limiter_calls.inc();
        tokio::spawn(async move {
            let reply = limiter.ask(call.ask()).await;
            (call, reply, Instant::now())
        })
    }

    fn answered(&mut self, (call, reply, at): Answer) {
        self.cx.note_limits(&reply);
        match reply {
            Ok(reply) => {
                self.observe_clock(reply.now_us, at);
                if std::mem::replace(&mut self.past_lost, reply.lost) != reply.lost {
                    match reply.lost {
                        true => {
                            tracing::error!("the limits' state is lost: quotas stay closed until they are told what was sent")
                        }
                        false => tracing::info!("the limits have their past again"),
                    }
                }
                let wasted = self.pacer.wasted();
                for granted in self.pacer.complete(call, &reply) {
                    let ahead = Duration::from_micros(granted.date_us.saturating_sub(reply.now_us));
                    let grant = Grant { at: at + ahead, date_us: granted.date_us };
                    if let Some(wait) = &self.cx.metrics.limiter_wait {
                        wait.observe((grant.at - granted.handle.arrived).as_secs_f64());
                    }
                    self.lanes[granted.handle.origin.lane].note_wait(grant.at - granted.handle.arrived);
                    let slot = self.cx.slots.granted(self.lease(&granted.handle), self.cx.guest(&granted.handle));
                    self.gather.set_going(&self.cx, granted.handle, grant, slot);
                }
                self.gather.send_off(&self.cx);
                self.cx.metrics.void_grants.inc_by(self.pacer.wasted() - wasted);
                self.park();
            }
            Err(error) => {
                tracing::warn!(%error, "limiter gave no grants; trying again");
                let now_us = self.now_us();
                self.pacer.failed(call, now_us);
            }
        }
    }

    /// What gives the fleet's slots back that a granted message holds, if it holds any.
    fn lease(&self, item: &Item) -> Option<Lease> {
        let holds = item.buckets.iter().any(|b| matches!(b.kind, Kind::Slots { .. }));
        holds.then(|| {
            let (buckets, engine) = (item.buckets.clone(), self.cx.engine.clone());
            let give_back = move || drop(engine.send(Input::Ended { buckets }));
            Box::new(give_back) as Lease
        })
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Lane(handle) => {
                self.lanes.push(handle);
                self.pinned.push(false);
                self.lost.push(0);
                self.ends.push(None);
                self.resting.push(None);
            }
            Input::Ready(mut item) | Input::Back(mut item) => {
                if item.origin.epoch <= self.lost[item.origin.lane] {
                    return; // Its consumer is gone; the message will come again.
                }
                if let Some(account) = item.refused_by.take() {
                    self.route(&mut item, Some(account));
                }
                self.wait(item);
            }
            Input::Lost { lane, epoch } => {
                self.lost[lane] = self.lost[lane].max(epoch);
                let dropped = self.pacer.take_where(&self.lanes[lane].key, |item, _| item.origin.epoch <= epoch).len();
                tracing::debug!(lane = &*self.lanes[lane].key, dropped, "deliveries of a lost consumer dropped; they come again");
            }
            Input::TakeBack { lane, reply } => {
                let mut items = self.pacer.take_lane(&self.lanes[lane].key);
                items.sort_unstable_by_key(|item| item.origin.seq);
                // Without a taker the messages go back to their queue when their settlements are dropped.
                let _ = reply.send(items);
            }
            Input::Hold { bucket, wait } => {
                let now_us = self.now_us();
                self.standing.close(Source::Asked, bucket.clone(), now_us + wait.as_micros() as u64, now_us);
                self.stand(&[bucket]);
            }
            Input::Stand { source, effects } => {
                let changed = self.standing.set(source, effects);
                self.stand(&changed);
            }
            Input::Limits(limits) => self.change(limits),
            Input::Ended { buckets } => {
                let now_us = self.now_us();
                self.pacer.release(&buckets, now_us);
            }
            Input::Generation(since_us) => {
                self.registered = true;
                self.pacer.set_generation(since_us);
            }
            Input::Told { reply } => self.told = Some(reply),
            Input::Stop { reply } => {
                self.stopped = true;
                let _ = reply.send(());
            }
        }
    }

    /// Puts a message among those that wait.
    fn wait(&mut self, mut item: Box<Item>) {
        if item.limits != self.limits.version
            && let Err(problem) = self.judge_again(&mut item)
        {
            let (cx, letter) = (self.cx.clone(), dead::invalid(&item.journey, Some(&item.id), &problem, self.cx.now()));
            self.cx.tasks.spawn(async move { pipeline::finish_dead(&cx, item, letter).await });
            return;
        }
        earliest(&mut self.ends[item.origin.lane], item.end.at);
        self.pinned[item.origin.lane] |= item.pinned && item.flow.is_none() && self.cx.settings.accounts.len() > 1;
        let (turn, label) = item.turn();
        let head = Head {
            cost: item.cost.clone(),
            class: item.lane.class,
            destination: turn.clone(),
            weight: label.map_or(1, |label| self.cx.flows.labels.weight(label)),
            buckets: item.buckets.clone(),
            handle: item,
        };
        let lane = self.lanes[head.handle.origin.lane].key.clone();
        let now_us = self.now_us();
        self.pacer.push(lane, head, now_us);
    }

    /// Which limits a message meets that was judged by others. Where it could never meet them it is no message.
    fn judge_again(&self, item: &mut Item) -> Result<(), InvalidMessage> {
        let message = item.message(self.cx.settings.max_message_bytes)?;
        let charges = self.limits.of(item.account, &message, &self.cx.classifier);
        item.keep(message);
        if let Some(quota) = limits::too_large_for(&charges) {
            return Err(InvalidMessage::new("to", format!("more recipients than the quota {quota} ever allows")));
        }
        (item.buckets, item.cost) = charges;
        item.suit_its_flow();
        item.end = item.end.under(self.limits.max_age(item.lane.class));
        item.limits = self.limits.version;
        Ok(())
    }

    /// Other limits are in force: what waits here is judged by them, and what rests looks whether it may go.
    fn change(&mut self, limits: Arc<Limits>) {
        // The fleet hears of it: what workers say who have not changed yet is older.
        self.cx.config.send_if_modified(|digest| {
            *digest != limits.digest && {
                digest.clone_from(&limits.digest);
                true
            }
        });
        self.limits = limits;
        let mut held = Vec::new();
        for lane in self.lanes.iter() {
            held.extend(self.pacer.take_lane(&lane.key));
        }
        let keys = self.standing.keys();
        self.stand(&keys);
        // Each lane's in the order of delivery, which is not that in which they came back.
        held.sort_by_key(|item| (item.origin.lane, item.origin.seq));
        held.into_iter().for_each(|item| self.wait(item));
        self.wake(|_| true);
    }

    /// Lanes that rest for a reason that is over come back.
    fn wake(&mut self, over: impl Fn(&Arc<str>) -> bool) {
        for (index, (lane, binding)) in self.lanes.iter().zip(&mut self.resting).enumerate() {
            if binding.as_ref().is_some_and(&over) {
                *binding = None;
                self.view.wake(index);
                lane.wake();
            }
        }
    }

    /// Chooses the message's account again, but not one that has just refused it while there is another.
    fn route(&self, item: &mut Item, but: Option<usize>) {
        let others: Vec<usize> = item.choices.iter().copied().filter(|a| Some(*a) != but).collect();
        if item.choices.len() < 2 || others.is_empty() {
            return;
        }
        // It was valid when it came; what has changed since is found out at its turn.
        let Ok(message) = item.message(self.cx.settings.max_message_bytes) else { return };
        let (account, (buckets, cost), limits) = self.routing.choose(&others, &message, item.lane.class, self.now_us());
        (item.account, item.buckets, item.cost, item.limits) = (account, buckets, cost, limits.version);
        item.end = item.end.under(limits.max_age(item.lane.class));
        item.suit_its_flow();
        item.keep(message);
    }

    /// What waits for an account that is closed, or has nothing left, and may go through one that is open, does.
    fn route_away(&mut self) {
        if self.cx.settings.accounts.len() < 2 {
            return;
        }
        let now_us = self.now_us();
        let (lanes, routing) = (self.lanes.clone(), self.routing.clone());
        for lane in lanes.iter() {
            let Some(of) = &lane.lane else { continue };
            let mut open = None;
            let moved = self.pacer.take_bound(
                &lane.key,
                |buckets, class, hint| routing.is_bound(buckets, class, hint, now_us),
                |item| {
                    let open = open.get_or_insert_with(|| routing.open_for(of, now_us));
                    item.choices.iter().any(|a| *a != item.account && open[*a])
                },
            );
            if let Some(first) = moved.first() {
                let account = &*self.cx.settings.accounts[first.account].name;
                tracing::info!(lane = &*lane.key, account, messages = moved.len(), "account cannot send: others take its mail");
            }
            for mut item in moved {
                self.route(&mut item, None);
                self.wait(item);
            }
        }
    }

    /// Brings what has changed into force, and lets others see it.
    fn stand(&mut self, changed: &[Arc<str>]) {
        let now_us = self.now_us();
        let mut opened = false;
        for key in changed {
            let effect = self.standing.at(key);
            let until_us = effect.closed_until_us;
            let before = if until_us > now_us { self.closed.insert(key.clone(), until_us) } else { self.closed.remove(key) };
            opened |= before.is_some_and(|before| before > until_us.max(now_us));
            match limits::group(key) {
                Some(group) => self.pacer.hold_group(key, group, until_us, now_us),
                None => {
                    self.pacer.hold_bucket(key, self.standing.own(key).closed_until_us, now_us);
                    let shared = self.standing.shared(key);
                    let kind = self.limits.configured(key).and_then(|kind| effect.kind(kind));
                    let stands = kind.is_some() || shared.since_us > 0;
                    let (closed_until_us, since_us) = (shared.closed_until_us, shared.since_us);
                    let standing = stands.then_some(Stands { kind, closed_until_us, since_us });
                    self.pacer.set_standing(key, standing, now_us);
                }
            }
        }
        // What has opened may be what kept any of a lane's messages, not only the first of them.
        self.wake(|binding| opened || changed.contains(binding));
        if !changed.is_empty() {
            self.cx.standing.send_replace(Arc::new(self.standing.clone()));
            self.route_away();
        }
    }

    /// Messages worth asking a grant for now.
    fn wanted(&mut self) -> usize {
        let (now, ended) = (Instant::now(), self.cx.slots.ended());
        while self.ended.front().is_some_and(|(t, _)| *t + Duration::from_millis(100) < now) {
            self.ended.pop_front();
        }
        if self.ended.back().is_none_or(|(t, _)| *t + Duration::from_millis(5) < now) {
            self.ended.push_back((now, ended));
        }
        let before = self.ended.front().map_or(ended, |(_, n)| *n);
        self.cx.slots.wanted((ended - before) as usize)
    }

    /// Now and then: lanes that cannot move for long go to rest.
    fn tick(&mut self) {
        self.give_up();
        self.cancel();
        self.route_away();
        if !self.stopped {
            // Without a call too: what is on hold is not asked about.
            self.park();
            self.uncrowd();
        }
        let now_us = self.now_us();
        // A lane together with its flows.
        let mut held_of: HashMap<LaneLabels, i64> = HashMap::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            let held = self.pacer.held(&lane.key);
            if let Some((class, destination)) = lane.labels() {
                *held_of.entry(LaneLabels { class, destination }).or_default() += held as i64;
            }
            lane.note_held(held);
            if held == 0 || self.stopped {
                continue;
            }
            let Some(hint) = self.pacer.hint(&lane.key) else { continue };
            let wait = Duration::from_micros(hint.retry_at_us.saturating_sub(now_us));
            lane.note_wait(wait);
            // What a narrower limit keeps is parked instead.
            if wait > REST && !hint.narrow && matches!(hint.why, Why::Date | Why::Quota | Why::Ticket | Why::Closed | Why::Hold) {
                let most = wait.min(REST_MOST);
                // A message whose grant came to nothing may come back into a lane that rests already.
                if !self.view.rests(index, now_us) {
                    self.view.rest(index, now_us + most.as_micros() as u64, &hint, &self.pacer, lane);
                    tracing::info!(
                        lane = &*lane.key,
                        binding = &*hint.bucket,
                        // Nobody knows for how long, where an operator has paused it.
                        wait_s = (hint.retry_at_us < u64::MAX / 2).then_some(wait.as_secs()),
                        "lane rests; its mail waits in the broker"
                    );
                }
                lane.rest(Instant::now() + most);
                self.resting[index] = Some(hint.bucket);
            }
        }
        for (labels, held) in held_of {
            self.cx.metrics.held.get_or_create(&labels).set(held);
        }
        self.view.look(&Sight {
            cx: &self.cx,
            pacer: &self.pacer,
            lanes: &self.lanes,
            limits: &self.limits,
            standing: &self.standing,
            now_us,
        });
    }
}
