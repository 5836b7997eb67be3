//! Whether the file can be used.

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use paceline_core::Timestamp;
use tokio::sync::watch;

use crate::State;

/// What the threads found last.
pub(super) struct Health {
    state: watch::Sender<State>,
    troubles: Mutex<Troubles>,
}

#[derive(Default)]
struct Troubles {
    closed: bool,
    writer: Option<String>,
    reader: Option<String>,
    room: Option<String>,
}

impl Health {
    pub(super) fn new() -> Health {
        Health { state: watch::channel(State::Up).0, troubles: Mutex::default() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Why calls fail now, if they do for good.
    pub(super) fn closed(&self) -> bool {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    pub(super) fn writer(&self, trouble: Option<String>) {
        self.update(|troubles| troubles.writer = trouble);
    }

    pub(super) fn reader(&self, trouble: Option<String>) {
        self.update(|troubles| troubles.reader = trouble);
    }

    /// Why new mail is refused, if it is.
    pub(super) fn room(&self, trouble: Option<String>) {
        self.update(|troubles| troubles.room = trouble);
    }

    pub(super) fn close(&self) {
        self.update(|troubles| troubles.closed = true);
    }

    fn update(&self, change: impl FnOnce(&mut Troubles)) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut troubles);
        let closed = troubles.closed.then(|| "closed".to_owned());
        let down = closed.or_else(|| troubles.writer.clone()).or_else(|| troubles.reader.clone());
        let (down, why) = (down.is_some(), down.or_else(|| troubles.room.clone()));
        let since = Timestamp::from(SystemTime::now());
        self.state.send_if_modified(|state| {
            match (&why, &mut *state) {
                (None, State::Up) => return false,
                // How much room there is changes all the time: no news.
                (Some(_), State::Blocked { .. }) if !down => return false,
                (Some(why), State::Down { why: known, .. }) if down && why == known => return false,
                _ => {}
            }
            *state = match why {
                None => State::Up,
                Some(why) if down => State::Down { since, why },
                Some(why) => State::Blocked { since, why },
            };
            true
        });
    }
}
