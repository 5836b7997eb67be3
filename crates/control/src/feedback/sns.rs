//! Amazon SNS over HTTPS: notifications, and the confirmation of a subscription, signed by a certificate that is fetched.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_core::Timestamp;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey,
};
use serde::Deserialize;
use x509_parser::prelude::{ASN1Time, GeneralName, X509Certificate, parse_x509_pem};

use super::{Refusal, read::fresh};

/// What SNS posts.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Envelope {
    #[serde(rename = "Type")]
    kind: Kind,
    pub(super) message_id: String,
    topic_arn: String,
    subject: Option<String>,
    pub(super) message: String,
    timestamp: String,
    signature_version: Option<String>,
    signature: Option<String>,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: Option<String>,
    #[serde(rename = "SubscribeURL")]
    subscribe_url: Option<String>,
    token: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    Notification,
    SubscriptionConfirmation,
    UnsubscribeConfirmation,
}

/// A signature to be checked, and where its certificate is.
pub(super) struct Claim<'a> {
    pub(super) certificate_url: &'a str,
    algorithm: &'static RsaParameters,
    signature: Vec<u8>,
    signed: String,
}

impl Envelope {
    /// What cannot be read shows no signature.
    pub(super) fn parse(body: &[u8]) -> Result<Envelope, Refusal> {
        serde_json::from_slice(body).map_err(|_| Refusal::Unsigned)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Everything that can be told before the certificate is fetched: topic, time, and that the certificate is at SNS.
    pub(super) fn claim(&self, topics: &[String], now: Timestamp, tolerance: Duration) -> Result<Claim<'_>, Refusal> {
        let (Some(signature), Some(certificate_url)) = (&self.signature, &self.signing_cert_url) else {
            return Err(Refusal::Unsigned);
        };
        if !topics.contains(&self.topic_arn) {
            return Err(Refusal::Topic);
        }
        if !is_certificate_url(certificate_url) {
            return Err(Refusal::Host);
        }
        let algorithm = match self.signature_version.as_deref() {
            Some("1") => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            Some("2") => &RSA_PKCS1_2048_8192_SHA256,
            _ => return Err(Refusal::Signature),
        };
        let signature = STANDARD.decode(signature).map_err(|_| Refusal::Signature)?;
        // Amazon signs no such time.
        let at = self.timestamp.parse().map_err(|_| Refusal::Signature)?;
        if !fresh(at, now, tolerance) {
            return Err(Refusal::Timestamp);
        }
        Ok(Claim { certificate_url, algorithm, signature, signed: self.signed() })
    }

    /// The address that confirms the subscription, where it is SNS's.
    pub(super) fn confirmation(&self) -> Result<&str, Refusal> {
        self.subscribe_url.as_deref().filter(|url| is_confirmation_url(url)).ok_or(Refusal::Host)
    }

    /// The text that is signed: names and values in this order, each with a line feed.
    fn signed(&self) -> String {
        let notification = self.kind == Kind::Notification;
        let kind = match self.kind {
            Kind::Notification => "Notification",
            Kind::SubscriptionConfirmation => "SubscriptionConfirmation",
            Kind::UnsubscribeConfirmation => "UnsubscribeConfirmation",
        };
        let fields = [
            ("Message", Some(self.message.as_str())),
            ("MessageId", Some(&self.message_id)),
            ("SubscribeURL", self.subscribe_url.as_deref().filter(|_| !notification)),
            ("Subject", self.subject.as_deref().filter(|_| notification)),
            ("Timestamp", Some(&self.timestamp)),
            ("Token", self.token.as_deref().filter(|_| !notification)),
            ("TopicArn", Some(&self.topic_arn)),
            ("Type", Some(kind)),
        ];
        let lines = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        lines.fold(String::new(), |text, (name, value)| text + name + "\n" + value + "\n")
    }
}

impl Claim<'_> {
    pub(super) fn verify(&self, key: &PublicKey) -> Result<(), Refusal> {
        let key = UnparsedPublicKey::new(self.algorithm, &key.der);
        key.verify(self.signed.as_bytes(), &self.signature).map_err(|_| Refusal::Signature)
    }
}

/// The key of a certificate of SNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// An RSAPublicKey (RFC 8017).
    der: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

impl PublicKey {
    /// From the PEM at a certificate's address. Where it came from is what vouches for it: SNS serves the certificate
    /// alone, without the chain to an authority, so what is checked is that it names SNS.
    pub(super) fn of_certificate(pem: &[u8]) -> Result<PublicKey, Refusal> {
        let (_, pem) = parse_x509_pem(pem).map_err(|_| Refusal::Certificate)?;
        let certificate = pem.parse_x509().map_err(|_| Refusal::Certificate)?;
        if !names(&certificate).iter().any(|name| is_signer(name)) {
            return Err(Refusal::Certificate);
        }
        let timestamp = |time: ASN1Time| time.timestamp();
        Ok(PublicKey {
            der: certificate.public_key().subject_public_key.data.to_vec(),
            not_before: timestamp(certificate.validity().not_before),
            not_after: timestamp(certificate.validity().not_after),
        })
    }

    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&(now.as_micros() / 1_000_000))
    }
}

/// Common names and DNS names.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    common.chain(alternative).collect()
}

/// `sns.amazonaws.com`, `sns.<region>.amazonaws.com`, `sns-signing.<region>.amazonaws.com`, each with `.cn` too.
fn is_signer(name: &str) -> bool {
    name == "sns.amazonaws.com" || is_host(name) || name.strip_prefix("sns-signing.").is_some_and(is_regional)
}

/// `sns.<region>.amazonaws.com` or the same with `.cn`.
fn is_host(host: &str) -> bool {
    host.strip_prefix("sns.").is_some_and(is_regional)
}

fn is_regional(rest: &str) -> bool {
    let region = rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn"));
    let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    region.is_some_and(|r| (1..=32).contains(&r.len()) && r.bytes().all(byte))
}

/// What follows the host of an `https` address at SNS, its slash taken off. No port, no credentials, nothing to be read in
/// two ways.
fn at_sns(url: &str) -> Option<&str> {
    let (host, rest) = url.strip_prefix("https://")?.split_once('/')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~?=&:%+/".contains(&b);
    (url.len() <= 1024 && is_host(host) && rest.bytes().all(plain)).then_some(rest)
}

fn is_certificate_url(url: &str) -> bool {
    let name = at_sns(url).and_then(|path| path.strip_suffix(".pem"));
    name.is_some_and(|name| (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

fn is_confirmation_url(url: &str) -> bool {
    at_sns(url).is_some_and(|rest| rest.starts_with("?Action=ConfirmSubscription&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amazons_addresses_are_asked() {
        let path = "SimpleNotificationService-7ff5318490ec183fbaddaa2a969abfda.pem";
        for host in ["sns.us-east-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn", "sns.us-gov-west-1.amazonaws.com"] {
            assert!(is_certificate_url(&format!("https://{host}/{path}")), "{host}");
        }
        for bad in [
            "http://sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com.evil.example/a.pem",
            "https://evil.example/sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com@evil.example/a.pem",
            "https://evil.example#sns.us-east-1.amazonaws.com/a.pem",
            "https://evil.example\\.sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.evil.example/.amazonaws.com/a.pem",
            "https://sns.a.b.amazonaws.com/a.pem",
            "https://xsns.us-east-1.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com:444/a.pem",
            "https://sns.us-east-1.amazonaws.com/a.txt",
            "https://sns.us-east-1.amazonaws.com/../a.pem",
            "https://sns.us-east-1.amazonaws.com/b/a.pem",
            "https://sns.us-east-1.amazonaws.com/?x=.pem",
            "https://SNS.us-east-1.amazonaws.com/a.pem",
            "https://sns..amazonaws.com/a.pem",
            "https://sns.amazonaws.com/a.pem",
            "https://mybucket.s3.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com/a\r\nHost: x/.pem",
            "",
        ] {
            assert!(!is_certificate_url(bad), "{bad}");
        }
        let confirm =
            "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:us-east-1:1:t&Token=2336";
        assert!(is_confirmation_url(confirm));
        for bad in [
            confirm.replace("ConfirmSubscription", "Unsubscribe"),
            confirm.replace("amazonaws.com", "amazonaws.com.evil.example"),
            confirm.replace("https", "http"),
            confirm.replace("sns.us-east-1", "ec2.us-east-1"),
        ] {
            assert!(!is_confirmation_url(&bad), "{bad}");
        }
    }

    #[test]
    fn signers() {
        for good in [
            "sns.amazonaws.com",
            "sns.us-gov-west-1.amazonaws.com",
            "sns-signing.af-south-1.amazonaws.com",
            "sns.cn-north-1.amazonaws.com.cn",
        ] {
            assert!(is_signer(good), "{good}");
        }
        for bad in ["amazonaws.com", "*.amazonaws.com", "sqs.amazonaws.com", "sns.amazonaws.com.evil.example", "sns.example"] {
            assert!(!is_signer(bad), "{bad}");
        }
    }

    #[test]
    fn the_signed_text_has_the_fields_of_its_kind() {
        let of = |kind: &str, more: &str| {
            let body = format!(
                r#"{{"Type":"{kind}","MessageId":"i","TopicArn":"t","Message":"m","Timestamp":"2027-01-15T08:00:00.000Z"{more}}}"#
            );
            Envelope::parse(body.as_bytes()).unwrap().signed().replace('\n', "|")
        };
        let end = "Timestamp|2027-01-15T08:00:00.000Z|";
        assert_eq!(of("Notification", ""), format!("Message|m|MessageId|i|{end}TopicArn|t|Type|Notification|"));
        let with_subject = of("Notification", r#","Subject":"s","SubscribeURL":"u","Token":"k""#);
        assert_eq!(with_subject, format!("Message|m|MessageId|i|Subject|s|{end}TopicArn|t|Type|Notification|"));
        let confirmation = of("SubscriptionConfirmation", r#","Subject":"s","SubscribeURL":"u","Token":"k""#);
        assert_eq!(
            confirmation,
            format!("Message|m|MessageId|i|SubscribeURL|u|{end}Token|k|TopicArn|t|Type|SubscriptionConfirmation|")
        );
        for bad in ["", "[]", "{}", r#"{"Type":"Other","MessageId":"i","TopicArn":"t","Message":"m","Timestamp":""}"#] {
            assert!(Envelope::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "<html>"] {
            assert_eq!(PublicKey::of_certificate(bad.as_bytes()), Err(Refusal::Certificate), "{bad}");
        }
    }
}
