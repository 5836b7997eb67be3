//! Which limits a worker is configured to, as a digest: workers of one fleet that say the same have the same.
//!
//! The limiter lets the newest of the fleet's configurations hold (see `paceline_limiter::fleet`). Only what makes limits
//! counts: another address of a service or another number of connections makes no configuration newer.

use std::{fmt::Write, sync::Arc};

use xxhash_rust::xxh3::xxh3_128;

use crate::{limits::Rates, settings::Settings};

/// The digest of everything in `settings` that limits are made of, with the rates that operators have `ordered` in place; names are in it only as part of the digest.
pub(crate) fn digest(settings: &Settings, ordered: &Rates) -> Arc<str> {
    let Settings { accounts, destinations, tail, tenants, senders, recipient, reserve, quota_reserve, .. } = settings;
    let mut lines: Vec<String> = Vec::new();
    for a in accounts {
        lines.push(format!("account {:?} {:?} {:?} {:?}", a.name, a.limit, a.quota, a.fleet_concurrency));
    }
    for d in destinations {
        lines.push(format!("destination {:?} {:?} {:?} {:?} {:?}", d.name, d.limit, d.fleet, d.quota, d.concurrency));
    }
    for (kind, named) in [("tenant", tenants), ("sender", senders)] {
        let line = |n: &crate::Named| format!("{kind} {:?} {:?} {:?}", n.name.to_lowercase(), n.limit, n.quota);
        lines.extend(named.iter().map(line));
    }
    // The order in a file makes no difference.
    lines.sort_unstable();
    let mut text = lines.join("\n");
    let recipient = recipient.as_ref().map(|r| (&r.limit, &r.quota));
    // Writing into a string cannot fail.
    for (name, rate) in ordered.of_pairs() {
        let _ = write!(text, "\n{name} {rate}");
    }
    let _ = write!(text, "\n{tail:?} {recipient:?} {reserve:?} {quota_reserve:?}");
    format!("{:032x}", xxh3_128(text.as_bytes())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limit, Named, limits::tests::settings};

    #[test]
    fn limits_make_the_digest_and_nothing_else_does() {
        let base = digest(&settings(), &Rates::new());
        assert_eq!(base, digest(&settings(), &Rates::new()));
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            digest(&settings, &Rates::new())
        };
        assert_eq!(base, with(&|s| s.accounts.reverse()));
        assert_eq!(base, with(&|s| s.worker_id = "another".into()));
        assert_eq!(base, with(&|s| s.concurrency += 1));
        let limit = Some(Limit { rate: "7/h".parse().unwrap(), burst: 3 });
        let changes: [&dyn Fn(&mut Settings); 7] = [
            &|s| s.accounts[0].limit = limit,
            &|s| s.accounts[0].quota.push("9/d".parse().unwrap()),
            &|s| s.accounts[0].fleet_concurrency = Some(3),
            &|s| s.destinations[0].fleet = limit,
            &|s| s.tail.burst += 1,
            &|s| s.tenants.push(Named { name: "x".into(), limit, quota: vec![] }),
            &|s| s.reserve += 0.1,
        ];
        let ordered = [("destination:google".parse().unwrap(), "1/s".parse().unwrap())].into_iter().collect();
        let mut seen = vec![base, digest(&settings(), &ordered)];
        assert_ne!(seen[0], seen[1]);
        for change in changes {
            let digest = with(change);
            assert!(!seen.contains(&digest));
            seen.push(digest);
        }
    }
}
