//! Which buckets a message touches.

use std::{collections::HashMap, sync::Arc};

use paceline_classifier::Classifier;
use paceline_core::{Message, Rate, lane::TAIL};
use paceline_limiter::BucketSpec;

use crate::settings::{Limit, Settings};

/// The fleet's limits, as buckets.
pub(crate) struct Limits {
    accounts: Vec<PerAccount>,
    /// Over all accounts, by destination.
    fleet: HashMap<Arc<str>, BucketSpec>,
    tail: Limit,
    reserve: f64,
}

struct PerAccount {
    name: Arc<str>,
    bucket: BucketSpec,
    /// By destination: the account's own bucket, the destination's, the fleet's, as one ready list.
    lists: HashMap<Arc<str>, Arc<[BucketSpec]>>,
}

impl Limits {
    pub(crate) fn new(settings: &Settings) -> Limits {
        let reserve = settings.reserve;
        let bucket = |key: String, limit: Limit| BucketSpec::new(key, limit.rate, limit.burst, reserve);
        let fleet: HashMap<_, _> = settings
            .destinations
            .iter()
            .filter_map(|d| Some((d.name.clone(), bucket(format!("destination:{}", d.name), d.fleet?).shared())))
            .collect();
        let accounts = settings
            .accounts
            .iter()
            .map(|a| {
                let own = bucket(format!("account:{}", a.name), a.limit.unwrap_or(UNLIMITED));
                let list = |d: &crate::settings::Destination| {
                    let mut list = vec![own.clone()];
                    list.extend(d.limit.map(|l| bucket(format!("account:{}:destination:{}", a.name, d.name), l)));
                    list.extend(fleet.get(&d.name).cloned());
                    (d.name.clone(), list.into())
                };
                PerAccount { name: a.name.clone(), lists: settings.destinations.iter().map(list).collect(), bucket: own }
            })
            .collect();
        Limits { accounts, fleet, tail: settings.tail, reserve }
    }

    /// The buckets of a message sent through `account`: the account first, then those of every destination and tail
    /// domain among its recipients. Each is charged for all recipients, so that none is ever exceeded.
    pub(crate) fn buckets(&self, account: usize, message: &Message, classifier: &Classifier) -> Arc<[BucketSpec]> {
        let of = &self.accounts[account];
        let first = classifier.destinations().lookup(message.domain());
        if message.recipient_count() == 1
            && let Some(list) = of.lists.get(&first)
        {
            return list.clone();
        }
        let mut list = vec![of.bucket.clone()];
        for address in message.recipients() {
            let destination = classifier.destinations().lookup(address.domain());
            match of.lists.get(&destination) {
                Some(known) => known[1..].iter().for_each(|b| push_new(&mut list, b)),
                None => push_new(&mut list, &self.tail_bucket(&of.name, address.domain().as_str())),
            }
        }
        list.into()
    }

    fn tail_bucket(&self, account: &str, domain: &str) -> BucketSpec {
        BucketSpec::new(format!("account:{account}:domain:{domain}"), self.tail.rate, self.tail.burst, self.reserve)
    }

    /// Recipients a second that one lane can move at most, for sizing what is held.
    pub(crate) fn lane_rate(&self, destination: &str) -> f64 {
        let per_second = |b: &BucketSpec| 1e6 / b.interval_us as f64;
        let accounts = self.accounts.iter().map(|a| {
            let list = if destination == TAIL { None } else { a.lists.get(destination) };
            list.map_or(per_second(&a.bucket), |l| l.iter().map(per_second).fold(f64::MAX, f64::min))
        });
        let sum: f64 = accounts.sum();
        self.fleet.get(destination).map_or(sum, |f| sum.min(per_second(f)))
    }
}

/// What an account without a rate gets: the limiter wants every lane to have its account.
const UNLIMITED: Limit = Limit { rate: Rate::per_second(1_000_000), burst: 1_000_000 };

fn push_new(list: &mut Vec<BucketSpec>, bucket: &BucketSpec) {
    if !list.iter().any(|b| b.key == bucket.key) {
        list.push(bucket.clone());
    }
}
