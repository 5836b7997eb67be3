//! A fleet of workers in virtual time: real pacers, any limiter, random round trips and stalls.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    sync::Arc,
};

use paceline_core::{Class, Rate};
use paceline_limiter::{
    Ask, BucketSpec, Cost, GRANT_LIFE_US, Kind, Reply,
    pacer::{Call, Head, Pacer},
    rules::{State, decide},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// 2025-10-09: times of the size that real ones have.
pub(crate) const START_US: u64 = 1_760_000_000_000_000;

pub(crate) fn bucket(key: &str, rate: &str, burst: u32) -> BucketSpec {
    BucketSpec::new(key, rate.parse::<Rate>().unwrap(), burst, 0.2)
}

/// One worker's mail for one lane.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) worker: usize,
    pub(crate) class: Class,
    pub(crate) destination: Arc<str>,
    pub(crate) buckets: Arc<[BucketSpec]>,
    pub(crate) load: Load,
    /// One of these at random.
    pub(crate) costs: Vec<Cost>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// So many heads are always waiting.
    Backlog(usize),
    /// Poisson arrivals a second.
    PerSecond(f64),
    /// One message, so long after the start.
    Once(u64),
}

pub(crate) fn source(worker: usize, class: Class, destination: &str, buckets: &[BucketSpec], load: Load) -> Source {
    Source { worker, class, destination: destination.into(), buckets: buckets.into(), load, costs: vec![1.into()] }
}

/// A grant as it was used.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) date: u64,
    pub(crate) source: usize,
    pub(crate) cost: Cost,
    pub(crate) arrived: u64,
    /// When the worker had the grant in hand and the date had come.
    pub(crate) at: u64,
    /// When its call had ended, as far as calls take time here.
    pub(crate) end: u64,
}

pub(crate) struct Sim {
    pub(crate) sources: Vec<Source>,
    pub(crate) seconds: u64,
    pub(crate) round_trip_us: (u64, u64),
    /// Stalls of 300 ms a second and worker.
    pub(crate) stalls: f64,
    pub(crate) seed: u64,
    /// Age of the limiter's state at the start: 100 s means that buckets are full.
    pub(crate) warm_us: u64,
    /// Measures leave out so much of the beginning.
    pub(crate) settle_us: u64,
    /// How long calls take, at random.
    pub(crate) call_us: (u64, u64),
    /// This worker is heard of no more from then on, though its calls end.
    pub(crate) crash: Option<(usize, u64)>,
}

#[derive(Debug)]
struct Message {
    source: usize,
    cost: Cost,
    arrived: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    Wake(usize),
    Server(usize),
    Reply(usize),
    Stall(usize),
    End(usize),
}

pub(crate) struct Run {
    pub(crate) sim: Sim,
    pub(crate) sent: Vec<Sent>,
    pub(crate) calls: u64,
    pub(crate) heads: u64,
    pub(crate) wasted: u64,
}

struct Worker {
    pacer: Pacer<Message>,
    call: Option<Call>,
    reply: Option<Reply>,
    stalled_until: u64,
    wake_at: Option<u64>,
}

impl Sim {
    pub(crate) fn new(sources: Vec<Source>, seconds: u64) -> Self {
        Sim {
            sources,
            seconds,
            round_trip_us: (150, 900),
            stalls: 0.0,
            seed: 1,
            warm_us: 100_000_000,
            settle_us: 2_000_000,
            call_us: (0, 0),
            crash: None,
        }
    }

    /// Runs against the reference arithmetic.
    pub(crate) fn run(self) -> Run {
        let mut state = State::new();
        // The first call sets the epoch.
        decide(&mut state, &Ask::default(), START_US - self.warm_us).unwrap();
        self.run_with(|ask, now| decide(&mut state, ask, now).unwrap())
    }

    pub(crate) fn run_with(self, mut limiter: impl FnMut(&Ask, u64) -> Reply) -> Run {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let workers = self.sources.iter().map(|s| s.worker).max().unwrap_or(0) + 1;
        let mut fleet: Vec<Worker> = (0..workers)
            .map(|w| Worker { pacer: Pacer::new(&format!("w{w}")), call: None, reply: None, stalled_until: 0, wake_at: None })
            .collect();
        let lanes: Vec<Arc<str>> = (0..self.sources.len()).map(|i| format!("lane{i}").into()).collect();
        let end = START_US + self.seconds * 1_000_000;
        let mut events = BinaryHeap::new();
        let mut order = 0_u64;
        let mut push = |events: &mut BinaryHeap<Reverse<(u64, u64, Event)>>, time: u64, event: Event| {
            order += 1;
            events.push(Reverse((time, order, event)));
        };
        let exp = |rng: &mut StdRng, per_second: f64| (-(1.0 - rng.random::<f64>()).ln() / per_second * 1e6) as u64;
        let mut run = Run { sent: Vec::new(), calls: 0, heads: 0, wasted: 0, sim: self };
        let sim = &run.sim;
        for (i, source) in sim.sources.iter().enumerate() {
            match source.load {
                Load::Backlog(_) => push(&mut events, START_US, Event::Arrive(i)),
                Load::PerSecond(n) => push(&mut events, START_US + exp(&mut rng, n), Event::Arrive(i)),
                Load::Once(after) => push(&mut events, START_US + after, Event::Arrive(i)),
            }
        }
        for w in 0..workers {
            if sim.stalls > 0.0 {
                push(&mut events, START_US + exp(&mut rng, sim.stalls), Event::Stall(w));
            }
        }
        while let Some(Reverse((now, _, event))) = events.pop() {
            if now > end {
                break;
            }
            let w = match event {
                Event::Arrive(source) => sim.sources[source].worker,
                Event::End(sent) => sim.sources[run.sent[sent].source].worker,
                Event::Wake(w) | Event::Server(w) | Event::Reply(w) | Event::Stall(w) => w,
            };
            if sim.crash.is_some_and(|(crashed, at)| crashed == w && now >= at) {
                continue;
            }
            match event {
                Event::Arrive(i) => {
                    let source = &sim.sources[i];
                    let many = match source.load {
                        Load::Backlog(depth) => depth - fleet[w].pacer.held(&lanes[i]).min(depth),
                        Load::PerSecond(n) => {
                            push(&mut events, now + exp(&mut rng, n), Event::Arrive(i));
                            1
                        }
                        Load::Once(_) => 1,
                    };
                    for _ in 0..many {
                        let cost = source.costs[rng.random_range(0..source.costs.len())].clone();
                        let head = Head {
                            handle: Message { source: i, cost: cost.clone(), arrived: now },
                            cost,
                            class: source.class,
                            destination: source.destination.clone(),
                            weight: 1,
                            buckets: source.buckets.clone(),
                        };
                        fleet[w].pacer.push(lanes[i].clone(), head, now);
                    }
                }
                Event::Wake(_) => {
                    let worker = &mut fleet[w];
                    worker.wake_at = None;
                    if worker.stalled_until > now {
                        push(&mut events, worker.stalled_until, Event::Wake(w));
                        worker.wake_at = Some(worker.stalled_until);
                        continue;
                    }
                    if let Some(call) = worker.pacer.begin(now, usize::MAX) {
                        run.calls += 1;
                        run.heads += call.ask().heads() as u64;
                        worker.call = Some(call);
                        let half = rng.random_range(sim.round_trip_us.0..sim.round_trip_us.1) / 2;
                        push(&mut events, now + half, Event::Server(w));
                    }
                }
                Event::Server(_) => {
                    let worker = &mut fleet[w];
                    worker.reply = Some(limiter(worker.call.as_ref().unwrap().ask(), now));
                    let half = rng.random_range(sim.round_trip_us.0..sim.round_trip_us.1) / 2;
                    push(&mut events, now + half, Event::Reply(w));
                }
                Event::Reply(_) => {
                    let worker = &mut fleet[w];
                    if worker.stalled_until > now {
                        push(&mut events, worker.stalled_until, Event::Reply(w));
                        continue;
                    }
                    let (call, reply) = (worker.call.take().unwrap(), worker.reply.take().unwrap());
                    for granted in worker.pacer.complete(call, &reply) {
                        let Message { source, cost, arrived } = granted.handle;
                        let at = granted.date_us.max(now);
                        let end = at + rng.random_range(sim.call_us.0..=sim.call_us.1);
                        run.sent.push(Sent { date: granted.date_us, source, cost, arrived, at, end });
                        if sim.call_us.1 > 0 {
                            push(&mut events, end, Event::End(run.sent.len() - 1));
                        }
                    }
                    for (i, source) in sim.sources.iter().enumerate() {
                        if source.worker == w && matches!(source.load, Load::Backlog(_)) {
                            push(&mut events, now, Event::Arrive(i));
                        }
                    }
                }
                Event::End(sent) => {
                    let worker = &mut fleet[w];
                    if worker.stalled_until > now {
                        push(&mut events, worker.stalled_until, Event::End(sent));
                        continue;
                    }
                    worker.pacer.release(&sim.sources[run.sent[sent].source].buckets, now);
                }
                Event::Stall(_) => {
                    fleet[w].stalled_until = now + 300_000;
                    push(&mut events, now + 300_000 + exp(&mut rng, sim.stalls), Event::Stall(w));
                }
            }
            let worker = &mut fleet[w];
            if let Some(due) = worker.pacer.next_call_at(now)
                && worker.wake_at.is_none_or(|t| due < t)
            {
                worker.wake_at = Some(due);
                push(&mut events, due, Event::Wake(w));
            }
        }
        run.wasted = fleet.iter().map(|w| w.pacer.wasted()).sum();
        run
    }
}

impl Run {
    /// The bound over every window, in whole microseconds: for each bucket, the most by which the sum of costs × T in
    /// some window exceeds its length + max(burst, largest cost) × T. Never positive.
    pub(crate) fn worst_excess_us(&self) -> i64 {
        type Grants<'a> = (&'a BucketSpec, Vec<(u64, u32)>);
        let mut by_bucket: BTreeMap<&str, Grants<'_>> = BTreeMap::new();
        for sent in &self.sent {
            for (k, bucket) in self.sim.sources[sent.source].buckets.iter().enumerate() {
                by_bucket.entry(&bucket.key).or_insert((bucket, Vec::new())).1.push((sent.date, sent.cost.at(k) as u32));
            }
        }
        let mut worst = i64::MIN;
        for (bucket, mut grants) in by_bucket.into_values() {
            grants.sort_unstable();
            let Kind::Rate { interval_us, burst, .. } = bucket.kind else { continue };
            let t = interval_us as i64;
            let largest = grants.iter().map(|g| g.1).max().unwrap_or(1);
            let limit = i64::from(burst.max(largest)) * t;
            let (mut level, mut last) = (0_i64, grants[0].0);
            for (date, cost) in grants {
                level = (level - (date - last) as i64).max(0) + i64::from(cost) * t;
                last = date;
                worst = worst.max(level - limit);
            }
        }
        worst
    }

    /// The most by which what a window granted in some span of its length exceeds it. Never positive.
    pub(crate) fn worst_window_excess(&self) -> i64 {
        type Grants = (u64, u64, Vec<(u64, u64)>);
        let mut by_window: BTreeMap<&str, Grants> = BTreeMap::new();
        for sent in &self.sent {
            for (k, bucket) in self.sim.sources[sent.source].buckets.iter().enumerate() {
                if let Kind::Window { length_us, limit, .. } = bucket.kind {
                    let entry = by_window.entry(&bucket.key).or_insert((length_us, limit, Vec::new()));
                    entry.2.push((sent.date, sent.cost.at(k)));
                }
            }
        }
        let excess = |(length, limit, grants): Grants| most_within(length, grants) as i64 - limit as i64;
        by_window.into_values().map(excess).max().unwrap_or(i64::MIN)
    }

    /// The most calls under way at once, of those that touch the bucket `key`; and their average once settled.
    pub(crate) fn under_way(&self, key: &str) -> (i64, f64) {
        let (since, end) = (self.since(), START_US + self.sim.seconds * 1_000_000);
        let (mut steps, mut busy) = (Vec::new(), 0);
        for sent in &self.sent {
            if self.sim.sources[sent.source].buckets.iter().any(|b| &*b.key == key) {
                steps.extend([(sent.at, 1), (sent.end, -1)]);
                busy += sent.end.min(end).saturating_sub(sent.at.max(since));
            }
        }
        // One that ends makes room for one that begins at that moment.
        steps.sort_unstable();
        let (mut now, mut most) = (0, 0);
        for (_, step) in steps {
            now += step;
            most = most.max(now);
        }
        (most, busy as f64 / (end - since) as f64)
    }

    fn since(&self) -> u64 {
        START_US + self.sim.settle_us
    }

    /// Share of a bucket's rate that was granted once settled.
    pub(crate) fn utilisation(&self, key: &str) -> f64 {
        let spec = self.sim.sources.iter().flat_map(|s| s.buckets.iter()).find(|b| &*b.key == key).unwrap();
        let end = START_US + self.sim.seconds * 1_000_000;
        let spent: u64 = self.in_bucket(key).filter(|(s, _)| s.date < end).map(|(_, cost)| cost).sum();
        spent as f64 * spec.interval_us() as f64 / (end - self.since()) as f64
    }

    /// Cost granted once settled, by class.
    pub(crate) fn by_class(&self, key: &str) -> HashMap<Class, f64> {
        let mut spent = HashMap::new();
        for (sent, cost) in self.in_bucket(key) {
            *spent.entry(self.sim.sources[sent.source].class).or_default() += cost as f64;
        }
        spent
    }

    /// What a bucket was charged once settled.
    fn in_bucket<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (&'a Sent, u64)> {
        self.sent.iter().filter(|s| s.date >= self.since()).filter_map(move |s| {
            let k = self.sim.sources[s.source].buckets.iter().position(|b| &*b.key == key)?;
            Some((s, s.cost.at(k)))
        })
    }

    /// Milliseconds from arrival to the moment it may go, at quantile `q`, for the sources that `pick` names.
    pub(crate) fn latency_ms(&self, q: f64, pick: impl Fn(usize, &Source) -> bool) -> f64 {
        let mut waits: Vec<u64> =
            self.sent.iter().filter(|s| pick(s.source, &self.sim.sources[s.source])).map(|s| s.at - s.arrived).collect();
        assert!(!waits.is_empty(), "nothing was granted");
        waits.sort_unstable();
        waits[((waits.len() as f64 * q) as usize).min(waits.len() - 1)] as f64 / 1e3
    }

    /// Grants that came too late to be used.
    pub(crate) fn void(&self) -> usize {
        self.sent.iter().filter(|s| s.at > s.date + GRANT_LIFE_US).count()
    }

    pub(crate) fn calls_per_worker_second(&self) -> f64 {
        let workers = self.sim.sources.iter().map(|s| s.worker).max().unwrap_or(0) + 1;
        self.calls as f64 / self.sim.seconds as f64 / workers as f64
    }
}

/// The largest sum of costs in any span of `length`, ends included.
pub(crate) fn most_within(length: u64, mut grants: Vec<(u64, u64)>) -> u64 {
    grants.sort_unstable();
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for &(date, cost) in &grants {
        sum += cost;
        while grants[first].0 + length < date {
            sum -= grants[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}
