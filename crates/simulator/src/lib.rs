//! Whole fleets under virtual time against a model of receiving operators.
//!
//! The workers are the real ones: their lanes, their decisions, the limiter's arithmetic, the ledger, all of it on one
//! thread whose clock stands still while anything can be done and then leaps to the next thing due. Hours pass in seconds.
//! What is modelled is what lies outside: [the receivers](receiver), the time that services take, crashes and outages.
//!
//! Promises: the same scenario with the same seed runs the same way, step by step, on any machine; nothing is read or
//! written outside the process; a [`Report`] counts every message to its end.
//!
//! Stand-ins: the broker is `paceline-broker`'s in-memory one, the limiter and the ledger are the embedded ones, shared by
//! all workers as Redis is. Their own outages, and crashes of workers at any call to a service, can be had; the
//! loss of a single packet cannot.

mod book;
mod chance;
mod domains;
mod fleet;
mod generate;
mod grants;
mod load;
mod ports;
pub mod receiver;
mod report;
mod run;
mod scenario;
mod shipped;
mod span;
mod worker;

pub use crate::{
    generate::random,
    report::{Bucket, Checked, Figures, PhaseFigures, Report},
    run::{Progress, Simulation, simulate},
    scenario::{Account, AnyRecipient, BadScenario, Destination, Expect, Limits, Named, Reserves, Scenario, Tail},
    shipped::{SHIPPED, Shipped, shipped},
    span::Span,
};
