//! Which limits a message meets, and what it costs each.

mod rates;

use std::{collections::HashMap, sync::Arc, time::Duration};

use paceline_classifier::Classifier;
use paceline_core::{Class, EmailAddress, Message, Policy, Rate, lane::TAIL};
use paceline_limiter::{BucketSpec, Cost, Kind, pacer::Group};
use xxhash_rust::xxh3::xxh3_128;

pub(crate) use self::rates::Rates;
use crate::{
    flows::Labels,
    generation,
    settings::{Destination, Limit, Named, Settings},
};

/// The fleet's limits, as buckets.
pub(crate) struct Limits {
    /// Rises with every change.
    pub(crate) version: u64,
    /// What tells the fleet that workers have the same.
    pub(crate) digest: Arc<str>,
    /// The rates among them that operators have set.
    pub(crate) rates: Rates,
    policy: Policy,
    accounts: Vec<PerAccount>,
    /// Over all accounts, by destination.
    fleet: HashMap<Arc<str>, BucketSpec>,
    tenants: HashMap<Arc<str>, Vec<BucketSpec>>,
    /// By domain or address, in small letters.
    senders: HashMap<Arc<str>, Vec<BucketSpec>>,
    recipient: Option<Named>,
    tail: Limit,
    make: Make,
}

struct PerAccount {
    name: Arc<str>,
    /// What every message through it meets: its rate first.
    own: Vec<BucketSpec>,
    /// By destination: what a message there meets, `own` included, as one ready list.
    lists: HashMap<Arc<str>, Arc<[BucketSpec]>>,
}

/// What the keys of tenants' buckets begin with.
pub(crate) const TENANT: &str = "tenant:";

/// A lease outlives the longest call by this much: the wait for the grant's date, the claim, the way back.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

impl Limits {
    /// As configured.
    #[cfg(test)]
    pub(crate) fn new(settings: &Settings) -> Limits {
        Limits::ordered(settings, &Rates::new(), 0)
    }

    /// As configured, but for the rates that operators have set.
    pub(crate) fn ordered(settings: &Settings, rates: &Rates, version: u64) -> Limits {
        let settings = &rates.over(settings);
        let make = Make { reserve: settings.reserve, quota_reserve: settings.quota_reserve };
        let fleet: HashMap<_, _> = settings
            .destinations
            .iter()
            .filter_map(|d| Some((d.name.clone(), make.rate(format!("destination:{}", d.name), d.fleet?).shared())))
            .collect();
        let accounts = settings
            .accounts
            .iter()
            .map(|a| {
                let key = account_key(&a.name);
                let life = a.total_timeout + LEASE_MARGIN;
                let mut own = vec![make.rate(key.clone(), a.limit.unwrap_or(UNLIMITED))];
                own.extend(make.quotas(&key, &a.quota));
                own.extend(a.fleet_concurrency.map(|most| slots(&key, most, life)));
                let list = |d: &Destination| {
                    let d = &rates.destination(&a.name, d);
                    let key = pair_key(&a.name, &d.name);
                    // The destination's rate comes second, whether or not it has one: holds find it there.
                    let mut list = vec![own[0].clone(), make.rate(key.clone(), d.limit.unwrap_or(UNLIMITED))];
                    list.extend(fleet.get(&d.name).cloned());
                    list.extend(own[1..].iter().cloned());
                    list.extend(make.quotas(&key, &d.quota));
                    list.extend(d.concurrency.map(|most| slots(&key, most, life)));
                    (d.name.clone(), list.into())
                };
                PerAccount { name: a.name.clone(), lists: settings.destinations.iter().map(list).collect(), own }
            })
            .collect();
        let named = |kind: &str, of: &[Named]| {
            let buckets = |n: &Named| (n.name.to_lowercase().into(), make.named(&format!("{kind}:{}", n.name.to_lowercase()), n));
            of.iter().map(buckets).collect()
        };
        Limits {
            version,
            digest: generation::digest(settings, rates),
            rates: rates.clone(),
            policy: settings.policy.clone(),
            accounts,
            fleet,
            tenants: named("tenant", &settings.tenants),
            senders: named("sender", &settings.senders),
            recipient: settings.recipient.clone(),
            tail: settings.tail,
            make,
        }
    }

    /// The buckets of a message sent through `account`: the account first, then its first destination or tail domain,
    /// then all others; and what it costs each: its own recipients. What only part of the lane's mail meets is narrow.
    pub(crate) fn of(&self, account: usize, message: &Message, classifier: &Classifier) -> (Arc<[BucketSpec]>, Cost) {
        let of = &self.accounts[account];
        let recipients = u32::try_from(message.recipient_count()).unwrap_or(u32::MAX);
        let lookup = |address: &EmailAddress| classifier.destinations().lookup(address.domain());
        let first = classifier.destinations().lookup(message.domain());
        let personal = self.personal(message);
        if recipients == 1
            && personal.is_empty()
            && self.recipient.is_none()
            && let Some(list) = of.lists.get(&first)
        {
            return (list.clone(), Cost::All(1));
        }
        let mut charges = Charges::default();
        charges.add(&of.own[0], recipients);
        for address in message.recipients() {
            let destination = lookup(address);
            match of.lists.get(&destination) {
                Some(list) if destination == first => list[1..].iter().for_each(|b| charges.add(b, 1)),
                // Another destination's trouble is not this lane's.
                Some(list) => list[1..].iter().for_each(|b| charges.add(&b.clone().narrow(), 1)),
                None => {
                    charges.add(&self.tail_bucket(&of.name, address.domain().as_str()), 1);
                    of.own[1..].iter().for_each(|b| charges.add(b, 1));
                }
            }
        }
        personal.into_iter().flatten().for_each(|b| charges.add(b, recipients));
        if let Some(limit) = &self.recipient {
            for address in message.recipients() {
                self.make.named(&recipient_key(address), limit).iter().for_each(|b| charges.add(b, 1));
            }
        }
        charges.done()
    }

    /// How old mail of a class may become: that, too, ends what waits here, and changes with the limits.
    pub(crate) fn max_age(&self, class: Class) -> Duration {
        self.policy.of(class).max_age
    }

    /// The limits of an account's own that all its mail to a destination meets.
    pub(crate) fn own(&self, account: usize, destination: &str) -> &[BucketSpec] {
        let of = &self.accounts[account];
        of.lists.get(destination).map_or(&of.own, |list| list)
    }

    /// What its tenant and sender are held to.
    fn personal(&self, message: &Message) -> Vec<&Vec<BucketSpec>> {
        let mut found = Vec::new();
        if let Some(tenant) = message.tenant.as_deref().filter(|_| !self.tenants.is_empty()) {
            found.extend(self.tenants.get(&*tenant.to_lowercase()));
        }
        if !self.senders.is_empty() {
            let from = &message.from.email;
            found.extend(self.senders.get(from.domain().as_str()));
            found.extend(self.senders.get(&*from.to_string().to_lowercase()));
        }
        found
    }

    fn tail_bucket(&self, account: &str, domain: &str) -> BucketSpec {
        self.make.rate(tail_prefix(account) + domain, self.tail).narrow()
    }

    /// What the bucket is configured to be; `None` for those of single domains, tenants, senders and recipients.
    pub(crate) fn configured(&self, key: &str) -> Option<Kind> {
        let lists = self.accounts.iter().flat_map(|a| a.own.iter().chain(a.lists.values().flat_map(|list| list.iter())));
        lists.chain(self.fleet.values()).find(|b| &*b.key == key).map(|b| b.kind)
    }

    /// By account, what every message to the destination meets there; of the tail, what all its domains have in common.
    pub(crate) fn by_account(&self, destination: &str) -> impl Iterator<Item = (&Arc<str>, &[BucketSpec])> {
        self.accounts.iter().map(move |a| (&a.name, a.lists.get(destination).map_or(&*a.own, |list| &**list)))
    }

    /// What all accounts together may send there, with the name of that limit.
    pub(crate) fn fleet_rate(&self, destination: &str) -> Option<(&Arc<str>, Kind)> {
        self.fleet.get(destination).map(|b| (&b.key, b.kind))
    }

    /// Likewise of a flow, by its label, as far as it is bound more narrowly than its lane.
    pub(crate) fn flow_rate(&self, label: &str, labels: &Labels) -> f64 {
        let slowest = |list: &Vec<BucketSpec>| list.iter().map(per_second).fold(f64::MAX, f64::min);
        let account = self.accounts.iter().enumerate().find(|(a, _)| *labels.of_account(*a) == *label);
        let tenant = self.tenants.iter().find(|(name, _)| *labels.of_tenant(name) == *label);
        account.map(|(_, a)| slowest(&a.own)).or_else(|| tenant.map(|(_, list)| slowest(list))).unwrap_or(f64::MAX)
    }

    /// Recipients a second that one lane can move at most, for sizing what is held.
    pub(crate) fn lane_rate(&self, destination: &str) -> f64 {
        let slowest = |list: &[BucketSpec]| list.iter().map(per_second).fold(f64::MAX, f64::min);
        let accounts = self.accounts.iter().map(|a| {
            let list = if destination == TAIL { None } else { a.lists.get(destination) };
            list.map_or(per_second(&a.own[0]), |l| slowest(l))
        });
        let sum: f64 = accounts.sum();
        self.fleet.get(destination).map_or(sum, |f| sum.min(per_second(f)))
    }
}

/// The bucket of an account's rate.
pub(crate) fn account_key(account: &str) -> String {
    format!("account:{account}")
}

/// The bucket of a destination's rate through an account. For the tail it is no bucket: it stands for those of all domains
/// there ([`tail_prefix`]).
pub(crate) fn pair_key(account: &str, destination: &str) -> String {
    format!("account:{account}:destination:{destination}")
}

/// How the buckets of the tail's domains through an account begin.
pub(crate) fn tail_prefix(account: &str) -> String {
    format!("account:{account}:domain:")
}

/// Stands for all mail of a class; no bucket either.
pub(crate) fn class_key(class: Class) -> String {
    format!("class:{class}")
}

/// The mail that a key stands for which is no bucket's.
pub(crate) fn group(key: &str) -> Option<Group> {
    if let Some(class) = key.strip_prefix("class:") {
        return class.parse().ok().map(Group::Class);
    }
    let account = key.strip_prefix("account:")?.strip_suffix(":destination:tail")?;
    Some(Group::Keys { prefix: tail_prefix(account).into(), of: TAIL.into() })
}

/// As in a flow of one tenant: what binds that tenant binds all of it.
pub(crate) fn of_its_tenants_flow(buckets: &[BucketSpec]) -> Arc<[BucketSpec]> {
    let wide = |b: &BucketSpec| BucketSpec { narrow: b.narrow && !b.key.starts_with(TENANT), ..b.clone() };
    buckets.iter().map(wide).collect()
}

/// A quota that is less than what the message costs it, if there is one: it could never go, and would keep its lane.
pub(crate) fn too_large_for((buckets, cost): &(Arc<[BucketSpec]>, Cost)) -> Option<Arc<str>> {
    let fits = |k: usize, bucket: &BucketSpec| match bucket.kind {
        Kind::Window { limit, .. } => cost.at(k) <= limit,
        Kind::Rate { .. } | Kind::Slots { .. } => true,
    };
    buckets.iter().enumerate().find(|(k, b)| !fits(*k, b)).map(|(_, b)| b.key.clone())
}

/// What an account or destination without a rate gets: the limiter wants every lane to have its account.
const UNLIMITED: Limit = Limit { rate: Rate::per_second(1_000_000), burst: 1_000_000 };

/// A quota or slots say nothing of how fast mail goes while there is some left.
fn per_second(bucket: &BucketSpec) -> f64 {
    match bucket.kind {
        Kind::Rate { interval_us, .. } => 1e6 / interval_us as f64,
        Kind::Window { .. } | Kind::Slots { .. } => f64::MAX,
    }
}

fn slots(key: &str, most: u32, life: Duration) -> BucketSpec {
    BucketSpec::slots(format!("{key}:concurrency"), most, u64::try_from(life.as_micros()).unwrap_or(u64::MAX))
}

/// Addresses are not written into keys: those are logged, and kept where anybody may look.
fn recipient_key(address: &EmailAddress) -> String {
    format!("recipient:{:032x}", xxh3_128(address.to_string().to_lowercase().as_bytes()))
}

/// Makes buckets with the reserves of this fleet.
#[derive(Debug, Clone, Copy)]
struct Make {
    reserve: f64,
    quota_reserve: f64,
}

impl Make {
    fn rate(self, key: String, limit: Limit) -> BucketSpec {
        BucketSpec::new(key, limit.rate, limit.burst, self.reserve)
    }

    /// A window is named by its length, so that it remembers when only the number changes.
    fn quotas(self, key: &str, quotas: &[Rate]) -> impl Iterator<Item = BucketSpec> {
        quotas.iter().map(move |quota| BucketSpec::window(format!("{key}:quota:{}", quota.unit()), *quota, self.quota_reserve))
    }

    fn named(self, key: &str, limit: &Named) -> Vec<BucketSpec> {
        let rate = limit.limit.map(|l| self.rate(key.to_owned(), l).shared());
        rate.into_iter().chain(self.quotas(key, &limit.quota)).map(BucketSpec::narrow).collect()
    }
}

/// What a message meets, and how often.
#[derive(Default)]
struct Charges {
    buckets: Vec<BucketSpec>,
    costs: Vec<u32>,
}

impl Charges {
    fn add(&mut self, bucket: &BucketSpec, recipients: u32) {
        match self.buckets.iter().position(|b| b.key == bucket.key) {
            Some(known) => self.costs[known] += recipients,
            None => {
                self.buckets.push(bucket.clone());
                self.costs.push(recipients);
            }
        }
    }

    fn done(self) -> (Arc<[BucketSpec]>, Cost) {
        let all = self.costs[0];
        // Slots do not count recipients.
        let same = self.buckets.iter().zip(&self.costs).all(|(b, c)| *c == all || matches!(b.kind, Kind::Slots { .. }));
        (self.buckets.into(), if same { Cost::All(all) } else { Cost::Each(self.costs.into()) })
    }
}

#[cfg(test)]
pub(crate) mod tests;
