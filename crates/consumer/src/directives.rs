//! What operators order, brought into force: pauses close buckets, rates they set take the place of the configured ones.
//! So does the configuration when it is read anew.
//!
//! A pause closes its buckets until it is over, on this worker's clock: orders are in seconds and more.

use std::{collections::HashMap, sync::Arc};

use paceline_core::{Directives, PauseScope, Timestamp, lane::TAIL};
use tokio::{sync::watch, time::sleep};

use crate::{
    context::Context,
    engine::Input,
    limits::{self, Limits, Rates},
    settings::Settings,
    standing::{Effect, Source},
};

/// Follows orders and configuration.
pub(crate) struct Follower {
    cx: Arc<Context>,
    directives: watch::Receiver<Arc<Directives>>,
    settings: watch::Receiver<Arc<Settings>>,
    /// Those of them that are in force.
    known: Arc<Settings>,
    limits: watch::Sender<Arc<Limits>>,
    /// The rates in force that operators have set.
    rates: Rates,
    /// The pauses in force.
    paused: Vec<PauseScope>,
}

impl Follower {
    pub(crate) fn new(
        cx: Arc<Context>,
        directives: watch::Receiver<Arc<Directives>>,
        limits: watch::Sender<Arc<Limits>>,
    ) -> Follower {
        let settings = cx.current.subscribe();
        let known = settings.borrow().clone();
        Follower { cx, directives, settings, known, limits, rates: Rates::new(), paused: vec![] }
    }

    /// Runs until the worker is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let end = self.directives.borrow().next_end(self.cx.now());
            let wait = end.map(|end| end.since(self.cx.now()));
            tokio::select! {
                changed = self.directives.changed() => if changed.is_err() { return },
                changed = self.settings.changed() => if changed.is_err() { return },
                () = async { match wait { Some(wait) => sleep(wait).await, None => std::future::pending().await } } => {}
            }
            self.apply();
        }
    }

    /// Brings into force what is ordered and configured now.
    pub(crate) fn apply(&mut self) {
        let now = self.cx.now();
        let orders = self.directives.borrow_and_update().clone();
        let settings = self.settings.borrow_and_update().clone();
        let reread = !Arc::ptr_eq(&settings, &self.known);
        let rates: Rates = orders.limits_at(now).map(|order| (order.name.clone(), order.rate)).collect();
        if reread || rates != self.rates {
            let version = self.limits.borrow().version + 1;
            let limits = Arc::new(Limits::ordered(&settings, &rates, version));
            tracing::info!(ordered = rates.len(), reread, "limits have changed");
            self.limits.send_replace(limits.clone());
            self.cx.to_engine(Input::Limits(limits));
            self.rates = rates;
            self.known = settings.clone();
        }
        let paused: Vec<PauseScope> = orders.pauses_at(now).map(|pause| pause.scope.clone()).collect();
        if paused != self.paused {
            tracing::info!(pauses = paused.len(), "pauses have changed");
            self.paused = paused;
        }
        let effects = effects(&orders, &self.rates, &settings, now);
        self.cx.to_engine(Input::Stand { source: Source::Ordered, effects });
    }
}

/// What the orders mean for each bucket.
fn effects(orders: &Directives, rates: &Rates, settings: &Settings, now: Timestamp) -> HashMap<Arc<str>, Effect> {
    let mut effects: HashMap<Arc<str>, Effect> = HashMap::new();
    let accounts = || settings.accounts.iter().map(|a| &*a.name);
    for pause in orders.pauses_at(now) {
        let mut close = |key: String| effects.entry(key.into()).or_default().closed_until_us = u64::MAX;
        match &pause.scope {
            PauseScope::Account(name) => close(limits::account_key(name)),
            PauseScope::Destination(name) => accounts().for_each(|account| close(limits::pair_key(account, name))),
            PauseScope::Class(class) => close(limits::class_key(*class)),
        }
    }
    // As ceilings too: what was learnt under another rate must not go above them.
    let names = settings.destinations.iter().map(|d| &*d.name).chain([TAIL]);
    for account in accounts() {
        let mut keys = vec![(limits::account_key(account), rates.of_account(account))];
        keys.extend(names.clone().map(|d| (limits::pair_key(account, d), rates.of_pair(account, d))));
        for (key, rate) in keys {
            if let Some(rate) = rate {
                effects.entry(key.into()).or_default().rate_per_s = Some(rate.as_per_second());
            }
        }
    }
    effects
}

#[cfg(test)]
mod tests {
    use paceline_core::{Class, LimitOrder, Pause};

    use super::*;
    use crate::settings::Account;

    #[test]
    fn orders_by_bucket() {
        let mut settings = crate::limits::tests::settings();
        let account = |name: &str| Account { name: name.into(), ..settings.accounts[0].clone() };
        settings.accounts = vec![account("a"), account("b")];
        let pause = |kind: &str, name: &str, until: Option<i64>| Pause {
            scope: PauseScope::new(kind, name.into()).unwrap(),
            since: Timestamp::from_secs(1),
            until: until.map(Timestamp::from_secs),
        };
        let limit = |name: &str, rate: &str| LimitOrder {
            name: name.parse().unwrap(),
            rate: rate.parse().unwrap(),
            since: Timestamp::from_secs(1),
            until: None,
        };
        let pauses = [pause("account", "b", None), pause("destination", "tail", Some(10)), pause("class", "low", None)];
        let orders = Directives::new(pauses, [limit("destination:google", "2/s"), limit("account:a/destination:google", "1/s")]);
        let at = |s| {
            let now = Timestamp::from_secs(s);
            let rates: Rates = orders.limits_at(now).map(|o| (o.name.clone(), o.rate)).collect();
            let effects = effects(&orders, &rates, &settings, now);
            let mut told: Vec<_> =
                effects.into_iter().map(|(key, e)| (key.to_string(), e.closed_until_us > 0, e.rate_per_s)).collect();
            told.sort_by(|x, y| x.0.cmp(&y.0));
            told
        };
        let told = |key: &str, closed, rate| (key.to_owned(), closed, rate);
        assert_eq!(
            at(9),
            [
                told("account:a:destination:google", false, Some(1.0)),
                told("account:a:destination:tail", true, None),
                told("account:b", true, None),
                told("account:b:destination:google", false, Some(2.0)),
                told("account:b:destination:tail", true, None),
                told("class:low", true, None),
            ]
        );
        assert!(!at(10).iter().any(|(key, ..)| key.ends_with("tail")), "it ends by itself");
        assert_eq!(limits::class_key(Class::Low), "class:low");
    }
}
