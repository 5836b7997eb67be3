//! Rates that operators have set in place of the configured ones.

use std::collections::HashMap;

use paceline_core::{LimitName, Rate, lane::TAIL};

use crate::settings::{Destination, Limit, Named, Settings};

/// By the name of the limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates(HashMap<LimitName, Rate>);

impl FromIterator<(LimitName, Rate)> for Rates {
    fn from_iter<T: IntoIterator<Item = (LimitName, Rate)>>(rates: T) -> Rates {
        Rates(rates.into_iter().collect())
    }
}

impl Rates {
    pub(crate) fn new() -> Rates {
        Rates::default()
    }

    /// Of single accounts at destinations: what [`Rates::over`] leaves out, in one order.
    pub(crate) fn of_pairs(&self) -> Vec<(&LimitName, Rate)> {
        let apart = |name: &LimitName| matches!(name, LimitName::Pair { .. } | LimitName::Destination(_));
        let mut pairs: Vec<_> = self.0.iter().filter(|(name, _)| apart(name)).map(|(name, rate)| (name, *rate)).collect();
        pairs.sort_unstable_by(|a, b| a.0.cmp(b.0));
        pairs
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn of_account(&self, account: &str) -> Option<Rate> {
        self.of(LimitName::Account(account.to_owned()))
    }

    /// Of the destination through the account, or each domain of the tail: what is said of the two of them comes first.
    pub(crate) fn of_pair(&self, account: &str, destination: &str) -> Option<Rate> {
        if destination == TAIL {
            return self.of(LimitName::Tail);
        }
        let pair = LimitName::Pair { account: account.to_owned(), destination: destination.to_owned() };
        self.of(pair).or_else(|| self.of(LimitName::Destination(destination.to_owned())))
    }

    fn of(&self, name: LimitName) -> Option<Rate> {
        if self.0.is_empty() { None } else { self.0.get(&name).copied() }
    }

    /// The destination as it is through the account.
    pub(crate) fn destination(&self, account: &str, of: &Destination) -> Destination {
        let ordered = self.of_pair(account, &of.name);
        let max_rate = of.max_rate.filter(|_| ordered.is_none());
        Destination { limit: instead(of.limit, ordered), max_rate, ..of.clone() }
    }

    /// The settings with all rates in place, but for those of destinations by account. What is ordered is the ceiling of
    /// what may be learnt, too.
    pub(crate) fn over(&self, settings: &Settings) -> Settings {
        let mut all = settings.clone();
        for account in &mut all.accounts {
            let ordered = self.of_account(&account.name);
            account.max_rate = account.max_rate.filter(|_| ordered.is_none());
            account.limit = instead(account.limit, ordered);
        }
        for destination in &mut all.destinations {
            destination.fleet = instead(destination.fleet, self.of(LimitName::Fleet(destination.name.to_string())));
        }
        all.tail = instead(Some(all.tail), self.of(LimitName::Tail)).unwrap_or(all.tail);
        let named = |of: &mut Vec<Named>, name: fn(String) -> LimitName| {
            for one in of {
                one.limit = instead(one.limit, self.of(name(one.name.to_lowercase())));
            }
        };
        named(&mut all.tenants, LimitName::Tenant);
        named(&mut all.senders, LimitName::Sender);
        all
    }
}

/// The burst falls with the rate, so that a slow limit does not begin with a flood; a faster one has its usual second.
fn instead(configured: Option<Limit>, rate: Option<Rate>) -> Option<Limit> {
    let Some(rate) = rate else { return configured };
    let burst = configured.map_or(rate.one_second(), |c| {
        let times = rate.as_per_second() / c.rate.as_per_second();
        // `as` saturates.
        if times < 1.0 { ((f64::from(c.burst) * times).round() as u32).max(1) } else { c.burst.max(rate.one_second()) }
    });
    Some(Limit { rate, burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_falls_with_the_rate() {
        let limit = |rate: &str, burst| Some(Limit { rate: rate.parse().unwrap(), burst });
        let to = |of, rate: &str| instead(of, Some(rate.parse().unwrap()));
        assert_eq!(to(limit("100/s", 200), "10/s"), limit("10/s", 20));
        assert_eq!(to(limit("100/s", 200), "300/h"), limit("300/h", 1));
        assert_eq!(to(limit("300/h", 20), "600/h"), limit("600/h", 20));
        assert_eq!(to(limit("300/h", 20), "50/s"), limit("50/s", 50));
        assert_eq!(to(None, "5/s"), limit("5/s", 5));
        assert_eq!(instead(limit("1/s", 9), None), limit("1/s", 9));
    }
}
