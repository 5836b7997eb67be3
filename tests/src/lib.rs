//! The harness of the scenarios in `tests/`: a whole fleet of `paceline` processes on private services, a sandbox in
//! place of the provider, load, and what checks the bounds.
//!
//! Every scenario has two sizes. The small one runs with all other tests and asserts what must hold on any machine:
//! completeness, order, bounds, never the time something took. With `PACELINE_ACCEPTANCE=full` the scenario has the
//! size that the acceptance criteria name and asserts the timings too; `ops/acceptance` runs it so, built for release.
//! `docs/acceptance.md` says what each measures and how.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a harness has nobody to hand an error to, and prints its figures")]

pub mod arrivals;
pub mod embedded;
pub mod events;
pub mod fleet;
pub mod hostile;
pub mod load;
pub mod pod;
pub mod report;
pub mod schema;
pub mod windows;

use std::time::{Duration, SystemTime};

pub use embedded::Embedded;
pub use fleet::{Fleet, Plan};
pub use load::{Mail, publish};
pub use pod::Pod;
pub use report::Report;

/// Whether the sizes and timings of the acceptance criteria are wanted.
pub fn full() -> bool {
    std::env::var("PACELINE_ACCEPTANCE").is_ok_and(|value| value == "full")
}

/// One of two, by [`full`].
pub fn sized<T>(small: T, full_size: T) -> T {
    if full() { full_size } else { small }
}

/// Now, in microseconds of the Unix epoch: the scale of arrivals and grants.
pub fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

/// The value below which `share` of the values lie; 0 of none.
pub fn percentile(values: &[u64], share: f64) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Waits until `true`.
///
/// # Panics
/// When it is not within `at_most`.
pub async fn until(what: &str, at_most: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + at_most;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {at_most:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
