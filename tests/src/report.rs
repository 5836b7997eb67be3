//! What a scenario found: every figure with its bound, all failures at once.

use std::fmt::Display;

use crate::full;

/// Prints each figure as it is found and remembers what did not hold.
#[derive(Debug)]
#[must_use = "failures are only raised by `finish`"]
pub struct Report {
    scenario: &'static str,
    failed: Vec<String>,
}

impl Report {
    pub fn new(scenario: &'static str) -> Report {
        Report { scenario, failed: Vec::new() }
    }

    /// A figure without a bound.
    pub fn figure(&self, what: &str, value: impl Display) {
        self.line(what, &value.to_string(), "", "");
    }

    /// A figure that must be as `bound` says, in both sizes.
    pub fn check(&mut self, what: &str, value: impl Display, bound: impl Display, holds: bool) {
        let (value, bound) = (value.to_string(), bound.to_string());
        if !holds {
            self.failed.push(format!("{what}: {value}, wanted {bound}"));
        }
        self.line(what, &value, &bound, if holds { "ok" } else { "FAILED" });
    }

    /// A figure that depends on the machine's speed: must be as `bound` says in the full size only.
    pub fn timing(&mut self, what: &str, value: impl Display, bound: impl Display, holds: bool) {
        if full() {
            self.check(what, value, bound, holds);
        } else {
            self.line(what, &value.to_string(), &bound.to_string(), "not asserted");
        }
    }

    /// # Panics
    /// With everything that did not hold.
    pub fn finish(self) {
        assert!(self.failed.is_empty(), "{}: {}", self.scenario, self.failed.join("; "));
    }

    fn line(&self, what: &str, value: &str, bound: &str, verdict: &str) {
        // `ops/acceptance` gathers these lines into its closing table.
        println!("acceptance | {} | {what} | {value} | {bound} | {verdict}", self.scenario);
    }
}
