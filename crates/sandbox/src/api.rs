//! Which provider is being played, and how its callers show who they are.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::{AUTHORIZATION, HeaderMap};

/// The APIs that the sandbox speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    Ses,
    SendGrid,
    Postmark,
    Mailgun,
    Resend,
    SparkPost,
    Http,
}

impl Api {
    const ALL: [Api; 7] = [Api::Ses, Api::SendGrid, Api::Postmark, Api::Mailgun, Api::Resend, Api::SparkPost, Api::Http];
    pub(crate) const NAMES: [&str; 7] = ["ses", "sendgrid", "postmark", "mailgun", "resend", "sparkpost", "http"];

    /// By the end of the path; whatever stands before it is a prefix.
    pub(crate) fn of_path(path: &str) -> Api {
        let path = path.trim_end_matches('/');
        let ends = |ends: &[&str]| ends.iter().any(|end| path.ends_with(end));
        match path {
            _ if ends(&["/v3/mail/send"]) => Api::SendGrid,
            _ if ends(&["/v2/email/outbound-emails"]) => Api::Ses,
            _ if ends(&["/emails", "/emails/batch"]) => Api::Resend,
            _ if ends(&["/email", "/email/batch", "/email/withTemplate", "/email/batchWithTemplates"]) => Api::Postmark,
            _ if ends(&["/messages"]) && path.contains("/v3/") => Api::Mailgun,
            _ if ends(&["/api/v1/transmissions"]) => Api::SparkPost,
            _ => Api::Http,
        }
    }

    /// Whether many messages are posted to this path at once.
    pub(crate) fn is_batch(self, path: &str) -> bool {
        let last = path.trim_end_matches('/').rsplit('/').next();
        match self {
            Api::Postmark => matches!(last, Some("batch" | "batchWithTemplates")),
            Api::Resend => last == Some("batch"),
            _ => false,
        }
    }

    /// Most messages of one batch.
    pub(crate) const fn max_batch(self) -> usize {
        match self {
            Api::SendGrid => 1000,
            Api::Postmark => 500,
            _ => 100,
        }
    }

    /// Whether a second request with the same `Idempotency-Key` is answered as the first.
    pub(crate) const fn is_idempotent(self) -> bool {
        matches!(self, Api::Http | Api::Resend)
    }

    pub(crate) fn name(self) -> &'static str {
        Api::NAMES[self as usize]
    }

    pub(crate) fn of_name(name: &str) -> Option<Api> {
        Api::ALL.into_iter().find(|api| api.name() == name)
    }

    /// The credential that a request shows.
    ///
    /// # Errors
    /// It shows none, or not in this API's way. SendGrid's form and the generic one let anybody in.
    pub(crate) fn credential(self, headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, NoCredential> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
        let authorization = header(AUTHORIZATION.as_str());
        let bearer = || authorization.and_then(|v| v.strip_prefix("Bearer ")).map(Cow::Borrowed);
        let shown = match self {
            Api::SendGrid | Api::Http => return Ok(bearer().or(authorization.map(Cow::Borrowed))),
            Api::Postmark => header("x-postmark-server-token").map(Cow::Borrowed),
            Api::Resend => bearer(),
            Api::SparkPost => authorization.filter(|v| !v.contains(' ')).map(Cow::Borrowed),
            Api::Mailgun => authorization.and_then(basic).map(Cow::Owned),
            Api::Ses => match (authorization, header("x-amz-date")) {
                (Some(authorization), Some(date)) => signature_v4(authorization, date).map(Cow::Borrowed),
                _ => None,
            },
        };
        shown.map(Some).ok_or(NoCredential)
    }
}

/// No credential, or one of another API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoCredential;

/// The key in `Basic base64("api:key")`.
fn basic(authorization: &str) -> Option<String> {
    let pair = String::from_utf8(STANDARD.decode(authorization.strip_prefix("Basic ")?).ok()?).ok()?;
    pair.strip_prefix("api:").filter(|key| !key.is_empty()).map(str::to_owned)
}

/// The access key's id in a header that is a well-formed signature, version 4, for SES. Whether it is *right* only AWS
/// could tell: the secret is not known here.
fn signature_v4<'a>(authorization: &'a str, date: &str) -> Option<&'a str> {
    let mut parts = authorization.strip_prefix("AWS4-HMAC-SHA256 ")?.split(", ");
    let (credential, headers, signature) = (parts.next()?, parts.next()?, parts.next()?);
    let mut scope = credential.strip_prefix("Credential=")?.split('/');
    let (id, day, region) = (scope.next()?, scope.next()?, scope.next()?);
    let ends = scope.eq(["ses", "aws4_request"]) && parts.next().is_none();
    let mut signed = headers.strip_prefix("SignedHeaders=")?.split(';');
    let signed = signed.clone().any(|h| h == "host") && signed.any(|h| h == "x-amz-date");
    let signature = signature.strip_prefix("Signature=")?;
    let hex = signature.len() == 64 && signature.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (on, at) = date.strip_suffix('Z')?.split_once('T')?;
    let dated = on == day && day.len() == 8 && digits(day) && at.len() == 6 && digits(at);
    (ends && signed && hex && dated && !id.is_empty() && !region.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_path_with_any_prefix() {
        for (path, want, batch) in [
            ("/v3/mail/send", "sendgrid", false),
            ("/eu/v2/email/outbound-emails", "ses", false),
            ("/email", "postmark", false),
            ("/x/email/batch", "postmark", true),
            ("/email/withTemplate/", "postmark", false),
            ("/email/batchWithTemplates", "postmark", true),
            ("/emails", "resend", false),
            ("/emails/batch", "resend", true),
            ("/v3/mg.example.com/messages", "mailgun", false),
            ("/messages", "http", false),
            ("/api/v1/transmissions/", "sparkpost", false),
            ("/send", "http", false),
            ("/batch", "http", false),
        ] {
            let api = Api::of_path(path);
            assert_eq!((api.name(), api.is_batch(path), Api::of_name(want)), (want, batch, Some(api)), "{path}");
        }
    }

    #[test]
    fn who_is_let_in() {
        let good = format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20260102/eu-west-1/ses/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, Signature={}",
            "0f".repeat(32)
        );
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let date = "20260102T030405Z";
        let table: &[(Api, &str, &str, Option<&str>)] = &[
            (Api::Ses, &good, date, Some("AKID")),
            (Api::Ses, &good, "20260103T030405Z", None),
            (Api::Ses, &good, "2026-01-02T03:04:05Z", None),
            (Api::Ses, &good.replace("/ses/", "/s3/"), date, None),
            (Api::Ses, &good.replace(";x-amz-date", ""), date, None),
            (Api::Ses, &good.replace("0f0f", "0F0F"), date, None),
            (Api::Ses, &good.replace("AKID", ""), date, None),
            (Api::Ses, "Bearer AKID", date, None),
            (Api::Mailgun, &basic("api:key-1"), "", Some("key-1")),
            (Api::Mailgun, &basic("me:key-1"), "", None),
            (Api::Mailgun, "Basic %%%", "", None),
            (Api::Mailgun, "key-1", "", None),
            (Api::Resend, "Bearer re_1", "", Some("re_1")),
            (Api::Resend, "re_1", "", None),
            (Api::SparkPost, "abc", "", Some("abc")),
            (Api::SparkPost, "Bearer abc", "", None),
            (Api::SparkPost, "", "", None),
            (Api::Postmark, "Bearer abc", "", None),
        ];
        for (api, authorization, date, want) in table {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", authorization.parse().unwrap());
            headers.insert("x-amz-date", date.parse().unwrap());
            let got = api.credential(&headers);
            assert_eq!(got.as_ref().ok().map(|id| id.as_deref()), want.map(Some), "{api:?} {authorization}");
        }
        let headers: HeaderMap = [("x-postmark-server-token".parse().unwrap(), "t-1".parse().unwrap())].into_iter().collect();
        assert_eq!(Api::Postmark.credential(&headers), Ok(Some("t-1".into())));
        assert_eq!(Api::Http.credential(&headers), Ok(None));
    }
}
