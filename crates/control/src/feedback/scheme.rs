//! By what each provider's requests are known, and what is needed to tell.

use std::{fmt, time::Duration};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;

use super::{Refusal, resend, sendgrid};

/// How requests for one account are told from forged ones, and read. Its `Debug` tells no secret.
#[derive(Clone)]
pub struct Scheme {
    pub(super) proof: Proof,
    /// How old a signed time may be.
    pub(super) tolerance: Duration,
}

#[derive(Clone)]
pub(super) enum Proof {
    /// Amazon SES through SNS: a signature by a certificate of Amazon SNS, on one of these topics.
    Sns {
        topics: Vec<String>,
    },
    SendGrid {
        keys: Vec<sendgrid::Key>,
    },
    Mailgun {
        key: hmac::Key,
    },
    Resend {
        key: hmac::Key,
    },
    Postmark(Basic),
    SparkPost(Basic),
}

/// Why a key or another setting cannot be used. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("is not a verification key as SendGrid shows it: base64 of a public key on the curve P-256")]
    VerificationKey,
    #[error("is not a signing secret as Resend shows it: `whsec_` and base64")]
    WebhookSecret,
    #[error("is not the ARN of an SNS topic, such as arn:aws:sns:eu-west-1:123456789012:ses-events")]
    Topic,
    #[error("holds a colon, which no user name can")]
    UserName,
}

impl Scheme {
    /// Amazon SES through SNS, from these topics alone, by ARN.
    ///
    /// # Errors
    /// [`BadKey::Topic`]
    pub fn ses(topics: Vec<String>) -> Result<Scheme, BadKey> {
        if topics.is_empty() || !topics.iter().all(|topic| is_topic(topic)) {
            return Err(BadKey::Topic);
        }
        // SNS tries a notification again for an hour, with the time it was first published at.
        Ok(Scheme { proof: Proof::Sns { topics }, tolerance: Duration::from_secs(75 * 60) })
    }

    /// SendGrid, signed by one of these keys.
    ///
    /// # Errors
    /// [`BadKey::VerificationKey`]
    pub fn sendgrid(keys: &[String]) -> Result<Scheme, BadKey> {
        let keys = keys.iter().map(|key| sendgrid::Key::new(key)).collect::<Result<Vec<_>, _>>()?;
        Ok(Scheme { proof: Proof::SendGrid { keys }, tolerance: Duration::from_secs(600) })
    }

    /// Mailgun, by its HTTP webhook signing key.
    pub fn mailgun(signing_key: &str) -> Scheme {
        let key = hmac::Key::new(hmac::HMAC_SHA256, signing_key.as_bytes());
        Scheme { proof: Proof::Mailgun { key }, tolerance: Duration::from_secs(600) }
    }

    /// Resend, by the webhook's signing secret.
    ///
    /// # Errors
    /// [`BadKey::WebhookSecret`]
    pub fn resend(secret: &str) -> Result<Scheme, BadKey> {
        // Svix's own tolerance; it signs each try anew.
        Ok(Scheme { proof: Proof::Resend { key: resend::key(secret)? }, tolerance: Duration::from_secs(300) })
    }

    /// Postmark, by the user name and password in the webhook's settings.
    ///
    /// # Errors
    /// [`BadKey::UserName`]
    pub fn postmark(username: &str, password: &str) -> Result<Scheme, BadKey> {
        Ok(Scheme { proof: Proof::Postmark(Basic::new(username, password)?), tolerance: Duration::ZERO })
    }

    /// SparkPost, by the user name and password in the webhook's settings.
    ///
    /// # Errors
    /// [`BadKey::UserName`]
    pub fn sparkpost(username: &str, password: &str) -> Result<Scheme, BadKey> {
        Ok(Scheme { proof: Proof::SparkPost(Basic::new(username, password)?), tolerance: Duration::ZERO })
    }

    /// With another age up to which signed times hold. Means nothing to Postmark and SparkPost, which sign none.
    #[must_use]
    pub fn tolerating(self, tolerance: Duration) -> Scheme {
        Scheme { tolerance, ..self }
    }

    pub fn tolerance(&self) -> Duration {
        self.tolerance
    }

    /// The name in configuration.
    pub fn provider(&self) -> &'static str {
        match self.proof {
            Proof::Sns { .. } => "ses",
            Proof::SendGrid { .. } => "sendgrid",
            Proof::Mailgun { .. } => "mailgun",
            Proof::Resend { .. } => "resend",
            Proof::Postmark(_) => "postmark",
            Proof::SparkPost(_) => "sparkpost",
        }
    }

    /// Whether certificates are fetched to tell genuine requests.
    pub fn needs_certificates(&self) -> bool {
        matches!(self.proof, Proof::Sns { .. })
    }

    /// Whether it is a user name and a password.
    pub(super) fn is_basic(&self) -> bool {
        matches!(self.proof, Proof::Postmark(_) | Proof::SparkPost(_))
    }

    /// What the headers alone can tell, before anything of the body is read.
    pub(super) fn glance(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let shown = |names: &[&str]| names.iter().try_for_each(|name| header(headers, name).map(|_| ()));
        match &self.proof {
            Proof::Sns { .. } | Proof::Mailgun { .. } => Ok(()),
            Proof::SendGrid { .. } => shown(&[sendgrid::SIGNATURE, sendgrid::TIMESTAMP]),
            Proof::Resend { .. } => shown(&[resend::ID, resend::TIMESTAMP, resend::SIGNATURE]),
            Proof::Postmark(basic) | Proof::SparkPost(basic) => basic.verify(headers),
        }
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheme").field("provider", &self.provider()).field("tolerance", &self.tolerance).finish_non_exhaustive()
    }
}

/// `arn:<partition>:sns:<region>:<account>:<name>`
fn is_topic(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let word =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    matches!(parts.as_slice(), ["arn", partition, "sns", rest @ ..] if rest.len() == 3 && word(partition) && rest.iter().all(|p| word(p)))
}

/// A header as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty()).ok_or(Refusal::Unsigned)
}

/// A user name and a password, kept as a digest.
#[derive(Clone)]
pub(super) struct Basic {
    key: hmac::Key,
    expected: hmac::Tag,
}

impl Basic {
    fn new(username: &str, password: &str) -> Result<Basic, BadKey> {
        if username.contains(':') {
            return Err(BadKey::UserName);
        }
        // Digests are compared, so the time taken tells nothing of the password; the key of the digest is no secret.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"basic authentication");
        let expected = hmac::sign(&key, format!("{username}:{password}").as_bytes());
        Ok(Basic { key, expected })
    }

    fn verify(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let value = headers.get(AUTHORIZATION).ok_or(Refusal::Unsigned)?.as_bytes();
        let given = match value.split_at_checked("Basic ".len()) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"Basic ") => given,
            _ => return Err(Refusal::Unsigned),
        };
        let given = STANDARD.decode(given.trim_ascii()).map_err(|_| Refusal::Signature)?;
        hmac::verify(&self.key, &given, self.expected.as_ref()).map_err(|_| Refusal::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials() {
        let basic = Basic::new("jo", "s:ecret ").unwrap();
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            basic.verify(&headers)
        };
        let encoded = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(of(&encoded("jo:s:ecret ")), Ok(()));
        assert_eq!(of(&encoded("jo:s:ecret ").replace("Basic", "basic")), Ok(()));
        for wrong in ["jo:s:ecret", "jo:", "jo", "", "Jo:s:ecret ", "jo:s:ecret  "] {
            assert_eq!(of(&encoded(wrong)), Err(Refusal::Signature), "{wrong}");
        }
        assert_eq!(of("Basic !"), Err(Refusal::Signature));
        assert_eq!(of("Bearer x"), Err(Refusal::Unsigned));
        assert_eq!(basic.verify(&HeaderMap::new()), Err(Refusal::Unsigned));
        assert!(Basic::new("a:b", "x").is_err());
    }

    #[test]
    fn topics() {
        for good in ["arn:aws:sns:eu-west-1:123456789012:ses-events", "arn:aws-cn:sns:cn-north-1:1:a_b.fifo"] {
            assert!(Scheme::ses(vec![good.to_owned()]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "ses-events",
            "arn:aws:sqs:eu-west-1:1:x",
            "arn:aws:sns:eu-west-1:1",
            "arn:aws:sns:eu-west-1:1:x:sub",
            "arn:aws:sns:*:1:x",
        ] {
            assert!(Scheme::ses(vec![bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(Scheme::ses(vec![]).is_err());
    }

    #[test]
    fn no_secret_is_shown() {
        for scheme in [
            Scheme::mailgun("hunter2"),
            Scheme::postmark("jo", "hunter2").unwrap(),
            Scheme::resend("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
        ] {
            let shown = format!("{scheme:?}");
            assert!(!shown.contains("hunter2") && !shown.contains("MfKQ") && shown.contains(scheme.provider()), "{shown}");
        }
    }
}
