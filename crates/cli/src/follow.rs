//! What operators order, followed from the store: asked every second whether anything changed, so that every worker
//! knows within two.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use paceline_store::Error;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// How often the store is asked.
const LOOK: Duration = Duration::from_secs(1);
/// One answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody who looks at the store.
#[async_trait]
pub trait Look: Send + 'static {
    /// Reads what changed, if anything.
    async fn look(&mut self) -> Result<(), Error>;

    /// After every look: what came of it.
    fn looked(&mut self, result: Result<(), Error>);
}

/// Looks until it is aborted.
pub fn every_second(mut look: impl Look) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = look.look().await;
            look.looked(result);
        }
    })
}

/// The answer, unless it takes too long.
pub async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(Error::Unavailable("no answer in time".into())))
}

/// A set of orders of which the store counts the changes.
#[async_trait]
pub trait Orders: Send + Sync + 'static {
    type Set: Default + Send + Sync;
    /// Such as "cancel orders".
    const WHAT: &'static str;

    async fn version(&self) -> Result<i64, Error>;
    /// Those in force.
    async fn read(&self) -> Result<Self::Set, Error>;
}

/// Orders as they are followed.
pub struct Following<T> {
    /// The ones last known: while the store is away they hold, and at first there are none.
    pub orders: watch::Receiver<Arc<T>>,
    /// Whether they have been read at all.
    pub known: watch::Receiver<bool>,
    /// Follows until it is aborted.
    pub task: JoinHandle<()>,
}

/// Follows the orders.
pub fn orders<O: Orders>(source: O) -> Following<O::Set> {
    let (orders, following) = watch::channel(Arc::default());
    let (known, is_known) = watch::channel(false);
    let task = every_second(Follower { source, orders, known, version: None, lost: false });
    Following { orders: following, known: is_known, task }
}

/// Waits until the orders have been read; false where they are not within `patience`.
pub async fn known(mut known: watch::Receiver<bool>, patience: Duration) -> bool {
    timeout(patience, known.wait_for(|known| *known)).await.is_ok_and(|known| known.is_ok())
}

struct Follower<O: Orders> {
    source: O,
    orders: watch::Sender<Arc<O::Set>>,
    known: watch::Sender<bool>,
    version: Option<i64>,
    /// Said so.
    lost: bool,
}

#[async_trait]
impl<O: Orders> Look for Follower<O> {
    async fn look(&mut self) -> Result<(), Error> {
        // First the number: what is read after it is at least as new.
        let version = in_time(self.source.version()).await?;
        if self.version != Some(version) {
            self.orders.send_replace(Arc::new(in_time(self.source.read()).await?));
            self.version = Some(version);
        }
        Ok(())
    }

    fn looked(&mut self, result: Result<(), Error>) {
        let lost = result.is_err();
        let news = std::mem::replace(&mut self.lost, lost) != lost;
        match result {
            Ok(()) => {
                self.known.send_if_modified(|known| !std::mem::replace(known, true));
                if news {
                    tracing::info!("the store answers again: {} are followed", O::WHAT);
                }
            }
            Err(error) if news => {
                let hold = if self.version.is_some() { "the last known ones hold" } else { "none are known yet" };
                tracing::warn!(error = error.in_full(), "{} cannot be read from the store; {hold}", O::WHAT);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers in turn: a version, and what is ordered then.
    struct Script(Mutex<Vec<Option<(i64, u32)>>>);

    #[async_trait]
    impl Orders for Script {
        type Set = u32;
        const WHAT: &'static str = "orders";

        async fn version(&self) -> Result<i64, Error> {
            let next = self.0.lock().unwrap()[0];
            next.map(|(version, _)| version).ok_or_else(|| Error::Unavailable("gone".into()))
        }

        async fn read(&self) -> Result<u32, Error> {
            self.0.lock().unwrap()[0].map(|(_, orders)| orders).ok_or_else(|| Error::Unavailable("gone".into()))
        }
    }

    #[tokio::test]
    async fn the_last_known_orders_hold() {
        let script = Script(Mutex::new(vec![None, Some((1, 5)), None, Some((1, 6)), Some((2, 7))]));
        let (orders, following) = watch::channel(Arc::default());
        let (known, is_known) = watch::channel(false);
        let mut follower = Follower { source: script, orders, known, version: None, lost: false };
        let mut seen = vec![];
        for _ in 0..5 {
            let result = follower.look().await;
            follower.looked(result);
            seen.push((**following.borrow(), *is_known.borrow()));
            follower.source.0.lock().unwrap().remove(0);
        }
        // The version of the fourth is the one known: it is not read again.
        assert_eq!(seen, [(0, false), (5, true), (5, true), (5, true), (7, true)]);
        assert!(super::known(is_known, Duration::from_secs(1)).await);
    }
}
