//! A fake provider, scriptable, for tests of one's own. Nothing it takes is ever delivered.
//!
//! - Speaks every HTTP API that Paceline's providers speak, told apart by their paths; any other path is the generic `http`
//!   POST. Credentials must be shown and refusals come in that API's own way.
//! - Behaves as told by a [`Scenario`] (TOML) or by the recipient's address (`sandbox+503x2@…`); `docs/sandbox.md` has both.
//! - Notes the exact time at which each request had been read, as NDJSON, off the path of the answer.
//! - Is meant not to be what a benchmark measures: one lock and a handful of allocations a request.

mod answer;
mod api;
mod arrivals;
mod batch;
mod bucket;
mod decide;
mod duration;
mod facts;
mod form;
mod glob;
mod scenario;
mod serve;
mod stats;
mod step;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use tokio::{net::TcpListener, task::JoinHandle};

use crate::{arrivals::Arrivals, serve::Shared};
pub use crate::{
    scenario::{Scenario, ScenarioError},
    stats::Stats,
};

/// How to start a sandbox.
#[derive(Debug, Default)]
pub struct Options {
    /// Default `127.0.0.1:0`, a free port.
    pub listen: Option<SocketAddr>,
    pub scenario: Scenario,
    /// Where arrivals are written, one JSON object a line; an existing file is emptied.
    pub arrivals: Option<PathBuf>,
}

/// Why a sandbox could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot write arrivals to {path}")]
    Arrivals { path: PathBuf, source: io::Error },
}

/// The fake provider.
#[derive(Debug)]
pub struct Sandbox;

impl Sandbox {
    /// Starts serving on the current tokio runtime.
    ///
    /// # Errors
    /// The address is taken, or the arrivals file cannot be written.
    pub async fn start(options: Options) -> Result<Handle, StartError> {
        let address = options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let arrivals = match options.arrivals {
            None => None,
            Some(path) => Some(Arrivals::create(&path).map_err(|source| StartError::Arrivals { path, source })?),
        };
        let shared = Arc::new(Shared::new(options.scenario, arrivals));
        let serving = tokio::spawn(serve::accept(listener, Arc::clone(&shared)));
        Ok(Handle { addr, shared, serving })
    }
}

/// A running sandbox; dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Handle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Exact counts so far.
    pub fn stats(&self) -> Stats {
        self.shared.state().stats.clone()
    }

    /// Behaves otherwise from the next request on. Counts go on; attempts counted for scripts begin anew.
    pub fn set_scenario(&self, scenario: Scenario) {
        self.shared.set_scenario(scenario);
    }

    /// Forgets all counts and empties the arrivals file.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Closes every connection, writes out the arrivals and gives the final counts.
    pub async fn stop(mut self) -> Stats {
        self.serving.abort();
        // Resolves once the task and with it every connection is gone; the abort is no error here.
        let _ = (&mut self.serving).await;
        self.shared.close_arrivals();
        self.stats()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.serving.abort();
        self.shared.close_arrivals();
    }
}

/// A lock whose holder panicked is as good as any: what it guards are counts.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
