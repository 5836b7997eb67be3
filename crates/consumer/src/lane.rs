//! One lane's consumer: takes what the lane may have held here, gives back what it must not keep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use paceline_broker::{BrokerError, Consumer, Delivery, End, Purpose};
use paceline_core::{Lane, Reason};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, interval, sleep, sleep_until},
};

use crate::{
    company::Company,
    context::Context,
    dead,
    engine::Input,
    flows::{Crowd, Flow},
    intake::{Intake, Invalid, Verdict},
    item::{Item, Origin},
    limits::Limits,
    pipeline,
    prefetch::{self, MOST, MOST_TOGETHER, START, Share, Sizes},
    suppress,
};

/// What a lane's task is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    /// Give everything back and come again then.
    Rest {
        until: Instant,
        /// Unless the lane has been woken since this count, or is.
        woken: Option<u64>,
    },
    /// Give everything back and wait for `Rouse`.
    Sleep,
    Rouse,
    /// Give everything back and end.
    Stop,
}

/// A lane as the engine sees it.
pub(crate) struct LaneHandle {
    /// The queue's name.
    pub(crate) key: Arc<str>,
    /// `None` for the intake queue.
    pub(crate) lane: Option<Lane>,
    /// Where the queue is a flow of that lane.
    pub(crate) flow: Option<Arc<Flow>>,
    commands: mpsc::Sender<Command>,
    held: AtomicUsize,
    /// How often it was woken.
    woken: watch::Sender<u64>,
    used: AtomicBool,
    /// What one label may hold while the lane has to wait; 0 where none needs to make room.
    most: AtomicUsize,
    /// Mail has moved to a flow.
    moved: AtomicBool,
    made: Instant,
    /// In milliseconds since `made`.
    paced_until: AtomicU64,
}

impl LaneHandle {
    pub(crate) fn new(key: Arc<str>, lane: Option<Lane>, flow: Option<Arc<Flow>>) -> (LaneHandle, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(4);
        let (held, used, most, moved, paced_until) = Default::default();
        let (woken, made) = (watch::Sender::new(0), Instant::now());
        (LaneHandle { key, lane, flow, commands, held, woken, used, most, moved, made, paced_until }, receiver)
    }

    /// Tells the lane's task. A full channel means that it has been told already.
    pub(crate) fn command(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Sends the lane's mail back to the broker until then, or until it is woken.
    pub(crate) fn rest(&self, until: Instant) {
        self.command(Command::Rest { until, woken: Some(*self.woken.borrow()) });
    }

    /// What kept it is over: it comes back now.
    pub(crate) fn wake(&self) {
        self.woken.send_modify(|count| *count += 1);
    }

    /// As [`LaneHandle::command`], certainly.
    pub(crate) async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    pub(crate) async fn sleep(&self) {
        let _ = self.commands.send(Command::Sleep).await;
    }

    pub(crate) async fn rouse(&self) {
        let _ = self.commands.send(Command::Rouse).await;
    }

    /// There is mail for it, or from it.
    pub(crate) fn note_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether there was since this was asked last, or it holds some.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed) || self.held.load(Ordering::Relaxed) > 0
    }

    /// Its mail waited for `waited` for its limits.
    pub(crate) fn note_wait(&self, waited: Duration) {
        if waited >= PACED {
            let until = (self.made.elapsed() + PACED_FOR).as_millis() as u64;
            self.paced_until.store(until, Ordering::Relaxed);
        }
    }

    /// A label held too much of it.
    pub(crate) fn note_moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// What one label may hold now; `None` while nothing needs to wait, or there are none, or nobody else.
    pub(crate) fn most(&self) -> Option<usize> {
        let most = self.most.load(Ordering::Relaxed);
        (most > 0 && self.paced()).then_some(most)
    }

    /// Whether it has lately had to wait.
    pub(crate) fn paced(&self) -> bool {
        (self.made.elapsed().as_millis() as u64) < self.paced_until.load(Ordering::Relaxed)
    }

    pub(crate) fn note_held(&self, held: usize) {
        self.held.store(held, Ordering::Relaxed);
    }

    pub(crate) fn labels(&self) -> Option<(&'static str, Arc<str>)> {
        self.lane.as_ref().map(|l| (l.class.as_str(), l.destination.clone()))
    }
}

/// A lane without mail for so long is closed to a crack, since the size of what comes next is unknown.
const IDLE: Duration = Duration::from_secs(10);
/// With room for more and none for so long, a lane has no more.
const ENDED: Duration = Duration::from_secs(1);
/// How often the prefetch is looked at.
const ADJUST: Duration = Duration::from_millis(100);
/// A lane whose mail waits for this long is backlogged, and counts as such for so long.
const PACED: Duration = Duration::from_millis(250);
const PACED_FOR: Duration = Duration::from_secs(5);
/// Life of a slow lane's lease; renewed three times in it.
const LEASE: Duration = Duration::from_secs(15);

/// Runs one lane until it is stopped.
pub(crate) struct LaneTask {
    pub(crate) cx: Arc<Context>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) fleet: Arc<dyn paceline_limiter::fleet::Fleet>,
    /// Live workers, by heartbeat.
    pub(crate) workers: watch::Receiver<u64>,
    pub(crate) index: usize,
    pub(crate) handle: Arc<LaneHandle>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Lanes with mail, over the worker.
    pub(crate) busy: Arc<AtomicUsize>,
    pub(crate) limits: watch::Receiver<Arc<Limits>>,
    /// Messages a second the lane can move at most.
    pub(crate) rate: f64,
    pub(crate) crowd: Crowd,
    pub(crate) company: Company,
}

enum Next {
    Delivery(Option<Delivery>),
    Command(Option<Command>),
    Adjust,
}

impl LaneTask {
    fn me(&self) -> &LaneHandle {
        &self.handle
    }

    /// The most worth holding.
    fn most(&self) -> u16 {
        if self.cx.settings.sends_together() { MOST_TOGETHER } else { MOST }
    }

    pub(crate) async fn run(mut self) {
        let mut epoch = 0;
        self.set_rate();
        let mut pause = Duration::from_millis(100);
        loop {
            self.look_at_limits();
            let share = prefetch::share(self.rate, *self.workers.borrow(), self.most());
            if let Share::Holder(_) = share
                && !self.lease().await
            {
                match self.rest(Instant::now() + LEASE / 3, None).await {
                    Some(()) => continue,
                    None => return,
                }
            }
            let key = self.me().key.clone();
            let consumer = match self.cx.broker.consume(&key, START).await {
                Ok(consumer) => consumer,
                Err(error) => {
                    if let (BrokerError::Missing(_), Some(flow)) = (&error, &self.handle.flow) {
                        // Somebody removed it.
                        let _ = self.cx.broker.open_flow(flow.class(), &flow.name()).await;
                    }
                    tracing::warn!(lane = &*key, %error, "lane cannot be consumed; trying again");
                    match self.rest(Instant::now() + pause, None).await {
                        Some(()) => {}
                        None => return,
                    }
                    pause = (pause * 2).min(Duration::from_secs(5));
                    continue;
                }
            };
            pause = Duration::from_millis(100);
            epoch += 1;
            match self.consume(consumer, epoch).await {
                Some(Command::Rest { until, woken }) if self.rest(until, woken).await.is_some() => {}
                Some(Command::Sleep) if self.sleep().await.is_some() => {}
                Some(_) => return,
                None => {}
            }
        }
    }

    /// Waits; `None` when told to stop meanwhile.
    async fn rest(&mut self, until: Instant, seen: Option<u64>) -> Option<()> {
        let mut woken = self.me().woken.subscribe();
        loop {
            if seen.is_some_and(|seen| *woken.borrow_and_update() != seen) {
                return Some(());
            }
            tokio::select! {
                biased;
                _ = woken.changed(), if seen.is_some() => {}
                () = sleep_until(until) => return Some(()),
                command = self.commands.recv() => match command {
                    Some(Command::Rest { .. }) => {}
                    Some(Command::Sleep) => return self.sleep().await,
                    Some(Command::Rouse) => {}
                    Some(Command::Stop) | None => return None,
                },
            }
        }
    }

    /// Waits to be roused; `None` when told to stop meanwhile.
    async fn sleep(&mut self) -> Option<()> {
        loop {
            match self.commands.recv().await {
                Some(Command::Rouse) => return Some(()),
                Some(Command::Rest { .. } | Command::Sleep) => {}
                Some(Command::Stop) | None => return None,
            }
        }
    }

    fn look_at_limits(&mut self) {
        if self.limits.has_changed().unwrap_or(false) {
            self.set_rate();
        }
    }

    fn set_rate(&mut self) {
        let limits = self.limits.borrow_and_update().clone();
        let lane = self.me().lane.as_ref().map_or(f64::MAX, |l| limits.lane_rate(&l.destination));
        let flow = self.me().flow.as_ref().map_or(f64::MAX, |f| limits.flow_rate(&f.label, &self.cx.flows.labels));
        self.rate = lane.min(flow);
    }

    async fn lease(&self) -> bool {
        let me = self.me();
        self.fleet.lease(&format!("lane:{}", me.key), &self.cx.settings.worker_id, LEASE).await.unwrap_or(false)
    }

    /// Takes deliveries until the consumer is lost (`None`) or a command ends it; then everything has been given back.
    async fn consume(&mut self, mut consumer: Consumer, epoch: u64) -> Option<Command> {
        let mut window = Window::new(self.busy.clone());
        let mut adjust = interval(ADJUST);
        adjust.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leased_until = Instant::now() + LEASE / 3;
        let mut seq = 0;
        loop {
            let next = tokio::select! {
                biased;
                command = self.commands.recv() => Next::Command(command),
                delivery = consumer.next() => Next::Delivery(delivery),
                _ = adjust.tick() => Next::Adjust,
            };
            match next {
                Next::Delivery(Some(delivery)) => {
                    window.arrived(delivery.body.len());
                    // Growing from the start is as urgent as shrinking: a lane must not crawl when mail comes.
                    self.resize(&mut consumer, &mut window, 2).await;
                    seq += 1;
                    self.take(delivery, Origin { lane: self.index, epoch, seq }, window.prefetch);
                }
                Next::Delivery(None) => {
                    if let Some(End::Lost(reason)) = consumer.ended() {
                        tracing::warn!(lane = &*self.me().key, reason, "consumer lost; consuming again");
                    }
                    self.cx.to_engine(Input::Lost { lane: self.index, epoch });
                    return None;
                }
                Next::Command(Some(Command::Rouse)) => {}
                Next::Command(command) => {
                    let command = command.unwrap_or(Command::Stop);
                    self.give_back(consumer).await;
                    return Some(command);
                }
                Next::Adjust => {
                    self.look_at_limits();
                    let share = prefetch::share(self.rate, *self.workers.borrow(), self.most());
                    if let Share::Holder(_) = share
                        && Instant::now() >= leased_until
                    {
                        leased_until = Instant::now() + LEASE / 3;
                        if !self.lease().await {
                            // Another worker holds the lane now.
                            self.give_back(consumer).await;
                            return Some(Command::Rest { until: Instant::now() + LEASE / 3, woken: None });
                        }
                    }
                    window.look(self.me().held.load(Ordering::Relaxed));
                    self.look_for_others(&window);
                    self.resize(&mut consumer, &mut window, 1).await;
                }
            }
        }
    }

    /// Brings the prefetch to what is wanted, where that is more than `factor` and a quarter away.
    async fn resize(&self, consumer: &mut Consumer, window: &mut Window, factor: u16) {
        let most = match prefetch::share(self.rate, *self.workers.borrow(), self.most()) {
            Share::Each(n) | Share::Holder(n) => n,
        };
        let most = if self.me().lane.is_none() { self.most() } else { most };
        let want = window.wanted(self.cx.settings.held_bytes).min(most).max(1);
        let now = window.prefetch;
        if want > now * factor + now / 4 || want * factor + want / 4 < now {
            match consumer.resize(want).await {
                Ok(()) => window.prefetch = want,
                Err(error) => tracing::debug!(lane = &*self.me().key, %error, "prefetch not changed"),
            }
        }
    }

    /// Judges a delivery and sends it on its way.
    fn take(&mut self, delivery: Delivery, origin: Origin, window: u16) {
        let cx = self.cx.clone();
        cx.metrics.deliveries.inc();
        if self.me().flow.is_some() {
            self.me().note_used();
        }
        match self.intake.judge(delivery, &self.handle, origin, cx.now(), cx.limiter_now_us().unwrap_or(0)) {
            Verdict::Ready(item) => match self.admit(item, window) {
                Ok(item) => cx.to_engine(Input::Ready(item)),
                Err((item, flow)) => self.spawn(pipeline::to_flow(cx, item, flow)),
            },
            Verdict::Soon(item, due) => {
                let (cx, wait) = (cx.clone(), due.since(cx.now()));
                self.spawn(async move {
                    sleep(wait).await;
                    match item.over(cx.now()) {
                        Some(reason) => pipeline::give_up(cx, item, reason).await,
                        None => cx.to_engine(Input::Ready(item)),
                    }
                });
            }
            Verdict::NotYet(item) => self.pass_on(item, Purpose::Delay),
            Verdict::Reroute(item) => self.pass_on(item, Purpose::Reroute),
            Verdict::Over(item, reason) => self.spawn(pipeline::give_up(cx, item, reason)),
            Verdict::Cancelled(item) => {
                let cx = cx.clone();
                self.spawn(async move { pipeline::bury(&cx, item, Reason::Cancelled).await });
            }
            Verdict::Suppressed(item) => {
                let cx = cx.clone();
                self.spawn(async move { suppress::whole(cx, item).await });
            }
            Verdict::Invalid(invalid) => {
                let Invalid { delivery, journey, problem, id } = *invalid;
                let cx = cx.clone();
                self.spawn(async move {
                    let letter = dead::invalid(&journey, id.as_deref(), &problem, cx.now());
                    tracing::info!(queue = &*delivery.queue, %problem, reason = %Reason::InvalidMessage, "dead-lettered");
                    if cx.settler.bury(&letter, &delivery.body, &delivery.properties).await {
                        delivery.settle.ack();
                    }
                });
            }
        }
    }

    /// Keeps the message here, or says to which flow it must go so that its tenant leaves room for others.
    fn admit(&mut self, mut item: Box<Item>, window: u16) -> Result<Box<Item>, (Box<Item>, Arc<Flow>)> {
        if item.flow.is_some() {
            return Ok(item);
        }
        self.company.arrived(item.tenant.as_ref());
        if let Some(label) = &item.tenant {
            let most = if self.company.makes_room(Instant::now()) { self.crowd.most(window) } else { 0 };
            self.handle.most.store(most, Ordering::Relaxed);
            match self.crowd.admit(&item.lane, label, self.handle.most().unwrap_or(usize::MAX)) {
                Ok(counted) => item.counted = Some(counted),
                Err(flow) => {
                    self.handle.note_moved();
                    return Err((item, flow));
                }
            }
        }
        Ok(item)
    }

    /// A lane whose mail moved is seen to its end when it has nothing more for this worker.
    fn look_for_others(&mut self, window: &Window) {
        let ended = window.last.elapsed() >= ENDED && self.crowd.held() < usize::from(window.prefetch);
        if ended && self.handle.moved.swap(false, Ordering::Relaxed) {
            self.company.looked_through(Instant::now());
        }
    }

    fn pass_on(&self, item: Box<Item>, purpose: Purpose) {
        let cx = self.cx.clone();
        self.spawn(async move { pipeline::pass_on(&cx, item, purpose).await });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.cx.tasks.spawn(task);
    }

    /// Everything held goes back to the head of the queue, in the order it came.
    async fn give_back(&self, mut consumer: Consumer) {
        consumer.cancel().await;
        let mut late = Vec::new();
        while let Some(delivery) = consumer.next().await {
            late.push(delivery.settle);
        }
        let (reply, items) = oneshot::channel();
        self.cx.to_engine(Input::TakeBack { lane: self.index, reply });
        let items = items.await.unwrap_or_default();
        let returned = items.len() + late.len();
        items.into_iter().map(|i| i.settle).chain(late).for_each(|settle| settle.release());
        consumer.flush().await;
        tracing::debug!(lane = &*self.me().key, returned, "mail given back to the head of the lane");
    }
}

/// The prefetch of a lane and what it follows.
struct Window {
    prefetch: u16,
    sizes: Sizes,
    last: Instant,
    busy: Arc<AtomicUsize>,
    counted: bool,
}

impl Window {
    fn new(busy: Arc<AtomicUsize>) -> Window {
        Window { prefetch: START, sizes: Sizes::default(), last: Instant::now(), busy, counted: false }
    }

    fn arrived(&mut self, bytes: usize) {
        self.sizes.observe(bytes);
        self.last = Instant::now();
        self.count(true);
    }

    fn look(&mut self, held: usize) {
        if self.last.elapsed() > IDLE && held == 0 {
            self.sizes = Sizes::default();
            self.count(false);
        }
    }

    fn wanted(&self, budget: u64) -> u16 {
        self.sizes.fitting(budget, self.busy.load(Ordering::Relaxed))
    }

    fn count(&mut self, busy: bool) {
        if busy != self.counted {
            self.counted = busy;
            if busy {
                self.busy.fetch_add(1, Ordering::Relaxed);
            } else {
                self.busy.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.count(false);
    }
}
