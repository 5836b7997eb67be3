//! Connections kept open between mails.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::wire::Connection;

/// At most so many connections, each for so many mails, none unused for longer than so.
pub(super) struct Pool {
    permits: Semaphore,
    idle: Mutex<Idle>,
    messages_per_connection: u32,
    max_idle: Duration,
}

#[derive(Default)]
struct Idle {
    connections: Vec<Connection>,
    /// Whether somebody watches over their age.
    watched: bool,
}

impl Pool {
    pub(super) fn new(max_connections: usize, messages_per_connection: u32, max_idle: Duration) -> Arc<Pool> {
        let permits = Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS));
        Arc::new(Pool { permits, idle: Mutex::default(), messages_per_connection, max_idle })
    }

    /// The right to use one connection.
    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.acquire().await.ok()
    }

    /// The connection used last.
    pub(super) fn take(&self) -> Option<Connection> {
        self.drop_stale();
        self.with(|idle| idle.connections.pop())
    }

    /// Keeps a connection for the next mail, or takes leave of it.
    pub(super) fn give_back(self: &Arc<Pool>, mut connection: Connection) {
        if connection.served >= self.messages_per_connection {
            tokio::spawn(connection.quit());
            return;
        }
        connection.idle_since = Instant::now();
        let watch = self.with(|idle| {
            idle.connections.push(connection);
            !std::mem::replace(&mut idle.watched, true)
        });
        if watch {
            tokio::spawn(watch_over(Arc::downgrade(self), self.max_idle));
        }
    }

    /// Takes leave of what was unused for too long; the time until the next may be.
    fn drop_stale(&self) -> Option<Duration> {
        let now = Instant::now();
        let (stale, next) = self.with(|idle| {
            let is_stale = |c: &mut Connection| now.duration_since(c.idle_since) >= self.max_idle;
            let stale: Vec<_> = idle.connections.extract_if(.., is_stale).collect();
            let next = idle.connections.iter().map(|c| c.idle_since + self.max_idle - now).min();
            (stale, next)
        });
        for connection in stale {
            tokio::spawn(connection.quit());
        }
        next
    }

    fn with<T>(&self, f: impl FnOnce(&mut Idle) -> T) -> T {
        f(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Closes unused connections in time, until there is none or the pool is gone.
async fn watch_over(pool: Weak<Pool>, mut wait: Duration) {
    loop {
        tokio::time::sleep(wait).await;
        let Some(pool) = pool.upgrade() else { return };
        match pool.drop_stale() {
            Some(next) => wait = next,
            None => {
                let done = pool.with(|idle| {
                    idle.watched = !idle.connections.is_empty();
                    !idle.watched
                });
                if done {
                    return;
                }
                wait = pool.max_idle;
            }
        }
    }
}
