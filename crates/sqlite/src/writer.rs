//! The one thread of this process that writes to a file: group commit.
//!
//! Callers put jobs into an inbox. The thread takes what has gathered, runs it in one transaction, and hands all of it
//! back once the commit is on disk; meanwhile the next jobs gather. A disk that syncs 250 times a second so carries
//! tens of thousands of jobs a second, and a lone job waits for one sync only.
//!
//! - A job that cannot be stored through its own fault spoils no other: its batch is rolled back and run again one by one.
//! - A full disk, an I/O error or another process that does not let go fails the batch; nothing of it is stored. The
//!   thread goes on, and while nobody asks for anything it tries by itself whether the file can be written again.
//! - The write-ahead log is written back between batches, after their answers, when it exceeds a bound. It never grows
//!   much beyond it: only a reader that keeps one snapshot open could prevent that.
//! - A thread that writes without a break leaves others a gap now and then.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use crate::WriteError;

/// Jobs in one transaction.
const MAX_JOBS: usize = 1024;
/// And their weight, unless one alone is heavier.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// The write-ahead log is written back beyond this.
const MAX_LOG_BYTES: u64 = 32 * 1024 * 1024;
/// After a failure: between tries.
const RETRY_GAP: Duration = Duration::from_millis(100);
/// How long work without jobs gathers.
const GATHER: Duration = Duration::from_millis(3);
/// After writing for this long without a break …
const BUSY: Duration = Duration::from_millis(50);
/// … other processes get this long to begin.
const GAP: Duration = Duration::from_millis(1);

/// What one adapter does on the thread.
pub trait Work: Send + 'static {
    type Job: Send + 'static;

    /// About what it adds to a transaction, in bytes.
    fn weight(job: &Self::Job) -> usize;

    /// Whether this batch must be on disk before anything of it is answered. One that need not be survives the end
    /// of the process, but perhaps not a power cut, until the next one that must.
    fn durable(&self, jobs: &[Self::Job]) -> bool;

    /// Does the jobs within the open transaction; none of them when poked. After an error it is rolled back, and the
    /// same jobs may be run again. An answer of the adapter's own ("no such queue") is no error: keep it with the job.
    fn run(&mut self, db: &Connection, jobs: &mut [Self::Job]) -> rusqlite::Result<()>;

    /// They are committed: answer.
    fn committed(&mut self, jobs: Vec<Self::Job>);

    /// Nothing of them is stored. Answers, and gives back what should be tried again: nothing after a refusal.
    fn failed(&mut self, jobs: Vec<Self::Job>, error: &WriteError) -> Vec<Self::Job>;

    /// If set, [`Work::run`] is called after this time even if nothing has come.
    fn again_in(&self) -> Option<Duration> {
        None
    }

    /// The file can be written again (`None`), or no longer, or not for another reason.
    fn health(&mut self, error: Option<&WriteError>);
}

/// The thread, and the way to it. Dropped, it does what is queued and ends; that is waited for.
pub struct Writer<W: Work> {
    inbox: Arc<Inbox<W::Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inbox<J> {
    waiting: Mutex<Waiting<J>>,
    arrival: Condvar,
}

struct Waiting<J> {
    jobs: VecDeque<J>,
    /// There is work without a job.
    poked: bool,
    closing: bool,
}

impl<W: Work> Writer<W> {
    /// Starts the thread on a connection of its own; `name` is the thread's, at most 15 bytes.
    pub fn start(name: &str, db: Connection, work: W) -> io::Result<Writer<W>> {
        let waiting = Waiting { jobs: VecDeque::new(), poked: false, closing: false };
        let inbox = Arc::new(Inbox { waiting: Mutex::new(waiting), arrival: Condvar::new() });
        let path = db.path().unwrap_or_default().to_owned();
        let thread = Thread { inbox: inbox.clone(), db, path, work, down: None, synced: true };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || thread.run())?;
        Ok(Writer { inbox, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a job; `Err` gives it back when the thread is ending.
    pub fn put(&self, job: W::Job) -> Result<(), W::Job> {
        let mut waiting = self.inbox.lock();
        if waiting.closing {
            return Err(job);
        }
        waiting.jobs.push_back(job);
        let first = waiting.jobs.len() == 1;
        drop(waiting);
        if first {
            self.inbox.arrival.notify_one();
        }
        Ok(())
    }

    /// Lets [`Work::run`] be called within a few milliseconds, jobs or not.
    pub fn poke(&self) {
        let mut waiting = self.inbox.lock();
        if !waiting.poked {
            waiting.poked = true;
            drop(waiting);
            self.inbox.arrival.notify_one();
        }
    }

    /// Does what is queued, then ends the thread and returns; blocks for about one commit.
    pub fn close(&self) {
        self.inbox.lock().closing = true;
        self.inbox.arrival.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            // It panicked: its jobs' answers are dropped, which tells those who wait.
            let _ = thread.join();
        }
    }
}

impl<W: Work> Drop for Writer<W> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<J> Inbox<J> {
    fn lock(&self) -> MutexGuard<'_, Waiting<J>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread<W: Work> {
    inbox: Arc<Inbox<W::Job>>,
    db: Connection,
    path: String,
    work: W,
    down: Option<WriteError>,
    /// Whether commits wait for the disk now.
    synced: bool,
}

thread_local!(static LOG_PAGES: Cell<u64> = const { Cell::new(0) });

impl<W: Work> Thread<W> {
    fn run(mut self) {
        self.db.wal_hook(Some(|_, pages| {
            LOG_PAGES.set(u64::try_from(pages).unwrap_or(0));
            Ok(())
        }));
        let page_bytes: u32 = self.db.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap_or(4096);
        let max_pages = MAX_LOG_BYTES / u64::from(page_bytes);
        let mut busy_since: Option<Instant> = None;
        while let Some(batch) = self.next(&mut busy_since) {
            let again = self.batch(batch);
            if self.down.is_some() {
                self.rest(again);
            } else if LOG_PAGES.get() > max_pages {
                self.write_back(max_pages);
            }
        }
    }

    /// Waits for work; `None` when it is time to end. Empty when poked, and to try a file that could not be written.
    fn next(&mut self, busy_since: &mut Option<Instant>) -> Option<Vec<W::Job>> {
        let mut waiting = self.inbox.lock();
        if waiting.jobs.is_empty() && !waiting.poked {
            *busy_since = None;
        } else if busy_since.get_or_insert_with(Instant::now).elapsed() > BUSY {
            *busy_since = None;
            drop(waiting);
            sleep(GAP);
            waiting = self.inbox.lock();
        }
        while waiting.jobs.is_empty() && !waiting.poked {
            if waiting.closing {
                return None;
            }
            if self.down.is_some() {
                return Some(Vec::new());
            }
            match self.work.again_in() {
                None => waiting = self.inbox.arrival.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = self.inbox.arrival.wait_timeout(waiting, time).unwrap_or_else(PoisonError::into_inner);
                    waiting = waited.0;
                    waiting.poked |= waited.1.timed_out();
                }
            }
        }
        if waiting.jobs.is_empty() && !waiting.closing {
            let gather = |w: &mut Waiting<W::Job>| w.jobs.is_empty() && !w.closing;
            let gathered = self.inbox.arrival.wait_timeout_while(waiting, GATHER, gather);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.poked = false;
        let (mut batch, mut bytes) = (Vec::with_capacity(waiting.jobs.len().min(MAX_JOBS)), 0);
        while batch.len() < MAX_JOBS
            && let Some(job) = waiting.jobs.front()
        {
            bytes += W::weight(job);
            if !batch.is_empty() && bytes > MAX_BYTES {
                break;
            }
            batch.extend(waiting.jobs.pop_front());
        }
        Some(batch)
    }

    /// Runs a batch and answers it; gives back what should be tried again.
    fn batch(&mut self, mut jobs: Vec<W::Job>) -> Vec<W::Job> {
        match self.commit(&mut jobs) {
            Ok(()) => {
                self.work.committed(jobs);
                self.health(None);
                Vec::new()
            }
            Err(error) if error.is_refusal() && jobs.len() > 1 => {
                jobs.into_iter().flat_map(|job| self.batch(vec![job])).collect()
            }
            Err(error) => {
                tracing::debug!(path = self.path, jobs = jobs.len(), %error, "batch rolled back");
                let again = self.work.failed(jobs, &error);
                if !error.is_refusal() {
                    self.health(Some(error));
                }
                again
            }
        }
    }

    fn commit(&mut self, jobs: &mut [W::Job]) -> Result<(), WriteError> {
        let durable = self.work.durable(jobs);
        self.attempt(jobs, durable).map_err(|(error, at_commit)| {
            // SQLite has rolled back already after some errors.
            if !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
            WriteError::of(&self.path, &error, at_commit)
        })
    }

    fn attempt(&mut self, jobs: &mut [W::Job], durable: bool) -> Result<(), (rusqlite::Error, bool)> {
        let early = |error| (error, false);
        if durable != self.synced {
            self.db
                .execute_batch(if durable { "PRAGMA synchronous=FULL" } else { "PRAGMA synchronous=NORMAL" })
                .map_err(early)?;
            self.synced = durable;
        }
        self.statement("BEGIN IMMEDIATE").map_err(early)?;
        self.work.run(&self.db, jobs).map_err(early)?;
        if self.down.is_some() {
            self.probe().map_err(early)?;
        }
        self.statement("COMMIT").map_err(|error| {
            // Out of room, the frame that would make it count was not written.
            let uncertain = error.sqlite_error_code() != Some(ErrorCode::DiskFull);
            (error, uncertain)
        })
    }

    fn statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Writes the first page, changing nothing: whether the file can be written.
    fn probe(&self) -> rusqlite::Result<()> {
        let version: i64 = self.db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        self.db.pragma_update(None, "user_version", version)
    }

    fn health(&mut self, error: Option<WriteError>) {
        if error != self.down {
            match &error {
                Some(error) => tracing::error!(path = self.path, %error, "cannot write; trying again"),
                None => tracing::info!(path = self.path, "can be written again"),
            }
            self.work.health(error.as_ref());
            self.down = error;
        }
    }

    /// After a failure: makes what room there is in the log, and waits before the next try.
    fn rest(&mut self, again: Vec<W::Job>) {
        let _ = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        let waiting = self.inbox.lock();
        let wait = self.inbox.arrival.wait_timeout_while(waiting, RETRY_GAP, |w| !w.closing);
        let mut waiting = wait.unwrap_or_else(PoisonError::into_inner).0;
        if waiting.closing {
            // Once more and no longer.
            drop(waiting);
            let last = self.batch(again);
            drop(last);
            return;
        }
        // In front of what came meanwhile, in their order.
        again.into_iter().rev().for_each(|job| waiting.jobs.push_front(job));
        waiting.poked = true;
    }

    /// Writes the log back into the file, so that it starts anew. Readers are not waited for until it is far too long.
    fn write_back(&self, max_pages: u64) {
        let mode =
            if LOG_PAGES.get() > 2 * max_pages { "PRAGMA wal_checkpoint(RESTART)" } else { "PRAGMA wal_checkpoint(PASSIVE)" };
        if let Err(error) = self.db.query_row(mode, [], |_| Ok(())) {
            tracing::debug!(path = self.path, %error, "log not written back");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc};

    use super::*;
    use crate::{Schema, open, reader};

    const SCHEMA: Schema = Schema {
        what: "test",
        application_id: 1,
        migrations: &["CREATE TABLE t (x INTEGER PRIMARY KEY, body BLOB)"],
        page_size: 4096,
    };

    struct Insert {
        x: i64,
        body: Vec<u8>,
        keep: bool,
        answer: mpsc::Sender<(i64, Result<(), WriteError>)>,
    }

    struct Inserts {
        health: mpsc::Sender<Option<WriteError>>,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    impl Work for Inserts {
        type Job = Insert;

        fn weight(job: &Insert) -> usize {
            job.body.len()
        }

        fn durable(&self, jobs: &[Insert]) -> bool {
            jobs.len() != 1
        }

        fn run(&mut self, db: &Connection, jobs: &mut [Insert]) -> rusqlite::Result<()> {
            for job in jobs {
                db.prepare_cached("INSERT INTO t VALUES (?, ?)")?.execute((job.x, &job.body))?;
            }
            Ok(())
        }

        fn committed(&mut self, jobs: Vec<Insert>) {
            self.batches.lock().unwrap().push(jobs.len());
            jobs.into_iter().for_each(|job| job.answer.send((job.x, Ok(()))).unwrap());
        }

        fn failed(&mut self, jobs: Vec<Insert>, error: &WriteError) -> Vec<Insert> {
            let (again, answered) = jobs.into_iter().partition(|job| job.keep && !error.is_refusal());
            let answered: Vec<Insert> = answered;
            answered.into_iter().for_each(|job| job.answer.send((job.x, Err(error.clone()))).unwrap());
            again
        }

        fn health(&mut self, error: Option<&WriteError>) {
            let _ = self.health.send(error.cloned());
        }
    }

    struct Stage {
        dir: tempfile::TempDir,
        writer: Writer<Inserts>,
        health: mpsc::Receiver<Option<WriteError>>,
        batches: Arc<Mutex<Vec<usize>>>,
        sender: mpsc::Sender<(i64, Result<(), WriteError>)>,
        answers: mpsc::Receiver<(i64, Result<(), WriteError>)>,
    }

    fn stage_with(prepare: &str) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir.path().join("t.db"), &SCHEMA).unwrap();
        db.execute_batch(prepare).unwrap();
        let (health, reported) = mpsc::channel();
        let (sender, answers) = mpsc::channel();
        let batches = Arc::<Mutex<Vec<usize>>>::default();
        let writer = Writer::start("test", db, Inserts { health, batches: batches.clone() }).unwrap();
        Stage { dir, writer, health: reported, batches, sender, answers }
    }

    impl Stage {
        fn put(&self, x: i64, bytes: usize, keep: bool) {
            let job = Insert { x, body: vec![7; bytes], keep, answer: self.sender.clone() };
            assert!(self.writer.put(job).is_ok());
        }

        fn answer(&self) -> (i64, Result<(), WriteError>) {
            self.answers.recv_timeout(Duration::from_secs(30)).unwrap()
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("t.db")
        }
    }

    fn count(path: &Path) -> i64 {
        reader(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn jobs_share_commits_and_are_answered_in_order() {
        let stage = stage_with("");
        (0..2_000).for_each(|x| stage.put(x, 10, false));
        (0..2_000).for_each(|x| assert_eq!(stage.answer(), (x, Ok(()))));
        let batches = stage.batches.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 2_000);
        assert!(batches.len() < 500, "{} commits", batches.len());
        assert_eq!(count(&stage.path()), 2_000);
    }

    #[test]
    fn heavy_jobs_travel_in_several_batches() {
        let stage = stage_with("");
        (0..6).for_each(|x| stage.put(x, 5 * 1024 * 1024, false));
        (0..6).for_each(|x| assert_eq!(stage.answer(), (x, Ok(()))));
        assert_eq!(*stage.batches.lock().unwrap(), [1; 6]);
    }

    #[test]
    fn a_bad_job_spoils_no_other() {
        let stage = stage_with("");
        for x in [1, 2, 2, 3] {
            stage.put(x, 10, true);
        }
        let mut answers: Vec<_> = (0..4).map(|_| stage.answer()).collect();
        answers.sort_by_key(|(x, result)| (*x, result.is_err()));
        assert!(matches!(&answers[2], (2, Err(WriteError::Refused { .. }))), "{answers:?}");
        assert_eq!(answers.iter().filter(|(_, result)| result.is_ok()).map(|(x, _)| *x).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(stage.health.try_recv().is_err(), "no matter of health");
    }

    /// SQLite's own limit takes the way of a full disk.
    #[test]
    fn a_full_file_fails_its_batch_and_work_resumes() {
        let stage = stage_with("PRAGMA max_page_count = 100");
        stage.put(1, 100_000, false);
        assert_eq!(stage.answer(), (1, Ok(())));
        stage.put(2, 1_000_000, false);
        let full = WriteError::Full { path: stage.path().display().to_string() };
        assert_eq!(stage.answer(), (2, Err(full.clone())));
        assert_eq!(stage.health.recv_timeout(Duration::from_secs(30)), Ok(Some(full)));
        // What fits is stored although the last batch did not fit; and the file is found fit again by itself.
        assert_eq!(stage.health.recv_timeout(Duration::from_secs(30)), Ok(None));
        stage.put(3, 100_000, false);
        assert_eq!(stage.answer(), (3, Ok(())));
        assert_eq!(count(&stage.path()), 2);
    }

    #[test]
    fn closing_does_what_is_queued() {
        let stage = stage_with("");
        (0..100).for_each(|x| stage.put(x, 10, false));
        stage.writer.close();
        assert_eq!(count(&stage.path()), 100);
        let late = Insert { x: 101, body: Vec::new(), keep: false, answer: stage.sender.clone() };
        assert!(stage.writer.put(late).is_err());
    }

    #[test]
    fn the_log_is_bounded_and_pages_are_used_again() {
        let stage = stage_with("CREATE TRIGGER only_ten AFTER INSERT ON t BEGIN DELETE FROM t WHERE x <= new.x - 10; END");
        for x in 0..300 {
            stage.put(x, 1_000_000, false);
        }
        (0..300).for_each(|x| assert_eq!(stage.answer(), (x, Ok(()))));
        let bytes = |name: &str| std::fs::metadata(stage.dir.path().join(name)).unwrap().len();
        assert!(bytes("t.db-wal") < 2 * MAX_LOG_BYTES + 16_000_000, "{}", bytes("t.db-wal"));
        assert!(bytes("t.db") < 40_000_000, "{}", bytes("t.db"));
    }

    /// Two handles as two processes would have them: neither starves.
    #[test]
    fn two_writers_share_a_file() {
        let stage = stage_with("");
        let db = open(&stage.path(), &SCHEMA).unwrap();
        let (health, _) = mpsc::channel();
        let other = Writer::start("other", db, Inserts { health, batches: Arc::default() }).unwrap();
        (0..5_000).for_each(|x| stage.put(x, 500, false));
        for x in 5_000..5_100 {
            let job = Insert { x, body: vec![1; 500], keep: false, answer: stage.sender.clone() };
            assert!(other.put(job).is_ok());
        }
        for _ in 0..5_100 {
            assert_eq!(stage.answer().1, Ok(()));
        }
        assert_eq!(count(&stage.path()), 5_100);
    }
}
