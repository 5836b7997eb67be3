//! Jobs over dead letters, run: a frozen selection is published again, paced, or given up.
//!
//! What "exactly once" stands on. An item is published with confirm, then settled; settled items are never taken again.
//! A crash between the two publishes the item again with the *same* replay id, and the workers' ledger makes one call
//! of both. At most a tenth of a second's worth of items, and never more than a hundred, are between the two.

mod outgoing;
mod pace;
mod plan;
mod run;
mod runner;

use std::{sync::Arc, time::Duration};

use paceline_broker::Broker;
use paceline_core::Rate;
use paceline_store::{Job, Jobs};

#[cfg(test)]
pub(crate) use outgoing::entry_id;
pub(crate) use outgoing::is_about_one;
pub use plan::{LEFT_OUT, Proposal, propose, selection};
pub use run::run;
pub use runner::Runner;

/// How fast a replay goes unless told.
pub const DEFAULT_RATE: Rate = Rate::per_second(20);

/// What a run stands on.
#[derive(Clone)]
pub struct Deps {
    pub store: Arc<dyn Jobs>,
    pub broker: Arc<dyn Broker>,
    /// Names this runner among all there are: see [`owner`].
    pub owner: String,
    /// How long a job stays with this runner once it has gone without a word.
    pub lease: Duration,
}

impl Deps {
    pub fn new(store: Arc<dyn Jobs>, broker: Arc<dyn Broker>, owner: String) -> Deps {
        Deps { store, broker, owner, lease: Duration::from_secs(10) }
    }
}

/// A name for a runner that no other has; the words are for operators to recognise it by.
pub fn owner(words: &str) -> String {
    format!("{words}/{:08x}", rand::random::<u32>())
}

/// How a job stands while it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub job: Job,
    /// What is waited for, if anything is away.
    pub waiting: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The job is done or cancelled.
    Finished(Job),
    /// As asked; what is left can be resumed by anyone.
    Stopped(Job),
    /// Another runner has the job.
    Taken { owner: String },
    /// There is no such job any more.
    Unknown,
}
