//! Logs, to standard error.

use std::{fs::File, io, sync::Arc};

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{LogConfig, LogFormat},
    exit::Failure,
};

/// Logs of a service: as configured, `level` (from the command line) over what is configured.
pub fn service(config: &LogConfig, level: Option<&str>) -> Result<(), Failure> {
    install(config.format, level.unwrap_or(&config.level))
}

/// Logs of a command that ends by itself: nothing but errors, unless asked for.
pub fn command(level: Option<&str>) -> Result<(), Failure> {
    install(LogFormat::Text, level.unwrap_or("off"))
}

/// Logs into a file, where something else is shown to whoever sits in front of it.
pub fn file(file: File, level: &str) -> Result<(), Failure> {
    let builder = fmt().with_env_filter(filter(level)?).with_writer(Arc::new(file));
    let _ = builder.with_ansi(false).try_init();
    Ok(())
}

fn install(format: LogFormat, level: &str) -> Result<(), Failure> {
    let builder = fmt().with_env_filter(filter(level)?).with_writer(io::stderr);
    // A second installation can only come from a test in the same process: the first one stays.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, Failure> {
    // lapin reports what the adapter handles, and shows whole messages while it does: only where it is asked for.
    let quiet = if level.contains("lapin=") { "" } else { ",lapin=off" };
    format!("{level}{quiet}").parse().map_err(|_| {
        Failure::usage("--log-level: write error, warn, info, debug, trace, or directives such as \"info,paceline_broker=debug\"")
    })
}
