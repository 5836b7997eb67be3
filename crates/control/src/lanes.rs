//! What waits where, what holds it, and why: the lanes of the whole fleet, from the broker, the workers' reports and
//! operators' orders. `GET /v1/lanes`, and what `paceline lanes` shows.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use paceline_broker::{Broker, Topology};
use paceline_classifier::Classifier;
use paceline_core::{
    Class, Lane, PauseScope,
    diagnosis::{Diagnosis, diagnose},
    lane::TAIL,
    lanes::{self, Known, LaneStatus, QueueDepth, WorkerReport},
};
use paceline_limiter::fleet::Reports;
use paceline_store::{Directives, Which};
use serde::Serialize;
use tokio::time::timeout;

/// How long each of the services has for its part; what it does not tell in time is left out.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where to look.
#[derive(Clone)]
pub struct Lanes {
    pub broker: Arc<dyn Broker>,
    pub reports: Arc<dyn Reports>,
    pub orders: Arc<dyn Directives>,
    /// Names the lanes.
    pub topology: Topology,
    /// Tells the domains of a destination.
    pub classifier: Arc<Classifier>,
    /// Every account's name.
    pub accounts: Arc<[String]>,
    /// Depths hold what workers hold: those of a spool that another process consumes.
    pub ready_holds_all: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub lanes: Vec<LaneStatus>,
    pub reports: Vec<WorkerReport>,
    /// What could not be asked, and why.
    pub problems: Vec<String>,
}

/// What is wrong at a destination, with its lanes.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
    pub lanes: Vec<LaneStatus>,
}

impl Lanes {
    /// Looks once. What cannot be asked is missing, and said to be.
    pub async fn look(&self) -> Seen {
        let (reports, pauses) =
            tokio::join!(timeout(PATIENCE, self.reports.reports()), timeout(PATIENCE, self.orders.pauses(Which::InForce)));
        let mut problems = vec![];
        let reports = match reports {
            Ok(Ok(texts)) => texts,
            Ok(Err(e)) => missing(&mut problems, format!("the workers' reports cannot be read: {e}")),
            Err(_) => missing(&mut problems, "the workers' reports cannot be read: no answer in time".to_owned()),
        };
        let reports: Vec<WorkerReport> = reports.iter().filter_map(|text| read(text, &mut problems)).collect();
        let pauses: Vec<PauseScope> = match pauses {
            Ok(Ok(pauses)) => pauses.into_iter().map(|p| p.order.scope).collect(),
            Ok(Err(e)) => missing(&mut problems, format!("operators' pauses cannot be read: {}", e.in_full())),
            Err(_) => missing(&mut problems, "operators' pauses cannot be read: no answer in time".to_owned()),
        };
        let named = self.topology.lanes.iter().filter_map(|queue| Some((self.lane(queue)?, queue.clone())));
        let mut queues: Vec<QueueDepth> = named.map(|(lane, queue)| QueueDepth::of(&lane, queue)).collect();
        queues.extend(lanes::unknown_queues(&queues, &reports, self.topology.names.prefix()));
        if let Err(why) = self.depths(&mut queues).await {
            problems.push(why);
        }
        let known = Known {
            queues: &queues,
            reports: &reports,
            pauses: &pauses,
            accounts: &self.accounts,
            ready_holds_all: self.ready_holds_all,
        };
        let lanes = lanes::merge(known, SystemTime::now().into());
        Seen { lanes, reports, problems }
    }

    /// The lane that this queue is, if it is one that configuration names.
    pub(crate) fn lane(&self, queue: &str) -> Option<Lane> {
        Class::ALL.into_iter().find_map(|class| {
            let before = self.topology.names.lane(&Lane::new(class, ""));
            Some(Lane::new(class, queue.strip_prefix(&before)?))
        })
    }

    async fn depths(&self, queues: &mut [QueueDepth]) -> Result<(), String> {
        if let paceline_broker::State::Down { why, .. } = &*self.broker.state().borrow() {
            return Err(format!("the depths are not known: {why}"));
        }
        let ask = async {
            let mut problem = None;
            for queue in queues.iter_mut() {
                match self.broker.depth(&queue.queue).await {
                    Ok(depth) => queue.ready = Some(depth),
                    Err(e) => problem = Some(format!("the depth of {} is not known: {e}", queue.queue)),
                }
            }
            problem
        };
        match timeout(PATIENCE, ask).await {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(problem),
            Err(_) => Err("some depths are not known: no answer in time".to_owned()),
        }
    }

    /// What is wrong at `name`, a destination or a lane; `None` where there is no such thing.
    pub fn explain(&self, name: &str, seen: &Seen) -> Option<Explained> {
        let destinations = self.classifier.destinations();
        let exists =
            |d: &str| d == TAIL || self.topology.lanes.iter().any(|q| self.lane(q).is_some_and(|l| *l.destination == *d));
        let of_lane = || seen.lanes.iter().find(|l| l.lane == name).map(|l| l.destination.clone());
        let destination = if exists(name) { name.to_owned() } else { of_lane()? };
        let domains: Vec<String> = destinations
            .iter()
            .filter(|(d, _)| ***d == *destination)
            .flat_map(|(_, domains)| domains.iter().map(ToString::to_string))
            .collect();
        let places: Vec<_> = seen.reports.iter().flat_map(|r| r.places.iter().cloned()).collect();
        let lanes = seen.lanes.iter().filter(|l| l.destination == destination).cloned().collect();
        Some(Explained { diagnosis: diagnose(&destination, &domains, &places), lanes })
    }
}

fn missing<T: Default>(problems: &mut Vec<String>, problem: String) -> T {
    problems.push(problem);
    T::default()
}

fn read(text: &str, problems: &mut Vec<String>) -> Option<WorkerReport> {
    match serde_json::from_str(text) {
        Ok(report) => Some(report),
        Err(_) => {
            problems.push("a worker's report cannot be read: is it of another version?".to_owned());
            None
        }
    }
}

/// `GET /v1/lanes` and `GET /v1/lanes/{name}/explain`; to be [guarded](crate::guarded).
pub fn router(lanes: Lanes) -> Router {
    Router::new().route("/v1/lanes", get(list)).route("/v1/lanes/{name}/explain", get(explain)).with_state(Arc::new(lanes))
}

async fn list(State(lanes): State<Arc<Lanes>>) -> Json<Vec<LaneStatus>> {
    Json(lanes.look().await.lanes)
}

async fn explain(State(lanes): State<Arc<Lanes>>, Path(name): Path<String>) -> Response {
    match lanes.explain(&name, &lanes.look().await) {
        Some(explained) => Json(explained).into_response(),
        None => (StatusCode::NOT_FOUND, "no such lane or destination\n").into_response(),
    }
}
