//! Being told to end, or to read the configuration anew.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT; and SIGHUP, which does not end the process.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// What the process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    End,
    /// To read its configuration anew.
    Reread,
}

impl Signals {
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the process is told something.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::End,
            _ = self.int.recv() => Told::End,
            _ = self.hup.recv() => Told::Reread,
        }
    }

    /// Returns when the process is told to end; until then its configuration stays as it is.
    pub async fn end(&mut self) {
        while self.next().await == Told::Reread {
            tracing::warn!("SIGHUP: not while starting or ending, and only workers read their configuration anew");
        }
    }
}
