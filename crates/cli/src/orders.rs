//! The orders that workers follow: what must not be sent, what is paused, which limits operators have set.

use std::sync::Arc;

use async_trait::async_trait;
use paceline_core::{CancelSet, Directives};
use paceline_store::{Error, Store, Which};

use crate::follow::{self, Following};

/// The cancel orders in force.
pub fn cancels(store: Arc<dyn Store>) -> Following<CancelSet> {
    follow::orders(Cancels(store))
}

/// The pauses and limits that operators have ordered. An order that ends by itself may still be among them.
pub fn directives(store: Arc<dyn Store>) -> Following<Directives> {
    follow::orders(Standing(store))
}

struct Cancels(Arc<dyn Store>);

#[async_trait]
impl follow::Orders for Cancels {
    type Set = CancelSet;
    const WHAT: &'static str = "cancel orders";

    async fn version(&self) -> Result<i64, Error> {
        self.0.cancels_version().await
    }

    async fn read(&self) -> Result<CancelSet, Error> {
        let orders = self.0.cancels(Which::InForce).await?;
        Ok(CancelSet::new(orders.into_iter().map(|o| o.cancel)))
    }
}

struct Standing(Arc<dyn Store>);

#[async_trait]
impl follow::Orders for Standing {
    type Set = Directives;
    const WHAT: &'static str = "pauses and operators' limits";

    async fn version(&self) -> Result<i64, Error> {
        self.0.directives_version().await
    }

    async fn read(&self) -> Result<Directives, Error> {
        let (pauses, limits) = (self.0.pauses(Which::InForce).await?, self.0.limit_orders(Which::InForce).await?);
        Ok(Directives::new(pauses.into_iter().map(|p| p.order), limits.into_iter().map(|l| l.order)))
    }
}
