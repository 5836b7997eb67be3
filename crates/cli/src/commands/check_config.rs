//! `paceline check-config`.

use serde::Serialize;

use crate::{
    config::{Config, ConfigError, Problem},
    exit::Failure,
    output::{self, Format},
    say,
};

/// What is printed with `--output json`.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    problems: &'a [Problem],
    /// Understood, but not in force yet, and the like.
    warnings: &'a [Problem],
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
}

#[derive(Serialize)]
struct Summary {
    file: Option<String>,
    accounts: usize,
    destinations: usize,
    lanes: usize,
    rules: usize,
}

/// Prints what is wrong, or what there is.
pub fn run(read: Result<Config, ConfigError>, format: Format) -> Result<(), Failure> {
    let checked = read.and_then(|config| match config.check_services() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(ConfigError { problems, warnings: config.warnings }),
    });
    match checked {
        Ok(config) => {
            let summary = Summary {
                file: config.file.as_ref().map(|f| f.display().to_string()),
                accounts: config.accounts.len(),
                destinations: config.destinations.len(),
                lanes: 4 * (config.destinations.len() + 1),
                rules: config.classifier.rules(),
            };
            let report = Report { ok: true, problems: &[], warnings: &config.warnings, summary: Some(summary) };
            warn(&config.warnings);
            output::object(format, &report, |report| report.summary.as_ref().map(people).unwrap_or_default())?;
            Ok(())
        }
        Err(error) => {
            warn(&error.warnings);
            if format == Format::Json {
                output::json(&Report { ok: false, problems: &error.problems, warnings: &error.warnings, summary: None })?;
            }
            Err(Failure::Config(error))
        }
    }
}

fn warn(warnings: &[Problem]) {
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
}

fn people(s: &Summary) -> String {
    let file = s.file.as_deref().unwrap_or("no file, the defaults");
    let mut text = format!(
        "{file}: good\n{} accounts, {} destinations and the tail in {} lanes, {} rules\n",
        s.accounts, s.destinations, s.lanes, s.rules
    );
    if s.accounts == 0 {
        text.push_str("A worker needs at least one [[account]].\n");
    }
    text
}
