//! The ledger in Redis, group-committed: whatever callers ask while one batch is on its way travels in the next.

mod committer;
mod op;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use self::{
    committer::{Answer, Committer, Gathered, Job, Jobs, QUEUE, Replies, gone},
    op::{Op, keep, record_of_call},
};
use super::{Claim, Claimed, Ledger, LedgerError, Recorded};
use crate::redis::RedisClient;

/// How long a result is offered to a server that is away.
const RECORD_PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the record of a call is on its way.
const ON_THE_WAY: Duration = Duration::from_secs(4);

/// A ledger shared by the fleet. Dropping it ends its task once everything queued is answered.
pub struct RedisLedger {
    jobs: mpsc::Sender<Jobs>,
    client: RedisClient,
    life_ms: String,
}

impl RedisLedger {
    /// A ledger over `client` that remembers an entry for `window` after its last change.
    /// Must be called within a Tokio runtime: one task sends the batches.
    pub fn new(client: RedisClient, window: Duration) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let life_ms = window.as_millis().clamp(1_000, 100_000_000_000).to_string();
        let committer = Committer::new(client.clone(), life_ms.clone());
        tokio::spawn(committer.run(queue));
        RedisLedger { jobs, client, life_ms }
    }

    /// Records what was sent in one call as one, where that can be. After `false` each result needs a record of its own.
    async fn record_call(&self, results: &[(Claim, Recorded)]) -> bool {
        // Nobody else may hold one of them when it arrives: it is not looked for in another claim's place.
        let latest = Instant::now() + ON_THE_WAY;
        let Some((token, Ok(record))) = record_of_call(results, latest, |claim| key(&self.client, claim)) else { return false };
        let key = self.client.key("call", &token.to_string());
        self.client.send(&keep(&key, &record, &self.life_ms)).await.is_ok()
    }

    async fn put(&self, claim: &Claim, op: Op, patience: Duration) -> Result<Claimed, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { claim: claim.clone(), op, until: Instant::now() + patience, answer: Answer::One(answer) };
        self.jobs.send(Jobs::One(job)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Puts operations that are answered all at once.
    async fn put_all(&self, ops: Vec<(Claim, Op)>, patience: Duration) -> Replies {
        let count = ops.len();
        if count == 0 {
            return Vec::new();
        }
        let (answer, answered) = oneshot::channel();
        let (gathered, until) = (Gathered::new(count, answer), Instant::now() + patience);
        let part = |(at, (claim, op))| Job { claim, op, until, answer: Answer::Part(gathered.clone(), at) };
        let jobs = ops.into_iter().enumerate().map(part).collect();
        // When the task ends, with the jobs, nobody else holds who waits.
        drop(gathered);
        let sent = self.jobs.send(Jobs::Many(jobs)).await.is_ok();
        match answered.await {
            Ok(replies) if sent => replies,
            _ => (0..count).map(|_| Err(gone())).collect(),
        }
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.put(&claim, Op::Claim, Duration::ZERO).await
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        self.put(claim, Op::Record(result), RECORD_PATIENCE).await.map(drop)
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.put(claim, Op::Release, RECORD_PATIENCE).await.map(drop)
    }

    async fn claim_all(&self, claims: Vec<Claim>) -> Vec<Result<Claimed, LedgerError>> {
        self.put_all(claims.into_iter().map(|claim| (claim, Op::Claim)).collect(), Duration::ZERO).await
    }

    async fn record_all(&self, results: &[(Claim, Recorded)]) -> Vec<Result<(), LedgerError>> {
        if self.record_call(results).await {
            return results.iter().map(|_| Ok(())).collect();
        }
        let ops = results.iter().map(|(claim, result)| (claim.clone(), Op::Record(result.clone()))).collect();
        self.put_all(ops, RECORD_PATIENCE).await.into_iter().map(|reply| reply.map(drop)).collect()
    }
}

/// Ids and batches hold no `@`, so the two forms never meet.
fn key(client: &RedisClient, claim: &Claim) -> String {
    match &claim.replay {
        None => client.key("sent", &claim.id),
        Some(batch) => client.key("resent", &format!("{batch}@{}", claim.id)),
    }
}
