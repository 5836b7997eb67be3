//! A fleet under virtual time whose workers lose Redis, alone and together, whose Redis loses its memory, and whose workers
//! die: whatever happens, the dates of all grants together keep every bound.

mod goes_on;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use paceline_core::Class;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    book::{Beat, Book, Census},
    guard::{Guard, Mode, Plan, Step},
    memory::Kept,
    quotas::{Levels, Row},
    scale::Scaled,
};
use crate::{
    Ask, BucketSpec, CALL_TIMEOUT_US, Held, Kind, LaneAsk, Reply, Seed, Spent,
    rules::{self, State},
};

const START_US: u64 = 1_700_000_000_000_000;
const SECOND: u64 = 1_000_000;
/// When a client gives up waiting.
const PATIENCE_US: u64 = 500_000;
const AWAY_US: u64 = 40 * SECOND;

/// Account, destination, quota, calls at a time.
fn buckets(quota: u64) -> Vec<BucketSpec> {
    let rate = |key: &str, interval_us, burst| {
        let kind = Kind::Rate { interval_us, burst, reserve: burst / 5, shared: false };
        BucketSpec { key: key.into(), kind, narrow: false }
    };
    vec![
        rate("account:a", 10_000, 60),
        rate("account:a:destination:x", 12_500, 50),
        BucketSpec {
            key: "account:a:quota:x".into(),
            kind: Kind::Window { length_us: 20 * SECOND, limit: quota, reserve: quota / 20 },
            narrow: false,
        },
        BucketSpec::slots("account:a:concurrency", 100, 3 * SECOND),
    ]
}

#[derive(Debug)]
enum Question {
    Ask(Scaled),
    Beat(Beat),
    Levels,
    Probe,
    Settle(Ask, Vec<(BucketSpec, Spent)>, u64),
    Seed(Vec<Seed>, u64),
}

#[derive(Debug)]
enum Answer {
    Ask(Reply),
    Beat(Census),
    Levels(Levels),
    Probe(u64),
    Settle,
}

#[derive(Debug)]
enum Event {
    /// A worker looks at what there is to do.
    Tick(usize),
    /// A question arrives at Redis; its answer goes back if the worker still waits and is still connected.
    Arrive(usize, u64, Question),
    Return(usize, u64, Question, Option<Answer>),
    /// Something happens to the network, to Redis or to a worker.
    Fate,
    Heal(Vec<usize>),
}

struct Worker {
    guard: Guard,
    /// Its clock began then.
    born: u64,
    name: Arc<str>,
    connected: bool,
    /// The questions under way: an ask, and anything else.
    asking: Option<u64>,
    stepping: Option<u64>,
    ask_due: u64,
    step_due: u64,
    /// When its calls end.
    calls: Vec<u64>,
    /// What the ask under way was before it was made smaller.
    last: Option<Ask>,
    alive: bool,
    /// When it reads the store, once, and then looks at what is to be kept there.
    store_due: u64,
}

struct Fleet {
    rng: StdRng,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: HashMap<u64, Event>,
    redis: State,
    book: Book,
    workers: Vec<Worker>,
    /// Date, cost, begin and end of the call, and whether the worker was alone.
    sent: Vec<(u64, u64, u64, u64, bool)>,
    /// Nobody sees Redis until then, new workers neither.
    down_until: u64,
    /// Windows that were told what they had lost.
    told: u64,
    /// What outlives Redis and the workers, where all of them may end at once.
    store: Option<HashMap<Row, Kept>>,
    quota: u64,
    /// What a message costs at most.
    largest: u32,
    /// Nothing happens but what a test does; and its workers ask again no sooner than they are told to.
    calm: bool,
}

impl Fleet {
    fn new(seed: u64, ends: bool) -> Fleet {
        let mut fleet = Fleet {
            rng: StdRng::seed_from_u64(seed),
            now: START_US,
            order: 0,
            events: BinaryHeap::new(),
            bodies: Default::default(),
            redis: State::new(),
            book: Book::default(),
            workers: vec![],
            sent: vec![],
            down_until: 0,
            told: 0,
            store: ends.then(HashMap::new),
            quota: 1_200,
            largest: 3,
            calm: false,
        };
        for _ in 0..fleet.rng.random_range(2..6) {
            fleet.join();
        }
        fleet.at(START_US + 12 * SECOND, Event::Fate);
        fleet
    }

    fn join(&mut self) {
        let (n, now) = (self.workers.len(), self.now);
        let name: Arc<str> = format!("w{n}").into();
        let born = now - self.rng.random_range(0..1_000 * SECOND);
        self.workers.push(Worker {
            guard: Guard::new(name.clone(), AWAY_US),
            born,
            name,
            connected: self.down_until <= now,
            asking: None,
            stepping: None,
            ask_due: now,
            step_due: now,
            calls: vec![],
            last: None,
            alive: true,
            store_due: now,
        });
        if self.store.is_some() {
            self.workers[n].guard.remembers();
            self.workers[n].store_due += self.rng.random_range(0..5 * SECOND);
        }
        if self.down_until > now {
            self.at(self.down_until, Event::Heal(vec![n]));
        }
        self.at(now, Event::Tick(n));
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order)));
        self.bodies.insert(self.order, event);
    }

    fn run(&mut self, seconds: u64) {
        let end = START_US + seconds * SECOND;
        while let Some(&Reverse((time, id))) = self.events.peek().filter(|next| next.0.0 <= end) {
            self.events.pop();
            self.now = time;
            match self.bodies.remove(&id).unwrap() {
                Event::Tick(w) => self.tick(w),
                Event::Arrive(w, question, body) => self.arrive(w, question, body),
                Event::Return(w, question, body, answer) => self.back(w, question, body, answer),
                Event::Fate => self.fate(),
                Event::Heal(some) => some.into_iter().for_each(|w| self.workers[w].connected = true),
            }
        }
    }

    /// A question sets out; one that nobody can answer is given up in time, and may still arrive later.
    fn send(&mut self, w: usize, body: Question) -> u64 {
        self.order += 1;
        let id = self.order;
        let way = self.rng.random_range(200..80_000);
        if self.workers[w].connected {
            self.at(self.now + way, Event::Arrive(w, id, body));
        } else {
            let late = self.rng.random_bool(0.2);
            let hold = match body {
                // A beat that was held up on its way, as by retransmission.
                Question::Beat(ref beat) if late => Some(Question::Beat(beat.clone())),
                _ => None,
            };
            if let Some(held) = hold {
                let delay = self.rng.random_range(PATIENCE_US..20 * SECOND);
                self.at(self.now + delay, Event::Arrive(w, 0, held));
            }
            self.at(self.now + PATIENCE_US, Event::Return(w, id, body, None));
        }
        id
    }

    fn arrive(&mut self, w: usize, id: u64, body: Question) {
        let now = self.now;
        let answer = match &body {
            Question::Ask(scaled) => Answer::Ask(rules::decide(&mut self.redis, &scaled.ask, now).unwrap()),
            Question::Beat(beat) => Answer::Beat(self.book.beat(beat, now)),
            Question::Levels => {
                let window = &buckets(self.quota)[2];
                let slots = self.redis.slots_of(&window.key);
                Answer::Levels(Levels {
                    now_us: now,
                    since_us: self.book.since_us(),
                    slots: [(window.key.clone(), slots)].into(),
                    ..Levels::default()
                })
            }
            Question::Probe => Answer::Probe(now),
            Question::Seed(past, epoch_us) => {
                rules::tell_state(&mut self.redis, past, false, *epoch_us, now).unwrap();
                self.told += past.len() as u64;
                Answer::Settle
            }
            Question::Settle(held, spent, epoch) => {
                rules::decide(&mut self.redis, held, now).unwrap();
                rules::charge(&mut self.redis, spent, *epoch, now).unwrap();
                Answer::Settle
            }
        };
        // A network may fail in one direction only.
        if self.workers[w].connected {
            let way = self.rng.random_range(200..80_000);
            self.at(now + way, Event::Return(w, id, body, Some(answer)));
        } else {
            self.at(now + PATIENCE_US, Event::Return(w, id, body, None));
        }
    }

    fn back(&mut self, w: usize, id: u64, body: Question, answer: Option<Answer>) {
        let (now, worker) = (self.now, &mut self.workers[w]);
        let at = now - worker.born;
        if !worker.alive || (worker.asking != Some(id) && worker.stepping != Some(id)) {
            return;
        }
        if let Question::Ask(scaled) = body {
            let begun = worker.asking.take().map(|_| worker.ask_due);
            let mut again = 0;
            if let Some(Answer::Ask(reply)) = answer
                && begun.is_some_and(|begun| now <= begun + CALL_TIMEOUT_US)
            {
                worker.guard.answered(&reply, at);
                let reply = scaled.reply(reply, 1_000_000);
                again = self.again(&reply);
                self.granted(w, &reply, false);
            }
            self.workers[w].ask_due = again.max(now + self.rng.random_range(20_000..120_000));
            return;
        }
        worker.stepping = None;
        let sent_at = worker.step_due - worker.born;
        let (guard, mut wait) = (&mut worker.guard, SECOND / 2);
        match (body, answer) {
            (Question::Beat(_), Some(Answer::Beat(census))) => {
                wait = if census.late { 100_000 } else { SECOND };
                let look = !census.late;
                guard.beaten(Some(census), sent_at, at);
                if look {
                    worker.step_due = now;
                    let id = self.send(w, Question::Levels);
                    self.workers[w].stepping = Some(id);
                    return;
                }
            }
            (Question::Beat(_), _) => guard.beaten(None, sent_at, at),
            (Question::Probe, Some(Answer::Probe(server))) => {
                guard.probed(Some(server), at);
                wait = 0;
            }
            (Question::Probe, _) => guard.probed(None, at),
            (Question::Levels, Some(Answer::Levels(levels))) => {
                guard.seen(levels);
                wait = SECOND - 100_000;
            }
            (Question::Levels, _) => {}
            (Question::Settle(..), answer) => {
                guard.settled(answer.is_some());
                wait = 0;
            }
            (Question::Seed(..), answer) => {
                guard.seeded(answer.is_some());
                wait = 0;
            }
            (Question::Ask(_), _) => unreachable!("handled above"),
        }
        worker.step_due = now + wait;
    }

    fn tick(&mut self, w: usize) {
        let now = self.now;
        if !self.workers[w].alive {
            return;
        }
        let next = now + self.rng.random_range(5_000..20_000);
        self.at(next, Event::Tick(w));
        self.keep(w);
        if self.workers[w].stepping.is_none() && self.workers[w].step_due <= now {
            let worker = &mut self.workers[w];
            worker.step_due = now;
            let body = match worker.guard.step(now - worker.born) {
                Step::Beat(beat) => Some(Question::Beat(beat)),
                Step::Probe => Some(Question::Probe),
                Step::Settle { held, spent, epoch_us } => Some(Question::Settle(held, spent, epoch_us)),
                Step::Seed { past, epoch_us } => Some(Question::Seed(past, epoch_us)),
                Step::Wait => None,
            };
            if let Some(body) = body {
                let id = self.send(w, body);
                self.workers[w].stepping = Some(id);
            }
        }
        if self.workers[w].asking.is_none() && self.workers[w].ask_due <= now {
            let heads = self.rng.random_range(1..40);
            let costs = (0..heads).map(|_| self.rng.random_range(1..=self.largest).into()).collect();
            let class = if self.calm { Class::Normal } else { Class::ALL[self.rng.random_range(0..4)] };
            let worker = &mut self.workers[w];
            worker.calls.retain(|end| *end > now);
            let ask = Ask {
                buckets: buckets(self.quota),
                lanes: vec![LaneAsk {
                    class,
                    destination: "x".into(),
                    weight: 1,
                    buckets: vec![0, 1, 2, 3],
                    costs,
                    since_us: 0,
                    id: format!("{}.{class}", worker.name).into(),
                    seq: now,
                }],
                worker: worker.name.clone(),
                held: vec![Held { bucket: 3, calls: worker.calls.len() as u32 }],
                epoch_us: worker.guard.epoch(),
                ..Ask::default()
            };
            worker.ask_due = now;
            match worker.guard.plan(&ask, now - worker.born) {
                Plan::Shared(scaled) => {
                    let id = self.send(w, Question::Ask(scaled));
                    self.workers[w].asking = Some(id);
                    self.workers[w].last = Some(ask);
                }
                Plan::Answer(reply) => {
                    let alone = worker.guard.mode(now - worker.born) == Mode::Alone;
                    self.costs(w, &ask, &reply, alone);
                    self.workers[w].ask_due = self.again(&reply).max(now + 50_000);
                }
                Plan::Refuse(_) | Plan::Unknown => worker.ask_due = now + 50_000,
            }
        }
    }

    fn keep(&mut self, w: usize) {
        let (Some(store), worker) = (&mut self.store, &mut self.workers[w]) else { return };
        if self.now < worker.store_due {
            return;
        }
        worker.store_due = self.now + 2 * SECOND;
        if worker.guard.unread() {
            return worker.guard.recall(store.values().cloned().collect());
        }
        let rows = worker.guard.unsaved(self.now - worker.born);
        for row in &rows {
            let known = store.entry((row.window.key.clone(), row.by.clone())).or_insert_with(|| row.clone());
            if known.at_us <= row.at_us {
                *known = row.clone();
            }
        }
        worker.guard.saved(rows);
    }

    /// Every worker ends, and Redis with them; as many come back.
    fn end(&mut self) {
        self.say("all end, Redis is emptied");
        (self.redis, self.book) = (State::new(), Book::default());
        let alive = self.workers.iter_mut().map(|w| usize::from(std::mem::take(&mut w.alive))).sum::<usize>();
        (0..alive).for_each(|_| self.join());
    }

    /// When one that does as it is told asks again: as a lane that rests, within a minute.
    fn again(&self, reply: &Reply) -> u64 {
        let kept = reply.lanes.iter().filter(|lane| self.calm && lane.dates_us.is_empty());
        kept.filter_map(|lane| lane.denied).map(|denied| denied.retry_at_us.min(self.now + 60 * SECOND)).max().unwrap_or(0)
    }

    fn granted(&mut self, w: usize, reply: &Reply, alone: bool) {
        let ask = self.workers[w].last.take().unwrap();
        self.costs(w, &ask, reply, alone);
    }

    fn costs(&mut self, w: usize, ask: &Ask, reply: &Reply, alone: bool) {
        for (lane, grant) in ask.lanes.iter().zip(&reply.lanes) {
            for (date, cost) in grant.dates_us.iter().zip(&lane.costs) {
                let begin = (*date).max(self.now);
                let end = begin + self.rng.random_range(10_000..SECOND);
                self.workers[w].calls.push(end);
                self.sent.push((*date, cost.at(0), begin, end, alone));
            }
        }
    }

    fn say(&self, what: &str) {
        if std::env::var("PACELINE_CUTS_TRACE").is_ok() {
            eprintln!("{:9.3} {what}", (self.now - START_US) as f64 / 1e6);
        }
    }

    fn cut(&mut self, some: Vec<usize>, long: u64, emptied: bool) {
        some.iter().for_each(|w| self.workers[*w].connected = false);
        if emptied {
            (self.redis, self.book) = (State::new(), Book::default());
            self.say("Redis emptied");
        }
        self.at(self.now + long, Event::Heal(some));
    }

    fn fate(&mut self) {
        if self.calm {
            return;
        }
        let next = self.now + self.rng.random_range(5 * SECOND..40 * SECOND);
        self.at(next, Event::Fate);
        if self.store.is_some() && self.rng.random_bool(0.2) {
            return self.end();
        }
        let alive: Vec<usize> = (0..self.workers.len()).filter(|w| self.workers[*w].alive).collect();
        let long = self.rng.random_range(SECOND / 2..70 * SECOND);
        match self.rng.random_range(0..10) {
            // Some lose Redis, or all of them; perhaps it comes back empty.
            0..=6 => {
                let all = self.rng.random_bool(0.4);
                let cut: Vec<usize> = alive.iter().copied().filter(|_| all || self.rng.random_bool(0.4)).collect();
                self.say(&format!("{cut:?} of {alive:?} cut off for {:.1} s", long as f64 / 1e6));
                let emptied = all && self.rng.random_bool(0.5);
                if all {
                    self.down_until = self.down_until.max(self.now + long);
                }
                self.cut(cut, long, emptied);
            }
            7 if alive.len() < 6 => {
                self.say("one joins");
                self.join();
            }
            8 => {
                let dead = alive[self.rng.random_range(0..alive.len())];
                self.workers[dead].alive = false;
                self.say(&format!("{dead} is killed and replaced"));
                self.join();
            }
            _ if alive.len() > 2 => {
                let gone = alive[0];
                if self.workers[gone].connected {
                    // It drains first: its calls have ended.
                    let idle = self.workers[gone].calls.iter().all(|end| *end <= self.now);
                    if idle && self.workers[gone].asking.is_none() && self.workers[gone].stepping.is_none() {
                        self.workers[gone].alive = false;
                        self.say(&format!("{gone} leaves"));
                        let name = self.workers[gone].name.clone();
                        self.book.leave(&name);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The most by which the sum of costs × T in some span exceeds its length + max(burst, largest cost) × T.
fn worst_excess(sent: &[(u64, u64)], interval_us: u64, burst: u64) -> i64 {
    let t = interval_us as i64;
    let limit = burst.max(sent.iter().map(|s| s.1).max().unwrap_or(1)) as i64 * t;
    let (mut level, mut last, mut worst) = (0_i64, 0, i64::MIN);
    for (date, cost) in sent {
        level = (level - (*date as i64 - last)).max(0) + *cost as i64 * t;
        last = *date as i64;
        worst = worst.max(level - limit);
    }
    worst
}

fn most_within(sent: &[(u64, u64)], length: u64) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for &(date, cost) in sent {
        sum += cost;
        while sent[first].0 + length < date {
            sum -= sent[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

/// `PACELINE_CUTS=1000` runs more than the default, with `PACELINE_CUTS_FROM=999` only the last of them.
#[test]
fn bounds_hold_whatever_is_cut_off_from_whatever() {
    bounds_hold(false, 3);
}

/// The same where all workers may end at once, and Redis with them.
#[test]
fn quotas_hold_whatever_ends() {
    bounds_hold(true, 3);
}

/// The same where a message may cost more than what is left of any burst, or than all of it.
#[test]
fn bounds_hold_however_large_a_message_is() {
    bounds_hold(false, 70);
}

fn bounds_hold(ends: bool, largest: u32) {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let (from, to) = (number("PACELINE_CUTS_FROM").unwrap_or(0), number("PACELINE_CUTS").unwrap_or(40));
    let (mut shared, mut by_itself, mut told) = (0, 0, 0);
    for seed in from..to {
        let mut fleet = Fleet::new(seed, ends);
        fleet.largest = largest;
        fleet.run(240);
        let mut sent: Vec<(u64, u64)> = fleet.sent.iter().map(|s| (s.0, s.1)).collect();
        sent.sort_unstable();
        for bucket in buckets(fleet.quota) {
            match bucket.kind {
                Kind::Rate { interval_us, burst, .. } => {
                    let worst = worst_excess(&sent, interval_us, u64::from(burst));
                    assert!(worst <= 0, "seed {seed}: {} exceeded by {worst} µs", bucket.key);
                }
                Kind::Window { length_us, limit, .. } => {
                    let most = most_within(&sent, length_us);
                    if most > limit && std::env::var("PACELINE_CUTS_TRACE").is_ok() {
                        let at = |s: &(u64, u64, u64, u64, bool)| (s.0 - START_US) / SECOND;
                        for second in 0..240 {
                            let of =
                                |alone| fleet.sent.iter().filter(|s| at(s) == second && s.4 == alone).map(|s| s.1).sum::<u64>();
                            eprintln!("{second:3} shared {:3} alone {:3}", of(false), of(true));
                        }
                    }
                    assert!(most <= limit, "seed {seed}: {} granted {most}", bucket.key);
                }
                // Calls of a process that has ended are not under way.
                Kind::Slots { .. } if ends => {}
                Kind::Slots { limit, .. } => {
                    let mut steps: Vec<(u64, i64)> = fleet.sent.iter().flat_map(|s| [(s.2, 1), (s.3, -1)]).collect();
                    steps.sort_unstable();
                    let (mut under_way, mut most) = (0, 0);
                    for (_, step) in steps {
                        under_way += step;
                        most = most.max(under_way);
                    }
                    assert!(most <= i64::from(limit), "seed {seed}: {most} calls under way");
                }
            }
        }
        shared += fleet.sent.iter().filter(|s| !s.4).map(|s| s.1).sum::<u64>();
        by_itself += fleet.sent.iter().filter(|s| s.4).map(|s| s.1).sum::<u64>();
        told += fleet.told;
    }
    // The runs are worth nothing where they do not go everywhere; a single one need not.
    let runs = to - from;
    let everywhere = shared > runs * 4_000 && by_itself > runs * 100 && told > runs / 4;
    assert!(runs < 40 || everywhere, "{shared} shared, {by_itself} alone, {told} told");
}
