//! The ledger in a SQLite file: durable, for the one worker of this machine. Claims and results share commits; each is
//! answered when its commit is on disk.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use paceline_sqlite::{
    Lock, LockError, Schema, Work, WriteError, Writer, open,
    rusqlite::{Connection, OptionalExtension, Result, Row, params},
};
use tokio::sync::{Semaphore, oneshot};

use super::{
    Claim, Claimed, Ledger, LedgerError, Recorded,
    entry::{self, Entry, EntryState},
};
use crate::{LimiterError, local::LocalClock};

const SCHEMA: Schema = Schema {
    what: "ledger",
    application_id: 0x5061_636c,
    migrations: &[include_str!("../../../../migrations/ledger/0001_ledger.sql")],
    page_size: 4096,
};

/// Callers that may wait before further ones are held back.
const QUEUE: usize = 4_096;
/// How long a result or a withdrawal is offered to a file that cannot be written.
const PATIENCE: Duration = Duration::from_secs(30);
/// Entries looked at for being out of date, per operation: all are seen before half as many new ones are stored.
const LOOKED_AT: usize = 2;

const CLAIMED: i64 = 0;
const RELEASED: i64 = 1;
const SENT: i64 = 2;
const RETRY: i64 = 3;
const DEAD: i64 = 4;

/// A ledger in a file. One process has it at a time: whatever an earlier one left claimed without a result counts as
/// expired from the moment this one opens it, so that a restart need not wait for deadlines.
pub struct SqliteLedger {
    path: PathBuf,
    // Before the lock: what is queued is stored while nobody else can have the file.
    writer: Writer<Keeper>,
    turns: Semaphore,
    _lock: Lock,
}

impl SqliteLedger {
    /// Opens the ledger, making the file if it is not there; an entry is remembered for `window` after its last change.
    /// Blocks for a commit. Errors name the path and what to do.
    pub fn open(path: &Path, window: Duration) -> Result<Self, LedgerError> {
        let storage = |reason: String| LimiterError::Storage { reason };
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        // The schema first: its errors say more about a path that cannot be.
        let db = open(path, &SCHEMA).map_err(|error| storage(error.to_string()))?;
        let lock = Lock::take(Path::new(&lock)).map_err(|error| match error {
            LockError::Held { .. } => {
                storage(format!("{} is in use, {error}: only one worker can; stop that one first", path.display()))
            }
            LockError::Failed { .. } => storage(error.to_string()),
        })?;
        let session = db.query_row("UPDATE session SET number = number + 1 RETURNING number", [], |row| row.get(0));
        let session = session.map_err(|error| storage(format!("{}: {error}", path.display())))?;
        let keeper = Keeper { clock: LocalClock::new(), window, session, unwanted: Vec::new(), seen: String::new() };
        let writer = Writer::start("ledger-writer", db, keeper).map_err(|error| storage(error.to_string()))?;
        Ok(SqliteLedger { path: path.to_owned(), writer, turns: Semaphore::new(QUEUE), _lock: lock })
    }

    async fn put(&self, claim: &Claim, op: Op) -> Result<Claimed, LedgerError> {
        let gone = || LimiterError::Storage { reason: format!("{} is closed", self.path.display()) };
        let _turn = self.turns.acquire().await.map_err(|_| gone())?;
        let (answer, answered) = oneshot::channel();
        let job = Job { claim: claim.clone(), op, until: Instant::now() + PATIENCE, found: None, answer };
        self.writer.put(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl std::fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteLedger").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.put(&claim, Op::Claim).await
    }

    async fn record(&self, claim: &Claim, result: Recorded) -> Result<(), LedgerError> {
        self.put(claim, Op::Record(result)).await.map(drop)
    }

    async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.put(claim, Op::Release).await.map(drop)
    }
}

struct Job {
    claim: Claim,
    op: Op,
    /// Tried again until then while the file cannot be written.
    until: Instant,
    /// The answer, once committed.
    found: Option<Claimed>,
    answer: oneshot::Sender<Result<Claimed, LedgerError>>,
}

enum Op {
    Claim,
    Record(Recorded),
    Release,
}

/// What the writer thread does.
struct Keeper {
    clock: LocalClock,
    window: Duration,
    /// Claims of other sessions have lost their owner.
    session: i64,
    /// Claims whose callers had gone when they were granted: withdrawn before anything else.
    unwanted: Vec<Claim>,
    /// The last key looked at for being out of date.
    seen: String,
}

impl Keeper {
    fn load(&self, db: &Connection, key: &str, now_us: u64) -> Result<Option<Entry>> {
        let sql =
            "SELECT attempt, state, digest, lost, note, token, session, until_us FROM entry WHERE key = ? AND forget_us > ?";
        db.prepare_cached(sql)?.query_row(params![key, signed(now_us)], |row| self.entry(row)).optional()
    }

    fn entry(&self, row: &Row<'_>) -> Result<Entry> {
        let note = || row.get::<_, String>(4);
        let state = match row.get(1)? {
            CLAIMED => {
                let ours = row.get::<_, Option<i64>>(6)? == Some(self.session);
                let until_us = if ours { row.get::<_, Option<i64>>(7)?.unwrap_or(0) } else { 0 };
                EntryState::Claimed { token: row.get::<_, Option<i64>>(5)?.map_or(0, unsigned), until_us: unsigned(until_us) }
            }
            RELEASED => EntryState::Released,
            SENT => EntryState::Result(Recorded::Sent { note: note()? }),
            RETRY => EntryState::Result(Recorded::Retry { note: note()? }),
            _ => EntryState::Result(Recorded::Dead { note: note()? }),
        };
        let digest = row.get::<_, Option<i64>>(2)?.map(unsigned);
        Ok(Entry { attempt: row.get(0)?, state, digest, lost: row.get(3)? })
    }

    /// Stores an entry; `sql` says what happens when there is one.
    fn save(&self, db: &Connection, sql: &str, key: &str, entry: &Entry, owner: &str, now_us: u64) -> Result<bool> {
        let window_us = u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX);
        let forget_us = signed(now_us.saturating_add(window_us));
        let (state, note, claim) = match &entry.state {
            EntryState::Claimed { token, until_us } => (CLAIMED, owner, Some((signed(*token), signed(*until_us)))),
            EntryState::Released => (RELEASED, "", None),
            EntryState::Result(Recorded::Sent { note }) => (SENT, note.as_str(), None),
            EntryState::Result(Recorded::Retry { note }) => (RETRY, note.as_str(), None),
            EntryState::Result(Recorded::Dead { note }) => (DEAD, note.as_str(), None),
        };
        let (token, until_us) = (claim.map(|c| c.0), claim.map(|c| c.1));
        let session = claim.map(|_| self.session);
        let values =
            params![key, entry.attempt, state, entry.digest.map(signed), entry.lost, note, token, session, until_us, forget_us];
        Ok(db.prepare_cached(sql)?.execute(values)? > 0)
    }

    fn run_one(&self, db: &Connection, claim: &Claim, op: &Op, now_us: u64) -> Result<Claimed> {
        const REPLACE: &str = "REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        const ADD: &str = "INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let key = match &claim.replay {
            None => claim.id.to_string(),
            // Ids and batches hold no `@`, so the two forms never meet.
            Some(batch) => format!("{batch}@{}", claim.id),
        };
        // What nearly every message needs is one statement each: the first claim, and the result "sent".
        match op {
            Op::Claim => {
                let entry = entry::first_claim(claim, now_us);
                if claim.attempt == 1 && self.save(db, ADD, &key, &entry, &claim.owner, now_us)? {
                    return Ok(Claimed::Granted);
                }
            }
            Op::Record(result) => {
                if let Some(entry) = entry::sent_at_first(claim, result) {
                    return self.save(db, REPLACE, &key, &entry, "", now_us).map(|_| Claimed::Granted);
                }
            }
            Op::Release => {}
        }
        let before = self.load(db, &key, now_us)?;
        let mut after = before.clone();
        let answer = match op {
            Op::Claim => entry::claim(&mut after, claim, now_us),
            Op::Record(result) => {
                entry::record(&mut after, claim, result);
                Claimed::Granted
            }
            Op::Release => {
                entry::release(&mut after, claim);
                Claimed::Granted
            }
        };
        if let Some(after) = after.filter(|after| before.as_ref() != Some(after)) {
            self.save(db, REPLACE, &key, &after, &claim.owner, now_us)?;
        }
        Ok(answer)
    }

    /// Looks at some entries, in the order of their keys and then from the start again, and deletes what is out of date.
    fn purge(&mut self, db: &Connection, count: usize, now_us: u64) -> Result<()> {
        let mut some = db.prepare_cached("SELECT key, forget_us FROM entry WHERE key > ? ORDER BY key LIMIT ?")?;
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let some = some.query_map(params![self.seen, limit], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        let some = some.collect::<Result<Vec<_>>>()?;
        for (key, _) in some.iter().filter(|(_, forget_us)| *forget_us <= signed(now_us)) {
            db.prepare_cached("DELETE FROM entry WHERE key = ?")?.execute([key])?;
        }
        self.seen =
            if some.len() < count { String::new() } else { some.into_iter().last().map(|(key, _)| key).unwrap_or_default() };
        Ok(())
    }
}

impl Work for Keeper {
    type Job = Job;

    fn weight(_: &Job) -> usize {
        512
    }

    fn durable(&self, _: &[Job]) -> bool {
        true
    }

    fn run(&mut self, db: &Connection, jobs: &mut [Job]) -> Result<()> {
        let now_us = self.clock.now_us();
        for claim in &self.unwanted {
            self.run_one(db, claim, &Op::Release, now_us)?;
        }
        for job in &mut *jobs {
            job.found = Some(self.run_one(db, &job.claim, &job.op, now_us)?);
        }
        self.purge(db, LOOKED_AT * jobs.len(), now_us)
    }

    fn committed(&mut self, jobs: Vec<Job>) {
        self.unwanted.clear();
        for Job { claim, op, found, answer, .. } in jobs {
            let taken = matches!(op, Op::Claim) && matches!(found, Some(Claimed::Granted | Claimed::Expired { .. }));
            let answered = found.is_some_and(|found| answer.send(Ok(found)).is_ok());
            // A claim whose caller went away would stand until its deadline.
            if taken && !answered {
                self.unwanted.push(claim);
            }
        }
    }

    fn failed(&mut self, jobs: Vec<Job>, error: &WriteError) -> Vec<Job> {
        let now = Instant::now();
        let mut again = Vec::new();
        for job in jobs {
            if matches!(job.op, Op::Claim) || error.is_refusal() || job.until <= now {
                // The caller may have given up: nothing to tell then.
                let _ = job.answer.send(Err(LimiterError::Storage { reason: error.to_string() }));
            } else {
                again.push(job);
            }
        }
        again
    }

    fn health(&mut self, _: Option<&WriteError>) {}
}

/// Times, tokens and digests stay below 2⁵³.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
