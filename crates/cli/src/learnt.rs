//! What the fleet learns, kept in the store.

use std::sync::Arc;

use async_trait::async_trait;
use paceline_consumer::{Keep, KeepError, Kept};
use paceline_store::{LearntRow, Store};

/// Keeps in `store`.
pub(crate) fn keep(store: Arc<dyn Store>) -> Arc<dyn Keep> {
    Arc::new(InStore(store))
}

struct InStore(Arc<dyn Store>);

#[async_trait]
impl Keep for InStore {
    async fn load(&self) -> Result<Vec<Kept>, KeepError> {
        let rows = self.0.learnt().await.map_err(|e| KeepError(e.in_full()))?;
        // What another version wrote and this one cannot read counts for nothing.
        let kept = |row: LearntRow| {
            Some(Kept {
                learnt: serde_json::from_value(row.learnt).ok()?,
                account: row.account.into(),
                destination: row.destination.map(Into::into),
                at_us: row.at_us,
            })
        };
        Ok(rows.into_iter().filter_map(kept).collect())
    }

    async fn save(&self, kept: &[Kept]) -> Result<(), KeepError> {
        let row = |k: &Kept| {
            Ok(LearntRow {
                account: k.account.to_string(),
                destination: k.destination.as_deref().map(str::to_owned),
                learnt: serde_json::to_value(k.learnt)?,
                at_us: k.at_us,
            })
        };
        let rows: Result<Vec<_>, serde_json::Error> = kept.iter().map(row).collect();
        let rows = rows.map_err(|e| KeepError(e.to_string()))?;
        self.0.keep_learnt(&rows).await.map_err(|e| KeepError(e.in_full()))
    }
}
