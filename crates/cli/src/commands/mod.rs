//! One file a command.

pub mod check_config;
pub mod classify;
pub mod control;
pub mod dlq;
mod lines;
pub mod sandbox;
pub mod send;
pub mod topology;
pub mod worker;
