//! `[[destination]]`, `[tail]`, and the limits by tenant, sender and recipient.

use std::collections::HashSet;

use paceline_classifier::{DestinationSpec, Destinations, Preset, presets};
use paceline_core::{Domain, Rate};

use super::{section::Section, values};

/// A rate with its burst, both in recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub rate: Rate,
    pub burst: u32,
}

/// One `[[destination]]`, or a shipped preset with what configuration changes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    pub name: String,
    pub domains: Vec<Domain>,
    /// Per account. `None`: only the account's own.
    pub limit: Option<Limit>,
    /// Ceiling of the adaptive rate; `limit`'s rate unless given.
    pub max_rate: Option<Rate>,
    /// Where it begins for an account that warms up.
    pub warmup_start: Option<Rate>,
    /// Over all accounts together.
    pub fleet: Option<Limit>,
    /// Windows never exceeded, per account.
    pub quota: Vec<Rate>,
    /// Calls at a time from all workers, per account.
    pub concurrency: Option<u32>,
}

/// One `[[tenant]]`, `[[sender]]`, or `[recipient]`: a rate, or windows, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedLimit {
    /// The tenant's name, the sender's domain or address; empty for `[recipient]`.
    pub name: String,
    pub limit: Option<Limit>,
    pub quota: Vec<Rate>,
    /// Of a tenant: what its turn is worth beside others of its class.
    pub weight: u32,
}

/// `rate_key` with `burst_key`; `default` where the rate is not given. The burst defaults to one second of the rate.
pub(super) fn limit(s: &Section<'_>, rate_key: &str, burst_key: &str, default: Option<Limit>) -> Option<Limit> {
    let rate = s.get(rate_key, values::rate);
    let burst = s.get(burst_key, values::integer32(1, 10_000_000));
    if burst.is_some() && rate.is_none() && default.is_none() && !s.has(rate_key) {
        s.report(burst_key, format!("has no effect without `{rate_key}`"));
    }
    match rate {
        Some(rate) => Some(Limit { rate, burst: burst.unwrap_or(rate.one_second()) }),
        None => default.map(|d| Limit { burst: burst.unwrap_or(d.burst), ..d }),
    }
}

/// `max_rate`: the ceiling of the adaptive rate, no less than the rate.
pub(super) fn max_rate(s: &Section<'_>, limit: Option<Limit>) -> Option<Rate> {
    let max = s.get("max_rate", values::rate)?;
    match limit {
        Some(limit) if max.interval_us() > limit.rate.interval_us() => {
            s.report("max_rate", format!("is less than rate = \"{}\"", limit.rate));
        }
        None if !s.has("rate") => s.report("max_rate", "has no effect without `rate`"),
        _ => {}
    }
    Some(max)
}

/// `quota`: windows, each with a unit of time of its own.
pub(super) fn quota(s: &Section<'_>) -> Vec<Rate> {
    let quota = s.list("quota", values::quota).unwrap_or_default();
    for (i, window) in quota.iter().enumerate() {
        if quota[..i].iter().any(|other| other.unit() == window.unit()) {
            s.report_element("quota", i, format!("is a second window of one {}; give the smaller one", window.unit()));
        }
    }
    quota
}

/// What each domain that no destination names gets.
pub(super) fn tail(s: &Section<'_>) -> Limit {
    let rate = s.get("rate", values::rate);
    let burst = s.or("burst", 20, values::integer32(1, 10_000_000));
    Limit { rate: rate.unwrap_or_else(tail_rate), burst }
}

fn tail_rate() -> Rate {
    // "300/h" always parses; the other branch is slower still.
    "300/h".parse().unwrap_or(Rate::per_second(1))
}

/// Configured destinations, completed from the presets of the same name, then the presets nobody configured, without
/// the domains that configuration claims.
pub(super) fn destinations(sections: Vec<Section<'_>>, with_presets: bool) -> (Vec<Destination>, Destinations) {
    let shipped: &[Preset] = if with_presets { &presets::ALL } else { &[] };
    let mut out: Vec<Destination> = vec![];
    // The sections `out` came from, and which of those leave their domains to the preset.
    let (mut places, mut inherits) = (vec![], vec![]);
    for s in sections {
        match destination(&s, shipped) {
            Some(destination) => {
                inherits.push(!s.has("domains"));
                out.push(destination);
                places.push(s);
            }
            None => s.finish(),
        }
    }
    // What configuration claims by name is taken away from any preset.
    let claims = out.iter().zip(&inherits).filter(|(_, inherits)| !**inherits).flat_map(|(d, _)| d.domains.clone());
    let claimed: HashSet<Domain> = claims.collect();
    for (destination, _) in out.iter_mut().zip(&inherits).filter(|(_, inherits)| **inherits) {
        destination.domains.retain(|d| !claimed.contains(d));
    }
    for preset in shipped.iter().filter(|p| !places.iter().any(|s| s.is("name", p.name))) {
        let domains: Vec<_> = domains_of(preset).filter(|d| !claimed.contains(d)).collect();
        if !domains.is_empty() {
            out.push(Destination {
                name: preset.name.into(),
                domains,
                limit: Some(limit_of(preset)),
                max_rate: None,
                warmup_start: None,
                fleet: None,
                quota: vec![],
                concurrency: None,
            });
        }
    }
    let specs = out.iter().map(|d| DestinationSpec { name: d.name.clone(), domains: d.domains.clone() }).collect();
    let checked = match Destinations::new(specs) {
        Ok(checked) => checked,
        Err(bad) => {
            for p in bad.0 {
                // Presets alone are never at fault: a test says so.
                let Some(s) = places.get(p.spec) else { continue };
                match p.domain {
                    Some(index) if s.has("domains") => s.report_element("domains", index, p.problem),
                    _ => s.report("name", p.problem),
                }
            }
            Destinations::default()
        }
    };
    places.iter().for_each(Section::finish);
    (out, checked)
}

fn destination(s: &Section<'_>, shipped: &[Preset]) -> Option<Destination> {
    let name = s.need("name", values::text);
    let preset = name.as_ref().and_then(|name| shipped.iter().find(|p| p.name == name));
    let domains = s.filled_list("domains", values::domain);
    let limit = limit(s, "rate", "burst", preset.map(limit_of));
    let max_rate = max_rate(s, limit);
    let warmup_start = s.get("warmup_start", values::rate);
    let fleet = self::limit(s, "fleet_rate", "fleet_burst", None);
    let quota = quota(s);
    let concurrency = s.get("concurrency", values::integer32(1, 10_000));
    if name.is_some() && preset.is_none() && !s.has("domains") {
        s.report("domains", "is missing");
        return None;
    }
    if domains.as_ref().is_some_and(Vec::is_empty) {
        // None given, or every one of them wrong: reported already.
        return None;
    }
    let domains = domains.or_else(|| preset.map(|p| domains_of(p).collect()))?;
    Some(Destination { name: name?, domains, limit, max_rate, warmup_start, fleet, quota, concurrency })
}

fn domains_of(preset: &Preset) -> impl Iterator<Item = Domain> + use<> {
    // All of them parse: a test of the classifier says so.
    preset.domains.iter().filter_map(|d| Domain::parse(d).ok())
}

fn limit_of(preset: &Preset) -> Limit {
    Limit { rate: preset.rate, burst: preset.rate.one_second() }
}

/// `[[tenant]]` and `[[sender]]`.
pub(super) fn named(sections: Vec<Section<'_>>, by_address: bool) -> Vec<NamedLimit> {
    let mut out: Vec<NamedLimit> = vec![];
    for s in sections {
        let name = s.need("name", if by_address { values::sender } else { values::line });
        // Only tenants have turns of their own.
        let weight = if by_address { None } else { s.get("weight", values::integer32(1, 1_000)) };
        let (limit, quota) =
            if s.has("weight") && !by_address { (self::limit(&s, "rate", "burst", None), quota(&s)) } else { rate_or_quota(&s) };
        if let Some(name) = name {
            // As mail is matched: in whatever letters.
            if out.iter().any(|o| o.name.to_lowercase() == name.to_lowercase()) {
                s.report("name", "is named twice");
            }
            out.push(NamedLimit { name, limit, quota, weight: weight.unwrap_or(1) });
        }
        s.finish();
    }
    out
}

/// `[recipient]`
pub(super) fn recipient(s: &Section<'_>) -> Option<NamedLimit> {
    if !s.given() {
        return None;
    }
    let (limit, quota) = rate_or_quota(s);
    Some(NamedLimit { name: String::new(), limit, quota, weight: 1 })
}

fn rate_or_quota(s: &Section<'_>) -> (Option<Limit>, Vec<Rate>) {
    let found = (limit(s, "rate", "burst", None), quota(s));
    if !s.has("rate") && !s.has("quota") {
        s.report("rate", "is missing; give a rate, a quota or both");
    }
    found
}
