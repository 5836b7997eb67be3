//! `paceline limits`: the limits in force and what set them; rates that operators set.

use std::{collections::HashMap, time::SystemTime};

use clap::{Args, Subcommand};
use paceline_core::{LimitName, LimitOrder, Rate, Timestamp};
use paceline_store::{Standing, Which};
use serde::Serialize;

use super::{
    cancel::moment,
    operator::OperatorArgs,
    pause::{destinations, missing},
};
use crate::{
    config::{Config, Limit},
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Show every rate in force, and what set it
    #[command(after_help = "Examples:
  paceline limits show
  paceline limits show account:main
  paceline limits show --output json")]
    Show(ShowArgs),
    /// Set a rate in place of the configured one, slower or faster, for all workers
    ///
    /// NAME is one of account:NAME, destination:NAME (of every account), account:NAME/destination:NAME, fleet:DESTINATION
    /// (over all accounts), tail (each domain that no destination names), tenant:NAME, sender:DOMAIN-OR-ADDRESS. Set anew,
    /// the rate and its end are replaced. The burst falls with the rate.
    #[command(after_help = "Examples:
  paceline limits set account:main 50/s --until 2h
  paceline limits set destination:google 300/h --note 'TICKET-17'
  paceline limits set account:main/destination:google 1/s
  paceline limits set tail 60/h --for 30min --by ann")]
    Set(SetArgs),
    /// Take a rate back: the configured one is in force again
    #[command(after_help = "Examples:
  paceline limits reset account:main")]
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    name: Option<LimitName>,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// account:NAME, destination:NAME, account:NAME/destination:NAME, fleet:NAME, tail, tenant:NAME, sender:NAME
    #[arg(value_name = "NAME")]
    name: LimitName,
    /// Recipients by time: 100/s, 300/h
    #[arg(value_name = "RATE")]
    rate: Rate,
    /// Over by itself then: 2h from now, or 2026-01-31T09:30:00Z [default: when somebody resets it]
    #[arg(long, visible_alias = "for", value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub struct ResetArgs {
    #[arg(value_name = "NAME")]
    name: LimitName,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// Shows, sets or takes back.
pub async fn run(config: &Config, command: &LimitsCommand, format: Format) -> Result<(), Failure> {
    match command {
        LimitsCommand::Show(args) => show(config, args, format).await,
        LimitsCommand::Set(args) => set(config, args, format).await,
        LimitsCommand::Reset(args) => reset(config, args, format).await,
    }
}

async fn set(config: &Config, args: &SetArgs, format: Format) -> Result<(), Failure> {
    known(config, &args.name)?;
    if args.until.is_some_and(|until| until <= Timestamp::from(SystemTime::now())) {
        return Err(Failure::usage("--until: that time has passed"));
    }
    let store = services::store(config)?;
    let order = store.set_limit(&args.name, args.rate, args.until, &args.operator.by(), args.operator.note()).await?;
    output::object(format, &order, |o| {
        let LimitOrder { name, rate, until, .. } = &o.order;
        let until = until.map_or_else(|| "until somebody resets it".to_owned(), |until| format!("until {until}"));
        format!("{name}: {rate} {until}. Workers know within two seconds.\n`paceline limits reset {name}` takes it back.\n")
    })?;
    Ok(())
}

async fn reset(config: &Config, args: &ResetArgs, format: Format) -> Result<(), Failure> {
    let store = services::store(config)?;
    let ended = store.reset_limit(&args.name, &args.operator.by(), args.operator.note()).await?;
    let Some(ended) = ended else {
        known(config, &args.name)?;
        return Err(Failure::failed(format!("nobody has set {}; `paceline limits show` says what is set", args.name)));
    };
    output::object(format, &ended, |o| format!("{}: as configured again. Workers know within two seconds.\n", o.order.name))?;
    Ok(())
}

/// That there is such a limit.
fn known(config: &Config, name: &LimitName) -> Result<(), Failure> {
    let account = |name: &str| missing("account", name, &config.accounts.iter().map(|a| a.name.as_str()).collect());
    // The tail has a name of its own among limits.
    let named: Vec<&str> = destinations(config).into_iter().filter(|d| *d != paceline_core::lane::TAIL).collect();
    let listed = |what: &str, name: &str, all: &[crate::config::NamedLimit]| {
        let all: Vec<String> = all.iter().map(|n| n.name.to_lowercase()).collect();
        missing(what, name, &all.iter().map(String::as_str).collect())
    };
    match name {
        LimitName::Account(name) => account(name),
        LimitName::Destination(name) | LimitName::Fleet(name) => missing("destination", name, &named),
        LimitName::Pair { account: name, destination } => {
            account(name)?;
            missing("destination", destination, &named)
        }
        LimitName::Tail => Ok(()),
        LimitName::Tenant(name) => listed("[[tenant]]", name, &config.tenants),
        LimitName::Sender(name) => listed("[[sender]]", name, &config.senders),
    }
}

/// One limit, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: LimitName,
    /// `None`: nothing paces it.
    in_force: Option<Rate>,
    set_by: SetBy,
    configured: Option<Rate>,
    burst: Option<u32>,
    quota: Vec<Rate>,
    concurrency: Option<u32>,
    ordered: Option<Ordered>,
    /// What pauses it now, such as `account main`.
    paused_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum SetBy {
    Configured,
    Ordered,
    Nobody,
}

impl SetBy {
    const fn as_str(self) -> &'static str {
        match self {
            SetBy::Configured => "configured",
            SetBy::Ordered => "ordered",
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

async fn show(config: &Config, args: &ShowArgs, format: Format) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        known(config, name)?;
    }
    let store = services::store(config)?;
    let orders: HashMap<LimitName, Standing<LimitOrder>> =
        store.limit_orders(Which::InForce).await?.into_iter().map(|o| (o.order.name.clone(), o)).collect();
    let pauses: Vec<String> = store.pauses(Which::InForce).await?.into_iter().map(|p| p.order.scope.to_string()).collect();
    let mut shown = all(config, &orders, &pauses);
    if let Some(name) = &args.name {
        // Of a destination: through each account.
        shown.retain(|s| {
            s.name == *name
                || matches!((&s.name, name), (LimitName::Pair { destination, .. }, LimitName::Destination(d)) if destination == d)
        });
    }
    output::list(
        format,
        &shown,
        &["LIMIT", "IN FORCE", "SET BY", "CONFIGURED", "BURST", "QUOTA", "CALLS", "UNTIL", "PAUSED", "BY", "NOTE"],
        row,
    )?;
    Ok(())
}

/// Every limit there is.
fn all(config: &Config, orders: &HashMap<LimitName, Standing<LimitOrder>>, pauses: &[String]) -> Vec<Shown> {
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
            paused_by,
        }
    };
    let paused = |wanted: &[String]| -> Vec<String> { pauses.iter().filter(|p| wanted.contains(p)).cloned().collect() };
    let mut out = vec![];
    for account in &config.accounts {
        let scope = format!("account {}", account.name);
        let name = LimitName::Account(account.name.clone());
        out.push(shown(&[name], account.limit, &account.quota, account.fleet_concurrency, paused(&[scope])));
    }
    for account in &config.accounts {
        for d in &config.destinations {
            let pair = LimitName::Pair { account: account.name.clone(), destination: d.name.clone() };
            let names = [pair, LimitName::Destination(d.name.clone())];
            let paused = paused(&[format!("account {}", account.name), format!("destination {}", d.name)]);
            out.push(shown(&names, d.limit, &d.quota, d.concurrency, paused));
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

fn row(s: &Shown) -> Vec<String> {
    fn or_dash<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".to_owned(), |v| v.to_string())
    }
    let several = |all: Vec<String>| if all.is_empty() { "-".to_owned() } else { all.join(", ") };
    let ordered = s.ordered.as_ref();
    vec![
        s.name.to_string(),
        or_dash(s.in_force),
        s.set_by.as_str().to_owned(),
        or_dash(s.configured),
        or_dash(s.burst),
        several(s.quota.iter().map(ToString::to_string).collect()),
        or_dash(s.concurrency),
        or_dash(ordered.and_then(|o| o.until)),
        several(s.paused_by.clone()),
        or_dash(ordered.map(|o| &o.by)),
        or_dash(ordered.and_then(|o| o.note.as_ref())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
            [classify]
            presets = false
            [[account]]
            name = "main"
            provider = "sendgrid"
            api_key = "SG.x"
            rate = "100/s"
            quota = ["1000/h"]
            [[account]]
            name = "free"
            provider = "sendgrid"
            api_key = "SG.y"
            [[destination]]
            name = "google"
            domains = ["gmail.com"]
            rate = "5/s"
            [[tenant]]
            name = "Acme"
            rate = "1/s"
        "#;
        Config::parse("test.toml", text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn unknown_names_are_refused_with_what_there_is() {
        let refused = |name: &str| match known(&config(), &name.parse().unwrap()) {
            Err(Failure::Usage(why)) => why,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(refused("account:other"), "there is no account other; the configuration has main, free");
        assert_eq!(refused("fleet:yahoo"), "there is no destination yahoo; the configuration has google");
        assert_eq!(refused("account:main/destination:tail"), "there is no destination tail; the configuration has google");
        assert_eq!(refused("sender:x.example"), "there is no [[sender]] x.example: the configuration has none");
        for name in ["account:free", "destination:google", "account:free/destination:google", "tail", "tenant:ACME"] {
            assert!(known(&config(), &name.parse().unwrap()).is_ok(), "{name}");
        }
    }

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
        let shown = all(&config(), &orders.into(), &["account free".to_owned(), "class low".to_owned()]);
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
}
