//! What arrived at the sandbox, as it wrote it down.

use std::{collections::BTreeMap, path::Path, time::Duration};

use paceline_sandbox::Handle;
use serde::Deserialize;

use crate::until;

/// One request.
#[derive(Debug, Clone, Deserialize)]
pub struct Arrival {
    /// When its body had been read.
    pub at_us: u64,
    pub id: Option<String>,
    /// Begins with `/<name of the pod>`.
    pub path: String,
    pub domain: String,
    pub recipients: u64,
    pub status: Option<u16>,
    /// Taken for delivery.
    pub accepted: bool,
}

impl Arrival {
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_default()
    }

    /// The pod that sent it.
    pub fn pod(&self) -> &str {
        self.path.trim_start_matches('/').split('/').next().unwrap_or_default()
    }
}

/// Every request that reached `sandbox` so far, once its file at `path` has them all.
pub async fn all(sandbox: &Handle, path: &Path) -> Vec<Arrival> {
    let wanted = sandbox.stats().requests;
    let mut found = Vec::new();
    // Lines are written up to a tenth of a second after the arrival.
    until("the arrivals file", Duration::from_secs(30), async || {
        found = read(path);
        found.len() as u64 >= wanted
    })
    .await;
    found
}

/// Every request so far, in the order of arrival. A line that is still being written is left out.
pub fn read(path: &Path) -> Vec<Arrival> {
    let text = std::fs::read_to_string(path).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How often each id was accepted.
pub fn accepted(arrivals: &[Arrival]) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for arrival in arrivals.iter().filter(|a| a.accepted) {
        *counts.entry(arrival.id()).or_default() += 1;
    }
    counts
}
