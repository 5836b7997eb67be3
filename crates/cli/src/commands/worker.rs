//! `paceline worker`: one pod of the fleet, or the whole system on embedded parts.

use crate::{config::Config, exit::Failure, node::Node, signals};

/// Runs until told to end, then drains.
pub async fn run(config: &Config) -> Result<(), Failure> {
    let mut signals = signals::Signals::new()?;
    let node = tokio::select! {
        node = Node::start(config) => node?,
        () = signals.end() => return Ok(()),
    };
    signals.end().await;
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
