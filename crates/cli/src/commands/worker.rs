//! `paceline worker`: one pod of the fleet, or the whole system on embedded parts.

use crate::{
    config::{Config, ConfigError},
    exit::Failure,
    node::Node,
    signals::{Signals, Told},
};

/// Runs until told to end, then drains. Told to, it reads its configuration anew by `load`.
pub async fn run(config: &Config, load: impl Fn() -> Result<Config, ConfigError>) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut node = tokio::select! {
        node = Node::start(config) => node?,
        () = signals.end() => return Ok(()),
    };
    while signals.next().await == Told::Reread {
        match load() {
            Ok(config) => node.reread(&config),
            Err(error) => {
                for problem in &error.problems {
                    tracing::warn!(place = %problem.origin, key = problem.key, "{}: {}", problem.key, problem.problem);
                }
                let mistakes = error.problems.len();
                tracing::warn!(mistakes, "SIGHUP: the configuration cannot be read; nothing is changed");
            }
        }
    }
    tracing::info!(grace_s = config.worker.drain_grace.as_secs(), "draining: no new mail is taken");
    let drained = tokio::select! {
        drained = node.drain() => drained,
        () = signals.end() => return Err(Failure::failed("told twice to end: calls under way are abandoned")),
    };
    if drained.unfinished > 0 {
        return Err(Failure::failed(format!("{} calls were still under way at the end of the grace period", drained.unfinished)));
    }
    tracing::info!("drained");
    Ok(())
}
