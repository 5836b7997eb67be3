//! What a program has said.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// What a stream has said, line by line, gathered by a thread so that the program never waits for its reader.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many lines there are, and whether the stream has ended.
    count: watch::Receiver<(usize, bool)>,
}

impl Lines {
    pub(super) fn of(stream: Option<impl Read + Send + 'static>) -> Lines {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel((0, stream.is_none()));
        if let Some(stream) = stream {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut bytes = Vec::new();
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
                    let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
                    bytes.clear();
                    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                    lines.push(line);
                    sender.send_replace((lines.len(), false));
                }
                sender.send_modify(|(_, closed)| *closed = true);
            });
        }
        Lines { lines, count }
    }

    pub(super) fn so_far(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.count.borrow().1
    }

    pub(super) fn search<T>(&self, seen: &mut usize, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &lines[*seen..];
        *seen = lines.len();
        new.iter().find_map(|line| wanted(line))
    }

    /// Waits for more than `seen` lines or the stream's end; for ever if the caller knew that it had ended.
    pub(super) async fn grown(&self, seen: usize, known_closed: bool) {
        if known_closed {
            return std::future::pending().await;
        }
        drop(self.count.clone().wait_for(|(count, closed)| *count > seen || *closed).await);
    }

    pub(super) async fn closed(&self) {
        drop(self.count.clone().wait_for(|(_, closed)| *closed).await);
    }
}
