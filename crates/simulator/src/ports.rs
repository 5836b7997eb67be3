//! The services as one worker sees them: each call takes its time, may find its service away, and may be the worker's last.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    future::pending,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use paceline_broker::{
    Applied, Broker, BrokerError, Consumer, Counters, Drift, Outgoing, PublishError, State, Topology, memory::MemoryBroker,
};
use paceline_classifier::Classifier;
use paceline_core::{Class, Message, Outcome, ProviderAnswer, Rejected};
use paceline_limiter::{
    Ask, Limiter, LimiterError, Reply, Seed,
    fleet::{Alive, Fleet, LocalFleet},
    ledger::{Claim, Claimed, Ledger, LedgerError, LocalLedger, Recorded},
    local::{LocalClock, LocalLimiter},
    signals::{Answer, LocalSignals, Report, Signals},
};
use paceline_provider::{Attempt, Category, Provider, ReplyRules, Verdict};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    book::{self, Book},
    chance::Chance,
    grants::Grants,
    receiver::{Contact, Receivers, Said},
    scenario,
};

/// What all workers share: the services themselves, and who keeps count.
pub(crate) struct Shared {
    pub(crate) clock: LocalClock,
    pub(crate) redis: RwLock<Redis>,
    pub(crate) grants: Mutex<Grants>,
    pub(crate) book: Mutex<Book>,
    pub(crate) outside: Mutex<Outside>,
    pub(crate) fleet: scenario::Fleet,
    pub(crate) under_way: Mutex<UnderWay>,
    pub(crate) limiter_calls: AtomicU64,
}

/// Calls under way at each limit of calls at a time: when each ends, and the most there ever were.
pub(crate) type UnderWay = BTreeMap<String, (BinaryHeap<Reverse<u64>>, usize)>;

/// What one Redis would hold.
#[derive(Clone)]
pub(crate) struct Redis {
    pub(crate) limiter: Arc<LocalLimiter>,
    pub(crate) ledger: Arc<LocalLedger>,
    pub(crate) fleet: Arc<LocalFleet>,
    pub(crate) signals: Arc<LocalSignals>,
}

impl Redis {
    pub(crate) fn empty(clock: LocalClock) -> Redis {
        let window = Duration::from_secs(86_400);
        Redis {
            limiter: Arc::new(LocalLimiter::with_clock(clock)),
            ledger: Arc::new(LocalLedger::new(window).with_clock(clock)),
            fleet: Arc::new(LocalFleet::new()),
            signals: Arc::new(LocalSignals::new().with_clock(clock)),
        }
    }
}

/// Who receives, and what its words mean.
pub(crate) struct Outside {
    pub(crate) receivers: Receivers,
    pub(crate) chance: Chance,
    rules: ReplyRules,
    known: HashMap<Arc<str>, Verdict>,
}

impl Outside {
    pub(crate) fn new(receivers: Receivers, chance: Chance) -> Outside {
        Outside { receivers, chance, rules: ReplyRules::default(), known: HashMap::new() }
    }

    fn verdict(&mut self, line: &Arc<str>) -> Verdict {
        if self.known.len() > 10_000 {
            self.known.clear();
        }
        self.known.entry(line.clone()).or_insert_with(|| self.rules.read(line)).clone()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One thread: nobody else can have left it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn redis(&self) -> Redis {
        self.redis.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn forget(&self) {
        *self.redis.write().unwrap_or_else(PoisonError::into_inner) = Redis::empty(self.clock);
    }
}

/// One worker's life, from its start to its end or its crash.
#[derive(Default)]
pub(crate) struct Life {
    /// Calls to services so far, their beginnings and ends.
    steps: AtomicU64,
    crash_at: AtomicU64,
    dead: AtomicBool,
    pub(crate) died: Notify,
    redis_away: AtomicBool,
    pub(crate) limiter_calls: AtomicU64,
    /// Messages whose call has begun and whose result is not recorded.
    open: Mutex<BTreeSet<String>>,
}

impl Life {
    pub(crate) fn new() -> Arc<Life> {
        Arc::new(Life { crash_at: AtomicU64::new(u64::MAX), ..Life::default() })
    }

    /// Lets it end at the nth step from here.
    pub(crate) fn crash_in(&self, steps: u64) {
        self.crash_at.store(self.steps.load(Ordering::Relaxed) + steps, Ordering::Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(crate) fn redis_away(&self, away: bool) {
        self.redis_away.store(away, Ordering::Relaxed);
    }

    /// The messages whose calls nobody will record.
    pub(crate) fn unrecorded(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.open)).into_iter().collect()
    }

    /// A place where the worker may end. It never returns to one that has.
    async fn step(&self) {
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        if !self.is_dead() && step >= self.crash_at.load(Ordering::Relaxed) {
            self.dead.store(true, Ordering::Relaxed);
            self.died.notify_one();
        }
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    /// The way to Redis: takes its time, or finds nobody.
    async fn to_redis(&self, latency: Duration) -> Result<(), LimiterError> {
        self.step().await;
        if self.redis_away.load(Ordering::Relaxed) {
            sleep(AWAY_AFTER).await;
            return Err(LimiterError::TimedOut { reason: "the simulated Redis is away".into() });
        }
        sleep(latency).await;
        Ok(())
    }
}

/// How long a call to a Redis that is away takes to fail.
const AWAY_AFTER: Duration = Duration::from_millis(250);

/// One worker's way to everything.
pub(crate) struct Ports {
    pub(crate) shared: Arc<Shared>,
    pub(crate) life: Arc<Life>,
    pub(crate) broker: MemoryBroker,
}

#[async_trait]
impl Limiter for Ports {
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError> {
        self.life.limiter_calls.fetch_add(1, Ordering::Relaxed);
        self.shared.limiter_calls.fetch_add(1, Ordering::Relaxed);
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        let limiter = self.shared.redis().limiter;
        let reply = limiter.ask(ask).await?;
        lock(&self.shared.grants).note(ask, &reply);
        self.life.step().await;
        Ok(reply)
    }

    async fn seed(&self, past: &[Seed], complete: bool) -> Result<(), LimiterError> {
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        self.shared.redis().limiter.seed(past, complete).await
    }

    async fn now_us(&self) -> Result<u64, LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        Ok(self.shared.clock.now_us())
    }

    fn calls(&self) -> u64 {
        self.life.limiter_calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Ledger for Ports {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        let claimed = self.shared.redis().ledger.claim(claim).await;
        self.life.step().await;
        claimed
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        self.shared.redis().ledger.record(claim, result).await?;
        lock(&self.life.open).remove(&*claim.id);
        self.life.step().await;
        Ok(())
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        self.shared.redis().ledger.release(claim).await
    }
}

#[async_trait]
impl Signals for Ports {
    async fn exchange(&self, report: &Report) -> Result<Answer, LimiterError> {
        self.life.to_redis(self.shared.fleet.limiter_latency.0).await?;
        self.shared.redis().signals.exchange(report).await
    }
}

#[async_trait]
impl Fleet for Ports {
    async fn heartbeat(&self, worker_id: &str, config: &str, known_us: u64, ttl: Duration) -> Result<Alive, LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.heartbeat(worker_id, config, known_us, ttl).await
    }

    async fn note(&self, list: &str, used: &[Arc<str>]) -> Result<Vec<(Arc<str>, Duration)>, LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.note(list, used).await
    }

    async fn strike(&self, list: &str, name: &str, idle: Duration) -> Result<(), LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.strike(list, name, idle).await
    }

    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.leave(worker_id).await
    }

    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.lease(name, worker_id, ttl).await
    }

    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError> {
        self.life.to_redis(Duration::ZERO).await?;
        self.shared.redis().fleet.release(name, worker_id).await
    }
}

#[async_trait]
impl Broker for Ports {
    async fn apply(&self, topology: &Topology) -> Result<Applied, BrokerError> {
        self.broker.apply(topology).await
    }

    async fn check(&self, topology: &Topology) -> Result<Vec<Drift>, BrokerError> {
        self.broker.check(topology).await
    }

    async fn open_flow(&self, class: Class, flow: &str) -> Result<(), BrokerError> {
        self.life.step().await;
        self.broker.open_flow(class, flow).await
    }

    async fn flows(&self) -> Result<Vec<(Class, String)>, BrokerError> {
        self.life.step().await;
        self.broker.flows().await
    }

    async fn close_flow(&self, class: Class, flow: &str) -> Result<bool, BrokerError> {
        self.life.step().await;
        self.broker.close_flow(class, flow).await
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.life.step().await;
        sleep(self.shared.fleet.publish_latency.0).await;
        let (id, purpose) = (message.properties.message_id.clone().unwrap_or_default(), message.purpose);
        self.broker.publish(message).await?;
        lock(&self.shared.book).published(&id, purpose);
        self.life.step().await;
        Ok(())
    }

    fn emit(&self, _: Outgoing) {}

    /// Nobody listens: events cost nothing, as in a fleet without listeners.
    fn heard(&self, _: &str) -> bool {
        false
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.life.step().await;
        self.broker.consume(queue, prefetch).await
    }

    async fn listen(&self, pattern: &str) -> Result<Consumer, BrokerError> {
        self.broker.listen(pattern).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        self.life.step().await;
        self.broker.depth(queue).await
    }

    fn state(&self) -> watch::Receiver<State> {
        self.broker.state()
    }

    fn counters(&self) -> &Counters {
        self.broker.counters()
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}

/// One account, as a worker calls it.
pub(crate) struct Through {
    pub(crate) ports: Arc<Ports>,
    pub(crate) account: String,
    pub(crate) classifier: Arc<Classifier>,
}

#[async_trait]
impl Provider for Through {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let Ports { shared, life, .. } = &*self.ports;
        life.step().await;
        let message = attempt.message;
        let key = hash(attempt.idempotency_key);
        lock(&life.open).insert(message.id.clone());
        let (outcome, unheard, after) = self.ports.receive(&attempt, key);
        self.begun(message, after);
        sleep(after).await;
        life.step().await;
        let mut book = lock(&shared.book);
        if unheard {
            book.unheard(&message.id);
        }
        book.answered(&message.id, outcome.label(), shared.clock.now_us());
        outcome
    }

    fn idempotent(&self) -> bool {
        self.ports.shared.fleet.idempotent
    }
}

impl Through {
    /// Counts a call that takes so long.
    fn begun(&self, message: &Message, after: Duration) {
        let now_us = self.ports.shared.clock.now_us();
        let destination = self.classifier.destination(message.domain());
        let mut under_way = lock(&self.ports.shared.under_way);
        let account = format!("account:{}", self.account);
        for key in [format!("{account}:destination:{destination}:concurrency"), format!("{account}:concurrency")] {
            let (ends, most) = under_way.entry(key).or_default();
            while ends.peek().is_some_and(|Reverse(at)| *at <= now_us) {
                ends.pop();
            }
            ends.push(Reverse(now_us + after.as_micros() as u64));
            *most = ends.len().max(*most);
        }
    }
}

impl Ports {
    /// What comes of a call, decided at its beginning: whoever dies meanwhile does not take the mail back.
    fn receive(&self, attempt: &Attempt<'_>, key: u64) -> (Outcome, bool, Duration) {
        let (message, now_us) = (attempt.message, self.shared.clock.now_us());
        let mut book = lock(&self.shared.book);
        if self.shared.fleet.idempotent && book.knows(&message.id, key) {
            return (Outcome::accepted(None), false, Duration::from_millis(20));
        }
        let mut outside = lock(&self.shared.outside);
        let outside = &mut *outside;
        let contact = Contact {
            sender: message.from.email.domain().as_str(),
            domain: message.domain().as_str(),
            recipients: u32::try_from(message.recipient_count()).unwrap_or(u32::MAX),
            mail: hash(&message.id),
            who: message.recipients().map(|r| book::bit(r.local())).fold(0, |a, b| a | b),
        };
        let answer = outside.receivers.contact(now_us, contact, &mut outside.chance);
        let after = Duration::from_micros(answer.after_us);
        let taken = matches!(answer.said, Said::Accepted | Said::AcceptedUnheard);
        if taken {
            book.accepted(&message.id, key, message.recipients().map(|r| r.local()), now_us);
        }
        let outcome = match answer.said {
            Said::Accepted => Outcome::accepted(None),
            Said::AcceptedUnheard => {
                let answer = ProviderAnswer::new("connection_lost", None, "the connection ended before an answer");
                return (Outcome::Uncertain { answer }, true, after);
            }
            Said::NoSuchRecipients(which) => {
                let gone = message.recipients().enumerate().filter(|(i, _)| which.contains(i)).map(|(_, r)| r.clone());
                let answer = ProviderAnswer::new("no_such_recipient", Some(550), "5.1.1 No such user here");
                Outcome::Rejected { what: Rejected::Recipients(gone.collect()), answer }
            }
            Said::Refused(line) => outcome(&line, outside.verdict(&line)),
        };
        (outcome, false, after)
    }
}

/// What a reply that the rules have read means for the attempt.
fn outcome(line: &str, verdict: Verdict) -> Outcome {
    let status = line.get(..3).and_then(|code| code.parse().ok());
    let answer = ProviderAnswer::new(&verdict.rule, status, line);
    let retry_after = verdict.retry_after.filter(|_| verdict.wait_is_asked);
    match verdict.category {
        Category::Throttled => Outcome::Throttled { scope: verdict.scope, retry_after, answer },
        Category::Greylisted => Outcome::Greylisted { retry_after, answer },
        Category::ReputationBlock => Outcome::ReputationBlock { retry_after, answer },
        Category::AuthOrAccount => Outcome::Rejected { what: Rejected::Account, answer },
        _ if status.is_some_and(|code| code >= 500) => Outcome::Rejected { what: Rejected::Message, answer },
        _ => Outcome::Temporary { retry_after, answer },
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
