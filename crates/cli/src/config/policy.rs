//! `[retry]`, `[circuit]`, `[dedup]`, `[suppression]`: what happens after an attempt.

use std::time::Duration;

use paceline_core::{Class, Policy, RetryPolicy, circuit::CircuitPolicy};

use super::{section::Section, values};

const DAY: Duration = Duration::from_secs(86_400);
/// What a circuit looks back on is kept second by second.
const WINDOW_MOST: Duration = Duration::from_secs(600);
const MS: Duration = Duration::from_millis(1);

/// `[dedup]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupConfig {
    /// How long an id is remembered.
    pub window: Duration,
}

/// `[suppression]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuppressionConfig {
    /// Recipients that a provider refuses for good are listed.
    pub auto: bool,
    /// Refusals with a temporary reply code within 30 days that make an entry.
    pub repeats: u32,
    pub critical_through_soft: bool,
}

/// What `[retry]` or `[retry.<class>]` gives.
struct Given {
    attempts: Option<u32>,
    base: Option<Duration>,
    max: Option<Duration>,
    max_age: Option<Duration>,
}

impl Given {
    fn read(s: &Section<'_>) -> Given {
        Given {
            attempts: s.get("attempts", values::integer32(1, 100)),
            base: s.get("base", values::duration(MS, 7 * DAY)),
            max: s.get("max", values::duration(MS, 7 * DAY)),
            max_age: s.get("max_age", values::duration(Duration::from_secs(1), 365 * DAY)),
        }
    }
}

/// `[retry.<class>]` comes first, then `[retry]`, then the built-in figures; but the built-in figures of a class stay
/// where they are shorter than what `[retry]` says, so that a longer base for all does not slow password resets.
pub(super) fn retry(s: &Section<'_>) -> Policy {
    let general = Given::read(s);
    let built_in = Policy::default();
    let plain = built_in.of(Class::Normal);
    let shorter = |own: Duration, usual: Duration, all: Option<Duration>| match all {
        None => own,
        Some(all) if own == usual => all,
        Some(all) => all.min(own),
    };
    let policies = Class::ALL.map(|class| {
        let section = s.section(class.as_str());
        let own = Given::read(&section);
        let d = built_in.of(class);
        let policy = RetryPolicy {
            attempts: own.attempts.or(general.attempts).unwrap_or(d.attempts),
            base: own.base.unwrap_or_else(|| shorter(d.base, plain.base, general.base)),
            max: own.max.unwrap_or_else(|| shorter(d.max, plain.max, general.max)),
            max_age: own.max_age.unwrap_or_else(|| shorter(d.max_age, plain.max_age, general.max_age)),
        };
        if policy.base > policy.max {
            let (base, max) = (values::show_duration(policy.base), values::show_duration(policy.max));
            let long_base = format!("\"{base}\" is longer than max = \"{max}\" of class {class}");
            let short_max = format!("\"{max}\" is shorter than base = \"{base}\" of class {class}");
            // What stems from [retry] is said once, for the class that has no figures of its own.
            let plain = class == Class::Normal;
            match () {
                () if section.has("base") => section.report("base", long_base),
                () if section.has("max") => section.report("max", short_max),
                () if plain && general.base.is_some() => s.report("base", long_base),
                () if plain => s.report("max", short_max),
                () => {}
            }
        }
        section.finish();
        policy
    });
    Policy::new(policies)
}

pub(super) fn circuit(s: &Section<'_>) -> CircuitPolicy {
    let time = |most| values::duration(Duration::from_secs(1), most);
    CircuitPolicy {
        rejection_rate: s.or("rejection_rate", 0.2, values::number(0.01, 1.0)),
        window: s.or("window", Duration::from_secs(60), time(WINDOW_MOST)),
        open: s.or("open", Duration::from_secs(30), time(DAY)),
        min_samples: s.or("min_samples", 20, values::integer32(1, 1_000_000)),
    }
}

pub(super) fn dedup(s: &Section<'_>) -> DedupConfig {
    DedupConfig { window: s.or("window", DAY, values::duration(Duration::from_secs(60), 30 * DAY)) }
}

pub(super) fn suppression(s: &Section<'_>) -> SuppressionConfig {
    SuppressionConfig {
        auto: s.or("auto", true, values::boolean),
        repeats: s.or("repeats", 3, values::integer32(1, 1000)),
        critical_through_soft: s.or("critical_through_soft", false, values::boolean),
    }
}
