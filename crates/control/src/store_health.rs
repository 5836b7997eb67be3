//! Whether the store answers, asked in the background so that readiness can tell at once.

use std::{sync::Arc, time::Duration};

use paceline_store::Ping;
use tokio::sync::watch;

use crate::Check;

/// The last answer of a store.
#[derive(Debug)]
pub struct StoreHealth {
    last: watch::Sender<Check>,
}

impl StoreHealth {
    /// How long after an answer the store is asked again.
    const INTERVAL: Duration = Duration::from_secs(2);

    /// Nothing is known yet, which is not ready.
    #[expect(clippy::new_without_default, reason = "a check that nobody runs is no default")]
    pub fn new() -> StoreHealth {
        StoreHealth { last: watch::Sender::new(Check::failing("store", "not asked yet")) }
    }

    pub fn check(&self) -> Check {
        self.last.borrow().clone()
    }

    /// Asks for ever; to be run beside the process's work and dropped with it.
    pub async fn watch(&self, store: Arc<dyn Ping>) {
        loop {
            let check = match store.ping().await {
                Ok(()) => Check::ok("store"),
                Err(e) => Check::failing("store", e.in_full()),
            };
            let before = self.last.send_replace(check.clone());
            match (before.ok, check.ok) {
                (true, false) => tracing::warn!(why = check.detail, "the store is away"),
                (false, true) => tracing::info!("the store answers"),
                _ => {}
            }
            tokio::time::sleep(Self::INTERVAL).await;
        }
    }
}
