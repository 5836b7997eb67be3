//! What a worker knows of quotas, for the day the shared limiter has lost it: what it saw last, or what the store has kept.
//! Pure, as `guard`.

use std::{collections::HashMap, sync::Arc};

use super::{
    book::WHOLE,
    guard::{FIRST_US, Guard},
    memory::Kept,
    scale::{counted, part},
};
use crate::{Ask, BucketSpec, GRANT_LIFE_US, Kind, Seed, bucket::slot_width};

/// Windows looked at, and for how long after a lane last asked about them.
const WINDOWS: usize = 256;
const WINDOW_LIFE_US: u64 = 300_000_000;
/// A message may be charged more than a burst at once: what others did unseen.
const LARGEST: u64 = 64;
/// What is kept is no older than this, half as much again for what workers granted by themselves.
pub(super) const KEPT_US: u64 = 15_000_000;
/// A window that says it has granted so much does not know.
const LOST: u64 = 1_000_000_000_000;

/// A window, and whose grants: [`Kept::by`].
pub(super) type Row = (Arc<str>, Option<Arc<str>>);

/// What the shared limiter's windows had granted.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels {
    pub(super) now_us: u64,
    /// Of the state that began then.
    pub(super) since_us: u64,
    /// They are from the store, where what was told just then may be in two rows: what they leave of a limit is not known.
    pub(super) kept: bool,
    pub(super) slots: HashMap<Arc<str>, Vec<(u64, u64)>>,
    /// Of each the limit in force, as far as it is known.
    pub(super) limits: HashMap<Arc<str>, u64>,
    /// Of each what those may have used and not told by then who were not heard of.
    pub(super) untold: HashMap<Arc<str>, u64>,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) spec: BucketSpec,
    /// How fast the account can spend it: interval and burst; unknown where several accounts do.
    pub(super) rate: Option<(u64, u64)>,
    at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// Windows that lanes ask about.
    pub(super) windows: HashMap<Arc<str>, Asked>,
    pub(super) levels: Levels,
    /// What was last seen of windows in a state that is lost, until the one after it is told; and how often that failed.
    remembered: Option<(Levels, u32)>,
    /// There is a store, and it has not been read yet.
    pub(super) unread: bool,
    /// What it had, until it is clear whether the limiter has lost it.
    kept: Option<Levels>,
    /// A state that the limiter has lost and only the store knows: when it began, or 0.
    pub(super) older_us: u64,
    /// The same with until when it may have been in use, to be said in a heartbeat; and whether one that says so is under way.
    pub(super) recalled: Option<(u64, u64)>,
    recalling: bool,
    /// What the store has of this worker's making, by window and by whose grants they are.
    saved: HashMap<Row, Vec<(u64, u64)>>,
    /// When the limiter was last told what this worker had granted by itself.
    pub(super) settled_us: u64,
}

impl Quotas {
    /// Which windows to look at, and who can spend them.
    pub(super) fn note(&mut self, ask: &Ask, at: u64) {
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

    /// The limiter has lost the state it was seen in.
    pub(super) fn lost(&mut self) {
        let levels = std::mem::take(&mut self.levels);
        self.remembered = (levels.now_us > 0).then_some((levels, 0));
    }

    /// What a heartbeat says of an older state.
    pub(super) fn in_beat(&mut self) -> Option<(u64, u64)> {
        self.recalling = self.recalled.is_some();
        self.recalled
    }

    /// It has an answer, or none.
    pub(super) fn beaten(&mut self, answered: bool) {
        if std::mem::take(&mut self.recalling) && answered {
            self.recalled = None;
        }
    }

    /// Whether the limiter's state is younger than the one that the store knows.
    pub(super) fn compare(&mut self, since_us: u64) -> bool {
        match self.kept.take() {
            Some(kept) if kept.since_us < since_us => {
                self.older_us = kept.since_us;
                self.recalled = Some((kept.since_us, kept.now_us + KEPT_US));
                self.remembered.get_or_insert((kept, 0));
                true
            }
            _ => false,
        }
    }

    /// What the store had, in one.
    fn read(&mut self, kept: Vec<Kept>) {
        self.unread = false;
        let mut levels = Levels { kept: true, ..Levels::default() };
        for row in kept {
            levels.now_us = levels.now_us.max(row.at_us);
            levels.since_us = levels.since_us.max(row.since_us);
            levels.slots.entry(row.window.key.clone()).or_default().extend(&row.slots);
            let fresh = Asked { rate: row.rate, spec: row.window, at: 0 };
            self.windows.entry(fresh.spec.key.clone()).or_insert(fresh);
        }
        self.kept = (levels.now_us > 0).then_some(levels);
    }

    fn kept(&self, key: &Arc<str>, by: Option<Arc<str>>, slots: Vec<(u64, u64)>, at_us: u64, since_us: u64) -> Option<Kept> {
        let known = self.saved.get(&(key.clone(), by.clone()));
        let changed = known.map_or(!slots.is_empty(), |saved| *saved != slots);
        let asked = self.windows.get(key).filter(|_| changed && slots.iter().all(|(_, cost)| *cost < LOST))?;
        Some(Kept { window: asked.spec.clone(), rate: asked.rate, by, slots, at_us, since_us })
    }
}

impl Guard {
    /// There is a store that knows more, and will be read.
    pub(super) fn remembers(&mut self) {
        self.quotas.unread = true;
    }

    #[cfg(test)]
    pub(super) fn unread(&self) -> bool {
        self.quotas.unread
    }

    /// The store has been read.
    pub(super) fn recall(&mut self, kept: Vec<Kept>) {
        self.quotas.read(kept);
        if let Some(view) = &self.view {
            self.past_lost |= self.quotas.compare(view.census.since_us);
        }
    }

    /// The windows to look at, those of whole lanes first.
    pub(super) fn windows(&self) -> Vec<BucketSpec> {
        let mut windows: Vec<&Asked> = self.quotas.windows.values().collect();
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
        if current && levels.now_us >= self.quotas.levels.now_us {
            let census = self.view.as_ref().map(|v| &v.census);
            let untold = |(key, asked): (&Arc<str>, &Asked)| {
                let Kind::Window { limit, .. } = asked.spec.kind else { return None };
                let limit = limit.max(levels.limits.get(key).copied().unwrap_or(0));
                Some((key.clone(), part(limit, census?.without(asked.spec.kind, levels.now_us), 2 * WHOLE)))
            };
            levels.untold = self.quotas.windows.iter().filter_map(untold).collect();
            self.quotas.levels = levels;
        }
    }

    /// What to tell a limiter that has lost its state, once all who knew it are back or have had the time to be: what
    /// this worker saw last of each window, or the store had of it, and what anybody may have been granted of it after that.
    pub(super) fn past(&self) -> Option<Vec<Seed>> {
        let ((levels, _), census) = (self.quotas.remembered.as_ref()?, &self.view.as_ref()?.census);
        // Of one that is not back nobody knows for how long it saw the limiter.
        let (last_us, wait_us) = match census.untold {
            0 => (census.saw_us, FIRST_US),
            _ => (census.since_us, 3 * FIRST_US),
        };
        if self.sure_epoch_us == 0 || self.quotas.recalled.is_some() || census.now_us < census.since_us + wait_us {
            return None;
        }
        let gap_us = last_us.saturating_sub(levels.now_us) + GRANT_LIFE_US;
        let seed = |(key, slots): (&Arc<str>, &Vec<(u64, u64)>)| {
            let asked = self.quotas.windows.get(key)?;
            let Kind::Window { length_us, .. } = asked.spec.kind else { return None };
            let most = asked.unseen(levels, gap_us, last_us)?;
            let spent = slots.iter().map(|(slot, cost)| (slot * slot_width(length_us), *cost));
            // The last answer may have dated grants ahead.
            let spent = spent.chain([(last_us + GRANT_LIFE_US, most)]).collect();
            Some(Seed { window: asked.spec.clone(), spent })
        };
        Some(levels.slots.iter().filter_map(seed).collect())
    }

    /// The limiter has been told, or could not be.
    pub(super) fn seeded(&mut self, told: bool) {
        match &mut self.quotas.remembered {
            Some((_, failed)) if !told && *failed < 3 => (*failed, self.probing) = (*failed + 1, true),
            _ => self.quotas.remembered = None,
        }
    }

    /// What the store does not have yet: what the limiter's windows were last seen to have granted, and what this worker has
    /// granted of them by itself.
    pub(super) fn unsaved(&self, at: u64) -> Vec<Kept> {
        let (Some(view), quotas) = (&self.view, &self.quotas) else { return Vec::new() };
        if quotas.unread || quotas.recalled.is_some() {
            return Vec::new();
        }
        let levels = &quotas.levels;
        let shared = levels.slots.iter().filter(|_| levels.since_us == view.census.since_us);
        let mut rows: Vec<Kept> =
            shared.filter_map(|(key, slots)| quotas.kept(key, None, slots.clone(), levels.now_us, levels.since_us)).collect();
        if let Some(alone) = &self.alone {
            let by: Arc<str> = format!("{}@{}", self.worker, alone.since_us).into();
            let own = |key| quotas.kept(key, Some(by.clone()), alone.state.slots_of(key), self.now_us(at), view.census.since_us);
            rows.extend(alone.used.keys().filter_map(own));
        } else if levels.now_us > quotas.settled_us {
            // By now it is part of what all have granted.
            let own = quotas.saved.keys().filter_map(|(key, by)| Some((key, by.clone()?)));
            rows.extend(own.filter_map(|(key, by)| quotas.kept(key, Some(by), vec![], levels.now_us, view.census.since_us)));
        }
        rows
    }

    /// The store has these now.
    pub(super) fn saved(&mut self, rows: Vec<Kept>) {
        for Kept { window, by, slots, .. } in rows {
            match by.is_some() && slots.is_empty() {
                true => drop(self.quotas.saved.remove(&(window.key, by))),
                false => drop(self.quotas.saved.insert((window.key, by), slots)),
            }
        }
        if self.quotas.saved.len() > 4 * WINDOWS {
            // Written once more where it is still in use.
            self.quotas.saved.retain(|(_, by), _| by.is_some());
        }
    }
}

impl Asked {
    /// What may have been granted of it after `levels` were seen, or told after that, and still counts at `until_us`: what the
    /// account's rate gives in `gap_us`, and what those had untold who were not heard of; but no more than the window had
    /// left or has got back since. `None`: nobody knows.
    pub(super) fn unseen(&self, levels: &Levels, gap_us: u64, until_us: u64) -> Option<u64> {
        let (interval_us, burst) = self.rate?;
        let Kind::Window { length_us, limit, .. } = self.spec.kind else { return None };
        let of = |known: &HashMap<_, _>| known.get(&self.spec.key).copied().unwrap_or(0);
        let most = gap_us / interval_us.max(1) + burst.max(LARGEST) + of(&levels.untold);
        // What counts two slots later than that counted beside each of them. What is lost may have been told meanwhile.
        let slots = levels.slots.get(&self.spec.key)?.iter().copied().filter(|(_, cost)| *cost < LOST);
        let beside = match levels.kept {
            true => 0,
            false => counted(&slots.collect::<Vec<_>>(), length_us, until_us + 2 * slot_width(length_us)),
        };
        Some(most.min(limit.max(of(&levels.limits)).saturating_sub(beside)))
    }
}

/// Whether a state that began at `since_us` knows all that counts of such a limit.
pub(super) fn knows_all(kind: Kind, since_us: u64, now_us: u64) -> bool {
    match kind {
        Kind::Window { length_us, .. } => since_us + length_us + slot_width(length_us) <= now_us,
        Kind::Rate { .. } | Kind::Slots { .. } => true,
    }
}

/// What others granted unseen counts until a window's length has passed since they noticed.
pub(super) fn unseen_left(unseen: u64, bucket: &BucketSpec, since_us: u64, now_us: u64) -> u64 {
    match bucket.kind {
        Kind::Window { length_us, .. } if now_us > since_us + length_us + 2 * slot_width(length_us) => 0,
        _ => unseen,
    }
}
