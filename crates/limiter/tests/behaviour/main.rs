//! The limiter's promises, each in its own file. One binary, so that the adapters are linked once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bounds;
mod fleet;
mod isolation;
mod ledger;
mod outage;
mod shares;
mod sim;
mod traces;
