//! What operators have ordered, followed from the store, so that every worker knows within two seconds.

use std::{sync::Arc, time::Duration};

use paceline_core::CancelSet;
use paceline_store::{Error, Store, Which};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// How often the store is asked whether anything changed.
const LOOK: Duration = Duration::from_secs(1);
/// A look that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cancel orders in force, kept up to date until the task is aborted. While the store is away the last known ones
/// hold: mail is not kept back for them.
pub fn follow(store: Arc<dyn Store>) -> (watch::Receiver<Arc<CancelSet>>, JoinHandle<()>) {
    let (orders, following) = watch::channel(Arc::new(CancelSet::default()));
    let task = tokio::spawn(async move {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut known, mut lost) = (None, false);
        loop {
            ticks.tick().await;
            let looked = timeout(PATIENCE, look(&*store, known)).await;
            let looked = looked.unwrap_or_else(|_| Err(Error::Unavailable("no answer in time".into())));
            match looked {
                Ok(changed) => {
                    if std::mem::take(&mut lost) {
                        tracing::info!("the store answers again: cancel orders are followed");
                    }
                    if let Some((version, set)) = changed {
                        known = Some(version);
                        orders.send_replace(Arc::new(set));
                    }
                }
                Err(error) if !lost => {
                    lost = true;
                    tracing::warn!(
                        error = error.in_full(),
                        "cancel orders cannot be read from the store; the last known ones hold"
                    );
                }
                Err(_) => {}
            }
        }
    });
    (following, task)
}

/// The orders with their version, where it is not the known one.
async fn look(store: &dyn Store, known: Option<i64>) -> Result<Option<(i64, CancelSet)>, Error> {
    let version = store.cancels_version().await?;
    if known == Some(version) {
        return Ok(None);
    }
    let orders = store.cancels(Which::InForce).await?;
    let set = CancelSet::new(orders.into_iter().map(|o| o.cancel));
    Ok(Some((version, set)))
}
