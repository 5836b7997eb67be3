//! Keeps this worker's view of the flows: opens what others have opened, asks for new ones, lets go of idle ones.
//!
//! Which flows there are, the broker has on record; the fleet's list says which of them are in use, so that every worker
//! consumes them within about a second. Promise: mail goes to a flow only after its queue is on both, so that none is
//! forgotten, whatever ends or is emptied.

use std::{collections::HashSet, sync::Arc, time::Duration};

use paceline_limiter::LimiterError;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    flows::{Flow, Request},
    lane::LaneHandle,
    lanes::Lanes,
};

/// The fleet's list of flows, and the entry that says that it has all that the broker knows.
const LIST: &str = "flows";
const COMPLETE: &str = "complete";
const LOOK: Duration = Duration::from_secs(1);
/// An idle flow is removed this long after workers have let go of it: whoever missed that has ended by then.
const LET_GO: Duration = Duration::from_secs(60);
/// One worker at a time removes.
const LEASE: Duration = Duration::from_secs(30);

pub(crate) struct Keeper {
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) requests: mpsc::UnboundedReceiver<Request>,
    /// Entries that make no sense, said once.
    pub(crate) odd: HashSet<Arc<str>>,
    /// It has looked at the list: until then all of it counts as in use, since nobody may have been there to say so.
    pub(crate) settled: bool,
}

impl Keeper {
    pub(crate) async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request { flow, opened }) => {
                        // Without an answer the message stays where it is, and comes again.
                        if self.make(&flow).await {
                            let _ = opened.send(());
                        }
                    }
                    None => return,
                },
                _ = look.tick() => self.look().await,
            }
        }
    }

    /// Declares a flow and tells everybody.
    async fn make(&mut self, flow: &Arc<Flow>) -> bool {
        if self.lanes.cx.flows.is_open(&flow.entry) {
            return true;
        }
        if let Err(error) = self.lanes.cx.broker.open_flow(flow.class(), &flow.name()).await {
            tracing::warn!(flow = &*flow.entry, %error, "a flow cannot be opened; its mail stays in its lane");
            return false;
        }
        let noted = self.lanes.fleet.note(LIST, std::slice::from_ref(&flow.entry)).await;
        if let Err(error) = noted {
            tracing::warn!(flow = &*flow.entry, %error, "a flow cannot be announced; its mail stays in its lane");
            return false;
        }
        self.consume(flow.clone()).await.note_used();
        true
    }

    async fn consume(&self, flow: Arc<Flow>) -> Arc<LaneHandle> {
        tracing::info!(flow = &*flow.entry, "flow opened");
        let handle = self.lanes.open_flow(flow.clone());
        handle.rouse().await;
        self.lanes.cx.flows.opened(flow.entry.clone(), handle.clone());
        handle
    }

    async fn look(&mut self) {
        let used = self.lanes.cx.flows.used();
        // What keeps the list from answering is said where limits are asked.
        let Ok(mut noted) = self.lanes.fleet.note(LIST, &used).await else { return };
        if !noted.iter().any(|(entry, _)| &**entry == COMPLETE) {
            match self.recall().await {
                Ok(all) => noted = all,
                Err(error) => return tracing::warn!(%error, "the flows on record cannot be read; trying again"),
            }
        }
        for (entry, idle) in noted {
            if &*entry == COMPLETE || self.odd.contains(&entry) {
                continue;
            }
            let open = self.lanes.cx.flows.is_open(&entry);
            let limit = self.lanes.cx.settings.flows.idle;
            if idle <= limit || !self.settled {
                if !open {
                    match Flow::read(&entry) {
                        Some(flow) => drop(self.consume(Arc::new(flow)).await),
                        None => {
                            tracing::warn!(flow = &*entry, "not a flow of this version; left alone");
                            self.odd.insert(entry);
                        }
                    }
                }
            } else if open {
                if let Some(handle) = self.lanes.cx.flows.closed(&entry) {
                    tracing::debug!(flow = &*entry, "flow idle");
                    handle.sleep().await;
                }
            } else if idle > limit + LET_GO {
                self.remove(&entry).await;
            }
        }
        self.settled = true;
    }

    /// The list is new, or was lost: what the broker has on record belongs there.
    async fn recall(&self) -> Result<Vec<(Arc<str>, Duration)>, String> {
        let flows = self.lanes.cx.broker.flows().await.map_err(|e| e.to_string())?;
        let flows = flows.iter().map(|(class, flow)| format!("{class}.{flow}").into());
        let all: Vec<Arc<str>> = flows.chain([COMPLETE.into()]).collect();
        self.lanes.fleet.note(LIST, &all).await.map_err(|e: LimiterError| e.to_string())
    }

    async fn remove(&self, entry: &Arc<str>) {
        let Some(flow) = Flow::read(entry) else { return };
        let worker = &self.lanes.cx.settings.worker_id;
        if !self.lanes.fleet.lease("flows", worker, LEASE).await.unwrap_or(false) {
            return;
        }
        let closed = timeout(LEASE / 2, self.lanes.cx.broker.close_flow(flow.class(), &flow.name())).await;
        match closed {
            Ok(Ok(true)) => {
                let _ = self.lanes.fleet.strike(LIST, entry, self.lanes.cx.settings.flows.idle).await;
                tracing::info!(flow = &**entry, "idle flow removed");
            }
            // There is mail: everybody is to consume it again.
            Ok(Ok(false)) => drop(self.lanes.fleet.note(LIST, std::slice::from_ref(entry)).await),
            Ok(Err(error)) => tracing::debug!(flow = &**entry, %error, "idle flow not removed; trying again"),
            Err(_) => {}
        }
    }
}
