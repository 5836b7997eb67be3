//! The limits in force, as they are shown: what is configured, in its place what operators have set, and within that what
//! was learnt.

use std::collections::HashMap;

use paceline_core::{LimitName, LimitOrder, Rate, Timestamp};
use paceline_store::Standing;
use serde::Serialize;

use super::learnt::{self, Bounds, Memory};
use crate::config::{Account, Config, Destination, Limit};

/// One limit, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) name: LimitName,
    /// `None`: nothing paces it.
    in_force: Option<Rate>,
    set_by: SetBy,
    configured: Option<Rate>,
    burst: Option<u32>,
    quota: Vec<Rate>,
    concurrency: Option<u32>,
    ordered: Option<Ordered>,
    /// Circuit, adaptive rate and warm-up, where they hold anything below or above what is set.
    learnt: Option<learnt::Shown>,
    /// What pauses it now, such as `account main`.
    paused_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum SetBy {
    Configured,
    Ordered,
    Learnt,
    Nobody,
}

impl SetBy {
    const fn as_str(self) -> &'static str {
        match self {
            SetBy::Configured => "configured",
            SetBy::Ordered => "ordered",
            SetBy::Learnt => "learnt",
            SetBy::Nobody => "-",
        }
    }
}

/// What an operator has set.
#[derive(Debug, Clone, Serialize)]
struct Ordered {
    rate: Rate,
    since: Timestamp,
    until: Option<Timestamp>,
    by: String,
    note: Option<String>,
}

/// Every limit there is.
pub(super) fn all(
    config: &Config,
    orders: &HashMap<LimitName, Standing<LimitOrder>>,
    pauses: &[String],
    memory: &Memory,
) -> Vec<Shown> {
    let ordered = |names: &[LimitName]| {
        names.iter().find_map(|name| orders.get(name)).map(|o| Ordered {
            rate: o.order.rate,
            since: o.order.since,
            until: o.order.until,
            by: o.by.clone(),
            note: o.note.clone(),
        })
    };
    let shown = |names: &[LimitName], limit: Option<Limit>, quota: &[Rate], concurrency: Option<u32>, paused_by: Vec<String>| {
        let (configured, ordered) = (limit.map(|l| l.rate), ordered(names));
        let set_by = match (&ordered, configured) {
            (Some(_), _) => SetBy::Ordered,
            (None, Some(_)) => SetBy::Configured,
            (None, None) => SetBy::Nobody,
        };
        Shown {
            name: names[0].clone(),
            in_force: ordered.as_ref().map(|o| o.rate).or(configured),
            set_by,
            configured,
            burst: limit.map(|l| l.burst),
            quota: quota.to_vec(),
            concurrency,
            ordered,
            learnt: None,
            paused_by,
        }
    };
    let paused = |wanted: &[String]| -> Vec<String> { pauses.iter().filter(|p| wanted.contains(p)).cloned().collect() };
    // What was learnt stays within the rate that an operator has set, or `max_rate`.
    let learn = |mut shown: Shown, account: &Account, destination: Option<&Destination>, max: Option<Rate>| {
        let max = max.filter(|_| shown.ordered.is_none());
        let bounds = Bounds { rate: shown.in_force, max, concurrency: shown.concurrency };
        shown.learnt = memory.at(account, destination, bounds);
        if let Some(rate) = shown.learnt.as_ref().and_then(|l| l.rate) {
            (shown.in_force, shown.set_by) = (Some(rate), SetBy::Learnt);
        }
        shown
    };
    let mut out = vec![];
    for account in &config.accounts {
        let scope = format!("account {}", account.name);
        let name = LimitName::Account(account.name.clone());
        let shown = shown(&[name], account.limit, &account.quota, account.fleet_concurrency, paused(&[scope]));
        out.push(learn(shown, account, None, account.max_rate));
    }
    for account in &config.accounts {
        for d in &config.destinations {
            let pair = LimitName::Pair { account: account.name.clone(), destination: d.name.clone() };
            let names = [pair, LimitName::Destination(d.name.clone())];
            let paused = paused(&[format!("account {}", account.name), format!("destination {}", d.name)]);
            out.push(learn(shown(&names, d.limit, &d.quota, d.concurrency, paused), account, Some(d), d.max_rate));
        }
    }
    for d in &config.destinations {
        let name = LimitName::Fleet(d.name.clone());
        if d.fleet.is_some() || orders.contains_key(&name) {
            out.push(shown(&[name], d.fleet, &[], None, paused(&[format!("destination {}", d.name)])));
        }
    }
    out.push(shown(&[LimitName::Tail], Some(config.tail), &[], None, paused(&["destination tail".to_owned()])));
    for tenant in &config.tenants {
        out.push(shown(&[LimitName::Tenant(tenant.name.to_lowercase())], tenant.limit, &tenant.quota, None, vec![]));
    }
    for sender in &config.senders {
        out.push(shown(&[LimitName::Sender(sender.name.to_lowercase())], sender.limit, &sender.quota, None, vec![]));
    }
    out
}

/// The columns of the table.
pub(super) const COLUMNS: [&str; 12] =
    ["LIMIT", "IN FORCE", "SET BY", "CONFIGURED", "BURST", "QUOTA", "CALLS", "CIRCUIT", "UNTIL", "PAUSED", "BY", "NOTE"];

pub(super) fn row(s: &Shown) -> Vec<String> {
    fn or_dash<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".to_owned(), |v| v.to_string())
    }
    let several = |all: Vec<String>| if all.is_empty() { "-".to_owned() } else { all.join(", ") };
    let ordered = s.ordered.as_ref();
    let circuit = match &s.learnt {
        Some(learnt::Shown { circuit, opens_at: Some(until), .. }) => format!("{circuit} until {until}"),
        Some(learnt) if learnt.circuit != "closed" => learnt.circuit.to_owned(),
        _ => "-".to_owned(),
    };
    vec![
        s.name.to_string(),
        or_dash(s.in_force),
        s.set_by.as_str().to_owned(),
        or_dash(s.configured),
        or_dash(s.burst),
        several(s.quota.iter().map(ToString::to_string).collect()),
        or_dash(s.learnt.as_ref().and_then(|l| l.concurrency).or(s.concurrency)),
        circuit,
        or_dash(ordered.and_then(|o| o.until)),
        several(s.paused_by.clone()),
        or_dash(ordered.map(|o| &o.by)),
        or_dash(ordered.and_then(|o| o.note.as_ref())),
    ]
}

#[cfg(test)]
mod tests {
    use paceline_core::{circuit::Circuit, scope::Learnt};
    use paceline_store::LearntRow;

    use super::{super::tests::config, *};

    #[test]
    fn what_is_in_force_and_what_set_it() {
        let order = |name: &str, rate: &str| {
            let name: LimitName = name.parse().unwrap();
            let order =
                LimitOrder { name: name.clone(), rate: rate.parse().unwrap(), since: Timestamp::from_secs(1), until: None };
            let order = Standing { id: "l-1".into(), order, by: "ann".into(), note: None, removed_at: None, removed_by: None };
            (name, order)
        };
        let orders =
            [order("destination:google", "2/s"), order("account:free/destination:google", "9/s"), order("fleet:google", "3/s")];
        let paused = ["account free".to_owned(), "class low".to_owned()];
        let shown = all(&config(), &orders.into(), &paused, &Memory::new(vec![], Timestamp::from_secs(9)));
        let told: Vec<_> = shown
            .iter()
            .map(|s| {
                let rate = s.in_force.map_or_else(|| "-".to_owned(), |r| r.to_string());
                format!("{} {rate} {} {}", s.name, s.set_by.as_str(), s.paused_by.join("+"))
            })
            .collect();
        assert_eq!(
            told,
            [
                "account:main 100/s configured ",
                "account:free - - account free",
                "account:main/destination:google 2/s ordered ",
                "account:free/destination:google 9/s ordered account free",
                "fleet:google 3/s ordered ",
                "tail 300/h configured ",
                "tenant:acme 1/s configured ",
            ]
        );
        let json = serde_json::to_value(&shown[0]).unwrap();
        assert_eq!(
            (&json["in_force"], &json["set_by"], &json["quota"][0]),
            (&"100/s".into(), &"configured".into(), &"1000/h".into())
        );
    }

    #[test]
    fn what_was_learnt_is_shown_within_what_is_set() {
        let now = Timestamp::from_secs(100);
        let memory = |pace: Option<f64>, calls: Option<u32>, circuit: Circuit| {
            let mut learnt = Learnt { circuit, first_us: 1, ..Learnt::default() };
            learnt.pace.rate_per_s = pace;
            learnt.pace.concurrency = calls;
            let learnt = serde_json::to_value(learnt).unwrap();
            let row = |destination: Option<&str>| LearntRow {
                account: "main".into(),
                destination: destination.map(Into::into),
                learnt: learnt.clone(),
                at_us: 90_000_000,
            };
            Memory::new(vec![row(None), row(Some("google"))], now)
        };
        let order = |rate: &str| {
            let name: LimitName = "account:main".parse().unwrap();
            let order =
                LimitOrder { name: name.clone(), rate: rate.parse().unwrap(), since: Timestamp::from_secs(1), until: None };
            let order = Standing { id: "l-1".into(), order, by: "ann".into(), note: None, removed_at: None, removed_by: None };
            HashMap::from([(name, order)])
        };
        let told = |orders: &HashMap<_, _>, memory: &Memory| {
            let shown = all(&config(), orders, &[], memory);
            [0, 2].map(|i| format!("{} {}", shown[i].in_force.unwrap(), shown[i].set_by.as_str()))
        };
        let (closed, none) = (Circuit::default(), HashMap::new());
        assert_eq!(told(&none, &memory(Some(3.337), None, closed)), ["3.33/s learnt", "3.33/s learnt"]);
        assert_eq!(told(&none, &memory(Some(40.0), None, closed)), ["40/s learnt", "5/s configured"], "never above the ceiling");
        assert_eq!(told(&order("30/s"), &memory(Some(40.0), None, closed)), ["30/s ordered", "5/s configured"]);
        assert_eq!(told(&order("300/s"), &memory(Some(40.0), None, closed)), ["40/s learnt", "5/s configured"]);
        let open = all(&config(), &none, &[], &memory(None, None, Circuit::Open { until_us: 130_000_000 }));
        assert_eq!(open[0].learnt.as_ref().map(|l| l.circuit), Some("open"));
        assert_eq!(row(&open[0])[7], format!("open until {}", Timestamp::from_secs(130)));
        assert_eq!(open[1].learnt, None, "the other account is known for nothing");
        assert!(all(&config(), &none, &[], &memory(None, None, closed)).iter().all(|s| s.learnt.is_none()));
    }
}
