//! What an SMTP reply means: `(stage, code, enhanced code, text) -> Outcome`.
//!
//! `verdict` is the seam: rules as data will take the place of its body, and of nothing else.

use std::time::Duration;

use paceline_core::{EmailAddress, Outcome, ProviderAnswer, Rejected, Scope};

/// What the reply answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The greeting.
    Connect,
    Hello,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    /// The command `DATA`.
    Data,
    /// The mail itself.
    Content,
}

/// An enhanced status code such as 4.7.1 (RFC 3463).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enhanced(pub(crate) u8, pub(crate) u16, pub(crate) u16);

/// A reply, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    /// The text of each line, after code and separator.
    pub(crate) lines: Vec<String>,
}

impl Reply {
    pub(crate) fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    pub(crate) fn enhanced(&self) -> Option<Enhanced> {
        let mut parts = self.lines.first()?.split_whitespace().next()?.split('.');
        let number = |part: Option<&str>| part.filter(|p| p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
        let (class, subject, detail) = (number(parts.next())?, number(parts.next())?, number(parts.next())?);
        let class = u8::try_from(class).ok().filter(|c| matches!(c, 2 | 4 | 5))?;
        parts.next().is_none().then_some(Enhanced(class, subject, detail))
    }

    /// All lines as one, the enhanced code once only.
    pub(crate) fn text(&self) -> String {
        let first = self.lines.first().map(String::as_str).unwrap_or_default();
        let code = self.enhanced().and_then(|_| first.split_whitespace().next()).unwrap_or("\n");
        let mut text = first.trim().to_owned();
        for line in self.lines.iter().skip(1) {
            text.push(' ');
            text.push_str(line.strip_prefix(code).unwrap_or(line).trim());
        }
        text
    }
}

/// What `reply` at `stage` means for the attempt, where it speaks of the recipients `about`.
pub(crate) fn outcome(stage: Stage, reply: &Reply, about: &[EmailAddress]) -> Outcome {
    let text = reply.text();
    let words = text.to_lowercase();
    let (kind, code) = verdict(stage, reply.code, reply.enhanced(), &words, about.len());
    let retry_after = named_delay(&words);
    let answer = ProviderAnswer::new(code, Some(reply.code), &text);
    let rejected = |what| Outcome::Rejected { what, answer: answer.clone() };
    match kind {
        Kind::Throttled(scope) => Outcome::Throttled { scope, retry_after, answer },
        Kind::Greylisted => Outcome::Greylisted { retry_after, answer },
        Kind::Temporary => Outcome::Temporary { retry_after, answer },
        Kind::Full => Outcome::Temporary { retry_after: Some(retry_after.unwrap_or_default().max(MAILBOX_FULL)), answer },
        Kind::Reputation => Outcome::ReputationBlock { retry_after, answer },
        Kind::Recipients => rejected(Rejected::Recipients(about.to_vec())),
        Kind::Message => rejected(Rejected::Message),
        Kind::Account => rejected(Rejected::Account),
    }
}

/// Wait for a mailbox to be emptied.
const MAILBOX_FULL: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Throttled(Scope),
    Greylisted,
    Temporary,
    /// The mailbox is full: nothing changes soon.
    Full,
    Reputation,
    Recipients,
    Message,
    Account,
}

/// The rules, first match wins; `words` in lower case. Beside the kind, our short code.
fn verdict(stage: Stage, code: u16, enhanced: Option<Enhanced>, words: &str, recipients: usize) -> (Kind, &'static str) {
    use Stage::{Auth, Connect, Content, Data, Hello, Mail, Rcpt, StartTls};
    let says = |any: &[&str]| any.iter().any(|text| words.contains(text));
    let (subject, detail) = enhanced.map_or((0, 0), |Enhanced(_, subject, detail)| (subject, detail));
    let temporary = (400..500).contains(&code);
    let in_session = matches!(stage, Mail | Rcpt | Data | Content);
    if !(400..600).contains(&code) {
        return (Kind::Temporary, "unexpected_reply");
    }
    // What is refused for its number, whatever the code says.
    if temporary && says(&["too many connections", "concurrent", "per connection", "connection limit", "too many sessions"]) {
        return (Kind::Throttled(Scope::Connection), "too_many_connections");
    }
    if says(&["receiving mail at a rate", "receiving mail too quickly"]) {
        return (Kind::Throttled(Scope::Recipient), "recipient_rate_limited");
    }
    if says(&["daily user sending", "submissionquotaexceeded", "daily sending quota", "sending limit exceeded"]) {
        return (Kind::Throttled(Scope::Account), "quota_exceeded");
    }
    if stage != Auth && temporary && says(&["greylist", "graylist", "grey list", "gray list", "grey-list", "gray-list"]) {
        return (Kind::Greylisted, "greylisted");
    }
    if says(&["maximum credits exceeded", "account suspended", "account disabled"]) || matches!(code, 530 | 534 | 535 | 538) {
        return (Kind::Account, "authentication_failed");
    }
    if temporary && says(&RATE) {
        return (Kind::Throttled(Scope::Account), "rate_limited");
    }
    if (subject, detail) == (2, 2) || says(&["mailbox full", "mailbox is full", "over quota", "overquota", "quota exceeded"]) {
        return (Kind::Full, "mailbox_full");
    }
    if temporary {
        return match (stage, code, subject) {
            (Auth, ..) => (Kind::Temporary, "authentication_unavailable"),
            // "Come back later" for a matter of policy, on a connection that is then closed.
            (_, 421, 7) => (Kind::Throttled(Scope::Connection), "connection_deferred"),
            (_, 421, _) => (Kind::Temporary, "unavailable"),
            _ => (Kind::Temporary, "deferred"),
        };
    }
    if says(&BLOCKED) {
        return (Kind::Reputation, "blocked");
    }
    match stage {
        // Nothing of the message was looked at: the account is set up wrongly, or not welcome.
        Connect => (Kind::Account, "connection_refused"),
        Hello | StartTls => (Kind::Account, "session_refused"),
        Auth => (Kind::Account, "authentication_failed"),
        _ if subject == 3 && detail == 4 || says(&["message too large", "message size exceeds", "exceeds size limit"]) => {
            (Kind::Message, "too_large")
        }
        Mail => (Kind::Message, "sender_refused"),
        Rcpt if says(&["relay access denied", "relaying denied", "not permitted to relay"]) => (Kind::Recipients, "relay_denied"),
        Rcpt => (Kind::Recipients, "recipient_refused"),
        Data if says(&["no valid recipients"]) => (Kind::Recipients, "recipient_refused"),
        // After the mail itself, words about the recipient are clear only where there is one.
        _ if in_session && recipients == 1 && (subject == 1 || says(&["user unknown", "no such user", "unknown user"])) => {
            (Kind::Recipients, "recipient_refused")
        }
        _ => (Kind::Message, "message_refused"),
    }
}

const RATE: [&str; 10] = [
    "rate limit",
    "rate-limit",
    "ratelimit",
    "rate exceeded",
    "too much mail",
    "too many messages",
    "too many emails",
    "too many recipients received",
    "too fast",
    "throttl",
];

const BLOCKED: [&str; 9] = [
    "blocked using",
    "blacklist",
    "black list",
    "blocklist",
    "block list",
    "spamhaus",
    "poor reputation",
    "bad reputation",
    "low reputation",
];

/// The wait a reply names: "try again in 300 seconds", "in 5 minutes", "after 00:05:00". At most a day.
fn named_delay(words: &str) -> Option<Duration> {
    let tokens: Vec<&str> = words
        .split(|c: char| c.is_whitespace() || "(),;=".contains(c))
        .map(|t| t.trim_matches('.'))
        .filter(|t| !t.is_empty())
        .collect();
    tokens.iter().enumerate().find_map(|(i, token)| {
        let seconds = if token.contains(':') {
            clock(token)?
        } else {
            let digits = token.len() - token.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number: u64 = token.get(..digits)?.parse().ok()?;
            let unit = if digits < token.len() { token.get(digits..)? } else { tokens.get(i + 1)? };
            number.checked_mul(match unit {
                "s" | "sec" | "secs" | "second" | "seconds" => 1,
                "m" | "min" | "mins" | "minute" | "minutes" => 60,
                "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
                _ => return None,
            })?
        };
        (1..=86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
    })
}

/// `hh:mm:ss`.
fn clock(token: &str) -> Option<u64> {
    let parts: Vec<u64> = token.split(':').map(|p| p.parse().ok().filter(|_| p.len() == 2)).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    Some(hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::tests::brief;

    fn reply(text: &str) -> Reply {
        let code = text[..3].parse().unwrap();
        Reply { code, lines: text.split('\n').map(|l| l.get(4..).unwrap_or_default().to_owned()).collect() }
    }

    fn meaning(stage: Stage, text: &str) -> String {
        let u = EmailAddress::parse("u@x.org").unwrap();
        let outcome = outcome(stage, &reply(text), std::slice::from_ref(&u));
        let scope = if let Outcome::Throttled { scope, .. } = outcome { format!("{scope:?} ") } else { String::new() };
        if let Outcome::Rejected { what: Rejected::Recipients(gone), .. } = &outcome {
            assert_eq!(gone[..], [u]);
        }
        format!("{scope}{}", brief(&outcome))
    }

    #[test]
    fn replies() {
        use Stage::*;
        for (stage, text, want) in [
            (Connect, "554 No SMTP service here", "rejected_account connection_refused"),
            (Connect, "554 5.7.1 [192.0.2.1] blocked using zen.example", "reputation_block blocked"),
            (Connect, "421 4.3.2 Service not available", "temporary unavailable"),
            (Connect, "421 4.7.0 mx Error: too many connections from 192.0.2.1", "Connection throttled too_many_connections"),
            (Hello, "501 5.5.4 Invalid domain name", "rejected_account session_refused"),
            (StartTls, "454 4.7.0 TLS not available due to local problem", "temporary deferred"),
            (StartTls, "502 5.5.1 no", "rejected_account session_refused"),
            (Auth, "535 5.7.8 Error: authentication failed", "rejected_account authentication_failed"),
            (Auth, "454 4.7.0 Temporary authentication failure", "temporary authentication_unavailable"),
            (Auth, "504 5.5.4 mechanism", "rejected_account authentication_failed"),
            (Mail, "530 5.7.0 Must issue a STARTTLS command first", "rejected_account authentication_failed"),
            (Mail, "450 4.7.1 Error: too much mail from 192.0.2.1", "Account throttled rate_limited"),
            (Mail, "451 4.7.1 Rate limit exceeded, retry in 90 seconds", "Account throttled rate_limited 90s"),
            (Mail, "421 4.7.0 Try again later", "Connection throttled connection_deferred"),
            (Mail, "552 5.3.4 Message size exceeds fixed limit", "rejected_message too_large"),
            (Mail, "553 5.7.1 Sender address rejected: not owned by user", "rejected_message sender_refused"),
            (Rcpt, "550 5.1.1 User unknown", "rejected_recipient recipient_refused"),
            (Rcpt, "550 no", "rejected_recipient recipient_refused"),
            (Rcpt, "554 5.7.1 Relay access denied", "rejected_recipient relay_denied"),
            (Rcpt, "450 4.2.0 Greylisted, try again in 300 seconds", "greylisted greylisted 300s"),
            (Rcpt, "451 4.7.1 Greylisting in action, please come back in 00:04:35", "greylisted greylisted 275s"),
            (Rcpt, "450 4.2.0 Greylisted, see http://postgrey.example/help/x.org.html", "greylisted greylisted"),
            (Rcpt, "452 4.2.2 Mailbox full", "temporary mailbox_full 3600s"),
            (Rcpt, "552 5.2.2 Over quota", "temporary mailbox_full 3600s"),
            (Rcpt, "452 4.5.3 Too many recipients", "temporary deferred"),
            (Rcpt, "550 5.2.1 The user is receiving mail at a rate that", "Recipient throttled recipient_rate_limited"),
            (Data, "554 5.5.1 Error: no valid recipients", "rejected_recipient recipient_refused"),
            (Data, "451 4.3.0 Error: queue file write error", "temporary deferred"),
            (Content, "550 5.1.1 User unknown", "rejected_recipient recipient_refused"),
            (Content, "550 5.4.5 Daily user sending limit exceeded", "Account throttled quota_exceeded"),
            (Content, "554 5.7.1 Message rejected as spam", "rejected_message message_refused"),
            (Content, "552 5.3.4 too big", "rejected_message too_large"),
            (Content, "550 5.7.1 Message rejected due to poor reputation", "reputation_block blocked"),
            (Content, "451 try later", "temporary deferred"),
            (Content, "421 closing", "temporary unavailable"),
            (Data, "250 what?", "temporary unexpected_reply"),
        ] {
            assert_eq!(meaning(stage, text), want, "{stage:?} {text}");
        }
    }

    #[test]
    fn after_the_mail_several_recipients_are_not_told_apart() {
        let list = ["u@x.org", "v@x.org"].map(|a| EmailAddress::parse(a).unwrap());
        let outcome = outcome(Stage::Content, &reply("550 5.1.1 User unknown"), &list);
        assert_eq!(brief(&outcome), "rejected_message message_refused");
    }

    #[test]
    fn a_reply_is_kept_whole() {
        let reply = reply("550-5.7.25 The address\n550-5.7.25 has no PTR\n550 5.7.25 record");
        assert_eq!(reply.enhanced(), Some(Enhanced(5, 7, 25)));
        assert_eq!(reply.text(), "5.7.25 The address has no PTR record");
        let outcome = outcome(Stage::Content, &reply, &[]);
        let answer = outcome.answer().unwrap();
        assert_eq!((answer.status, answer.message.as_str()), (Some(550), "5.7.25 The address has no PTR record"));
    }

    #[test]
    fn enhanced_codes_are_told_from_other_words() {
        for (text, want) in [
            ("450 4.7.1 x", Some(Enhanced(4, 7, 1))),
            ("450 4.7.999", Some(Enhanced(4, 7, 999))),
            ("450 4.7 x", None),
            ("450 1.2.3.4 is listed", None),
            ("450 4.7.1.2 x", None),
            ("450 3.7.1 x", None),
            ("450 4.7.1234 x", None),
            ("450 ..", None),
            ("450", None),
        ] {
            assert_eq!(reply(text).enhanced(), want, "{text}");
        }
    }

    #[test]
    fn delays() {
        for (text, want) in [
            ("try again in 5 minutes", Some(300)),
            ("wait 300s", Some(300)),
            ("retry after 1 hour.", Some(3600)),
            ("(retry=60 seconds)", Some(60)),
            ("in 00:05:00", Some(300)),
            ("in 0 seconds", None),
            ("in 99999999999999999999 hours", None),
            ("in 90 hours", None),
            ("at 12:30", None),
            ("error 450 from 10.0.0.1", None),
            ("5", None),
            ("\u{e9}5\u{e9} 5\u{e9}", None),
        ] {
            assert_eq!(named_delay(text).map(|d| d.as_secs()), want, "{text}");
        }
    }
}
