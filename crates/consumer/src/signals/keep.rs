//! What was learnt, kept where a loss of the shared memory does not reach.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use paceline_core::scope::Learnt;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

/// What was learnt of an account (`destination` is `None`), or of one of its destinations.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub account: Arc<str>,
    pub destination: Option<Arc<str>>,
    pub learnt: Learnt,
    /// When, on the limiter's clock: of two, the later is right.
    pub at_us: u64,
}

/// Why it could not be kept, or read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeepError(pub String);

/// A memory that outlives the shared one.
#[async_trait]
pub trait Keep: Send + Sync {
    /// Everything kept.
    async fn load(&self) -> Result<Vec<Kept>, KeepError>;

    /// Keeps these in place of what was kept of the same scopes before, unless that is later.
    async fn save(&self, kept: &[Kept]) -> Result<(), KeepError>;
}

/// Between two tries while it does not answer.
const PAUSE: Duration = Duration::from_secs(3);
/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

enum Done {
    Loaded(Result<Vec<Kept>, KeepError>),
    Saved(Result<(), (KeepError, Vec<Kept>)>),
}

/// Reads what was kept, once, and then keeps what changes; never waited for.
pub(super) struct Keeper {
    keep: Option<Arc<dyn Keep>>,
    loaded: bool,
    unsaved: BTreeMap<(Arc<str>, Option<Arc<str>>), Kept>,
    task: Option<JoinHandle<Done>>,
    not_before: Instant,
    lost: bool,
}

impl Keeper {
    pub(super) fn new(keep: Option<Arc<dyn Keep>>) -> Keeper {
        Keeper { keep, loaded: false, unsaved: BTreeMap::new(), task: None, not_before: Instant::now(), lost: false }
    }

    /// To be kept, unless something later of the same scope is.
    pub(super) fn note(&mut self, kept: Kept) {
        if self.keep.is_none() {
            return;
        }
        let known = self.unsaved.entry((kept.account.clone(), kept.destination.clone())).or_insert_with(|| kept.clone());
        if known.at_us <= kept.at_us {
            *known = kept;
        }
    }

    /// Goes on by a step, if it can; what had been kept, once that is known.
    pub(super) async fn step(&mut self) -> Option<Vec<Kept>> {
        if self.task.as_ref().is_some_and(|t| !t.is_finished()) {
            return None;
        }
        let done = match self.task.take() {
            Some(task) => task.await.ok(),
            None => None,
        };
        let mut found = None;
        match done {
            Some(Done::Loaded(Ok(kept))) => {
                self.answered();
                self.loaded = true;
                found = Some(kept);
            }
            Some(Done::Saved(Ok(()))) => self.answered(),
            Some(Done::Loaded(Err(error))) => self.failed(&error),
            Some(Done::Saved(Err((error, kept)))) => {
                self.failed(&error);
                for kept in kept {
                    self.unsaved.entry((kept.account.clone(), kept.destination.clone())).or_insert(kept);
                }
            }
            None => {}
        }
        self.begin();
        found
    }

    fn begin(&mut self) {
        let Some(keep) = self.keep.clone() else { return };
        if Instant::now() < self.not_before || (self.loaded && self.unsaved.is_empty()) {
            return;
        }
        let late = || KeepError("no answer in time".to_owned());
        self.task = Some(if self.loaded {
            let kept: Vec<Kept> = std::mem::take(&mut self.unsaved).into_values().collect();
            tokio::spawn(async move {
                let saved = timeout(PATIENCE, keep.save(&kept)).await.unwrap_or_else(|_| Err(late()));
                Done::Saved(saved.map_err(|error| (error, kept)))
            })
        } else {
            tokio::spawn(async move { Done::Loaded(timeout(PATIENCE, keep.load()).await.unwrap_or_else(|_| Err(late()))) })
        });
    }

    /// Saves what is left, with little patience.
    pub(super) async fn finish(&mut self) {
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end && (self.task.is_some() || !self.unsaved.is_empty()) && self.loaded {
            if let Some(task) = &mut self.task {
                let _ = timeout(end - Instant::now(), &mut *task).await;
                if !task.is_finished() {
                    return;
                }
            }
            self.step().await;
            if self.lost {
                return;
            }
        }
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.lost) {
            tracing::info!("the store answers again: what is learnt is kept");
        }
    }

    fn failed(&mut self, error: &KeepError) {
        self.not_before = Instant::now() + PAUSE;
        if !std::mem::replace(&mut self.lost, true) {
            tracing::warn!(%error, "what is learnt is not kept in the store, or cannot be read from it; trying again");
        }
    }
}
