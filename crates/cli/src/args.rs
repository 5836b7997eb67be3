//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    commands::{
        cancel::CancelArgs,
        classify::ClassifyArgs,
        completions::CompletionsArgs,
        demo::DemoArgs,
        dlq::DlqCommand,
        healthcheck::HealthcheckArgs,
        lanes::LanesArgs,
        limits::LimitsCommand,
        pause::{PauseCommand, ResumeCommand},
        reply::ReplyArgs,
        sandbox::SandboxArgs,
        send::SendArgs,
        simulate::SimulateArgs,
        suppress::SuppressCommand,
        topology::TopologyCommand,
    },
    output::Format,
};

/// Sends e-mail through providers' APIs at the pace they and the receiving servers allow.
///
/// Messages wait at the broker in lanes, by class and destination. Producers publish them (`paceline send` is one),
/// workers pace and send them, and what is given up on is kept as dead letters for an operator to look at.
///
/// Results go to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 usage or
/// configuration. Any setting can come from the environment: PACELINE__BROKER__URL sets [broker] url.
#[derive(Debug, Parser)]
#[command(name = "paceline", version, subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Examples:
  paceline demo
  paceline check-config --config paceline.toml
  paceline send messages.ndjson
  paceline dlq stats --since 24h")]
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
    /// Use embedded parts, kept in this directory, instead of RabbitMQ, Redis and PostgreSQL
    #[arg(long, global = true, env = "PACELINE_EMBEDDED", value_name = "DIR", help_heading = "Global options")]
    pub embedded: Option<PathBuf>,
    /// How the result is printed; json: one array for a list, one object otherwise [default: table]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Global options")]
    pub output: Option<Format>,
    /// error, warn, info, debug, trace, or directives such as info,paceline_broker=debug [default: as configured]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Global options")]
    pub log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// See it work: the whole system in one process, against the built-in sandbox
    ///
    /// Needs no service and no configuration, and sends nothing anywhere: a few thousand messages of all classes to a
    /// fake provider that throttles, fails and refuses, with a burst of password resets in the middle. Takes well under a
    /// minute and ends with a report. Exit 0 only if every message is accounted for.
    #[command(after_help = "Examples:
  paceline demo
  paceline demo --serve
  paceline demo --keep ./demo && paceline dlq list --embedded ./demo
  paceline demo --plain --output json | jq .otp")]
    Demo(DemoArgs),
    /// Run a worker pod: takes mail from the lanes, paces it, sends it
    ///
    /// Ends on SIGTERM or SIGINT after the calls under way have finished, within [worker] drain_grace. Any number of
    /// workers share one set of limits. Health and metrics are on [http] listen. SIGHUP makes it read its configuration
    /// anew: limits, [retry] and [circuit] change without a restart.
    ///
    /// With --embedded DIR (or broker.url = "spool:…") this one process is the whole system: it also writes dead letters
    /// and carries replays on, and a second one on the same directory is refused. `send`, `dlq` and `cancel` with the same
    /// --embedded DIR work beside it.
    #[command(after_help = "Examples:
  paceline worker --config paceline.toml
  paceline worker --embedded /var/lib/paceline
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
    /// refused. A message sent twice with the same id goes out once: when in doubt, send again.
    ///
    /// The least there can be: {"id":"1","from":"a@example.com","to":["b@example.org"],"text":"hi"}
    #[command(after_help = "Examples:
  paceline send messages.ndjson
  generate-mail | paceline send - --rate 200/s
  paceline send --embedded /var/lib/paceline messages.ndjson
  paceline send messages.ndjson --output json | jq .refused")]
    Send(SendArgs),
    /// Declare or verify the exchanges, lanes and delay queues on the broker
    #[command(
        subcommand,
        after_help = "Examples:
  paceline topology check
  paceline topology apply"
    )]
    Topology(TopologyCommand),
    /// Show what waits in each lane, how fast it may go, what binds it, and when it will be done
    ///
    /// From the broker's depths, the reports of all live workers (a second old at most) and operators' pauses. Lanes in which
    /// nothing waits are left out of the table, not of JSON. With --explain it says what is wrong at a destination: plain
    /// throttling, warm-up, reputation, authentication, greylisting, a receiver that is down; the evidence, what to do, and
    /// where to look.
    #[command(after_help = "Examples:
  paceline lanes
  paceline lanes --watch
  paceline lanes --explain google
  paceline lanes --output json | jq 'map(select(.state == \"paced\"))'")]
    Lanes(LanesArgs),
    /// Look at dead letters, send them again, discard, export or delete them
    #[command(
        subcommand,
        after_help = "Examples:
  paceline dlq stats
  paceline dlq list --since 24h
  paceline dlq replay --reason retry_budget_exhausted"
    )]
    Dlq(DlqCommand),
    /// Stop mail that waits: by message, tag, tenant or stream
    ///
    /// What matches and has not been sent becomes a dead letter `cancelled`, fleet-wide, within seconds; so does what is
    /// published until the order ends. Workers read orders from the store. A later `dlq replay` of it goes out all the
    /// same.
    #[command(after_help = "Examples:
  paceline cancel --tag spring-sale --note 'wrong price'
  paceline cancel --id order-4711
  paceline cancel --tenant acme --until 2h
  paceline cancel --list
  paceline cancel --remove c-20260131-2g9k0m7f4c")]
    Cancel(CancelArgs),
    /// Hold mail back: all through an account, to a destination, or of a class
    ///
    /// Fleet-wide within two seconds, across restarts, until it is resumed or its time is over. The mail waits in its lanes,
    /// at the broker: no attempt is spent, nothing is lost, and what is routed elsewhere goes on. Calls under way finish.
    #[command(
        subcommand,
        after_help = "Examples:
  paceline pause account main
  paceline pause destination google --for 2h --note 'TICKET-17'
  paceline pause list"
    )]
    Pause(PauseCommand),
    /// Let mail go on that was paused
    #[command(
        subcommand,
        after_help = "Examples:
  paceline resume account main
  paceline resume destination google"
    )]
    Resume(ResumeCommand),
    /// Show the limits in force and what set them, or set one for all workers
    ///
    /// A rate that an operator sets takes the place of the configured one, in either direction, without a restart, until it
    /// is reset or its time is over. What was learnt from a provider's answers may hold mail below it.
    #[command(
        subcommand,
        after_help = "Examples:
  paceline limits show
  paceline limits set account:main 50/s --until 2h
  paceline limits reset account:main"
    )]
    Limits(LimitsCommand),
    /// Keep recipients from being mailed, or let them be mailed again
    ///
    /// A recipient on the suppression list becomes a dead letter `suppressed` instead of being mailed; the other
    /// recipients of the message proceed. Hard entries hold for all mail. Soft ones let critical mail through where
    /// [suppression] critical_through_soft says so. Workers learn of a change within two seconds.
    #[command(
        subcommand,
        after_help = "Examples:
  paceline suppress add user@example.com --reason complaint --note 'TICKET-17'
  paceline suppress list --domain example.com
  paceline suppress import bounces.txt --reason bounce --source old-provider"
    )]
    Suppress(SuppressCommand),
    /// Say which class, rule, destination and lane messages (NDJSON, one a line) get
    ///
    /// Prints one JSON object a line: {id, class, rule, destination, lane}, or {line, error, field} for a line that is
    /// no message (then exit 1). With --output json one array of them. Needs no service.
    #[command(after_help = "Examples:
  paceline classify messages.ndjson
  echo '{\"id\":\"1\",\"from\":\"a@example.com\",\"to\":[\"b@gmail.com\"],\"text\":\"hi\"}' | paceline classify -
  paceline classify --key high.gmail.com --output table messages.ndjson")]
    Classify(ClassifyArgs),
    /// Say what SMTP or provider replies mean, one a line
    ///
    /// Prints one JSON object a line, in order, for every line there is: {category, scope, retry_after_s, action, rule}.
    /// [[reply_rule]] in the configuration comes before the shipped rules. Needs no service.
    #[command(after_help = "Examples:
  echo '450 4.2.0 Greylisted, try again in 300 seconds' | paceline reply -
  paceline reply bounces.txt | jq -r .category | sort | uniq -c")]
    Reply(ReplyArgs),
    /// Run the fake provider, for tests of one's own: nothing it takes is delivered
    ///
    /// Point an account's base_url (or url) at it. Ends on SIGTERM or Ctrl-C with the counts of what it has seen, which
    /// GET /sandbox/stats has meanwhile. docs/sandbox.md has all of a scenario's words.
    #[command(after_help = "Examples:
  paceline sandbox
  paceline sandbox --listen 127.0.0.1:8026 --scenario failures.toml --arrivals arrivals.ndjson")]
    Sandbox(SandboxArgs),
    /// Run a fleet under virtual time against a model of receivers, and see what its limits make of its mail
    ///
    /// The workers, their lanes and the limiter's arithmetic are the real ones; the clock leaps. A scenario says what there
    /// is (workers, limits, mail, receivers), what happens and what is expected; docs/simulator.md has every word of it. Ends
    /// with a report; exit 1 if a promise was broken or an expectation does not hold. Contacts nothing.
    #[command(after_help = "Examples:
  paceline simulate --list
  paceline simulate backlog --scale 0.01
  paceline simulate backlog --scale 0.01 --workers 20 --output json | jq .broker.per_message
  paceline simulate --random 123
  paceline simulate large-costs --print > mine.toml && paceline simulate mine.toml --seed 7")]
    Simulate(SimulateArgs),
    /// Check the configuration and report every mistake at once, with its place
    ///
    /// Reads the file and the environment; contacts no service. Exit 2 if there is a mistake. Warnings name settings
    /// that are understood but not in force yet.
    #[command(after_help = "Examples:
  paceline check-config
  paceline check-config --config ops/paceline.toml --output json")]
    CheckConfig,
    /// Ask a running worker or control process whether it is well; exit 1 if it is not
    ///
    /// For containers and scripts that have nothing else to ask with. Without a URL it asks where [http] listen says, on
    /// the same machine or in the same container.
    #[command(after_help = "Examples:
  paceline healthcheck
  paceline healthcheck --live --timeout 2s
  paceline healthcheck http://127.0.0.1:8026/sandbox/stats --output json")]
    Healthcheck(HealthcheckArgs),
    /// Print the script that makes a shell complete this command line
    ///
    /// zsh looks along its fpath: have `fpath+=(~/.zfunc)` in ~/.zshrc before compinit.
    #[command(after_help = "Examples:
  echo 'source <(paceline completions bash)' >> ~/.bashrc
  paceline completions fish > ~/.config/fish/completions/paceline.fish
  mkdir -p ~/.zfunc && paceline completions zsh > ~/.zfunc/_paceline")]
    Completions(CompletionsArgs),
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
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:") && help.contains(path.trim()), "{path}: {help}");
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
