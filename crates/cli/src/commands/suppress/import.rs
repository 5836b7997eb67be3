//! `suppress import`: a file of addresses, read line by line.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::{Instant, SystemTime},
};

use clap::Args;
use paceline_core::{EmailAddress, Timestamp, suppression::Kind};
use paceline_store::{Merged, NewSuppression, Store, Trail, is_reason};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::EntryArgs;
use crate::{
    commands::{
        dlq::grouped,
        lines::{self, Line},
    },
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Addresses or JSON objects, one a line; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    entry: EntryArgs,
}

/// Addresses of one transaction.
const BATCH: usize = 2000;
const MAX_LINE_BYTES: usize = 16 << 10;
/// Refused lines that are listed; beyond them they are only counted.
const MAX_LISTED: usize = 100_000;

/// A line that begins with `{`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    address: EmailAddress,
    kind: Option<Kind>,
    reason: Option<String>,
    source: Option<String>,
    note: Option<String>,
    by: Option<String>,
    until: Option<Timestamp>,
    created_at: Option<Timestamp>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Refused {
    line: u64,
    problem: String,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Summary {
    added: u64,
    hardened: u64,
    extended: u64,
    known: u64,
    refused: Vec<Refused>,
    /// All of them, also those beyond what `refused` lists.
    refused_count: u64,
    seconds: f64,
}

impl Summary {
    fn count(&mut self, merged: Merged) {
        *match merged {
            Merged::Added => &mut self.added,
            Merged::Hardened => &mut self.hardened,
            Merged::Extended => &mut self.extended,
            Merged::Known => &mut self.known,
        } += 1;
    }

    fn refuse(&mut self, line: u64, problem: String) {
        self.refused_count += 1;
        if self.refused.len() < MAX_LISTED {
            self.refused.push(Refused { line, problem });
        }
    }

    fn taken(&self) -> u64 {
        self.added + self.hardened + self.extended + self.known
    }
}

pub(super) async fn run(store: &dyn Store, args: &ImportArgs, format: Format) -> Result<(), Failure> {
    args.entry.check()?;
    let mut lines = read(lines::open(&args.file, MAX_LINE_BYTES)?);
    let name = args.file.file_name().map(|n| n.to_string_lossy().into_owned()).filter(|n| n != "-");
    let source = args.entry.source.clone().or(name);
    let mut trail = args.entry.trail(Trail::IMPORTED, source.clone());
    let (begun, terminal) = (Instant::now(), io::stderr().is_terminal());
    let (mut summary, mut batch, mut unread) = (Summary::default(), Vec::with_capacity(BATCH), None);
    loop {
        let line = lines.recv().await;
        let end = line.is_none();
        match line {
            Some(Ok((number, bytes))) => match entry(&bytes, number, args, source.as_deref(), SystemTime::now().into()) {
                Ok(entry) => batch.push(entry),
                Err(problem) => summary.refuse(number, problem),
            },
            Some(Err(e)) => unread = Some(e),
            None => {}
        }
        if batch.len() == BATCH || end && !batch.is_empty() {
            let merged = store.suppress(&batch, Some(&mut trail)).await.map_err(|e| {
                let taken = grouped(summary.taken());
                Failure::failed(format!(
                    "{}: {taken} addresses were taken before this; import it again, which changes nothing for them",
                    e.in_full()
                ))
            })?;
            merged.into_iter().for_each(|m| summary.count(m));
            batch.clear();
            if terminal {
                let _ = write!(io::stderr(), "\r{} taken, {} refused\x1b[K", grouped(summary.taken()), summary.refused_count);
            }
        }
        if end {
            break;
        }
    }
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    summary.seconds = begun.elapsed().as_secs_f64();
    output::object(format, &summary, people)?;
    match unread {
        Some(e) => Err(Failure::failed(format!("{}: reading stopped: {e}", args.file.display()))),
        None if summary.refused_count > 0 => Err(Failure::Reported),
        None => Ok(()),
    }
}

/// Lines as they come; a thread of its own waits for them.
fn read(lines: lines::Lines) -> mpsc::Receiver<io::Result<Line>> {
    let (sender, receiver) = mpsc::channel(1024);
    std::thread::spawn(move || {
        for line in lines {
            let stop = line.is_err();
            if sender.blocking_send(line).is_err() || stop {
                return;
            }
        }
    });
    receiver
}

/// What a line says, or what is wrong with it; in words without an address.
fn entry(line: &[u8], number: u64, args: &ImportArgs, source: Option<&str>, now: Timestamp) -> Result<NewSuppression, String> {
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("is longer than {MAX_LINE_BYTES} bytes"));
    }
    let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    // As spreadsheets begin a file.
    let text = text.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(text).trim();
    let plain = |address| NewSuppression { source: source.map(str::to_owned), ..args.entry.entry(address) };
    if !text.starts_with('{') {
        return EmailAddress::parse(text).map(plain).map_err(|e| format!("the address {e}"));
    }
    let given: Given = serde_json::from_str(text).map_err(|e| without_content(&e))?;
    let usual = plain(given.address);
    let entry = NewSuppression {
        kind: given.kind.unwrap_or(usual.kind),
        reason: given.reason.unwrap_or(usual.reason),
        source: given.source.or(usual.source),
        note: given.note.or(usual.note),
        by: given.by.unwrap_or(usual.by),
        until: given.until.or(usual.until),
        created_at: given.created_at,
        address: usual.address,
    };
    if !is_reason(&entry.reason) {
        return Err("reason: must be 1 to 64 of a-z 0-9 _ -".to_owned());
    }
    if entry.until.is_some_and(|until| until <= now) {
        return Err("until: that time has passed".to_owned());
    }
    Ok(entry)
}

/// A JSON error in words that quote nothing of the line.
fn without_content(error: &serde_json::Error) -> String {
    let words = error.to_string();
    const HARMLESS: [&str; 7] =
        ["missing field", "duplicate field", "the address", "not an RFC 3339", "EOF", "expected", "trailing characters"];
    match () {
        () if HARMLESS.iter().any(|begin| words.starts_with(begin)) => format!("is not a valid entry: {words}"),
        () if words.starts_with("unknown field") => {
            "has a field that is none of address, kind, reason, source, note, by, until, created_at".to_owned()
        }
        () if words.starts_with("unknown variant") => format!("kind: must be hard or soft, at column {}", error.column()),
        () => format!("is not a valid entry, at column {}", error.column()),
    }
}

fn people(s: &Summary) -> String {
    let mut text = format!(
        "{} listed, {} made hard, {} extended, {} known already, {} refused, in {:.1} s\n",
        grouped(s.added),
        grouped(s.hardened),
        grouped(s.extended),
        grouped(s.known),
        grouped(s.refused_count),
        s.seconds
    );
    if !s.refused.is_empty() {
        let rows: Vec<_> = s.refused.iter().map(|r| vec![r.line.to_string(), r.problem.clone()]).collect();
        text.push_str(&format!("\n{}", output::table(&["LINE", "PROBLEM"], &rows)));
    }
    let listed = s.refused.len() as u64;
    if listed < s.refused_count {
        text.push_str(&format!("… and {} more\n", grouped(s.refused_count - listed)));
    }
    text
}
