//! One conformance suite over both databases, and what only one of them can go through.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "cases are called by tests, not tests themselves")]

mod cancels;
mod directives;
mod jobs;
mod learnt;
mod letters;
mod life;
mod postgres;
mod purge;
mod quotas;
mod races;
mod sqlite;
mod stage;
mod states;
mod suppressions;
