//! The task that sends what callers ask, in batches.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{Pipeline, Value};
use tokio::sync::{mpsc, oneshot};

use super::{
    key,
    op::{Op, Wire, answer, set, unreadable},
};
use crate::{
    LimiterError,
    clock::ServerClock,
    ledger::{Claim, Claimed, LedgerError},
    redis::{RedisClient, Script},
    wire::{decode, encode},
};

/// Operations in one go: about a millisecond of the server's time.
const BATCH: usize = 256;
/// Callers that may wait before further ones are held back.
pub(super) const QUEUE: usize = 4_096;
/// How long a withdrawal is offered to a server that is away: beyond the longest hold it would change nothing.
const RELEASE_PATIENCE: Duration = Duration::from_secs(300);
/// Between tries while the server is away.
const RETRY_GAP: Duration = Duration::from_millis(100);
/// How long a reading of the server's clock is gone by.
const CLOCK_LIFE: Duration = Duration::from_secs(10);

/// What callers hand over at a time.
pub(super) enum Jobs {
    One(Job),
    Many(Vec<Job>),
}

pub(super) struct Job {
    pub(super) claim: Claim,
    pub(super) op: Op,
    /// Tried again until then while the server is away.
    pub(super) until: Instant,
    pub(super) answer: Answer,
}

/// Who waits for a reply.
pub(super) enum Answer {
    One(oneshot::Sender<Result<Claimed, LedgerError>>),
    /// This place among those of operations that are answered together.
    Part(Arc<Mutex<Gathered>>, usize),
    /// Nobody: a withdrawal that follows a lost claim.
    Nobody,
}

/// Replies to operations that are answered together, once all are there.
pub(super) struct Gathered {
    replies: Replies,
    left: usize,
    answer: Option<oneshot::Sender<Replies>>,
}

pub(super) type Replies = Vec<Result<Claimed, LedgerError>>;

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
    /// Of so many operations.
    pub(super) fn new(count: usize, answer: oneshot::Sender<Replies>) -> Arc<Mutex<Gathered>> {
        let replies = (0..count).map(|_| Err(gone())).collect();
        Arc::new(Mutex::new(Gathered { replies, left: count, answer: Some(answer) }))
    }

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

pub(super) struct Committer {
    client: RedisClient,
    script: Script,
    life_ms: String,
    queue: VecDeque<Job>,
    /// The server's.
    clock: Option<ServerClock>,
}

impl Committer {
    pub(super) fn new(client: RedisClient, life_ms: String) -> Committer {
        Committer { client, script: Script::new(include_str!("../ledger.lua")), life_ms, queue: VecDeque::new(), clock: None }
    }

    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Jobs>) {
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
            let (batch, error) = match self.set_all(batch).await {
                Ok(others) => match self.commit(&others).await {
                    Ok(replies) => {
                        others.into_iter().zip(replies).for_each(|(job, reply)| self.finish(job, reply));
                        continue;
                    }
                    Err(error) => (others, error),
                },
                Err(failed) => failed,
            };
            self.put_off(batch, &error);
            if error.is_transient() && !self.queue.is_empty() {
                tokio::time::sleep(RETRY_GAP).await;
            }
        }
    }

    fn finish(&mut self, job: Job, reply: Result<Claimed, LedgerError>) {
        // A claim whose caller went away while it travelled would stand until its deadline.
        let unwanted =
            matches!(job.op, Op::Claim) && matches!(reply, Ok(Claimed::Granted | Claimed::Expired { .. })) && job.is_unheard();
        if unwanted {
            self.queue.push_back(withdrawal(job.claim.clone()));
        }
        job.finish(reply);
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

    /// Does what one plain `SET` does, and returns the other operations: those the script must look at.
    async fn set_all(&mut self, batch: Vec<Job>) -> Result<Vec<Job>, (Vec<Job>, LedgerError)> {
        let now_us = match self.now_us().await {
            Ok(now_us) => now_us,
            Err(error) => return Err((batch, error)),
        };
        let mut sets = Pipeline::with_capacity(batch.len());
        let mut asked = Vec::with_capacity(batch.len());
        for job in &batch {
            let set = set(&job.claim, &job.op, now_us, || key(&self.client, &job.claim), &self.life_ms);
            asked.push(set.is_some());
            if let Some(set) = set {
                sets.add_command(set);
            }
        }
        if sets.is_empty() {
            return Ok(batch);
        }
        let answers = match self.client.send_all(&sets).await {
            Ok(answers) => answers,
            Err(error) => return Err((batch, error)),
        };
        let mut answers = answers.into_iter();
        let mut others = Vec::new();
        for (job, asked) in batch.into_iter().zip(asked) {
            // Anything else, be it that there is an entry or that the server refuses, is the script's.
            match asked.then(|| answers.next()).flatten() {
                Some(Value::Okay) => self.finish(job, Ok(Claimed::Granted)),
                _ => others.push(job),
            }
        }
        Ok(others)
    }

    /// The server's time, by its clock of a moment ago.
    async fn now_us(&mut self) -> Result<u64, LedgerError> {
        let clock = match self.clock.filter(|clock| clock.age() < CLOCK_LIFE) {
            Some(clock) => clock,
            None => *self.clock.insert(ServerClock::new(self.client.now_us().await?, Instant::now())),
        };
        Ok(clock.now_us(Instant::now()))
    }

    async fn commit(&self, batch: &[Job]) -> Result<Vec<Result<Claimed, LedgerError>>, LedgerError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = batch.iter().map(|job| key(&self.client, &job.claim)).collect();
        let wire: Vec<Wire<'_>> = batch.iter().map(|job| Wire::of(&job.claim, &job.op)).collect();
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
}

pub(super) fn gone() -> LedgerError {
    LimiterError::Unreachable { reason: "the ledger's task has ended".into() }
}

fn withdrawal(claim: Claim) -> Job {
    Job { claim, op: Op::Release, until: Instant::now() + RELEASE_PATIENCE, answer: Answer::Nobody }
}
