//! Where the demo plays: who is written to, which limits hold, and how the sandbox answers. Pure.

use std::{fmt::Write, net::SocketAddr};

use paceline_core::lane::TAIL;

/// A destination of the demo, with its part of the mail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) domains: &'static [&'static str],
    /// Recipients a second in a demo of [`USUAL`] messages; for the tail of each of its domains.
    rate: f64,
    /// Of a hundred messages, and of a hundred password resets.
    pub(crate) share: [u32; 2],
}

/// Named destinations first, the tail last. The first is slow enough to have a backlog for as long as the campaign lasts:
/// its mail waits for its own limit, that of the others for the account.
pub(crate) const PLACES: [Place; 4] = [
    Place { name: "google", domains: &["gmail.com", "googlemail.com"], rate: 27.0, share: [22, 15] },
    Place { name: "microsoft", domains: &["outlook.com", "hotmail.com", "live.com"], rate: 64.0, share: [36, 40] },
    Place { name: "yahoo", domains: &["yahoo.com", "aol.com"], rate: 48.0, share: [24, 15] },
    Place {
        name: TAIL,
        domains: &["verein.example", "shop.example", "schule.example", "praxis.example"],
        rate: 24.0,
        share: [18, 30],
    },
];

/// Messages of a demo nobody chose otherwise for.
pub(crate) const USUAL: usize = 4000;
/// Recipients a second of the one account, at [`USUAL`].
const ACCOUNT: f64 = 140.0;
/// Part of every burst kept for critical mail.
const RESERVE: f64 = 0.4;

/// The limits in force. A demo of more than [`USUAL`] messages is a faster one, not a longer one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    scale: f64,
}

impl Figures {
    pub(crate) fn of(messages: usize) -> Figures {
        Figures { scale: (messages as f64 / USUAL as f64).max(1.0) }
    }

    /// Recipients a second of the account.
    pub(crate) fn account(&self) -> f64 {
        (ACCOUNT * self.scale).round()
    }

    /// Recipients a second of a destination; of the tail, of all its domains together.
    pub(crate) fn destination(&self, place: &Place) -> f64 {
        let domains = if place.name == TAIL { place.domains.len() } else { 1 };
        self.rate(place) * domains as f64
    }

    fn rate(&self, place: &Place) -> f64 {
        (place.rate * self.scale).round()
    }

    /// A configuration file for the demo's worker; where its parts are is for `--embedded` to say.
    pub(crate) fn config(&self, sandbox: SocketAddr) -> String {
        let (account, calls) = (self.account(), 64 * self.scale.ceil() as u32);
        let mut text = format!(
            r#"# Written by `paceline demo`, to be used with --embedded. ops/paceline.toml describes every setting.
[limits]
# Part of every burst that only critical mail may use.
reserve = {RESERVE}

[http]
listen = "127.0.0.1:0"

[[account]]
name = "{ACCOUNT_NAME}"
provider = "http"
# The sandbox. It delivers nothing.
url = "http://{sandbox}/send"
rate = "{account}/s"
burst = {burst}
concurrency = {calls}
# The sandbox asks single messages to wait, at any rate: nothing would be gained by a slower one.
adaptive = false

[classify]
presets = false
"#,
            burst = account * 2.0,
        );
        for place in &PLACES {
            let rate = self.rate(place);
            // Writing to a string does not fail.
            let _ = if place.name == TAIL {
                write!(text, "[tail]\nrate = \"{rate}/s\"\nburst = {rate}\n")
            } else {
                let (name, domains) = (place.name, place.domains);
                write!(text, "[[destination]]\nname = \"{name}\"\ndomains = {domains:?}\nrate = \"{rate}/s\"\nburst = {rate}\n")
            };
        }
        let _ = write!(
            text,
            r#"
[[rule]]
name = "password resets"
stream = "password-*"
class = "critical"

# Short, so that a retry is seen within the demo.
[retry]
attempts = 5
base = "1s"
max = "4s"

[worker]
concurrency = {calls}
drain_grace = "10s"

[log]
format = "text"
"#
        );
        text
    }
}

/// The demo's only account.
pub(crate) const ACCOUNT_NAME: &str = "demo";

/// How the sandbox answers: by the word each recipient's name begins with.
pub(crate) fn scenario(seed: u64) -> String {
    format!(
        r#"# How the sandbox of `paceline demo` answers. docs/sandbox.md describes every key.
seed = {seed}

# Out of order twice, then well again: two retries.
[[rule]]
to = "flaky-*"
then = "503"
fail_times = 2

# Out of order for ever: the retry budget is spent, a dead letter.
[[rule]]
to = "down-*"
then = "503"

# "Slow down", with a Retry-After: the destination is held for so long, no budget is spent.
[[rule]]
to = "busy-*"
then = ["throttle-1s", "accept"]

# No such mailbox: a dead letter at once.
[[rule]]
to = "nobody-*"
then = "reject"

# Taken, but the answer is lost: sent again with the same key, and known by it.
[[rule]]
to = "lost-*"
then = ["drop", "accept"]

# Everybody else: accepted, after a moment.
[[rule]]
delay = ["10ms", "60ms"]
then = "accept"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_messages_make_it_faster_not_longer() {
        let (usual, small, large) = (Figures::of(USUAL), Figures::of(10), Figures::of(10 * USUAL));
        assert_eq!(usual, small);
        assert_eq!((usual.account(), large.account()), (140.0, 1400.0));
        let of = |f: Figures| PLACES.map(|p| f.destination(&p));
        assert_eq!(of(usual), [27.0, 64.0, 48.0, 96.0]);
        assert_eq!(of(large), [270.0, 640.0, 480.0, 960.0]);
    }

    #[test]
    fn together_the_destinations_allow_more_than_the_account() {
        let figures = Figures::of(USUAL);
        assert!(PLACES.iter().map(|p| figures.destination(p)).sum::<f64>() > figures.account() * 1.2);
        assert_eq!([0, 1].map(|i| PLACES.iter().map(|p| p.share[i]).sum::<u32>()), [100, 100]);
    }

    #[test]
    fn the_sandbox_takes_the_scenario() {
        assert_eq!(paceline_sandbox::Scenario::from_toml(&scenario(7)).map(|_| ()), Ok(()));
    }
}
