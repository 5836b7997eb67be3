//! The ledger of a worker that may lose Redis: claims and results are kept here meanwhile and written when it is back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle};

use super::Mode;
use crate::ledger::{Claim, Claimed, Ledger, LedgerError, LocalLedger, Recorded, RedisLedger};

/// Results kept for Redis; beyond it the oldest are given up: a redelivery of those would be sent again.
const MOST: usize = 100_000;
/// Written at a time.
const AT_ONCE: usize = 256;
/// Between tries to write them.
const GAP: Duration = Duration::from_millis(500);

/// The fleet's ledger, and this worker's own while it cannot be reached.
///
/// What this worker claims by itself nobody else sees before it is back: a message that the broker hands to two workers
/// meanwhile, because its connection broke after the call and before the acknowledgement, may be sent twice.
pub struct GuardedLedger {
    shared: Arc<RedisLedger>,
    own: LocalLedger,
    mode: watch::Receiver<Mode>,
    unwritten: Arc<Mutex<Unwritten>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Unwritten {
    queue: VecDeque<(Claim, Word)>,
    dropped: u64,
}

#[derive(Clone)]
enum Word {
    Result(Recorded),
    Released,
}

impl GuardedLedger {
    /// A ledger over `shared` for a worker in this `mode`, which remembers its own claims for `window`. Must be called
    /// within a Tokio runtime.
    pub fn new(shared: RedisLedger, mode: watch::Receiver<Mode>, window: Duration) -> GuardedLedger {
        let (shared, unwritten) = (Arc::new(shared), Arc::<Mutex<Unwritten>>::default());
        let task = tokio::spawn(write_when_back(shared.clone(), mode.clone(), unwritten.clone()));
        GuardedLedger { shared, own: LocalLedger::new(window), mode, unwritten, task }
    }

    fn is_shared(&self) -> bool {
        matches!(*self.mode.borrow(), Mode::Unknown | Mode::Shared)
    }

    fn keep(&self, claim: &Claim, word: Word) {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        if unwritten.queue.len() >= MOST {
            unwritten.queue.pop_front();
            if unwritten.dropped == 0 {
                tracing::warn!(kept = MOST, "ledger: Redis is away and the oldest results are given up");
            }
            unwritten.dropped += 1;
        }
        unwritten.queue.push_back((claim.clone(), word));
    }

    /// Until Redis is away.
    async fn lost(&self) {
        let mut mode = self.mode.clone();
        // Without a sender it stays as it is.
        if mode.wait_for(|mode| !matches!(mode, Mode::Unknown | Mode::Shared)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for GuardedLedger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Ledger for GuardedLedger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        if !self.is_shared() {
            return self.own.claim(claim).await;
        }
        match self.own.answers(&claim) {
            Some(known) => Ok(known),
            None => self.shared.claim(claim).await,
        }
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        if self.is_shared() {
            tokio::select! {
                recorded = self.shared.record(claim, result.clone()) => return recorded,
                () = self.lost() => {}
            }
        }
        self.own.record(claim, result.clone()).await?;
        self.keep(claim, Word::Result(result));
        Ok(())
    }

    async fn claim_all(&self, claims: Vec<Claim>) -> Vec<Result<Claimed, LedgerError>> {
        if self.is_shared() && claims.iter().all(|claim| self.own.answers(claim).is_none()) {
            return self.shared.claim_all(claims).await;
        }
        join_all(claims.into_iter().map(|claim| self.claim(claim))).await
    }

    async fn record_all(&self, results: &[(Claim, Recorded)]) -> Vec<Result<(), LedgerError>> {
        if self.is_shared() {
            tokio::select! {
                recorded = self.shared.record_all(results) => return recorded,
                () = self.lost() => {}
            }
        }
        join_all(results.iter().map(|(claim, result)| self.record(claim, result.clone()))).await
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.own.release(claim).await?;
        if self.is_shared() {
            tokio::select! {
                released = self.shared.release(claim) => return released,
                () = self.lost() => {}
            }
        }
        self.keep(claim, Word::Released);
        Ok(())
    }
}

async fn write_when_back(shared: Arc<RedisLedger>, mut mode: watch::Receiver<Mode>, unwritten: Arc<Mutex<Unwritten>>) {
    loop {
        if mode.wait_for(|mode| *mode == Mode::Shared).await.is_err() {
            return;
        }
        let some: Vec<(Claim, Word)> = {
            let mut unwritten = unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            let many = unwritten.queue.len().min(AT_ONCE);
            if many == 0 && unwritten.dropped > 0 {
                tracing::warn!(dropped = unwritten.dropped, "ledger: results of these calls were given up while Redis was away");
                unwritten.dropped = 0;
            }
            unwritten.queue.drain(..many).collect()
        };
        if some.is_empty() {
            tokio::time::sleep(GAP).await;
            continue;
        }
        let mut writes = tokio::task::JoinSet::new();
        for (claim, word) in some {
            let shared = shared.clone();
            writes.spawn(async move {
                let written = match &word {
                    Word::Result(result) => shared.record(&claim, result.clone()).await,
                    Word::Released => shared.release(&claim).await,
                };
                (claim, word, written)
            });
        }
        let mut failed = false;
        while let Some(done) = writes.join_next().await {
            let Ok((claim, word, Err(error))) = done else { continue };
            failed = true;
            match error.is_transient() {
                true => unwritten.lock().unwrap_or_else(PoisonError::into_inner).queue.push_front((claim, word)),
                false => tracing::error!(%error, "ledger: a result of the time without Redis cannot be written"),
            }
        }
        if failed {
            tokio::time::sleep(GAP).await;
        }
    }
}
