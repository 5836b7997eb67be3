//! What is said after the report. Pure but for the name the program was called by.

use std::net::SocketAddr;

use super::{ARRIVALS, CONFIG, LOG, SCENARIO, home::Home};

/// What each part kept, as far as it did.
pub(crate) fn parts(home: &Home) -> String {
    let gone = if home.is_kept() { "" } else { ", removed at the end; --keep DIR keeps it" };
    let mut text = format!("In {}{gone}:\n", home.path().display());
    for (name, what) in [
        ("spool.db", "the broker: lanes, delays, what is on its way to the dead letters"),
        ("claims.db", "the ledger: which message was claimed for which attempt"),
        ("store.db", "the dead letters"),
        (ARRIVALS, "each call, as the sandbox saw it: most figures come from here"),
        (CONFIG, "the configuration it ran with"),
        (SCENARIO, "what the sandbox was told"),
        (LOG, "the log of all parts"),
    ] {
        if home.file(name).exists() {
            text.push_str(&format!("  {name:<17}{what}\n"));
        }
    }
    text
}

/// What to try next.
pub(crate) fn next(home: &Home) -> String {
    let me = program();
    let look = match home {
        Home::Kept(dir) => format!("{me} dlq list --embedded {}", dir.display()),
        Home::Temporary(_) => format!("{me} demo --keep ./demo && {me} dlq list --embedded ./demo"),
    };
    format!(
        "\nNext:\n  {look}\n  {me} demo --serve    stays up: metrics, and mail of your own\n  \
         docs/demo.md: what was seen here; README.md: the real thing\n"
    )
}

/// How to use what stays up.
pub(crate) fn serving(home: &Home, http: SocketAddr, sandbox: SocketAddr) -> String {
    let (me, dir) = (program(), home.path().display());
    format!(
        "\nStill up, until Ctrl-C:\n  \
         http://{http}/metrics    and /readyz, /livez\n  \
         http://{sandbox}/sandbox/stats    the sandbox: nothing it takes is delivered\n  \
         {me} send --embedded {dir} ops/examples/messages.ndjson\n  \
         {me} dlq list --embedded {dir}\n"
    )
}

/// What stays after that.
pub(crate) fn left(home: &Home) -> String {
    format!("\nDrained. What it kept is in {}\n", home.path().display())
}

/// As it can be called again.
fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "paceline".into())
}
