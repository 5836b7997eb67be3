//! What can go wrong between a worker and its limiter, as what the worker should do about it.

/// Why a limiter, ledger or fleet call gave no answer. Never carries an address or a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimiterError {
    /// Nothing was asked: no connection. Try again with backoff; readiness says no.
    #[error("limiter not reachable: {reason}; is Redis up at `limits.url`, and may this user log in?")]
    Unreachable { reason: String },
    /// Asked, but no answer came: what was asked may have happened. Tokens count as spent; try again with backoff.
    #[error("limiter gave no answer in time: {reason}")]
    TimedOut { reason: String },
    /// The embedded ledger's file cannot be used, or not now. The reason names it and what to do.
    #[error("ledger: {reason}")]
    Storage { reason: String },
    /// Answered with a refusal: the request or the server's settings are wrong. Trying again will not help.
    #[error("limiter refused the request: {reason}")]
    Refused { reason: String },
}

impl LimiterError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, LimiterError::Refused { .. })
    }
}
