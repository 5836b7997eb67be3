//! Why a request with events is not taken.

use axum::http::StatusCode;

/// Why a request is refused. Nothing of it is published, but for [`Refusal::Broker`], where a part may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No account of that name takes events.
    UnknownAccount,
    /// It shows no signature or no credentials, or cannot be read where they would stand in it.
    Unsigned,
    /// The signature or the credentials are wrong: a changed byte, another key.
    Signature,
    /// The signed time is too long ago, or ahead.
    Timestamp,
    /// A one-time token was used before.
    Replayed,
    /// The certificate, or the address that confirms a subscription, is not at Amazon SNS.
    Host,
    /// The certificate is not one of Amazon SNS, or not valid now, or Amazon SNS has none there.
    Certificate,
    /// The topic is not one that the account takes events from.
    Topic,
    /// It is genuine, as far as can be told, and cannot be read.
    Malformed,
    /// The body is over [`super::MAX_BODY_BYTES`], or holds over [`super::MAX_EVENTS`].
    TooLarge,
    /// The body did not arrive in time.
    Slow,
    /// As many bodies as may be are being read.
    Busy,
    /// Amazon SNS could not be asked for the certificate, or to confirm a subscription.
    Amazon,
    /// The broker did not confirm all events.
    Broker,
}

impl Refusal {
    pub const ALL: [Refusal; 14] = [
        Refusal::UnknownAccount,
        Refusal::Unsigned,
        Refusal::Signature,
        Refusal::Timestamp,
        Refusal::Replayed,
        Refusal::Host,
        Refusal::Certificate,
        Refusal::Topic,
        Refusal::Malformed,
        Refusal::TooLarge,
        Refusal::Slow,
        Refusal::Busy,
        Refusal::Amazon,
        Refusal::Broker,
    ];

    /// 401: whoever it is has not shown to be the provider. 403: it may well be, and this is refused all the same. 503:
    /// worth repeating.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::UnknownAccount => StatusCode::NOT_FOUND,
            Refusal::Unsigned | Refusal::Signature => StatusCode::UNAUTHORIZED,
            Refusal::Timestamp | Refusal::Replayed | Refusal::Host | Refusal::Certificate | Refusal::Topic => {
                StatusCode::FORBIDDEN
            }
            Refusal::Malformed => StatusCode::BAD_REQUEST,
            Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
            Refusal::Busy | Refusal::Amazon | Refusal::Broker => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The label `why` of `paceline_feedback_refused_total`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::UnknownAccount => "unknown_account",
            Refusal::Unsigned => "unsigned",
            Refusal::Signature => "signature",
            Refusal::Timestamp => "timestamp",
            Refusal::Replayed => "replayed",
            Refusal::Host => "host",
            Refusal::Certificate => "certificate",
            Refusal::Topic => "topic",
            Refusal::Malformed => "malformed",
            Refusal::TooLarge => "too_large",
            Refusal::Slow => "slow",
            Refusal::Busy => "busy",
            Refusal::Amazon => "amazon",
            Refusal::Broker => "broker",
        }
    }
}
