//! The suppression list, followed from the store, so that every worker knows a change within two seconds.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use paceline_control::Check;
use paceline_core::SuppressionSet;
use paceline_store::{Error, Suppressions};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Registry,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::follow::{self, Look, in_time};

/// Changes of one answer.
const PAGE: u32 = 10_000;

/// The list as it is followed.
pub struct Following {
    pub list: watch::Receiver<Arc<SuppressionSet>>,
    pub state: watch::Receiver<State>,
    /// Follows until it is aborted.
    pub task: JoinHandle<()>,
}

/// How far the list is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not whole yet: so many changes of it were read, and hold.
    Reading(u64),
    /// As it was a moment ago.
    Known,
    /// The store is away, and why; what is known of the list holds, and whether it was ever whole.
    Away { whole: bool, why: String },
}

impl State {
    /// For `/readyz`: a worker without the whole list sends all the same, and says so.
    pub fn check(&self) -> Check {
        let detail = match self {
            State::Known => None,
            State::Reading(read) => Some(format!("being read for the first time: {read} entries so far, and only they hold")),
            State::Away { whole: true, why } => Some(format!("the list last known holds: {why}")),
            State::Away { whole: false, why } => Some(format!("not known yet, mail goes out unchecked: {why}")),
        };
        Check { detail, ..Check::ok("suppressions") }
    }
}

/// Follows the list. While the store is away the one last known holds.
pub fn follow(store: Arc<dyn Suppressions>, critical_through_soft: bool) -> Following {
    let (follower, list, state) = Follower::new(store, critical_through_soft);
    Following { list, state, task: follow::every_second(follower) }
}

/// Waits for the whole list to be known, as long as reading it goes on; false where it does not within `patience`.
pub async fn known(mut state: watch::Receiver<State>, patience: Duration) -> bool {
    loop {
        match &*state.borrow_and_update() {
            State::Known => return true,
            State::Away { whole: true, .. } => return true,
            State::Reading(_) | State::Away { .. } => {}
        }
        match timeout(patience, state.changed()).await {
            Ok(Ok(())) => {}
            _ => return false,
        }
    }
}

struct Follower {
    store: Arc<dyn Suppressions>,
    /// Nobody, with the seed and the rules of this process.
    none: SuppressionSet,
    set: SuppressionSet,
    /// What `set` is known up to.
    at: i64,
    /// It has been read to its end.
    whole: bool,
    /// The same of the list that is published, which may be an older one.
    was_whole: bool,
    /// Changes read of a list that is not whole yet.
    read: u64,
    lists: watch::Sender<Arc<SuppressionSet>>,
    states: watch::Sender<State>,
}

impl Follower {
    fn new(
        store: Arc<dyn Suppressions>,
        critical_through_soft: bool,
    ) -> (Follower, watch::Receiver<Arc<SuppressionSet>>, watch::Receiver<State>) {
        let none = SuppressionSet::new(rand::random(), critical_through_soft);
        let (lists, list) = watch::channel(Arc::new(none.clone()));
        let (states, state) = watch::channel(State::Reading(0));
        let follower =
            Follower { store, none: none.clone(), set: none, at: 0, whole: false, was_whole: false, read: 0, lists, states };
        (follower, list, state)
    }

    fn lost(&self, error: &Error) {
        let away = State::Away { whole: self.was_whole, why: error.in_full() };
        // The same every second is no news, and no progress for whoever waits.
        let news = self.states.send_if_modified(|state| {
            let news = !matches!(state, State::Away { .. });
            if news {
                *state = away;
            }
            news
        });
        if news {
            let holds = if self.was_whole { "the one last known holds" } else { "mail goes out unchecked" };
            tracing::warn!(error = error.in_full(), "the suppression list cannot be read from the store; {holds}");
        }
    }
}

#[async_trait]
impl Look for Follower {
    async fn look(&mut self) -> Result<(), Error> {
        if self.whole && self.at == in_time(self.store.suppressions_version()).await? {
            return Ok(());
        }
        loop {
            let page = in_time(self.store.suppression_changes(self.at, PAGE)).await?;
            if self.whole && self.at < page.forgotten {
                tracing::info!("this worker was long without the store: the suppression list is read anew");
                (self.set, self.at, self.whole, self.read) = (self.none.clone(), 0, false, 0);
                continue;
            }
            self.read += page.changes.len() as u64;
            self.set = self.set.after(page.changes, SystemTime::now().into());
            (self.at, self.whole) = (page.version, self.whole || !page.more);
            // While it is read for the first time, some of it is better than nothing; while it is read anew, the old one is.
            if self.whole || !self.was_whole {
                self.was_whole = self.whole;
                self.lists.send_replace(Arc::new(self.set.clone()));
            }
            if !page.more {
                return Ok(());
            }
            if !self.was_whole {
                self.states.send_replace(State::Reading(self.read));
            }
        }
    }
    fn looked(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                let before = self.states.send_if_modified(|state| std::mem::replace(state, State::Known) != State::Known);
                if before {
                    tracing::info!(listed = self.set.len(), "the suppression list is followed");
                }
            }
            Err(error) => self.lost(&error),
        }
    }
}

/// `paceline_suppressed_addresses`: the length of the list as this worker knows it.
pub fn register(registry: &mut Registry, list: watch::Receiver<Arc<SuppressionSet>>) {
    registry.register_collector(Box::new(Length(list)));
}

#[derive(Debug)]
struct Length(watch::Receiver<Arc<SuppressionSet>>);

impl Collector for Length {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let length = ConstGauge::new(i64::try_from(self.0.borrow().len()).unwrap_or(i64::MAX));
        let help = "Recipients on the suppression list as this worker knows it";
        length.encode(encoder.encode_descriptor("suppressed_addresses", help, None, length.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use paceline_core::{
        EmailAddress, Timestamp,
        suppression::{Change, Entry, Kind},
    };
    use paceline_store::{Changes, Merged, NewSuppression, Order, Suppression, SuppressionFilter, Trail};

    use super::*;

    /// Answers in turn, as scripted.
    #[derive(Default)]
    struct Script {
        answers: Mutex<Vec<Result<Changes, Error>>>,
        asked: Mutex<Vec<i64>>,
    }

    #[async_trait]
    impl Suppressions for Script {
        async fn suppressions_version(&self) -> Result<i64, Error> {
            Ok(i64::MAX)
        }

        async fn suppression_changes(&self, after: i64, _: u32) -> Result<Changes, Error> {
            self.asked.lock().unwrap().push(after);
            self.answers.lock().unwrap().remove(0)
        }

        async fn suppress(&self, _: &[NewSuppression], _: Option<&mut Trail>) -> Result<Vec<Merged>, Error> {
            unreachable!("workers only read")
        }

        async fn unsuppress(&self, _: &[EmailAddress], _: &str, _: Option<&str>) -> Result<Vec<bool>, Error> {
            unreachable!("workers only read")
        }

        async fn suppression(&self, _: &EmailAddress) -> Result<Option<Suppression>, Error> {
            unreachable!("workers read changes")
        }

        async fn suppressions(&self, _: &SuppressionFilter, _: Order, _: Option<i64>, _: u32) -> Result<Vec<Suppression>, Error> {
            unreachable!("workers read changes")
        }

        async fn refusals(&self, _: &[EmailAddress], _: Timestamp) -> Result<Vec<u64>, Error> {
            unreachable!("workers only read")
        }
    }

    fn page(names: &[&str], version: i64, more: bool, forgotten: i64) -> Result<Changes, Error> {
        let change = |name: &&str| {
            let entry = Entry { kind: Kind::Hard, until: None };
            match name.strip_prefix('-') {
                Some(gone) => Change { address: format!("{gone}@x.org"), entry: None },
                None => Change { address: format!("{name}@x.org"), entry: Some(entry) },
            }
        };
        Ok(Changes { changes: names.iter().map(change).collect(), version, more, forgotten })
    }

    fn away() -> Result<Changes, Error> {
        Err(Error::Unavailable("gone".into()))
    }

    fn listed(list: &watch::Receiver<Arc<SuppressionSet>>) -> String {
        let held = |name: &&str| {
            let address = EmailAddress::parse(&format!("{name}@x.org")).unwrap();
            list.borrow().kind(&address, SystemTime::now().into()).is_some()
        };
        ["a", "b", "c", "d"].into_iter().filter(held).collect()
    }

    fn follower(
        answers: Vec<Result<Changes, Error>>,
    ) -> (Arc<Script>, Follower, watch::Receiver<Arc<SuppressionSet>>, watch::Receiver<State>) {
        let script = Arc::new(Script { answers: Mutex::new(answers), ..Script::default() });
        let (follower, list, state) = Follower::new(script.clone(), false);
        (script, follower, list, state)
    }

    #[tokio::test]
    async fn pages_hold_as_they_come_and_an_interrupted_reading_goes_on() {
        let answers = vec![page(&["a"], 1, true, 0), away(), page(&["b", "-a"], 5, false, 0), page(&["c"], 6, false, 0)];
        let (script, mut follower, list, state) = follower(answers);
        let error = follower.look().await.unwrap_err();
        follower.lost(&error);
        assert_eq!(listed(&list), "a");
        let check = state.borrow().check();
        assert!(check.ok && check.detail.unwrap().starts_with("not known yet, mail goes out unchecked"));
        assert!(!known(state.clone(), Duration::from_millis(10)).await);
        follower.look().await.unwrap();
        assert_eq!(listed(&list), "b");
        follower.look().await.unwrap();
        assert_eq!((listed(&list).as_str(), &script.asked.lock().unwrap()[..]), ("bc", &[0, 1, 1, 5][..]));
    }

    #[tokio::test]
    async fn who_was_away_too_long_reads_anew_and_keeps_the_old_list_until_then() {
        let answers = vec![
            page(&["a", "b"], 10, false, 0),
            page(&["d"], 40, false, 20),
            page(&["b"], 5, true, 20),
            away(),
            page(&["d"], 40, false, 20),
        ];
        let (script, mut follower, list, state) = follower(answers);
        follower.look().await.unwrap();
        let error = follower.look().await.unwrap_err();
        follower.lost(&error);
        assert_eq!(listed(&list), "ab", "half of a new list is no list");
        assert!(matches!(&*state.borrow(), State::Away { whole: true, .. }));
        assert!(known(state.clone(), Duration::from_millis(10)).await);
        follower.look().await.unwrap();
        assert_eq!((listed(&list).as_str(), &script.asked.lock().unwrap()[..]), ("bd", &[0, 10, 0, 5, 5][..]));
    }
}
