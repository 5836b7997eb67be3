//! What quotas have granted, kept where neither the loss of Redis nor the end of every worker reaches it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::Inner;
use crate::BucketSpec;

/// Between two looks at what is to be kept. Together with [`PATIENCE`] well below `quotas::KEPT_US`.
const EVERY: Duration = Duration::from_secs(2);
/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was granted of one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// A [`crate::Kind::Window`].
    pub window: BucketSpec,
    /// How fast its account can spend it: interval and burst. `None`: nobody knows.
    pub rate: Option<(u64, u64)>,
    /// Who granted it: all who share the limiter, or one that had to go by itself.
    pub by: Option<Arc<str>>,
    /// By slot of the window, the 200th part of its length counted from 1970.
    pub slots: Vec<(u64, u64)>,
    /// When, on the limiter's clock: of two, the later is right.
    pub at_us: u64,
    /// When the limiter's state began that this was seen in.
    pub since_us: u64,
}

/// A memory that outlives the limiter's.
#[async_trait]
pub trait Memory: Send + Sync {
    /// Everything kept.
    async fn load(&self) -> Result<Vec<Kept>, String>;

    /// Keeps all of these or none, each in place of what was kept of the same window and the same grantor, unless that is later.
    async fn save(&self, kept: &[Kept]) -> Result<(), String>;
}

/// Reads what was kept, once, and then keeps what changes; nobody waits for it.
pub(super) async fn remember(inner: Arc<Inner>, memory: Arc<dyn Memory>) {
    let mut failing = false;
    loop {
        match within(memory.load()).await {
            Ok(kept) => {
                inner.guard().recall(kept);
                break;
            }
            Err(error) if !failing => {
                tracing::warn!(
                    error,
                    "limits: what quotas had granted cannot be read; those that Redis may have lost stay closed"
                );
            }
            Err(_) => {}
        }
        failing = true;
        tokio::time::sleep(EVERY).await;
    }
    failing = false;
    loop {
        tokio::time::sleep(EVERY).await;
        let rows = inner.guard().unsaved(inner.at());
        if rows.is_empty() {
            continue;
        }
        match within(memory.save(&rows)).await {
            Ok(()) => {
                inner.guard().saved(rows);
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        error,
                        "limits: what quotas have granted cannot be kept; it would be lost with Redis and all workers"
                    );
                }
                failing = true;
            }
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}
