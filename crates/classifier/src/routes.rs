//! Which accounts may send a message, and in what order they are to be tried.
//!
//! The first matching route names accounts; without one, all of them in the order of the configuration. An account that
//! is restricted to sender domains is passed over for others, also where a message names it.

use std::{cmp::Ordering, sync::Arc};

use paceline_core::{Class, Domain, InvalidMessage, Message};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Glob, rules::address};

/// What a message must be like; all given conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteConditions {
    pub stream: Option<Glob>,
    pub tenant: Option<Glob>,
    /// Any of these.
    pub class: Vec<Class>,
    /// The destination's name; `tail` for domains that none names.
    pub destination: Option<Glob>,
    /// The sender's address without its name; build it with [`Glob::ignoring_case`].
    pub from: Option<Glob>,
}

/// Accounts by their positions in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accounts {
    /// The first that is open.
    Preferred(Vec<usize>),
    /// Spread by weight: each message has its own order, the same whenever it is asked for. Weight 0: only when all
    /// others are closed.
    Weighted(Vec<(usize, u32)>),
}

/// One route: conditions, and who carries what meets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub when: RouteConditions,
    pub accounts: Accounts,
}

/// An account as far as routing goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedAccount {
    pub name: Arc<str>,
    /// Domains it may send from; empty: any.
    pub senders: Vec<Domain>,
}

/// All routes, ready to use.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    accounts: Vec<RoutedAccount>,
    routes: Vec<(RouteConditions, Order)>,
    all: Arc<[usize]>,
    restricted: bool,
}

#[derive(Debug, Clone)]
enum Order {
    Preferred(Arc<[usize]>),
    /// Position, weight, and the seed of its draws: of the name, so that another account makes no difference to it.
    Weighted(Vec<(usize, u32, u64)>),
}

impl Routes {
    /// `routes` in order of precedence; positions that no account has are left out.
    pub fn new(accounts: Vec<RoutedAccount>, routes: Vec<Route>) -> Routes {
        let n = accounts.len();
        let order = |of: Accounts| match of {
            Accounts::Preferred(list) => Order::Preferred(list.into_iter().filter(|a| *a < n).collect()),
            Accounts::Weighted(list) => {
                let seed = |a: usize| xxh3_64_with_seed(accounts[a].name.as_bytes(), 0);
                Order::Weighted(list.into_iter().filter(|(a, _)| *a < n).map(|(a, weight)| (a, weight, seed(a))).collect())
            }
        };
        let routes = routes.into_iter().map(|route| (route.when, order(route.accounts))).collect();
        let restricted = accounts.iter().any(|a| !a.senders.is_empty());
        Routes { routes, all: (0..n).collect(), restricted, accounts }
    }

    /// Every one of these accounts may send everything; the first is preferred.
    pub fn all<'a>(accounts: impl IntoIterator<Item = &'a str>) -> Routes {
        let account = |name: &str| RoutedAccount { name: name.into(), senders: Vec::new() };
        Routes::new(accounts.into_iter().map(account).collect(), Vec::new())
    }

    /// The accounts that may send the message, the preferred one first; never none. Where the message is pinned, that
    /// one alone, whatever the routes say.
    ///
    /// # Errors
    /// No account may: names the field that rules them out.
    pub fn choices(&self, message: &Message, class: Class, destination: &str) -> Result<Arc<[usize]>, InvalidMessage> {
        let from = message.from.email.domain();
        if let Some(name) = &message.account {
            let Some(pinned) = self.accounts.iter().position(|a| *a.name == **name) else {
                return Err(InvalidMessage::new("account", "no such account is configured"));
            };
            return match self.sends_for(pinned, from) {
                true => Ok(Arc::new([pinned])),
                false => Err(InvalidMessage::new("account", "it may not send for the domain of `from` (its senders)")),
            };
        }
        let route = self.routes.iter().find(|(when, _)| when.matches(message, class, destination));
        let order = match route {
            None => self.all.clone(),
            Some((_, Order::Preferred(list))) => list.clone(),
            Some((_, Order::Weighted(list))) => spread(&message.id, list),
        };
        let order: Arc<[usize]> = match self.restricted {
            true => order.iter().copied().filter(|a| self.sends_for(*a, from)).collect(),
            false => order,
        };
        match (order.is_empty(), route) {
            (false, _) => Ok(order),
            (true, None) => Err(InvalidMessage::new("from", "no account may send for its domain (senders)")),
            (true, Some(_)) => Err(InvalidMessage::new("from", "no account of its route may send for its domain (senders)")),
        }
    }

    fn sends_for(&self, account: usize, from: &Domain) -> bool {
        self.accounts[account].senders.is_empty() || self.accounts[account].senders.contains(from)
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether all mail goes by the order of the accounts.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// An order by chance that is the same for the same id: each account comes first as often as its weight says, and where
/// one is left out, the others share its mail by theirs.
fn spread(id: &str, list: &[(usize, u32, u64)]) -> Arc<[usize]> {
    let draw = |(account, weight, seed): &(usize, u32, u64)| {
        // 53 bits, as many as the number holds, and never 0.
        let chance = ((xxh3_64_with_seed(id.as_bytes(), *seed) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (*account, if *weight == 0 { f64::INFINITY } else { -chance.ln() / f64::from(*weight) })
    };
    let mut drawn: Vec<(usize, f64)> = list.iter().map(draw).collect();
    drawn.sort_by(|a, b| a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal));
    drawn.into_iter().map(|(account, _)| account).collect()
}

impl RouteConditions {
    fn matches(&self, message: &Message, class: Class, to: &str) -> bool {
        let RouteConditions { stream, tenant, class: classes, destination, from } = self;
        let text = |glob: &Option<Glob>, value: &Option<String>| match (glob, value) {
            (None, _) => true,
            (Some(glob), Some(value)) => glob.matches(value),
            (Some(_), None) => false,
        };
        text(stream, &message.stream)
            && text(tenant, &message.tenant)
            && (classes.is_empty() || classes.contains(&class))
            && destination.as_ref().is_none_or(|glob| glob.matches(to))
            && from.as_ref().is_none_or(|glob| glob.matches_chars(address(&message.from.email)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extra: &str) -> Message {
        let body = format!(r#"{{"id":"a","from":"news@Shop.example","to":["u@gmail.com"],"text":"x"{extra}}}"#);
        Message::parse(body.as_bytes(), None, 1 << 20).unwrap()
    }

    fn account(name: &str, senders: &[&str]) -> RoutedAccount {
        RoutedAccount { name: name.into(), senders: senders.iter().map(|d| Domain::parse(d).unwrap()).collect() }
    }

    fn route(when: RouteConditions, accounts: &[usize]) -> Route {
        Route { when, accounts: Accounts::Preferred(accounts.to_vec()) }
    }

    #[test]
    fn the_first_route_that_matches_then_the_order_of_the_file() {
        let any = RouteConditions::default;
        let glob = |pattern| Some(Glob::new(pattern).unwrap());
        let routes = Routes::new(
            vec![account("a", &[]), account("b", &[]), account("c", &[])],
            vec![
                route(RouteConditions { stream: glob("otp-*"), ..any() }, &[2]),
                route(RouteConditions { tenant: glob("acme"), class: vec![Class::Low, Class::Normal], ..any() }, &[1, 0]),
                route(RouteConditions { destination: glob("tail"), ..any() }, &[1]),
                route(RouteConditions { from: Some(Glob::ignoring_case("*@OTHER.example").unwrap()), ..any() }, &[0]),
            ],
        );
        for (extra, class, destination, want) in [
            ("", Class::Normal, "google", &[0, 1, 2][..]),
            (r#","stream":"otp-1","tenant":"acme""#, Class::Low, "google", &[2]),
            (r#","stream":"otp""#, Class::Low, "google", &[0, 1, 2]),
            (r#","tenant":"acme""#, Class::Low, "tail", &[1, 0]),
            (r#","tenant":"acme""#, Class::High, "google", &[0, 1, 2]),
            ("", Class::High, "tail", &[1]),
            (r#","account":"b","stream":"otp-1""#, Class::Low, "google", &[1]),
        ] {
            assert_eq!(&*routes.choices(&message(extra), class, destination).unwrap(), want, "{extra} {class} {destination}");
        }
        let unknown = routes.choices(&message(r#","account":"z""#), Class::Low, "google").unwrap_err();
        assert_eq!(unknown.field, "account");
    }

    #[test]
    fn nobody_sends_for_a_domain_that_is_not_its_own() {
        let accounts = |a: &[&str], b: &[&str]| vec![account("a", a), account("b", b)];
        let choices = |accounts, routes, extra| Routes::new(accounts, routes).choices(&message(extra), Class::Normal, "google");
        assert_eq!(*choices(accounts(&["x.org"], &[]), vec![], "").unwrap(), [1]);
        assert_eq!(*choices(accounts(&["x.org", "shop.example"], &["y.org"]), vec![], "").unwrap(), [0]);
        let refused = |accounts, routes, extra| choices(accounts, routes, extra).unwrap_err().field;
        assert_eq!(refused(accounts(&["x.org"], &["y.org"]), vec![], ""), "from");
        assert_eq!(refused(accounts(&["x.org"], &[]), vec![route(RouteConditions::default(), &[0])], ""), "from");
        assert_eq!(refused(accounts(&["x.org"], &[]), vec![], r#","account":"a""#), "account");
    }

    #[test]
    fn weights_are_kept_and_a_message_keeps_its_order() {
        let accounts = vec![account("a", &[]), account("b", &[]), account("c", &[])];
        let weighted = |list: &[(usize, u32)]| {
            let route = Route { when: RouteConditions::default(), accounts: Accounts::Weighted(list.to_vec()) };
            Routes::new(accounts.clone(), vec![route])
        };
        let called = |n: usize| {
            let mut message = message("");
            message.id = format!("m-{n}");
            message
        };
        let routes = weighted(&[(0, 3), (1, 1), (2, 0)]);
        let orders: Vec<_> = (0..4000).map(|n| routes.choices(&called(n), Class::Normal, "google").unwrap()).collect();
        let first = orders.iter().filter(|o| o[0] == 0).count();
        assert!((2850..3150).contains(&first), "{first}");
        assert!(orders.iter().all(|o| o.len() == 3 && o[2] == 2), "weight 0 is for when all others are closed");
        let without_c = weighted(&[(1, 1), (0, 3)]);
        for (n, order) in orders.iter().enumerate().take(100) {
            assert_eq!(without_c.choices(&called(n), Class::Normal, "google").unwrap()[..], order[..2]);
        }
    }
}
