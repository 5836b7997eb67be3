//! The two things a worker takes from the world beside its services: the time of day, and chance.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use paceline_core::Timestamp;
use tokio::time::Instant;

/// Time of day and chance.
#[derive(Debug, Default)]
pub struct World(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Real,
    /// Follows tokio's time, so that it obeys paused time; the same seed gives the same chances.
    Simulated { start: Timestamp, since: Instant, chance: AtomicU64 },
}

impl World {
    /// A world that begins at `start` and goes on with tokio's time; its chances follow from `seed`.
    pub fn simulated(start: Timestamp, seed: u64) -> World {
        World(Kind::Simulated { start, since: Instant::now(), chance: AtomicU64::new(seed) })
    }

    pub(crate) fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::Real => SystemTime::now().into(),
            Kind::Simulated { start, since, .. } => *start + since.elapsed(),
        }
    }

    /// Uniform in [0, 1).
    pub(crate) fn chance(&self) -> f64 {
        match &self.0 {
            Kind::Real => rand::random(),
            Kind::Simulated { chance, .. } => {
                // splitmix64
                let mut z = chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
            }
        }
    }
}
