//! Dead letters that are older than they are to be kept.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use paceline_core::Timestamp;
use paceline_store::{Purge, StateFilter, Store};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

/// How often entries that have come of age are looked for.
const EVERY: Duration = Duration::from_secs(3600);

/// Deletes what died more than `keep` ago, for ever; to be dropped with the process's work. Of several processes that
/// do so each finds less to do.
pub(crate) async fn enforce(store: Arc<dyn Store>, keep: Duration) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let purge = Purge {
            before: Timestamp::from(SystemTime::now()) - keep,
            state: StateFilter::All,
            by: "retention".to_owned(),
            note: None,
            dry_run: false,
        };
        match store.purge(&purge).await {
            Ok(0) => {}
            Ok(deleted) => info!(deleted, keep_s = keep.as_secs(), "dead letters past their retention are deleted"),
            Err(e) => {
                warn!(error = e.in_full(), "dead letters past their retention could not be deleted; trying again in an hour")
            }
        }
    }
}
