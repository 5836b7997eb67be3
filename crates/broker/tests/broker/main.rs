//! One conformance suite over every adapter, and what only a real broker can go through.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "cases are called by tests, not tests themselves")]

mod acks;
mod admin;
mod delays;
mod events;
mod memory;
mod outages;
mod publishing;
mod rabbitmq;
mod returns;
mod routing;
mod spool;
mod spool_model;
mod spool_processes;
mod spool_restarts;
mod stage;
