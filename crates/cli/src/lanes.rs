//! What this worker says of its lanes goes to where whoever looks at the fleet reads it.

use std::{sync::Arc, time::Duration};

use paceline_core::lanes::WorkerReport;
use paceline_limiter::fleet::Reports;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// A worker that has said nothing for so long is not shown any more.
const LIFE: Duration = Duration::from_secs(5);
/// How long the place of reports may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two reports at least.
const GAP: Duration = Duration::from_millis(500);

/// Passes every report on, until the worker ends. Where they cannot be put, mail goes on all the same.
pub(crate) async fn report(mut said: watch::Receiver<Arc<WorkerReport>>, reports: Arc<dyn Reports>, id: String) {
    let mut lost = false;
    while said.changed().await.is_ok() {
        let report = said.borrow_and_update().clone();
        let Ok(text) = serde_json::to_string(&*report) else { continue };
        let put = timeout(PATIENCE, reports.report(&id, &text, LIFE)).await;
        let problem = match put {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        match problem {
            Some(error) if !std::mem::replace(&mut lost, true) => {
                tracing::warn!(error, "what this worker does cannot be told: `paceline lanes` leaves it out");
            }
            Some(_) => {}
            None => lost = false,
        }
        sleep(GAP).await;
    }
}

/// Takes the last report back.
pub(crate) async fn withdraw(reports: &dyn Reports, id: &str) {
    // Otherwise it runs out by itself.
    let _ = timeout(PATIENCE, reports.withdraw(id)).await;
}
