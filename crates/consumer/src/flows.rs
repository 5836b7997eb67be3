//! Flows: which mail has a queue of its own within its lane.
//!
//! A tenant whose limit binds, or who holds much of a lane that has to wait, and mail pinned to an account that cannot go,
//! would keep everybody behind them. Such mail moves, once, to a queue of its own: by class and destination like its lane,
//! and by label. Mail without a tenant and without a pin stays in its lane, and nothing here costs it anything.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicUsize, atomic::Ordering},
};

use paceline_broker::Names;
use paceline_core::{Class, Lane, lane::flow_key};
use paceline_limiter::MAX_WEIGHT;
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use crate::{lane::LaneHandle, settings::Settings};

/// Tenants that configuration does not name share so many flows in each lane.
const SHARED: u64 = 16;
/// Letters of a name that a label keeps.
const LABEL_MAX: usize = 60;

/// Mail of one lane under one label.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) lane: Lane,
    pub(crate) label: Arc<str>,
    /// Whose turn it is at the limits that it shares with the lanes.
    pub(crate) turn: Arc<str>,
    /// In the fleet's list.
    pub(crate) entry: Arc<str>,
}

impl Flow {
    pub(crate) fn new(lane: Lane, label: Arc<str>) -> Flow {
        let turn = format!("flow:{}.{label}", lane.destination).into();
        let entry = format!("{lane}.{label}").into();
        Flow { lane, label, turn, entry }
    }

    /// As the fleet's list has it, or the broker: `<class>.<destination>.<label>`.
    pub(crate) fn read(entry: &str) -> Option<Flow> {
        let mut words = entry.split('.');
        let (class, destination, label) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        let sound = words.next().is_none() && !destination.is_empty() && is_label(label);
        sound.then(|| Flow::new(Lane::new(class, destination), label.into()))
    }

    pub(crate) fn class(&self) -> Class {
        self.lane.class
    }

    /// The broker's name for it, within its class.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.lane.destination, self.label)
    }

    pub(crate) fn queue(&self, names: &Names) -> String {
        names.flow(self.lane.class, &self.name())
    }

    /// The routing key that leads there.
    pub(crate) fn key(&self) -> String {
        flow_key(self.lane.class, &self.name())
    }
}

fn is_label(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= LABEL_MAX + 20 && text.bytes().all(fits)
}

/// The labels there can be.
#[derive(Debug)]
pub(crate) struct Labels {
    /// By name in small letters.
    tenants: HashMap<String, Arc<str>>,
    shared: Vec<Arc<str>>,
    accounts: Vec<Arc<str>>,
    /// By label, where not 1.
    weights: HashMap<Arc<str>, u32>,
}

impl Labels {
    pub(crate) fn new(settings: &Settings) -> Labels {
        let tenant = |name: &str| (name.to_lowercase(), label("tenant", &name.to_lowercase()));
        Labels {
            tenants: settings.tenants.iter().map(|t| tenant(&t.name)).collect(),
            shared: (0..SHARED).map(|n| format!("tenant-h{n:02}").into()).collect(),
            accounts: settings.accounts.iter().map(|a| label("account", &a.name)).collect(),
            weights: settings.flows.weights.iter().map(|(name, weight)| (label("tenant", name), *weight)).collect(),
        }
    }

    /// A configured tenant has its own; others share by their name.
    pub(crate) fn of_tenant(&self, name: &str) -> Arc<str> {
        let name = name.to_lowercase();
        let shared = || &self.shared[(xxh3_64(name.as_bytes()) % SHARED) as usize];
        self.tenants.get(&name).unwrap_or_else(shared).clone()
    }

    /// What a turn of this label's flows is worth.
    pub(crate) fn weight(&self, label: &str) -> u32 {
        self.weights.get(label).copied().unwrap_or(1).clamp(1, MAX_WEIGHT)
    }

    pub(crate) fn of_account(&self, account: usize) -> Arc<str> {
        self.accounts[account].clone()
    }
}

/// `name` as part of a queue's name; one that had to be changed for it is told from others by a digest.
fn label(kind: &str, name: &str) -> Arc<str> {
    let plain: String =
        name.chars().take(LABEL_MAX).map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    if plain == name {
        format!("{kind}-{plain}").into()
    } else {
        let plain: String = plain.chars().take(LABEL_MAX - 20).collect();
        format!("{kind}-{plain}-{:08x}", xxh3_64(name.as_bytes()) as u32).into()
    }
}

/// Open flows, and where to ask for more.
pub(crate) struct Flows {
    pub(crate) labels: Labels,
    open: RwLock<HashMap<Arc<str>, Arc<LaneHandle>>>,
    requests: mpsc::UnboundedSender<Request>,
}

/// Somebody has mail for a flow that is not open here.
pub(crate) struct Request {
    pub(crate) flow: Arc<Flow>,
    pub(crate) opened: oneshot::Sender<()>,
}

impl Flows {
    pub(crate) fn new(settings: &Settings) -> (Flows, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Flows { labels: Labels::new(settings), open: RwLock::default(), requests }, receiver)
    }

    /// Whether mail may go there: its queue is declared, and everybody knows of it or will within a second.
    pub(crate) async fn open(&self, flow: &Arc<Flow>) -> bool {
        if self.mark(&flow.entry) {
            return true;
        }
        let (opened, answer) = oneshot::channel();
        let _ = self.requests.send(Request { flow: flow.clone(), opened });
        answer.await.is_ok() && self.mark(&flow.entry)
    }

    /// Notes that it is used now, if it is open.
    fn mark(&self, entry: &str) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(entry).is_some_and(|handle| {
            handle.note_used();
            true
        })
    }

    pub(crate) fn opened(&self, entry: Arc<str>, handle: Arc<LaneHandle>) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(entry, handle);
    }

    pub(crate) fn closed(&self, entry: &str) -> Option<Arc<LaneHandle>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(entry)
    }

    pub(crate) fn is_open(&self, entry: &str) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).contains_key(entry)
    }

    /// Those in use since they were asked last.
    pub(crate) fn used(&self) -> Vec<Arc<str>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter(|(_, handle)| handle.take_used()).map(|(entry, _)| entry.clone()).collect()
    }
}

/// How much of a lane each label holds in this worker.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    held: HashMap<Arc<str>, Held>,
}

#[derive(Debug)]
struct Held {
    flow: Arc<Flow>,
    count: Arc<AtomicUsize>,
}

/// One message that its label holds; no longer when dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Where it goes when its label holds too much.
    pub(crate) flow: Arc<Flow>,
    count: Arc<AtomicUsize>,
}

impl Counted {
    /// How much its label holds.
    pub(crate) fn held(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// How much all labels hold.
    pub(crate) fn held(&self) -> usize {
        self.held.values().map(|held| held.count.load(Ordering::Relaxed)).sum()
    }

    /// What one label may hold of a lane that has to wait and may hold `window` here: all labels together at most half, so
    /// that the lane never is full of them, each the same, with room for one more.
    pub(crate) fn most(&self, window: u16) -> usize {
        let labels = self.held.values().filter(|held| held.count.load(Ordering::Relaxed) > 0).count();
        (usize::from(window) / (2 * (labels + 1))).max(1)
    }

    /// Counts one more of `label` in `lane`, unless it holds `most` already: then it goes to the flow.
    pub(crate) fn admit(&mut self, lane: &Lane, label: &Arc<str>, most: usize) -> Result<Counted, Arc<Flow>> {
        let Held { flow, count } = self
            .held
            .entry(label.clone())
            .or_insert_with(|| Held { flow: Arc::new(Flow::new(lane.clone(), label.clone())), count: Arc::default() });
        if count.load(Ordering::Relaxed) >= most {
            return Err(flow.clone());
        }
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Counted { flow: flow.clone(), count: count.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fit_into_names() {
        assert_eq!(&*label("tenant", "acme"), "tenant-acme");
        let odd = ["Acme", "a.b", "a b", "ünï", "", &"x".repeat(200), &"ü".repeat(200)].map(|name| label("tenant", name));
        for (n, label) in odd.iter().enumerate() {
            assert!(is_label(label) && !odd[..n].contains(label), "{label}");
        }
        assert!(label("account", &"x".repeat(60)).len() <= LABEL_MAX + 20);
    }

    #[test]
    fn a_flow_is_known_by_its_entry() {
        let flow = Flow::new(Lane::new(Class::Low, "google"), "tenant-h07".into());
        assert_eq!(Flow::read(&flow.entry), Some(flow));
        for bad in ["", "low", "low.google", "low.google.", "odd.google.tenant-a", "low.google.a.b", "low..a", "low.google.A"] {
            assert_eq!(Flow::read(bad), None, "{bad}");
        }
        let flow = Flow::read("low.google.tenant-h07").unwrap();
        assert_eq!(flow.queue(&Names::new("paceline")), "paceline.flow.low.google.tenant-h07");
        assert_eq!((flow.key(), &*flow.turn), ("low.flow.google.tenant-h07".to_owned(), "flow:google.tenant-h07"));
    }

    #[test]
    fn nobody_fills_a_lane_that_waits() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let lane = Lane::new(Class::Low, "google");
        let mut crowd = Crowd::default();
        let fill = |crowd: &mut Crowd, label| -> Vec<Counted> {
            let mut got = Vec::new();
            while let Ok(counted) = crowd.admit(&lane, label, crowd.most(60)) {
                got.push(counted);
            }
            got
        };
        let of_a = fill(&mut crowd, &a);
        assert_eq!(of_a.len(), 15, "a quarter");
        let of_b = fill(&mut crowd, &b);
        assert_eq!((of_b.len(), of_b[0].held()), (10, 10), "beside another: a third of the half");
        assert_eq!(crowd.admit(&lane, &a, crowd.most(60)).unwrap_err().key(), "low.flow.google.a");
        drop(of_a);
        assert_eq!(fill(&mut crowd, &a).len(), 10, "what it held before is gone");
        drop(of_b);
        assert!(crowd.admit(&lane, &a, crowd.most(1)).is_ok(), "one always");
    }
}
