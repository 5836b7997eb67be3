//! How a command ends: 0 done, 1 failed, 2 usage or configuration.

use std::{fmt, io, process::ExitCode};

use crate::config::ConfigError;

/// Why a command did not do what it was asked to; what it says tells the reader what to do.
#[derive(Debug)]
pub enum Failure {
    /// Exit 1.
    Failed(String),
    /// Exit 1; the result on standard output says why already.
    Reported,
    /// Exit 2.
    Usage(String),
    /// Exit 2.
    Config(ConfigError),
    /// Whoever read the output has closed it: nothing is left to say. Exit 0.
    Closed,
}

impl Failure {
    pub fn failed(what: impl Into<String>) -> Failure {
        Failure::Failed(what.into())
    }

    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::Usage(what.into())
    }

    pub fn code(&self) -> ExitCode {
        match self {
            Failure::Closed => ExitCode::SUCCESS,
            Failure::Failed(_) | Failure::Reported => ExitCode::from(1),
            Failure::Usage(_) | Failure::Config(_) => ExitCode::from(2),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(what) | Failure::Usage(what) => f.write_str(what),
            Failure::Config(error) => {
                let n = error.problems.len();
                write!(f, "the configuration has {n} mistake{}:\n{error}", if n == 1 { "" } else { "s" })
            }
            Failure::Reported | Failure::Closed => Ok(()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Failed(e.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Failure {
        Failure::Config(e)
    }
}

impl From<crate::services::ServiceError> for Failure {
    fn from(e: crate::services::ServiceError) -> Failure {
        Failure::Usage(e.to_string())
    }
}

impl From<paceline_broker::BrokerError> for Failure {
    fn from(e: paceline_broker::BrokerError) -> Failure {
        Failure::Failed(e.to_string())
    }
}

impl From<paceline_store::Error> for Failure {
    fn from(e: paceline_store::Error) -> Failure {
        Failure::Failed(e.in_full())
    }
}
