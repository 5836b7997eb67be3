//! `dlq export`: dead letters whole, one JSON object a line.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use paceline_dlq::Shown;
use paceline_store::Store;
use serde::Serialize;

use super::{LookArgs, grouped};
use crate::{
    commands::partial::Partial,
    exit::Failure,
    output::{self, Format},
    signals::Signals,
};

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Into this file, which is there when it is whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Lines::Ndjson)]
    format: Lines,
    #[command(flatten)]
    look: LookArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lines {
    Ndjson,
}

/// Entries read at a time.
const PAGE: u32 = 500;

#[derive(Serialize)]
struct Exported<'a> {
    exported: u64,
    bytes: u64,
    file: &'a Path,
}

pub(super) async fn run(store: &dyn Store, args: &ExportArgs, format: Format) -> Result<(), Failure> {
    let Lines::Ndjson = args.format;
    let Some(path) = &args.to else {
        let mut out = Counted::new(io::stdout().lock());
        write_all(store, &args.look, &mut out).await?;
        out.flush()?;
        return Ok(());
    };
    let mut signals = Signals::new()?;
    let partial = Partial::create(path)?;
    let mut out = Counted::new(&partial.file);
    let exported = tokio::select! {
        exported = write_all(store, &args.look, &mut out) => exported?,
        () = signals.end() => return Err(Failure::failed("stopped; no file was written")),
    };
    let failed = |e: io::Error| Failure::failed(format!("{} cannot be written: {e}", path.display()));
    out.flush().map_err(failed)?;
    let bytes = out.bytes;
    drop(out);
    partial.complete().map_err(failed)?;
    output::object(format, &Exported { exported, bytes, file: path }, |e| {
        format!("{} dead letters in {} ({} bytes)\n", grouped(e.exported), path.display(), grouped(e.bytes))
    })?;
    Ok(())
}

/// In the order of lists; how many.
async fn write_all(store: &dyn Store, look: &LookArgs, out: &mut impl Write) -> Result<u64, Failure> {
    let filter = look.filter();
    let (mut count, mut after) = (0, None);
    let mut left = filter.limit.unwrap_or(u32::MAX);
    let terminal = io::stderr().is_terminal();
    while left > 0 {
        let page = store.page(&filter, after.as_ref(), PAGE.min(left)).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.position());
        for kept in page {
            count += 1;
            left -= 1;
            serde_json::to_writer(&mut *out, &Shown::from(kept)).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        if terminal {
            let _ = write!(io::stderr(), "\r{} exported\x1b[K", grouped(count));
        }
    }
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    Ok(count)
}

/// Buffered, and counted.
struct Counted<W: Write> {
    out: BufWriter<W>,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    fn new(out: W) -> Counted<W> {
        Counted { out: BufWriter::with_capacity(1 << 16, out), bytes: 0 }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
