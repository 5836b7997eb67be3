//! The ledger in Redis, group-committed: whatever callers ask while one batch is on its way travels in the next.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{Claim, Claimed, Ledger, LedgerError, Recorded};
use crate::{
    LimiterError,
    redis::{RedisClient, Script},
    wire::{decode, encode},
};

/// Operations in one script call: about a millisecond of the server's time.
const BATCH: usize = 256;
/// Callers that may wait before further ones are held back.
const QUEUE: usize = 4_096;
/// How long a result is offered to a server that is away.
const RECORD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a withdrawal is: beyond the longest hold it would change nothing.
const RELEASE_PATIENCE: Duration = Duration::from_secs(300);
/// Between tries while the server is away.
const RETRY_GAP: Duration = Duration::from_millis(100);

/// A ledger shared by the fleet. Dropping it ends its task once everything queued is answered.
pub struct RedisLedger {
    jobs: mpsc::Sender<Jobs>,
}

impl RedisLedger {
    /// A ledger over `client` that remembers an entry for `window` after its last change.
    /// Must be called within a Tokio runtime: one task sends the batches.
    pub fn new(client: RedisClient, window: Duration) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let committer = Committer {
            client,
            script: Script::new(include_str!("ledger.lua")),
            life_ms: window.as_millis().clamp(1_000, 100_000_000_000).to_string(),
            queue: VecDeque::new(),
        };
        tokio::spawn(committer.run(queue));
        RedisLedger { jobs }
    }

    async fn put(&self, claim: &Claim, op: Op, patience: Duration) -> Result<Claimed, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { claim: claim.clone(), op, until: Instant::now() + patience, answer: Answer::One(answer) };
        self.jobs.send(Jobs::One(job)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Puts operations that are answered all at once.
    async fn put_all(&self, ops: impl Iterator<Item = (Claim, Op)>, patience: Duration) -> Vec<Result<Claimed, LedgerError>> {
        let (answer, answered) = oneshot::channel();
        let shared = Arc::new(Mutex::new(Gathered { replies: Vec::new(), left: 0, answer: Some(answer) }));
        let until = Instant::now() + patience;
        let part = |(at, (claim, op))| Job { claim, op, until, answer: Answer::Part(shared.clone(), at) };
        let jobs: Vec<Job> = ops.enumerate().map(part).collect();
        let count = jobs.len();
        if count == 0 {
            return Vec::new();
        }
        {
            let mut gathered = shared.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.replies.resize_with(count, || Err(gone()));
            gathered.left = count;
        }
        drop(shared);
        let sent = self.jobs.send(Jobs::Many(jobs)).await.is_ok();
        match answered.await {
            Ok(replies) if sent => replies,
            _ => (0..count).map(|_| Err(gone())).collect(),
        }
    }
}

fn gone() -> LedgerError {
    LimiterError::Unreachable { reason: "the ledger's task has ended".into() }
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
        self.put_all(claims.into_iter().map(|claim| (claim, Op::Claim)), Duration::ZERO).await
    }

    async fn record_all(&self, results: &[(Claim, Recorded)]) -> Vec<Result<(), LedgerError>> {
        let ops = results.iter().map(|(claim, result)| (claim.clone(), Op::Record(result.clone())));
        self.put_all(ops, RECORD_PATIENCE).await.into_iter().map(|reply| reply.map(drop)).collect()
    }
}

/// What callers hand over at a time.
enum Jobs {
    One(Job),
    Many(Vec<Job>),
}

struct Job {
    claim: Claim,
    op: Op,
    /// Tried again until then while the server is away.
    until: Instant,
    answer: Answer,
}

/// Who waits for a reply.
enum Answer {
    One(oneshot::Sender<Result<Claimed, LedgerError>>),
    /// This place among those of operations that are answered together.
    Part(Arc<Mutex<Gathered>>, usize),
    /// Nobody: a withdrawal that follows a lost claim.
    Nobody,
}

/// Replies to operations that are answered together, once all are there.
struct Gathered {
    replies: Vec<Result<Claimed, LedgerError>>,
    left: usize,
    answer: Option<oneshot::Sender<Vec<Result<Claimed, LedgerError>>>>,
}

enum Op {
    Claim,
    Record(Recorded),
    Release,
}

impl Job {
    fn finish(self, reply: Result<Claimed, LedgerError>) {
        match self.answer {
            // The caller may have given up: nothing to tell then.
            Answer::One(waiting) => drop(waiting.send(reply)),
            Answer::Part(gathered, at) => gathered.lock().unwrap_or_else(PoisonError::into_inner).put(at, reply),
            Answer::Nobody => {}
        }
    }

    /// Whether its caller has given up.
    fn is_unheard(&self) -> bool {
        match &self.answer {
            Answer::One(waiting) => waiting.is_closed(),
            Answer::Part(gathered, _) => gathered.lock().unwrap_or_else(PoisonError::into_inner).is_unheard(),
            Answer::Nobody => true,
        }
    }
}

impl Gathered {
    fn put(&mut self, at: usize, reply: Result<Claimed, LedgerError>) {
        self.replies[at] = reply;
        self.left -= 1;
        if self.left == 0
            && let Some(waiting) = self.answer.take()
        {
            let _ = waiting.send(std::mem::take(&mut self.replies));
        }
    }

    fn is_unheard(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

struct Committer {
    client: RedisClient,
    script: Script,
    life_ms: String,
    queue: VecDeque<Job>,
}

impl Committer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Jobs>) {
        loop {
            if self.queue.is_empty() {
                match jobs.recv().await {
                    Some(jobs) => self.take(jobs),
                    None => return,
                }
            }
            while self.queue.len() < QUEUE
                && let Ok(jobs) = jobs.try_recv()
            {
                self.take(jobs);
            }
            let batch: Vec<Job> = self.queue.drain(..self.queue.len().min(BATCH)).collect();
            match self.commit(&batch).await {
                Ok(replies) => {
                    for (job, reply) in batch.into_iter().zip(replies) {
                        // A claim whose caller went away while it travelled would stand until its deadline.
                        let unwanted = matches!(job.op, Op::Claim)
                            && matches!(reply, Ok(Claimed::Granted | Claimed::Expired { .. }))
                            && job.is_unheard();
                        if unwanted {
                            self.queue.push_back(withdrawal(job.claim.clone()));
                        }
                        job.finish(reply);
                    }
                }
                Err(error) => {
                    self.put_off(batch, &error);
                    if error.is_transient() && !self.queue.is_empty() {
                        tokio::time::sleep(RETRY_GAP).await;
                    }
                }
            }
        }
    }

    fn take(&mut self, jobs: Jobs) {
        match jobs {
            Jobs::One(job) => self.queue.push_back(job),
            Jobs::Many(jobs) => self.queue.extend(jobs),
        }
    }

    /// After a failed batch: claims fail, results and withdrawals stay until their time is over.
    fn put_off(&mut self, batch: Vec<Job>, error: &LedgerError) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.queue);
        let asked = batch.len();
        for (i, job) in batch.into_iter().chain(waiting).enumerate() {
            match job.op {
                Op::Claim => {
                    // It may stand on the server although nobody will make the call: withdraw it first of all.
                    if i < asked && matches!(error, LimiterError::TimedOut { .. }) {
                        self.queue.push_back(withdrawal(job.claim.clone()));
                    }
                    job.finish(Err(error.clone()));
                }
                Op::Record(_) | Op::Release if error.is_transient() && job.until > now => self.queue.push_back(job),
                // Refused jobs of this batch must not come back; the others have not been tried.
                Op::Record(_) | Op::Release if i >= asked && job.until > now => self.queue.push_back(job),
                Op::Record(_) | Op::Release => job.finish(Err(error.clone())),
            }
        }
    }

    async fn commit(&self, batch: &[Job]) -> Result<Vec<Result<Claimed, LedgerError>>, LedgerError> {
        let keys: Vec<String> = batch.iter().map(|job| self.key(&job.claim)).collect();
        let wire: Vec<Wire<'_>> = batch.iter().map(Wire::of).collect();
        let request = encode(&wire)?;
        let bytes = self.client.run(&self.script, &keys, &[&request, self.life_ms.as_bytes()]).await?;
        let unusual: Vec<(usize, u8, u64, u8, String)> = decode(&bytes)?;
        let mut replies: Vec<Result<Claimed, LedgerError>> = batch.iter().map(|_| Ok(Claimed::Granted)).collect();
        for (position, code, number, state, note) in unusual {
            let reply = position.checked_sub(1).and_then(|i| replies.get_mut(i)).ok_or_else(unreadable)?;
            *reply = answer((code, number, state, note));
        }
        Ok(replies)
    }

    /// Ids and batches hold no `@`, so the two forms never meet.
    fn key(&self, claim: &Claim) -> String {
        match &claim.replay {
            None => self.client.key("sent", &claim.id),
            Some(batch) => self.client.key("resent", &format!("{batch}@{}", claim.id)),
        }
    }
}

fn withdrawal(claim: Claim) -> Job {
    Job { claim, op: Op::Release, until: Instant::now() + RELEASE_PATIENCE, answer: Answer::Nobody }
}

/// An operation as `ledger.lua` reads it.
#[derive(Serialize)]
#[serde(untagged)]
enum Wire<'a> {
    Claim(u8, u32, u64, u64, u64, &'a str),
    Record(u8, u32, u8, &'a str, u64),
    Release(u8, u32, u64),
}

impl<'a> Wire<'a> {
    fn of(job: &'a Job) -> Self {
        let claim = &job.claim;
        match &job.op {
            Op::Claim => {
                let hold_us = claim.hold.as_micros().min(86_400_000_000) as u64;
                Wire::Claim(1, claim.attempt, claim.digest, claim.token, hold_us, &claim.owner)
            }
            Op::Record(Recorded::Sent { note }) => Wire::Record(2, claim.attempt, 2, note, claim.digest),
            Op::Record(Recorded::Retry { note }) => Wire::Record(2, claim.attempt, 3, note, claim.digest),
            Op::Record(Recorded::Dead { note }) => Wire::Record(2, claim.attempt, 4, note, claim.digest),
            Op::Release => Wire::Release(3, claim.attempt, claim.token),
        }
    }
}

fn answer((code, number, state, note): (u8, u64, u8, String)) -> Result<Claimed, LedgerError> {
    let small = u32::try_from(number).unwrap_or(u32::MAX);
    Ok(match (code, state) {
        (1, _) => Claimed::Granted,
        (2, _) => Claimed::Held { until_us: number },
        (3, _) => Claimed::Expired { lost: small },
        (4, 2) => Claimed::Done { attempt: small, result: Recorded::Sent { note } },
        (4, 3) => Claimed::Done { attempt: small, result: Recorded::Retry { note } },
        (4, 4) => Claimed::Done { attempt: small, result: Recorded::Dead { note } },
        (5, _) => Claimed::Conflict,
        _ => return Err(unreadable()),
    })
}

fn unreadable() -> LedgerError {
    LimiterError::Refused { reason: "the ledger's reply makes no sense; is another version running?".into() }
}
