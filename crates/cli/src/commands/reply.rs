//! `paceline reply`.

use std::{
    io::{self, LineWriter, Write},
    path::PathBuf,
};

use clap::Args;
use paceline_core::Scope;
use paceline_provider::{Action, Category, Verdict};
use serde::Serialize;

use super::lines;
use crate::{config::Config, exit::Failure};

/// More of a line than any rule looks at.
const MAX_LINE_BYTES: usize = 64 << 10;

#[derive(Debug, Args)]
pub struct ReplyArgs {
    /// Replies, one a line; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// What is printed for a line.
#[derive(Serialize)]
struct Answer<'a> {
    category: Category,
    scope: Scope,
    /// Whole seconds, rounded up; null where nothing but backoff applies.
    retry_after_s: Option<u64>,
    action: Action,
    rule: &'a str,
}

/// Streams one verdict a line, for empty lines too.
pub fn run(config: &Config, args: &ReplyArgs) -> Result<(), Failure> {
    // A line at a time, so that it serves in a pipe behind a log.
    let mut out = LineWriter::with_capacity(1 << 12, io::stdout().lock());
    for line in lines::open(&args.file, MAX_LINE_BYTES)?.with_empty() {
        let (_, bytes) = line?;
        let verdict = config.reply_rules.read(&String::from_utf8_lossy(&bytes));
        serde_json::to_writer(&mut out, &answer(&verdict)).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn answer(verdict: &Verdict) -> Answer<'_> {
    Answer {
        category: verdict.category,
        scope: verdict.scope,
        retry_after_s: verdict.retry_after.map(|wait| wait.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        action: verdict.action,
        rule: &verdict.rule,
    }
}
