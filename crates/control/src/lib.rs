//! The control plane: health and metrics over HTTP, the dead-letter writer, the depth of the lanes.
//!
//! [`run`] is the `control` process; any number may run. [`health_router`] and [`serve`] are the HTTP side that workers
//! use as well. The server holds against hostile clients: connections, heads, bodies and times are all bounded.

mod auth;
mod depth;
pub mod feedback;
mod health;
pub mod lanes;
mod retention;
mod run;
mod serve;
mod store_health;

pub use auth::{BearerToken, guarded};
pub use health::{Check, Readiness, SharedRegistry, health_router};
pub use run::{Deps, run};
pub use serve::{Limits, serve, serve_with};
pub use store_health::StoreHealth;
