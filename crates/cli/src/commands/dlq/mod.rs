//! `paceline dlq`: dead letters in an operator's hands.

mod export;
mod filter;
mod follow;
mod order;
mod purge;
mod records;
mod view;

use clap::Subcommand;

use crate::{config::Config, exit::Failure, output::Format, services};

pub use export::ExportArgs;
pub(super) use filter::moment as ago;
pub use filter::{FilterArgs, LookArgs};
pub use order::{DiscardArgs, ReplayArgs};
pub use purge::PurgeArgs;
pub use records::{AuditArgs, JobsArgs};

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, the latest first (100 unless --limit says otherwise)
    #[command(after_help = "Examples:
  paceline dlq list
  paceline dlq list --reason retry_budget_exhausted --since 24h
  paceline dlq list --destination google --state all --limit 1000 --output json")]
    List(LookArgs),
    /// Show one dead letter whole: headers, the original message, the provider's last words
    ///
    /// ID is the dead letter's own or its message's; where a message has several dead letters (one a recipient), all
    /// of them are shown, settled ones too.
    #[command(after_help = "Examples:
  paceline dlq show order-4711
  paceline dlq show order-4711 --output json | jq -r .body")]
    Show {
        /// A dead letter's, or its message's
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Count dead letters by reason, destination and domain, and point out bursts of 429 and 5xx answers
    #[command(after_help = "Examples:
  paceline dlq stats
  paceline dlq stats --since 1h --output json")]
    Stats(LookArgs),
    /// Send dead letters again: prints the plan, and does it with --yes
    ///
    /// The selection is frozen when the order is given: what dies later is not in it. Only open entries are taken, and
    /// none is ever replayed twice, whoever runs the job and however often it is interrupted. Entries that would die
    /// again as they are (invalid_message) are left out unless --reason or --id asks for them. The first Ctrl-C stops in
    /// order. Exit 1 if an entry could not be replayed.
    #[command(after_help = "Examples:
  paceline dlq replay --reason retry_budget_exhausted --since 24h
  paceline dlq replay --destination google --rate 50/s --note 'INC-231: google was down' --yes
  paceline dlq replay --tenant acme --yes --detach
  paceline dlq replay --resume r-20260131-2g9k0m7f4c
  paceline dlq replay --watch r-20260131-2g9k0m7f4c
  paceline dlq replay --cancel r-20260131-2g9k0m7f4c")]
    Replay(Box<ReplayArgs>),
    /// Settle dead letters without sending them: prints the plan, and does it with --yes
    ///
    /// They are kept, and listed with --state discarded, until `dlq purge` deletes them.
    #[command(after_help = "Examples:
  paceline dlq discard --reason expired
  paceline dlq discard --reason rejected_recipient --until 30d --note 'reviewed' --yes
  paceline dlq discard --resume d-20260131-2g9k0m7f4c
  paceline dlq discard --cancel d-20260131-2g9k0m7f4c")]
    Discard(Box<DiscardArgs>),
    /// List replay and discard jobs, the latest first
    #[command(after_help = "Examples:
  paceline dlq jobs
  paceline dlq jobs --limit 5 --output json")]
    Jobs(JobsArgs),
    /// Show who did what: replays, discards, purges, cancel orders; the latest first
    #[command(after_help = "Examples:
  paceline dlq audit
  paceline dlq audit --subject r-20260131-2g9k0m7f4c --output json")]
    Audit(AuditArgs),
    /// Write dead letters whole, one JSON object a line: entry, headers, message
    ///
    /// The latest first. They are read page by page, so that any number of them fits.
    #[command(after_help = "Examples:
  paceline dlq export --since 24h > dead-letters.ndjson
  paceline dlq export --state all --to dead-letters.ndjson
  paceline dlq export --reason invalid_message | jq -r .field | sort | uniq -c")]
    Export(ExportArgs),
    /// Delete dead letters for good: counts them, and does it with --yes
    ///
    /// Entries in a job under way stay. `dlq export` first keeps a copy.
    #[command(after_help = "Examples:
  paceline dlq purge --older-than 90d
  paceline dlq purge --older-than 30d --state discarded --note 'retention' --yes")]
    Purge(PurgeArgs),
}

/// Does what it is asked to and prints the result.
pub async fn run(config: &Config, command: &DlqCommand, format: Format) -> Result<(), Failure> {
    let store = services::store(config)?;
    match command {
        DlqCommand::List(args) => view::list(&*store, args, format).await,
        DlqCommand::Show { id, filter } => view::show(&*store, id, filter, format).await,
        DlqCommand::Stats(args) => view::stats(&*store, args, format).await,
        DlqCommand::Replay(args) => order::run(config, store, args.order(), format).await,
        DlqCommand::Discard(args) => order::run(config, store, args.order(), format).await,
        DlqCommand::Jobs(args) => records::jobs(&*store, args, format).await,
        DlqCommand::Audit(args) => records::audit(&*store, args, format).await,
        DlqCommand::Export(args) => export::run(&*store, args, format).await,
        DlqCommand::Purge(args) => purge::run(&*store, args, format).await,
    }
}

/// A number as people write it: `12,345`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// About so long, in words.
fn about(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "less than a second".into(),
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 7200.0 => format!("about {:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("about {:.1} h", s / 3600.0),
        s => format!("about {:.1} days", s / 86_400.0),
    }
}

/// `paceline` with these words, as a shell takes it, on the configuration of this very command.
fn command_line(words: &[String]) -> String {
    let mut line = vec!["paceline".to_owned()];
    let mut own = std::env::args().skip(1);
    while let Some(word) = own.next() {
        if matches!(word.as_str(), "--config" | "--embedded") {
            line.push(word);
            line.extend(own.next());
        } else if word.starts_with("--config=") || word.starts_with("--embedded=") {
            line.push(word);
        }
    }
    line.extend(words.iter().cloned());
    line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@%+=,-".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_words_as_people_take_them() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
        for (s, text) in [
            (0.2, "less than a second"),
            (50.0, "about 50 s"),
            (500.0, "about 8 min"),
            (9000.0, "about 2.5 h"),
            (400_000.0, "about 4.6 days"),
        ] {
            assert_eq!(about(s), text);
        }
        for (word, text) in [("--id", "--id"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("", "''"), ("$x", "'$x'")] {
            assert_eq!(quoted(word), text);
        }
    }
}
