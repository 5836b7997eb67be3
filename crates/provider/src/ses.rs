//! Amazon SES, API version 2.
//!
//! `request` maps a message to the body of `POST /v2/email/outbound-emails`; `outcome` reads the answer. How each field is
//! mapped, what is refused and what each answer means stands in `docs/providers/ses.md`.

mod credentials;
mod request;
mod sign;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::{Message, Outcome, Rejected, Timestamp};
use reqwest::Url;
use serde_json::Value;

pub use self::credentials::AwsCredentials;
use self::sign::Signer;
use crate::{
    Attempt, BuildError, HttpSettings, Provider,
    address::named,
    answer::{Answer, id, unsupported},
    client::{Endpoint, append},
};

const PATH: &str = "/v2/email/outbound-emails";
/// A spent quota is looked at again after so long: SES counts the last 24 hours, so that some of it comes back all the
/// time. Short enough for mail of a class that does not wait for long.
const DAILY_WAIT: Duration = Duration::from_secs(600);

/// What an account of this provider is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct SesSettings {
    /// Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, or the profile's in the shared configuration file.
    pub region: Option<String>,
    /// Default: `AWS_ACCESS_KEY_ID` and its companions, or the profile's in the shared credentials file.
    pub credentials: Option<AwsCredentials>,
    /// The configuration set that messages are sent with, which says where events go.
    pub configuration_set: Option<String>,
    /// Default: `https://email.<region>.amazonaws.com`.
    pub base_url: Option<Url>,
}

/// The provider `ses`.
pub(crate) struct Ses {
    endpoint: Endpoint,
    signer: Signer,
    configuration_set: Option<String>,
}

impl Ses {
    pub(crate) fn new(settings: SesSettings, http: &HttpSettings, agent: &str) -> Result<Ses, BuildError> {
        let (region, source) =
            credentials::resolve(settings.region, settings.credentials, &credentials::Surroundings::of_process())?;
        let base = match settings.base_url {
            Some(url) => url,
            None => {
                let china = if region.starts_with("cn-") { ".cn" } else { "" };
                let url = format!("https://email.{region}.amazonaws.com{china}");
                Url::parse(&url).map_err(|_| BuildError::Url { url, problem: "is no URL; check the region" })?
            }
        };
        Ok(Ses {
            endpoint: Endpoint::new(append(base, PATH)?, None, http, agent)?,
            signer: Signer::new(region, source),
            configuration_set: settings.configuration_set,
        })
    }
}

#[async_trait]
impl Provider for Ses {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let now = SystemTime::now();
        let body = match request::request(attempt.message, self.configuration_set.as_deref(), timestamp(now)) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let headers = match self.signer.sign(self.endpoint.url().as_str(), &body, now) {
            Ok(headers) => headers,
            Err(problem) => return unsupported("body", &problem),
        };
        let exchange = self.endpoint.post(body, headers).await;
        let outcome = exchange.outcome(|answer| outcome(answer, attempt.message, SystemTime::now()));
        if let Outcome::Rejected { what: Rejected::Account, .. } = &outcome {
            // Temporary credentials end; whoever renews the file need not restart the workers.
            self.signer.reload();
        }
        outcome
    }

    /// SES knows no idempotency.
    fn idempotent(&self) -> bool {
        false
    }
}

fn timestamp(now: SystemTime) -> Timestamp {
    let micros = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// What an answer to the request for `message` means.
fn outcome(answer: &Answer, message: &Message, now: SystemTime) -> Outcome {
    let object = answer.object();
    if answer.is_success() {
        return match object.and_then(|o| id(o.get("MessageId"))) {
            Some(id) => Outcome::accepted(Some(id)),
            None => answer.strange_success(),
        };
    }
    let text = |key: &str| object.as_ref().and_then(|o| o.get(key)).and_then(Value::as_str).map(str::to_owned);
    // In the header with a URI after it, or in the body with a namespace before it.
    let kind = answer.header("x-amzn-errortype").map(str::to_owned).or_else(|| text("__type")).or_else(|| text("code"));
    let Some(kind) = kind else { return answer.by_stranger(now) };
    let kind = kind.split(':').next().unwrap_or_default().rsplit('#').next().unwrap_or_default();
    let words = text("message").or_else(|| text("Message")).unwrap_or_else(|| answer.text());
    verdict(answer, kind, &words, message, now)
}

/// SES gives status 400 to four different things: the exception's name decides, and where that is overloaded, its words.
fn verdict(answer: &Answer, kind: &str, words: &str, message: &Message, now: SystemTime) -> Outcome {
    let lower = words.to_ascii_lowercase();
    let account = |code| answer.rejected(Rejected::Account, code, words);
    let at_fault = |code| answer.rejected(Rejected::Message, code, words);
    match kind {
        // Whatever it is called: a matter of the second.
        "LimitExceededException" if lower.contains("rate exceeded") => answer.throttled("rate_limited", words, None, now),
        "TooManyRequestsException" | "ThrottlingException" | "Throttling" | "LimitExceededException"
            if lower.contains("daily") || lower.contains("quota") =>
        {
            answer.throttled("daily_quota_exceeded", words, Some(DAILY_WAIT), now)
        }
        "TooManyRequestsException" | "ThrottlingException" | "Throttling" => answer.throttled("rate_limited", words, None, now),
        "LimitExceededException" => answer.throttled("limit_exceeded", words, Some(DAILY_WAIT), now),
        "AccountSuspendedException" => account("account_suspended"),
        "SendingPausedException" | "ConfigurationSetSendingPausedException" | "AccountSendingPausedException" => {
            account("sending_paused")
        }
        // The account may send, only not as this sender; in the SES sandbox it is the recipient that is not verified.
        "MessageRejected" | "MessageRejectedException" if lower.contains("not verified") => at_fault("identity_not_verified"),
        "MessageRejected" | "MessageRejectedException" => at_fault("message_rejected"),
        "MailFromDomainNotVerifiedException" => at_fault("sender_not_verified"),
        "NotFoundException" if message.template.is_some() && lower.contains("template") => at_fault("template_not_found"),
        "NotFoundException" => account("not_found"),
        "BadRequestException" | "ValidationException" => match named(words, message) {
            gone if gone.is_empty() => at_fault("invalid_request"),
            gone => answer.rejected(Rejected::Recipients(gone), "invalid_recipient", words),
        },
        "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => account("credentials_expired"),
        "AccessDeniedException"
        | "AccessDenied"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => account("unauthorized"),
        "ConflictException"
        | "ConcurrentModificationException"
        | "InternalFailure"
        | "InternalServiceErrorException"
        | "RequestTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => {
            answer.temporary(if answer.status == 503 { "unavailable" } else { "server_error" }, words, now)
        }
        _ => answer.by_status(words, now),
    }
}

#[cfg(test)]
mod tests;
