//! `suppress export`: the list as lines.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use paceline_store::{Order, Store};
use serde::Serialize;

use super::FilterArgs;
use crate::{
    commands::{dlq::grouped, partial::Partial},
    exit::Failure,
    output::{self, Format},
    signals::Signals,
};

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Into this file, which is there when it is whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// ndjson: whole entries, one JSON object a line; addresses: nothing else
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Lines::Ndjson)]
    format: Lines,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lines {
    Ndjson,
    Addresses,
}

/// Entries read at a time.
const PAGE: u32 = 5000;

#[derive(Serialize)]
struct Exported<'a> {
    exported: u64,
    file: &'a Path,
}

pub(super) async fn run(store: &dyn Store, args: &ExportArgs, format: Format) -> Result<(), Failure> {
    let Some(path) = &args.to else {
        write_all(store, args, &mut BufWriter::new(io::stdout().lock())).await?;
        return Ok(());
    };
    let mut signals = Signals::new()?;
    let partial = Partial::create(path)?;
    let mut out = BufWriter::new(&partial.file);
    let exported = tokio::select! {
        exported = write_all(store, args, &mut out) => exported?,
        () = signals.end() => return Err(Failure::failed("stopped; no file was written")),
    };
    drop(out);
    partial.complete().map_err(|e| Failure::failed(format!("{} cannot be written: {e}", path.display())))?;
    output::object(format, &Exported { exported, file: path }, |e| {
        format!("{} entries in {}\n", grouped(e.exported), path.display())
    })?;
    Ok(())
}

/// The earliest change first, so that nothing is left out where the list changes meanwhile; how many.
async fn write_all(store: &dyn Store, args: &ExportArgs, out: &mut impl Write) -> Result<u64, Failure> {
    let (filter, terminal) = (args.filter.filter(), io::stderr().is_terminal());
    let (mut count, mut after) = (0, None);
    loop {
        let page = store.suppressions(&filter, Order::Earliest, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.version);
        for entry in page {
            count += 1;
            match args.format {
                Lines::Ndjson => serde_json::to_writer(&mut *out, &entry).map_err(io::Error::from)?,
                Lines::Addresses => out.write_all(entry.address.as_bytes())?,
            }
            out.write_all(b"\n")?;
        }
        if terminal {
            let _ = write!(io::stderr(), "\r{} exported\x1b[K", grouped(count));
        }
    }
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    out.flush()?;
    Ok(count)
}
