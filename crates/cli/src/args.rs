//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    commands::{classify::ClassifyArgs, dlq::DlqCommand, sandbox::SandboxArgs, send::SendArgs, topology::TopologyCommand},
    output::Format,
};

/// Sends e-mail through providers' APIs at the pace they and the receiving servers allow.
///
/// Messages wait at the broker in lanes, by class and destination. Producers publish them (`paceline send` is one),
/// workers pace and send them, and what is given up on is kept as dead letters for an operator to look at.
#[derive(Debug, Parser)]
#[command(name = "paceline", version, subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Given before or after the command.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: ./paceline.toml if it is there]
    #[arg(long, global = true, env = "PACELINE_CONFIG", value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// How the result is printed; json: one array for a list, one object otherwise [default: table]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Global options")]
    pub output: Option<Format>,
    /// error, warn, info, debug, trace, or directives such as info,paceline_broker=debug [default: as configured]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Global options")]
    pub log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a worker pod: takes mail from the lanes, paces it, sends it
    ///
    /// Ends on SIGTERM or SIGINT after the calls under way have finished, within [worker] drain_grace. Any number of
    /// workers share one set of limits. Health and metrics are on [http] listen.
    #[command(after_help = "Examples:
  paceline worker --config paceline.toml
  PACELINE__HTTP__LISTEN=127.0.0.1:0 paceline worker --log-level debug")]
    Worker,
    /// Run the control plane: writes dead letters to the store, serves health and metrics
    #[command(after_help = "Examples:
  paceline control --config paceline.toml
  PACELINE__STORE__URL=postgres://paceline@127.0.0.1/mail paceline control")]
    Control,
    /// Publish messages (NDJSON, one a line) and wait until the broker has them
    ///
    /// Lines that are no message are refused with the field at fault; the others are published. Exit 1 if any line was
    /// refused.
    #[command(after_help = "Examples:
  paceline send messages.ndjson
  generate-mail | paceline send - --rate 200/s
  paceline send messages.ndjson --output json | jq .refused")]
    Send(SendArgs),
    /// Declare or verify the exchanges, lanes and delay queues on the broker
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// Look at dead letters
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Say which class, rule, destination and lane messages (NDJSON, one a line) get
    ///
    /// Prints one JSON object a line: {id, class, rule, destination, lane}, or {line, error, field} for a line that is
    /// no message (then exit 1). With --output json one array of them. Needs no service.
    #[command(after_help = "Examples:
  paceline classify messages.ndjson
  echo '{\"id\":\"1\",\"from\":\"a@example.com\",\"to\":[\"b@gmail.com\"],\"text\":\"hi\"}' | paceline classify -
  paceline classify --key high.gmail.com --output table messages.ndjson")]
    Classify(ClassifyArgs),
    /// Run the fake provider, for tests of one's own: nothing it takes is delivered
    #[command(after_help = "Examples:
  paceline sandbox
  paceline sandbox --listen 127.0.0.1:8026 --scenario failures.toml --arrivals arrivals.ndjson")]
    Sandbox(SandboxArgs),
    /// Check the configuration and report every mistake at once, with its place
    ///
    /// Reads the file and the environment; contacts no service. Exit 2 if there is a mistake. Warnings name settings
    /// that are understood but not in force yet.
    #[command(after_help = "Examples:
  paceline check-config
  paceline check-config --config ops/paceline.toml --output json")]
    CheckConfig,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.get_subcommands().next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:") && help.contains(path.trim()), "{path}: {help}");
            }
            command.get_subcommands().for_each(|c| walk(c, &path));
        }
        walk(&Cli::command(), "");
    }

    #[test]
    fn global_options_stand_before_or_after() {
        for words in [["paceline", "--output", "json", "check-config"], ["paceline", "check-config", "--output", "json"]] {
            assert_eq!(Cli::try_parse_from(words).unwrap().global.output, Some(Format::Json));
        }
    }
}
