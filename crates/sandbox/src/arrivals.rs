//! The arrivals file: one line a request, written by a thread of its own.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde::Serialize;

use crate::lock;

/// Lines wait at most this long in memory.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// The thread is woken before that when so much waits.
const WAKE_AT_BYTES: usize = 1 << 20;

/// One request, as it stands in the file.
#[derive(Debug, Serialize)]
pub(crate) struct Arrival<'a> {
    /// From 1, in the order of arrival.
    pub(crate) seq: u64,
    /// Microseconds of the Unix epoch, taken when the body had been read.
    pub(crate) at_us: u64,
    /// The message's id, where the request carries one.
    pub(crate) id: Option<&'a str>,
    pub(crate) api: &'static str,
    pub(crate) path: &'a str,
    /// Names the credential without showing it.
    pub(crate) account: &'a str,
    /// Domain of the first recipient.
    pub(crate) domain: &'a str,
    pub(crate) class: Option<&'a str>,
    pub(crate) recipients: usize,
    pub(crate) bytes: usize,
    /// `None`: no answer was given.
    pub(crate) status: Option<u16>,
    /// Taken for delivery.
    pub(crate) accepted: bool,
    /// `accepted`, `duplicate`, `refused`, `hung` or `dropped`.
    pub(crate) result: &'static str,
}

#[derive(Debug)]
pub(crate) struct Arrivals {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    count: u64,
    truncate: bool,
    closed: bool,
}

impl Arrivals {
    pub(crate) fn create(path: &Path) -> io::Result<Arrivals> {
        let file = File::create(path)?;
        let queue = Arc::new(Queue::default());
        let for_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("arrivals".into()).spawn(move || write_all(file, &for_thread))?;
        Ok(Arrivals { queue, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn push(&self, arrival: &Arrival<'_>) {
        let mut state = lock(&self.queue.state);
        let before = state.lines.len();
        if serde_json::to_writer(&mut state.lines, arrival).is_err() {
            // A vector takes any bytes; a half-written line would spoil the next one all the same.
            state.lines.truncate(before);
            return;
        }
        state.lines.push(b'\n');
        state.count += 1;
        if before < WAKE_AT_BYTES && state.lines.len() >= WAKE_AT_BYTES {
            self.queue.wake.notify_one();
        }
    }

    /// Empties the file and forgets what was to be written to it.
    pub(crate) fn truncate(&self) {
        let mut state = lock(&self.queue.state);
        state.lines.clear();
        state.count = 0;
        state.truncate = true;
        self.queue.lost.store(0, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }

    /// Writes what is left; returns when it is written. Later lines are dropped.
    pub(crate) fn close(&self) {
        lock(&self.queue.state).closed = true;
        self.queue.wake.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            // It cannot have panicked: there is nothing in it that does.
            let _ = thread.join();
        }
    }
}

fn write_all(mut file: File, queue: &Queue) {
    let mut lines = Vec::new();
    loop {
        let (count, truncate, closed);
        {
            let mut state = lock(&queue.state);
            if !state.closed {
                let waited = queue.wake.wait_timeout(state, FLUSH_EVERY);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            }
            lines.clear();
            std::mem::swap(&mut lines, &mut state.lines);
            (count, truncate, closed) = (std::mem::take(&mut state.count), std::mem::take(&mut state.truncate), state.closed);
        }
        let emptied = if truncate { file.set_len(0).and_then(|()| io::Seek::rewind(&mut file)) } else { Ok(()) };
        if let Err(error) = emptied.and_then(|()| file.write_all(&lines))
            && queue.lost.fetch_add(count, Ordering::Relaxed) == 0
        {
            tracing::error!(%error, "arrivals cannot be written");
        }
        if closed {
            return;
        }
    }
}
