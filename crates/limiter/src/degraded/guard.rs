//! When a worker goes by the shared limiter, when by itself, and with how much. Pure: time is an argument.
//!
//! Two clocks take part: the worker's own monotonic one (`at`, microseconds since some moment of its own) for how long
//! something has been so, and the limiter's, known by its last answer, for dates.

use std::{collections::HashMap, sync::Arc};

use super::{
    book::{Beat, Census},
    scale::{self, Scaled},
};
use crate::{Ask, BucketSpec, CALL_TIMEOUT_US, GRANT_LIFE_US, Kind, LimiterError, Reply, Seed, bucket::slot_width, rules};

/// Between two heartbeats.
pub const BEAT_US: u64 = 1_000_000;
/// A worker counts as live for so long after its heartbeat.
pub const LIFE_US: u64 = 4_000_000;
/// The shared limiter is asked only with a view of the fleet that is younger than this.
pub const VIEW_US: u64 = 2_500_000;
/// A heartbeat that was on its way for longer counts for nothing.
pub(super) const LATE_US: u64 = 700_000;
/// From a worker's last heartbeat until all others go by a view of the fleet without it, and what they asked for before
/// has come to something or nothing.
pub const QUIET_US: u64 = LATE_US + LIFE_US + VIEW_US + CALL_TIMEOUT_US + GRANT_LIFE_US + 200_000;
/// A new worker that finds a state as new as itself waits for so long: others may come back who know an older one.
const FIRST_US: u64 = 3_000_000;
/// What cannot go now is asked about again.
const AGAIN_US: u64 = 5_000_000;
/// Windows looked at, and for how long after a lane last asked about them.
const WINDOWS: usize = 256;
const WINDOW_LIFE_US: u64 = 300_000_000;
/// A message may be charged more than a burst at once: what others did unseen.
const LARGEST: u64 = 64;

/// How a worker goes about limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It has never seen the shared limiter: nothing is sent.
    Unknown,
    /// It sees the shared limiter.
    Shared,
    /// It has lost it, and waits until the others must have noticed.
    Quiet,
    /// It goes by its own share.
    Alone,
    /// It sees the shared limiter again and tells it what was sent meanwhile.
    Returning,
    /// It has been alone for so long that the others go on without its share: nothing is sent.
    Over,
}

/// What to do with an ask.
#[derive(Debug)]
pub(super) enum Plan {
    /// Ask the shared limiter this.
    Shared(Scaled),
    /// This is the answer.
    Answer(Reply),
    Refuse(LimiterError),
    /// Nothing can be said before the shared limiter has been seen.
    Unknown,
}

/// What to do next about the fleet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Beat(Beat),
    /// See whether the shared limiter answers at all.
    Probe,
    /// Tell it: calls under way, and what was granted.
    Settle {
        held: Ask,
        spent: Vec<(BucketSpec, u64)>,
        epoch_us: u64,
    },
    /// Tell its windows what they had granted before it lost its state.
    Seed(Vec<Seed>),
    /// The last dates have not come yet.
    Wait,
}

/// What the shared limiter's windows had granted.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels {
    pub(super) now_us: u64,
    /// Of the state that began then.
    pub(super) since_us: u64,
    pub(super) slots: HashMap<Arc<str>, Vec<(u64, u64)>>,
}

#[derive(Debug)]
pub(super) struct Guard {
    worker: Arc<str>,
    away_us: u64,
    view: Option<View>,
    /// The latest heartbeat sent, answered or not.
    beat_at: u64,
    /// It was not answered: nothing of the kind is sent before something else is answered.
    probing: bool,
    /// The limiter's clock by the latest answer: what it said, when.
    clock: Option<(u64, u64)>,
    epoch_us: u64,
    past_lost: bool,
    /// Windows that lanes ask about.
    windows: HashMap<Arc<str>, Asked>,
    levels: Levels,
    /// What was last seen of windows in a state that is lost, until the one after it is told; and how often that failed.
    remembered: Option<(Levels, u32)>,
    /// When the limiter last answered an ask, on its clock.
    saw_us: u64,
    alone: Option<Alone>,
    returning: bool,
    /// Nothing is asked for before this: the state it found may be an emptied one.
    first_us: u64,
}

#[derive(Debug)]
struct View {
    sent_at: u64,
    census: Census,
}

#[derive(Debug)]
struct Asked {
    spec: BucketSpec,
    /// How fast the account can spend it: interval and burst; unknown where several accounts do.
    rate: Option<(u64, u64)>,
    at: u64,
}

/// What it does by itself.
#[derive(Debug)]
struct Alone {
    state: rules::State,
    since_us: u64,
    /// The others take its share for free then.
    over_us: u64,
    share: u64,
    /// What others may have granted of each window after it was last seen.
    unseen: HashMap<Arc<str>, u64>,
    /// Buckets granted from, as they are when nothing is amiss, and as they are here.
    used: HashMap<Arc<str>, BucketSpec>,
    last_date_us: u64,
}

impl Guard {
    pub(super) fn new(worker: Arc<str>, away_us: u64) -> Guard {
        Guard {
            worker,
            away_us,
            view: None,
            beat_at: 0,
            probing: false,
            clock: None,
            epoch_us: 0,
            past_lost: false,
            windows: HashMap::new(),
            levels: Levels::default(),
            remembered: None,
            saw_us: 0,
            alone: None,
            returning: false,
            first_us: 0,
        }
    }

    pub(super) fn mode(&self, at: u64) -> Mode {
        let Some(view) = &self.view else { return Mode::Unknown };
        if self.returning {
            Mode::Returning
        } else if at < view.sent_at + VIEW_US && self.alone.is_none() {
            Mode::Shared
        } else if at >= self.over_at() {
            Mode::Over
        } else if at < self.beat_at + QUIET_US {
            Mode::Quiet
        } else {
            Mode::Alone
        }
    }

    /// From then on it sends nothing by itself, on its own clock: a little before the others take its share.
    fn over_at(&self) -> u64 {
        self.view.as_ref().map_or(0, |v| (v.sent_at + LIFE_US + self.away_us).saturating_sub(2 * GRANT_LIFE_US))
    }

    /// The limiter's clock, or a little before it; 0 before it has answered.
    pub(super) fn now_us(&self, at: u64) -> u64 {
        self.clock.map_or(0, |(us, then)| us + at.saturating_sub(then))
    }

    pub(super) fn share(&self) -> u64 {
        self.view.as_ref().map_or(0, |v| v.census.share)
    }

    pub(super) fn live(&self) -> u64 {
        self.view.as_ref().map_or(1, |v| v.census.live.max(1))
    }

    /// It has granted something that the shared limiter does not know of.
    pub(super) fn owes(&self) -> bool {
        self.alone.is_some()
    }

    pub(super) fn plan(&mut self, ask: &Ask, at: u64) -> Plan {
        if let Err(error) = ask.check() {
            return Plan::Refuse(error);
        }
        self.note_windows(ask, at);
        let now_us = self.now_us(at);
        let nothing = |retry_at_us| {
            let reply = scale::nothing(ask, now_us, retry_at_us);
            Plan::Answer(Reply { epoch_us: self.epoch_us, lost: self.past_lost, ..reply })
        };
        match self.mode(at) {
            Mode::Unknown => Plan::Unknown,
            Mode::Shared if now_us < self.first_us => nothing(self.first_us),
            Mode::Shared => {
                let nobody = Census::default();
                let census = self.view.as_ref().map_or(&nobody, |v| &v.census);
                Plan::Shared(match census.lost == 0 && census.gone.is_empty() {
                    true => Scaled::whole(ask),
                    false => Scaled::new(ask, false, now_us, |b| Some(scale::shared(b.kind, census.without(b.kind, now_us)))),
                })
            }
            Mode::Quiet => nothing(now_us + (self.beat_at + QUIET_US).saturating_sub(at).min(AGAIN_US)),
            Mode::Returning => nothing(now_us + GRANT_LIFE_US),
            Mode::Over => nothing(now_us + AGAIN_US),
            Mode::Alone => match self.grant_alone(ask, now_us, at) {
                Ok(reply) => Plan::Answer(Reply { epoch_us: self.epoch_us, lost: self.past_lost, ..reply }),
                Err(error) => Plan::Refuse(error),
            },
        }
    }

    /// The shared limiter has answered an ask.
    pub(super) fn answered(&mut self, reply: &Reply, at: u64) {
        (self.epoch_us, self.past_lost) = (reply.epoch_us, reply.lost);
        self.clock = Some((reply.now_us, at));
        self.saw_us = self.saw_us.max(reply.now_us);
    }

    fn grant_alone(&mut self, ask: &Ask, now_us: u64, at: u64) -> Result<Reply, LimiterError> {
        if self.alone.is_none() {
            let alone = self.begin_alone(now_us, at)?;
            self.alone = Some(alone);
        }
        let (levels, Some(alone)) = (&self.levels, &mut self.alone) else { return Ok(scale::nothing(ask, now_us, now_us)) };
        let mut scaled = Scaled::new(ask, true, now_us, |bucket| match bucket.kind {
            Kind::Window { .. } => {
                let (seen, unseen) = (levels.slots.get(&bucket.key)?, alone.unseen.get(&bucket.key).copied()?);
                scale::allowance(bucket.kind, seen, unseen_left(unseen, bucket, alone.since_us, now_us), alone.share, now_us)
            }
            // Calls that others began before they noticed must have ended.
            Kind::Slots { life_us, .. } if now_us < alone.since_us + life_us => None,
            kind => scale::alone(kind, alone.share).filter(|own| match own {
                // What it takes from a burst is there again when the others take its share, and its calls have ended.
                Kind::Rate { interval_us, burst, .. } => now_us + interval_us * u64::from(*burst) < alone.over_us,
                Kind::Slots { life_us, .. } => now_us + life_us < alone.over_us,
                Kind::Window { .. } => true,
            }),
        });
        // Its own state has no past, and none that is lost.
        scaled.ask.epoch_us = 0;
        let reply = rules::decide(&mut alone.state, &scaled.ask, now_us)?;
        for (lane, answer) in scaled.ask.lanes.iter().zip(&reply.lanes).filter(|(_, answer)| !answer.dates_us.is_empty()) {
            let last = answer.dates_us.iter().copied().max().unwrap_or(now_us);
            alone.last_date_us = alone.last_date_us.max(last);
            for &b in &lane.buckets {
                alone.used.entry(ask.buckets[b].key.clone()).or_insert_with(|| ask.buckets[b].clone());
            }
        }
        // Calls that began before count as well, when it returns.
        for held in &ask.held {
            let bucket = &ask.buckets[held.bucket];
            alone.used.entry(bucket.key.clone()).or_insert_with(|| bucket.clone());
        }
        Ok(scaled.reply(reply, AGAIN_US, true))
    }

    /// Local buckets start empty.
    fn begin_alone(&self, now_us: u64, at: u64) -> Result<Alone, LimiterError> {
        let mut state = rules::State::new();
        rules::decide(&mut state, &Ask::default(), now_us)?;
        let gap_us = now_us.saturating_sub(self.levels.now_us) + GRANT_LIFE_US;
        let seen = self.windows.iter().filter(|(key, _)| self.levels.slots.contains_key(*key));
        let unseen = |(key, asked): (&Arc<str>, &Asked)| (key.clone(), asked.most_within(gap_us).unwrap_or(u64::MAX));
        Ok(Alone {
            state,
            since_us: now_us,
            over_us: now_us + self.over_at().saturating_sub(at),
            share: self.share(),
            unseen: seen.map(unseen).collect(),
            used: HashMap::new(),
            last_date_us: now_us,
        })
    }

    /// Which windows to look at, and who can spend them.
    fn note_windows(&mut self, ask: &Ask, at: u64) {
        for lane in &ask.lanes {
            let account = &ask.buckets[lane.buckets[0]];
            for bucket in lane.buckets.iter().map(|b| &ask.buckets[*b]) {
                if !matches!(bucket.kind, Kind::Window { .. }) {
                    continue;
                }
                let rate = match account.kind {
                    Kind::Rate { interval_us, burst, .. } if bucket.key.starts_with(&*account.key) => {
                        Some((interval_us, u64::from(burst)))
                    }
                    _ => None,
                };
                let known = self.windows.get(&bucket.key).and_then(|asked| asked.rate);
                // The fastest it was seen: others may know it so.
                let rate = rate.map(|(i, b)| known.map_or((i, b), |(j, c)| (i.min(j), b.max(c))));
                self.windows.insert(bucket.key.clone(), Asked { spec: bucket.clone(), rate, at });
            }
        }
        if self.windows.len() > 4 * WINDOWS {
            self.windows.retain(|_, asked| asked.at + WINDOW_LIFE_US > at && !asked.spec.narrow);
        }
    }

    /// The windows to look at, those of whole lanes first.
    pub(super) fn windows(&self) -> Vec<BucketSpec> {
        let mut windows: Vec<&Asked> = self.windows.values().collect();
        windows.sort_unstable_by_key(|asked| (asked.spec.narrow, u64::MAX - asked.at));
        windows.into_iter().take(WINDOWS).map(|asked| asked.spec.clone()).collect()
    }

    /// What they were found to have granted.
    pub(super) fn seen(&mut self, mut levels: Levels) {
        // Whether that state has a past is known from the first answer on.
        let current = self.epoch_us > 0 && self.view.as_ref().is_some_and(|v| v.census.since_us == levels.since_us);
        if self.past_lost {
            // Of what is not there nobody has told the past.
            levels.slots.retain(|_, slots| !slots.is_empty());
        }
        if current && levels.now_us >= self.levels.now_us {
            self.levels = levels;
        }
    }

    #[cfg(test)]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch_us
    }

    /// What to do about the fleet now.
    pub(super) fn step(&mut self, at: u64) -> Step {
        if self.returning {
            let now_us = self.now_us(at);
            return match &self.alone {
                Some(alone) if now_us <= alone.last_date_us => Step::Wait,
                Some(alone) => alone.settlement(&self.worker, self.epoch_us, now_us),
                None => self.beat(at),
            };
        }
        if self.probing || self.alone.is_some() {
            return Step::Probe;
        }
        self.past().map_or_else(|| self.beat(at), Step::Seed)
    }

    /// What to tell a limiter that has lost its state, once all who knew it are back or have had the time to be: what
    /// this worker saw last of each window, and what anybody may have been granted of it after that.
    fn past(&self) -> Option<Vec<Seed>> {
        let ((levels, _), census) = (self.remembered.as_ref()?, &self.view.as_ref()?.census);
        // Of one that is not back nobody knows for how long it saw the limiter.
        let (last_us, wait_us) = match census.untold {
            0 => (census.saw_us, FIRST_US),
            _ => (census.since_us, 3 * FIRST_US),
        };
        if census.now_us < census.since_us + wait_us {
            return None;
        }
        let gap_us = last_us.saturating_sub(levels.now_us) + GRANT_LIFE_US;
        let seed = |(key, slots): (&Arc<str>, &Vec<(u64, u64)>)| {
            let asked = self.windows.get(key)?;
            let Kind::Window { length_us, limit, .. } = asked.spec.kind else { return None };
            let most = asked.most_within(gap_us)?.min(limit);
            let spent = slots.iter().map(|(slot, cost)| (slot * slot_width(length_us), *cost));
            Some(Seed { window: asked.spec.clone(), spent: spent.chain([(last_us, most)]).collect() })
        };
        Some(levels.slots.iter().filter_map(seed).collect())
    }

    /// The limiter has been told, or could not be.
    pub(super) fn seeded(&mut self, told: bool) {
        match &mut self.remembered {
            Some((_, failed)) if !told && *failed < 3 => (*failed, self.probing) = (*failed + 1, true),
            _ => self.remembered = None,
        }
    }

    fn beat(&mut self, at: u64) -> Step {
        self.beat_at = at;
        let known = self.view.as_ref().map(|v| &v.census);
        // Back from being alone it goes by nothing before it is told.
        let believes = if self.returning { 0 } else { self.share() };
        Step::Beat(Beat {
            worker: self.worker.clone(),
            life_us: LIFE_US,
            away_us: self.away_us,
            expected_us: self.now_us(at),
            late_us: LATE_US,
            since_us: known.map_or(0, |c| c.since_us),
            believes,
            version: known.map_or(0, |c| c.version),
            saw_us: self.saw_us,
            members: known.map(|c| c.members.clone()).unwrap_or_default(),
        })
    }

    /// What became of a beat that was sent at `sent_at`; `None`: no answer.
    pub(super) fn beaten(&mut self, answer: Option<Census>, sent_at: u64, at: u64) {
        let Some(mut census) = answer else {
            self.probing = true;
            self.returning = false;
            return;
        };
        self.clock = Some((census.now_us, at));
        if census.late {
            // The clock is right again; the next one will do, unless this took long by itself.
            return;
        }
        if self.view.is_none() {
            self.first_us = census.since_us + FIRST_US;
        }
        if self.view.as_ref().is_some_and(|v| v.census.since_us < census.since_us) {
            let levels = std::mem::take(&mut self.levels);
            self.remembered = (levels.now_us > 0).then_some((levels, 0));
            self.past_lost = true;
        }
        if let Some(before) = self.view.take()
            && before.census.version == census.version
            && before.census.since_us == census.since_us
            && census.members.is_empty()
        {
            census.members = before.census.members;
        }
        (self.probing, self.returning) = (false, false);
        self.view = Some(View { sent_at, census });
    }

    /// The shared limiter answers again, or does not.
    pub(super) fn probed(&mut self, answer: Option<u64>, at: u64) {
        if let Some(now_us) = answer {
            // A server that was set back must not make local dates go back.
            self.clock = Some((now_us.max(self.alone.as_ref().map_or(0, |a| a.since_us)), at));
            (self.probing, self.returning) = (false, self.alone.is_some());
        }
    }

    /// It knows what was granted meanwhile, or cannot be told.
    pub(super) fn settled(&mut self, told: bool) {
        match told {
            true => self.alone = None,
            false => (self.probing, self.returning) = (true, false),
        }
    }
}

impl Asked {
    /// What can be granted of it within such a time; `None`: nobody knows.
    fn most_within(&self, time_us: u64) -> Option<u64> {
        self.rate.map(|(interval_us, burst)| time_us / interval_us.max(1) + burst.max(LARGEST))
    }
}

impl Census {
    /// What those who see each other leave out of such a limit.
    fn without(&self, kind: Kind, now_us: u64) -> u64 {
        match kind {
            Kind::Window { length_us, .. } => {
                // What was sent last counts whole slots longer.
                let counts = length_us + 3 * crate::bucket::slot_width(length_us);
                let gone = self.gone.iter().filter(|(since, _)| now_us < since + counts).map(|(_, share)| share);
                self.lost + gone.sum::<u64>()
            }
            Kind::Rate { .. } | Kind::Slots { .. } => self.lost,
        }
    }
}

impl Alone {
    /// What the shared limiter has to know before anybody takes this worker's share back into use.
    fn settlement(&self, worker: &Arc<str>, epoch_us: u64, now_us: u64) -> Step {
        let mut held = Ask { worker: worker.clone(), epoch_us, ..Ask::default() };
        let mut spent = Vec::new();
        for (key, bucket) in &self.used {
            let owed = self.state.owed(key, now_us);
            if bucket.is_slots() {
                held.held.push(crate::Held { bucket: held.buckets.len(), calls: u32::try_from(owed).unwrap_or(u32::MAX) });
                held.buckets.push(bucket.clone());
            } else if owed > 0 {
                // One more, for what the others round down when they take the share back.
                spent.push((bucket.clone(), owed + 1));
            }
        }
        Step::Settle { held, spent, epoch_us }
    }
}

/// What others granted unseen counts until a window's length has passed since they noticed.
fn unseen_left(unseen: u64, bucket: &BucketSpec, since_us: u64, now_us: u64) -> u64 {
    match bucket.kind {
        Kind::Window { length_us, .. } if now_us > since_us + length_us + 2 * crate::bucket::slot_width(length_us) => 0,
        _ => unseen,
    }
}
