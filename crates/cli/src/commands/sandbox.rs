//! `paceline sandbox`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use paceline_sandbox::{Options, Sandbox, Scenario};

use crate::{
    config::{LogConfig, LogFormat},
    exit::Failure,
    logging,
    output::{self, Format},
    signals::Signals,
};

#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Where to listen; port 0 takes a free one, which is logged
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8026")]
    pub listen: SocketAddr,
    /// TOML file that says how to answer [default: accept everything that is well formed]
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Write the exact time of each request here, one JSON object a line; an existing file is emptied
    #[arg(long, value_name = "FILE")]
    pub arrivals: Option<PathBuf>,
}

/// Serves until told to end, then prints what it has seen.
pub async fn run(args: &SandboxArgs, format: Format, level: Option<&str>) -> Result<(), Failure> {
    logging::service(&LogConfig { format: LogFormat::Json, level: "info".into() }, level)?;
    let scenario = match &args.scenario {
        None => Scenario::default(),
        Some(path) => read(path)?,
    };
    let mut signals = Signals::new()?;
    let options = Options { listen: Some(args.listen), scenario, arrivals: args.arrivals.clone() };
    let sandbox = Sandbox::start(options).await.map_err(|e| match std::error::Error::source(&e) {
        Some(cause) => Failure::failed(format!("{e}: {cause}")),
        None => Failure::failed(e.to_string()),
    })?;
    tracing::info!(addr = %sandbox.addr(), "listening");
    signals.end().await;
    let stats = sandbox.stop().await;
    output::object(format, &stats, |s| {
        let rows = [
            ("requests", s.requests),
            ("accepted", s.accepted),
            ("accepted recipients", s.accepted_recipients),
            ("duplicates", s.duplicates),
            ("refused", s.refused),
            ("hung", s.hung),
            ("dropped", s.dropped),
        ];
        let statuses = s.by_status.iter().map(|(status, n)| vec![format!("status {status}"), n.to_string()]);
        let rows: Vec<_> = rows.iter().map(|(what, n)| vec![(*what).to_owned(), n.to_string()]).chain(statuses).collect();
        output::table(&["SEEN", "COUNT"], &rows)
    })?;
    Ok(())
}

fn read(path: &PathBuf) -> Result<Scenario, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("{shown} cannot be read: {e}")))?;
    Scenario::from_toml(&text).map_err(|mistakes| {
        let lines: Vec<_> = mistakes.iter().map(|m| format!("{shown}:{}:{}: {}", m.line, m.column, m.problem)).collect();
        Failure::usage(format!("the scenario cannot be used:\n{}", lines.join("\n")))
    })
}
