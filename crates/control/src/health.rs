//! `/livez`, `/readyz` and `/metrics`.

use std::sync::{Arc, PoisonError, RwLock};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Map, Value, json};
use tracing::error;

/// The metrics of a process, registered by its parts.
pub type SharedRegistry = Arc<RwLock<Registry>>;

/// One thing that must work for the process to do its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Such as `broker`, `limits`, `store`.
    pub name: &'static str,
    pub ok: bool,
    /// What is wrong, or worth knowing. Anyone may read it: no credential, no address of a recipient.
    pub detail: Option<String>,
}

impl Check {
    pub fn ok(name: &'static str) -> Check {
        Check { name, ok: true, detail: None }
    }

    pub fn failing(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, ok: false, detail: Some(detail.into()) }
    }
}

/// Whether the process is ready, and what it lacks.
pub trait Readiness: Send + Sync {
    /// Every check. Must answer from what is known already: it is asked often, by anyone.
    fn checks(&self) -> Vec<Check>;
}

/// The endpoints every long-running process has.
///
/// - `GET /livez`: 200 while the process answers at all.
/// - `GET /readyz`: `{"ready": …, "checks": {"broker": {"ok": …, "detail": …}, …}}`; 503 while any check fails.
/// - `GET /metrics`: OpenMetrics text.
pub fn health_router(readiness: Arc<dyn Readiness>, registry: SharedRegistry) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readyz(&*readiness)))
        .route("/metrics", get(async move || metrics(&registry)))
}

fn readyz(readiness: &dyn Readiness) -> Response {
    let checks = readiness.checks();
    let ready = checks.iter().all(|check| check.ok);
    let by_name: Map<String, Value> =
        checks.into_iter().map(|c| (c.name.to_owned(), json!({ "ok": c.ok, "detail": c.detail }))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "checks": by_name }))).into_response()
}

fn metrics(registry: &SharedRegistry) -> Response {
    let mut text = String::new();
    // A registry is only ever added to, so one that a panic left behind is whole.
    let encoded = encode(&mut text, &registry.read().unwrap_or_else(PoisonError::into_inner));
    match encoded {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(e) => {
            error!(error = %e, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
