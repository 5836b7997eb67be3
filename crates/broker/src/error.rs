//! Errors as what the caller can do about them. No message carries a credential or a recipient's address.

/// A broker call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Try again later; the adapter is reconnecting meanwhile.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// `topology apply` creates it.
    #[error("{0} does not exist on the broker; run `paceline topology apply`")]
    Missing(String),
    /// It exists with other arguments, which a broker cannot change: it must be emptied and deleted by hand.
    #[error("{name} exists with other arguments and cannot be changed in place: {detail}")]
    Different { name: String, detail: String },
    /// Another process is applying a topology; wait for it.
    #[error("another `topology apply` is running on this broker")]
    Busy,
    /// The broker's user may not do this, or the request cannot be right.
    #[error("the broker refused: {0}")]
    Refused(String),
}

/// A message was not, or not certainly, taken by the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not sent. Try again later.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// Not sent: the broker has an alarm and takes nothing. Try again later.
    #[error("the broker takes no messages for now: {0}")]
    Blocked(String),
    /// Sent, but the connection or the patience ended before the confirm: it may be there. Publishing it again may
    /// make two.
    #[error("the broker did not confirm the message: {0}")]
    Unconfirmed(String),
    /// The broker answered no: the queue is full or refuses this class. Try again later.
    #[error("the broker refused the message")]
    Refused,
    /// This message can never be published.
    #[error("the message cannot be published: {0}")]
    Invalid(String),
}
