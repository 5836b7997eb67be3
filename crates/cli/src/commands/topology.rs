//! `paceline topology apply|check`.

use clap::Subcommand;
use paceline_broker::{Applied, Drift};
use serde::Serialize;

use crate::{
    config::Config,
    exit::Failure,
    output::{self, Format},
    services,
};

#[derive(Debug, Subcommand)]
pub enum TopologyCommand {
    /// Declare what is missing; drain and remove lanes that configuration no longer names
    ///
    /// Running it twice changes nothing the second time. Mail of a lane that is no longer named moves to where it
    /// belongs now.
    #[command(after_help = "Examples:
  paceline topology apply
  paceline topology apply --config paceline.toml --output json")]
    Apply,
    /// Say how the broker differs from the configuration; exit 1 if it does
    #[command(after_help = "Examples:
  paceline topology check
  paceline topology check --output json")]
    Check,
}

#[derive(Serialize)]
struct AppliedReport {
    created: Vec<String>,
    present: usize,
    removed: Vec<String>,
    drained: Vec<Drained>,
    left: Vec<String>,
}

#[derive(Serialize)]
struct Drained {
    lane: String,
    messages: u64,
}

#[derive(Serialize)]
struct Difference {
    /// `missing`, `different` or `unnamed`.
    kind: &'static str,
    name: String,
    detail: Option<String>,
}

/// Applies or checks.
pub async fn run(config: &Config, command: &TopologyCommand, format: Format) -> Result<(), Failure> {
    let broker = services::broker(config, "topology")?;
    let topology = services::topology(config);
    super::broker_is_up(&*broker, config).await?;
    let result = match command {
        TopologyCommand::Apply => match broker.apply(&topology).await {
            Ok(applied) => report_applied(applied, format),
            Err(e) => Err(e.into()),
        },
        TopologyCommand::Check => match broker.check(&topology).await {
            Ok(drift) => report_drift(drift, format),
            Err(e) => Err(e.into()),
        },
    };
    broker.close().await;
    result
}

fn report_applied(applied: Applied, format: Format) -> Result<(), Failure> {
    let Applied { created, present, removed, drained, left } = applied;
    let drained = drained.into_iter().map(|(lane, messages)| Drained { lane, messages }).collect();
    let report = AppliedReport { created, present, removed, drained, left };
    output::object(format, &report, |r| {
        let mut text = format!("{} created, {} were there already, {} removed\n", r.created.len(), r.present, r.removed.len());
        let mut each = |what: &str, names: &[String]| names.iter().for_each(|n| text.push_str(&format!("{what} {n}\n")));
        each("created", &r.created);
        each("removed", &r.removed);
        let drained: Vec<_> = r.drained.iter().map(|d| format!("{}: {} messages", d.lane, d.messages)).collect();
        each("drained", &drained);
        let left: Vec<_> = r.left.iter().map(|l| format!("{l}: still in use; apply again later")).collect();
        each("left", &left);
        text
    })?;
    Ok(())
}

fn report_drift(drift: Vec<Drift>, format: Format) -> Result<(), Failure> {
    let differs = drift.len();
    let differences: Vec<_> = drift
        .into_iter()
        .map(|d| match d {
            Drift::Missing(name) => Difference { kind: "missing", name, detail: None },
            Drift::Different { name, detail } => Difference { kind: "different", name, detail: Some(detail) },
            Drift::Unnamed(name) => Difference { kind: "unnamed", name, detail: None },
        })
        .collect();
    if format == Format::Table && differs == 0 {
        output::write("The broker is as configured.\n")?;
        return Ok(());
    }
    let row = |d: &Difference| vec![d.kind.to_owned(), d.name.clone(), d.detail.clone().unwrap_or_default()];
    output::list(format, &differences, &["KIND", "NAME", "DETAIL"], row)?;
    match differs {
        0 => Ok(()),
        n => {
            Err(Failure::failed(format!("the broker differs in {n} places; `paceline topology apply` mends what can be mended")))
        }
    }
}
