//! The lanes this worker consumes: those of the topology from the start, flows as they come to be known.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize};

use paceline_broker::Names;
use paceline_core::Lane;
use paceline_limiter::fleet::Fleet;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    context::Context,
    engine::Input,
    flows::Flow,
    intake::Intake,
    lane::{LaneHandle, LaneTask},
    limits::Limits,
};

/// Opens lanes. They are counted from 0 and never go; a flow that is no longer needed sleeps.
pub(crate) struct Lanes {
    pub(crate) cx: Arc<Context>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) limits: watch::Receiver<Arc<Limits>>,
    pub(crate) fleet: Arc<dyn Fleet>,
    pub(crate) workers: watch::Receiver<u64>,
    pub(crate) names: Names,
    busy: Arc<AtomicUsize>,
    opened: Mutex<Vec<(Arc<LaneHandle>, JoinHandle<()>)>>,
}

impl Lanes {
    pub(crate) fn new(
        cx: Arc<Context>,
        intake: Arc<Intake>,
        limits: watch::Receiver<Arc<Limits>>,
        fleet: Arc<dyn Fleet>,
        workers: watch::Receiver<u64>,
    ) -> Lanes {
        let names = Names::new(&cx.settings.prefix);
        Lanes { cx, intake, limits, fleet, workers, names, busy: Arc::default(), opened: Mutex::default() }
    }

    /// Begins to consume a lane; `None` is the intake.
    pub(crate) fn open(&self, lane: Option<Lane>) -> Arc<LaneHandle> {
        let key = lane.as_ref().map_or_else(|| self.names.intake(), |l| self.names.lane(l));
        self.begin(key, lane, None)
    }

    /// Begins to consume a flow, whose queue is there.
    pub(crate) fn open_flow(&self, flow: Arc<Flow>) -> Arc<LaneHandle> {
        let asleep = {
            let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.iter().find(|(handle, _)| handle.flow.as_ref() == Some(&flow)).map(|(handle, _)| handle.clone())
        };
        match asleep {
            Some(handle) => handle,
            None => self.begin(flow.queue(&self.names), Some(flow.lane.clone()), Some(flow)),
        }
    }

    fn begin(&self, key: String, lane: Option<Lane>, flow: Option<Arc<Flow>>) -> Arc<LaneHandle> {
        let (handle, commands) = LaneHandle::new(key.into(), lane, flow);
        let handle = Arc::new(handle);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let index = opened.len();
        // Under the lock: the engine counts them in the order in which it is told.
        self.cx.to_engine(Input::Lane(handle.clone()));
        let task = LaneTask {
            cx: self.cx.clone(),
            intake: self.intake.clone(),
            fleet: self.fleet.clone(),
            workers: self.workers.clone(),
            index,
            handle: handle.clone(),
            commands,
            busy: self.busy.clone(),
            limits: self.limits.clone(),
            rate: 0.0,
            crowd: Default::default(),
            company: Default::default(),
        };
        opened.push((handle.clone(), tokio::spawn(task.run())));
        handle
    }

    /// As if the process had ended.
    pub(crate) fn abort(&self) {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|(_, task)| task.abort());
    }

    /// Everything is given back and ends, by `end` at the latest.
    pub(crate) async fn stop(&self, end: Instant) {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        for (handle, _) in &opened {
            let _ = timeout_at(end, handle.stop()).await;
        }
        for (_, task) in opened {
            let _ = timeout_at(end, task).await;
        }
    }
}
