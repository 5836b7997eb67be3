//! What has been seen lately: a window of bounded size over digests.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use ring::digest::{SHA256, digest};

/// Remembers the last so many keys.
pub(super) struct Seen {
    most: usize,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    keys: HashSet<u128>,
    oldest_first: VecDeque<u128>,
}

impl Seen {
    pub(super) fn new(most: usize) -> Seen {
        Seen { most, window: Mutex::default() }
    }

    pub(super) fn contains(&self, account: &str, id: &str) -> bool {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).keys.contains(&key(account, id))
    }

    /// Whether it is there for the first time.
    pub(super) fn insert(&self, account: &str, id: &str) -> bool {
        let key = key(account, id);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if !window.keys.insert(key) {
            return false;
        }
        window.oldest_first.push_back(key);
        while window.oldest_first.len() > self.most {
            if let Some(oldest) = window.oldest_first.pop_front() {
                window.keys.remove(&oldest);
            }
        }
        true
    }

    /// As if it had never been there.
    pub(super) fn remove(&self, account: &str, id: &str) {
        let key = key(account, id);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.keys.remove(&key) {
            // Seldom: after a publish that failed.
            window.oldest_first.retain(|other| *other != key);
        }
    }
}

fn key(account: &str, id: &str) -> u128 {
    // No account's name holds a line feed, so no two pairs make one text.
    let digest = digest(&SHA256, format!("{account}\n{id}").as_bytes());
    digest.as_ref().iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let seen = Seen::new(2);
        assert!(seen.insert("a", "1") && seen.insert("a", "2") && !seen.insert("a", "1"));
        assert!(!seen.contains("b", "1"));
        assert!(seen.insert("a", "3"));
        assert!(!seen.contains("a", "1") && seen.contains("a", "2") && seen.contains("a", "3"));
        seen.remove("a", "2");
        assert!(seen.insert("a", "4") && seen.contains("a", "3") && !seen.contains("a", "2"));
    }
}
