//! When a worker goes by the shared limiter, when by itself, and with how much. Pure: time is an argument.
//!
//! Two clocks take part: the worker's own monotonic one (`at`, microseconds since some moment of its own) for how long
//! something has been so, and the limiter's, known by its last answer, for dates.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    book::{Beat, Census, WHOLE},
    quotas::{Asked, Quotas, knows_all, unseen_left},
    scale::{self, Scaled},
};
use crate::{Ask, BucketSpec, CALL_TIMEOUT_US, GRANT_LIFE_US, Kind, LimiterError, Reply, Seed, Spent, bucket::slot_width, rules};

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
pub(super) const FIRST_US: u64 = 3_000_000;
/// What cannot go now is asked about again.
const AGAIN_US: u64 = 5_000_000;
/// The same of what a worker by itself has nothing left for: it costs no call, and what it has comes back slot by slot.
const AGAIN_ALONE_US: u64 = 1_000_000;

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
        spent: Vec<(BucketSpec, Spent)>,
        epoch_us: u64,
    },
    /// Tell its windows what they had granted before it lost its state.
    Seed {
        past: Vec<Seed>,
        epoch_us: u64,
    },
    /// The last dates have not come yet.
    Wait,
}

#[derive(Debug)]
pub(super) struct Guard {
    pub(super) worker: Arc<str>,
    away_us: u64,
    pub(super) view: Option<View>,
    /// The latest heartbeat sent, answered or not.
    beat_at: u64,
    /// It was not answered: nothing of the kind is sent before something else is answered.
    pub(super) probing: bool,
    /// The limiter's clock by the latest answer: what it said, when.
    clock: Option<(u64, u64)>,
    pub(super) epoch_us: u64,
    /// It belongs to the state of `view`.
    epoch_known: bool,
    /// The same of the heartbeat under way; and what a heartbeat of the same state before and after the answer has confirmed.
    beat_epoch_us: u64,
    pub(super) sure_epoch_us: u64,
    pub(super) past_lost: bool,
    pub(super) quotas: Quotas,
    /// When the limiter last answered an ask, on its clock.
    saw_us: u64,
    pub(super) alone: Option<Alone>,
    returning: bool,
    /// Nothing is asked for before this: the state it found may be an emptied one.
    first_us: u64,
}

#[derive(Debug)]
pub(super) struct View {
    sent_at: u64,
    pub(super) census: Census,
}

/// What it does by itself.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) state: rules::State,
    pub(super) since_us: u64,
    /// The others take its share for free then.
    over_us: u64,
    share: u64,
    /// What others may have granted of each window after it was last seen.
    unseen: HashMap<Arc<str>, u64>,
    /// Buckets granted from, as they are when nothing is amiss.
    pub(super) used: HashMap<Arc<str>, BucketSpec>,
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
            epoch_known: false,
            beat_epoch_us: 0,
            sure_epoch_us: 0,
            past_lost: false,
            quotas: Quotas::default(),
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

    /// What it may go by when it is cut off: nothing while others may come back who hold shares of an older state.
    pub(super) fn share(&self) -> u64 {
        self.view.as_ref().filter(|_| self.is_settled()).map_or(0, |v| v.census.share)
    }

    /// Whoever was to come back who knows an older state has been heard of.
    fn is_settled(&self) -> bool {
        self.view.as_ref().is_some_and(|v| v.census.now_us >= self.first_us)
    }

    /// When the next heartbeat is due, after one sent at `sent_at`: as soon as it tells who has come back.
    pub(super) fn beat_in(&self, sent_at: u64, at: u64) -> u64 {
        let wait = BEAT_US.saturating_sub(at.saturating_sub(sent_at));
        match self.first_us.saturating_sub(self.now_us(at)) {
            0 => wait,
            first => wait.min(first),
        }
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
        self.quotas.note(ask, at);
        let now_us = self.now_us(at);
        let nothing = |retry_at_us| {
            let reply = scale::nothing(ask, now_us, retry_at_us);
            Plan::Answer(Reply { epoch_us: self.epoch_us, lost: self.past_lost, ..reply })
        };
        match self.mode(at) {
            Mode::Unknown => Plan::Unknown,
            Mode::Shared if !self.is_settled() => nothing(self.first_us.max(now_us + GRANT_LIFE_US)),
            Mode::Shared => {
                let nobody = Census::default();
                let census = self.view.as_ref().map_or(&nobody, |v| &v.census);
                let all = census.lost == 0 && census.gone.is_empty() && !self.quotas.unread;
                let mut scaled = match all {
                    true => Scaled::whole(ask),
                    false => Scaled::new(ask, now_us, |b| {
                        let open = !self.quotas.unread || knows_all(b.kind, census.since_us, now_us);
                        open.then(|| scale::shared(b.kind, census.without(b.kind, now_us)))
                    }),
                };
                if self.quotas.older_us > 0 {
                    // The store had more of an older state than this one knows.
                    scaled.ask.epoch_us = self.quotas.older_us;
                }
                Plan::Shared(scaled)
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
        self.epoch_known = self.view.as_ref().is_some_and(|v| v.census.since_us <= reply.now_us);
        self.clock = Some((reply.now_us, at));
        self.saw_us = self.saw_us.max(reply.now_us);
    }

    fn grant_alone(&mut self, ask: &Ask, now_us: u64, at: u64) -> Result<Reply, LimiterError> {
        if self.alone.is_none() {
            let alone = self.begin_alone(now_us, at)?;
            self.alone = Some(alone);
        }
        let (levels, Some(alone)) = (&self.quotas.levels, &mut self.alone) else {
            return Ok(scale::nothing(ask, now_us, now_us));
        };
        let mut scaled = Scaled::new(ask, now_us, |bucket| match bucket.kind {
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
        Ok(scaled.reply(reply, AGAIN_ALONE_US))
    }

    /// Local buckets start empty.
    fn begin_alone(&self, now_us: u64, at: u64) -> Result<Alone, LimiterError> {
        let mut state = rules::State::new();
        rules::decide(&mut state, &Ask::default(), now_us)?;
        let gap_us = now_us.saturating_sub(self.quotas.levels.now_us) + GRANT_LIFE_US;
        let levels = &self.quotas.levels;
        let unseen = |(key, asked): (&Arc<str>, &Asked)| {
            levels.slots.get(key)?;
            Some((key.clone(), asked.unseen(levels, gap_us, now_us).unwrap_or(u64::MAX)))
        };
        Ok(Alone {
            state,
            since_us: now_us,
            over_us: now_us + self.over_at().saturating_sub(at),
            share: self.share(),
            unseen: self.quotas.windows.iter().filter_map(unseen).collect(),
            used: HashMap::new(),
            last_date_us: now_us,
        })
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
        let epoch_us = self.sure_epoch_us;
        self.past().map_or_else(|| self.beat(at), |past| Step::Seed { past, epoch_us })
    }

    fn beat(&mut self, at: u64) -> Step {
        self.beat_at = at;
        self.beat_epoch_us = if self.epoch_known { self.epoch_us } else { 0 };
        let older = self.quotas.in_beat();
        let known = self.view.as_ref().map(|v| &v.census);
        // Back from being alone it goes by nothing before it is told.
        let over = self.view.is_some() && at >= self.over_at();
        let believes = if self.returning || over { 0 } else { self.share() };
        Step::Beat(Beat {
            worker: self.worker.clone(),
            life_us: LIFE_US,
            away_us: self.away_us,
            expected_us: self.now_us(at),
            late_us: LATE_US,
            since_us: older.map_or_else(|| known.map_or(0, |c| c.since_us), |(since_us, _)| since_us),
            believes,
            version: known.map_or(0, |c| c.version),
            saw_us: older.map_or(self.saw_us, |(_, saw_us)| saw_us),
            stale: over || older.is_some(),
            members: known.map(|c| c.members.clone()).unwrap_or_default(),
        })
    }

    /// What became of a beat that was sent at `sent_at`; `None`: no answer.
    pub(super) fn beaten(&mut self, answer: Option<Census>, sent_at: u64, at: u64) {
        self.quotas.beaten(answer.as_ref().is_some_and(|census| !census.late));
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
            self.quotas.lost();
            self.past_lost = true;
        }
        let since_us = self.view.as_ref().map_or(0, |v| v.census.since_us);
        if let Some(before) = self.view.take()
            && before.census.version == census.version
            && before.census.since_us == census.since_us
            && census.members.is_empty()
        {
            census.members = before.census.members;
        }
        (self.probing, self.returning) = (false, false);
        let same = since_us == census.since_us;
        self.sure_epoch_us = if same { self.beat_epoch_us } else { 0 };
        self.epoch_known &= same;
        self.past_lost |= self.quotas.compare(census.since_us);
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
            true => {
                self.quotas.settled_us = self.clock.map_or(0, |(now_us, _)| now_us);
                self.alone = None;
            }
            false => (self.probing, self.returning) = (true, false),
        }
    }
}

impl Census {
    /// What those who see each other leave out of such a limit.
    pub(super) fn without(&self, kind: Kind, now_us: u64) -> u64 {
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
                continue;
            }
            if owed == 0 {
                continue;
            }
            // One more, for what the others round down when they take the share back.
            let spent_here = match bucket.kind {
                Kind::Window { length_us, .. } => {
                    let mut slots: BTreeMap<u64, u64> = self.state.slots_of(key).into_iter().collect();
                    *slots.entry(now_us / slot_width(length_us)).or_default() += 1;
                    Spent::Slots(slots.into_iter().collect())
                }
                Kind::Rate { .. } | Kind::Slots { .. } => Spent::Now(owed + 1),
            };
            // Who else is missing is not known yet: of a burst that nobody has used meanwhile no more is left than if all were,
            // and what was granted is missing of that.
            let kind = match bucket.kind {
                Kind::Rate { .. } => scale::shared(bucket.kind, WHOLE.saturating_sub(self.share)),
                kind => kind,
            };
            spent.push((BucketSpec { kind, ..bucket.clone() }, spent_here));
        }
        Step::Settle { held, spent, epoch_us }
    }
}
