//! `paceline limits`: the limits in force and what set them; rates that operators set.

mod learnt;
mod shown;

use std::{collections::HashMap, time::SystemTime};

use clap::{Args, Subcommand};
use paceline_core::{LimitName, LimitOrder, Rate, Timestamp};
use paceline_store::{Standing, Which};

use super::{
    cancel::moment,
    operator::OperatorArgs,
    pause::{destinations, missing},
};
use crate::{
    config::Config,
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

async fn show(config: &Config, args: &ShowArgs, format: Format) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        known(config, name)?;
    }
    let store = services::store(config)?;
    let orders: HashMap<LimitName, Standing<LimitOrder>> =
        store.limit_orders(Which::InForce).await?.into_iter().map(|o| (o.order.name.clone(), o)).collect();
    let pauses: Vec<String> = store.pauses(Which::InForce).await?.into_iter().map(|p| p.order.scope.to_string()).collect();
    let memory = learnt::Memory::new(store.learnt().await?, Timestamp::from(SystemTime::now()));
    let mut shown = shown::all(config, &orders, &pauses, &memory);
    if let Some(name) = &args.name {
        // Of a destination: through each account.
        shown.retain(|s| {
            s.name == *name
                || matches!((&s.name, name), (LimitName::Pair { destination, .. }, LimitName::Destination(d)) if destination == d)
        });
    }
    output::list(format, &shown, &shown::COLUMNS, shown::row)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config() -> Config {
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
}
