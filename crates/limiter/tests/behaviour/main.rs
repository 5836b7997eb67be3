//! The limiter's promises, each in its own file. One binary, so that the adapters are linked once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bounds;
mod concurrency;
mod deploy;
mod flavours;
mod fleet;
mod isolation;
mod ledger;
mod ledger_crash;
mod ledger_file;
mod outage;
mod reports;
mod shares;
mod signals;
mod sim;
mod traces;
mod windows;
