//! `[worker]` and `[log]`: how the process itself behaves.

use std::time::Duration;

use super::{section::Section, values};

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Unique in the fleet. By default made from host name, process id and a random part.
    pub id: Option<String>,
    /// Calls to providers at a time, over all accounts.
    pub concurrency: usize,
    /// Bytes of message bodies held while they wait.
    pub max_held_bytes: u64,
    /// How long calls under way may take to finish on shutdown.
    pub drain_grace: Duration,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A level, or directives such as `info,paceline_broker=debug`.
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

pub(super) fn worker(s: &Section<'_>) -> WorkerConfig {
    let id = |node: &_| {
        let id = values::line(node)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        if id.len() <= 100 && id.chars().all(fits) { Ok(id) } else { Err("must be 1 to 100 of A-Z a-z 0-9 . _ : -".to_owned()) }
    };
    WorkerConfig {
        id: s.get("id", id),
        concurrency: s.or("concurrency", 64, values::integer32(1, 10_000)) as usize,
        max_held_bytes: s.or("max_held_bytes", 16 << 20, values::bytes(1 << 20, 64 << 30)),
        drain_grace: s.or("drain_grace", Duration::from_secs(30), values::duration(Duration::ZERO, Duration::from_secs(3600))),
    }
}

pub(super) fn log(s: &Section<'_>) -> LogConfig {
    let level = |node: &_| {
        let level = values::line(node)?;
        match level.parse::<tracing_subscriber::filter::EnvFilter>() {
            Ok(_) => Ok(level),
            Err(_) => {
                Err("must be error, warn, info, debug or trace, or directives such as \"info,paceline_broker=debug\"".to_owned())
            }
        }
    };
    LogConfig {
        format: s.or("format", LogFormat::Json, values::one_of(&[("json", LogFormat::Json), ("text", LogFormat::Text)])),
        level: s.or("level", "info".into(), level),
    }
}
