//! What an SMTP reply means for an attempt: the [rules](crate::reply) say what it speaks of, the stage whom it concerns.

use paceline_core::{EmailAddress, Outcome, ProviderAnswer, Rejected, Scope, Suppress};

use crate::reply::{self, Action, Category, Enhanced, ReplyRules};

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
        reply::enhanced(self.lines.first()?.split_whitespace().next()?)
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
pub(crate) fn outcome(rules: &ReplyRules, stage: Stage, reply: &Reply, about: &[EmailAddress]) -> Outcome {
    use Stage::{Auth, Connect, Content, Data, Hello, Mail, Rcpt, StartTls};
    let text = reply.text();
    let says = |code: &str| ProviderAnswer::new(code, Some(reply.code), &text);
    let temporary = |retry_after, code: &str| Outcome::Temporary { retry_after, answer: says(code) };
    let rejected = |what, code: &str| Outcome::Rejected { what, answer: says(code) };
    if !(400..600).contains(&reply.code) {
        return temporary(None, "unexpected_reply");
    }
    let verdict = rules.judge(Some(reply.code), reply.enhanced(), &text);
    let rule = &*verdict.rule;
    // Waits that go by the category are decided elsewhere.
    let retry_after = verdict.retry_after.filter(|_| verdict.wait_is_asked);
    let for_now = match verdict.action {
        Action::Retry => true,
        Action::Suppress | Action::DeadLetter => false,
        _ => reply.code < 500,
    };
    let suppress = match verdict.action {
        Action::Suppress => Suppress::Now,
        Action::SuppressAfterRepeats => Suppress::AfterRepeats,
        _ => Suppress::No,
    };
    let gone = |code: &str| {
        let what = Rejected::Recipients(about.to_vec());
        Outcome::Rejected { what, answer: says(code).suppressing(suppress) }
    };
    match verdict.category {
        Category::Throttled => match verdict.scope {
            // Nothing here can split a message: it may be a matter of the moment, and it may not.
            Scope::Message if for_now => temporary(retry_after, rule),
            Scope::Message => rejected(Rejected::Message, rule),
            // The server that says so is the account's own.
            Scope::Destination => Outcome::Throttled { scope: Scope::Account, retry_after, answer: says(rule) },
            scope => Outcome::Throttled { scope, retry_after, answer: says(rule) },
        },
        Category::Greylisted => Outcome::Greylisted { retry_after, answer: says(rule) },
        Category::MailboxFull => temporary(verdict.retry_after, rule),
        Category::ReputationBlock => Outcome::ReputationBlock { retry_after, answer: says(rule) },
        // Of SPF, DKIM and reverse DNS: so will all the account's mail there fare.
        Category::AuthOrAccount if verdict.scope == Scope::Destination => {
            Outcome::ReputationBlock { retry_after, answer: says(rule) }
        }
        Category::AuthOrAccount if verdict.scope == Scope::Account && !(for_now && stage == Auth) => {
            rejected(Rejected::Account, if verdict.by_words { rule } else { "authentication_failed" })
        }
        // "Come back later" for a matter of policy, on a connection that is then closed.
        Category::Temporary if reply.code == 421 && matches!(reply.enhanced(), Some(Enhanced(_, 7, _))) => {
            Outcome::Throttled { scope: Scope::Connection, retry_after, answer: says("connection_deferred") }
        }
        _ if for_now && stage == Auth => temporary(retry_after, "authentication_unavailable"),
        _ if for_now && suppress != Suppress::No && stage == Rcpt => {
            Outcome::Temporary { retry_after, answer: says(rule).suppressing(suppress) }
        }
        _ if for_now => temporary(retry_after, rule),
        // Nothing of the message was looked at: the account is set up wrongly, or not welcome.
        _ if stage == Connect => rejected(Rejected::Account, "connection_refused"),
        _ if matches!(stage, Hello | StartTls) => rejected(Rejected::Account, "session_refused"),
        _ if stage == Auth => rejected(Rejected::Account, "authentication_failed"),
        // Whatever is said to a recipient, the others may be served.
        _ if stage == Rcpt => gone(if verdict.by_words { rule } else { "recipient_refused" }),
        // After the mail itself, words about the recipient are clear only where there is one.
        Category::RecipientPermanent | Category::AuthOrAccount
            if verdict.scope == Scope::Recipient
                && (verdict.by_words || reply.enhanced().is_some())
                && (stage == Data || stage == Content && about.len() == 1) =>
        {
            gone(rule)
        }
        Category::MessagePermanent | Category::AuthOrAccount if verdict.by_words || reply.enhanced().is_some() => {
            rejected(Rejected::Message, rule)
        }
        _ if stage == Mail => rejected(Rejected::Message, "sender_refused"),
        _ => rejected(Rejected::Message, "message_refused"),
    }
}

/// What `reply` to `RCPT` means for that recipient, where or where not others of the message are taken.
pub(crate) fn recipient(rules: &ReplyRules, reply: &Reply, email: &EmailAddress, others: bool) -> Outcome {
    let outcome = outcome(rules, Stage::Rcpt, reply, std::slice::from_ref(email));
    // More than the server takes at a time: those that are taken make room, so this one's turn comes (RFC 5321, 4.5.3.1.10).
    let verdict = rules.judge(Some(reply.code), reply.enhanced(), &reply.text());
    match outcome {
        Outcome::Temporary { answer, .. } | Outcome::Rejected { what: Rejected::Message, answer }
            if others && (verdict.category, verdict.scope) == (Category::Throttled, Scope::Message) =>
        {
            Outcome::Throttled { scope: Scope::Message, retry_after: None, answer }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::tests::brief,
        reply::{ReplyRule, ReplyRuleText},
    };

    fn reply(text: &str) -> Reply {
        let code = text[..3].parse().unwrap();
        Reply { code, lines: text.split('\n').map(|l| l.get(4..).unwrap_or_default().to_owned()).collect() }
    }

    fn meaning(stage: Stage, text: &str) -> String {
        let u = EmailAddress::parse("u@x.org").unwrap();
        let outcome = outcome(&ReplyRules::default(), stage, &reply(text), std::slice::from_ref(&u));
        let scope = if let Outcome::Throttled { scope, .. } = outcome { format!("{scope:?} ") } else { String::new() };
        if let Outcome::Rejected { what: Rejected::Recipients(gone), .. } = &outcome {
            assert_eq!(gone[..], [u]);
        }
        format!("{scope}{}", brief(&outcome))
    }

    #[test]
    fn replies() {
        use Stage::*;
        let mut wrong = Vec::new();
        for (stage, text, want) in [
            (Connect, "554 No SMTP service here", "reputation_block connection_refused"),
            (Connect, "554 5.7.1 [192.0.2.1] blocked using zen.example", "reputation_block on_block_list 14400s"),
            (Connect, "421 4.3.2 Service not available", "temporary deferred"),
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
            (Mail, "553 5.7.1 Sender address rejected: not owned by user", "rejected_message sender_not_permitted"),
            (Rcpt, "550 5.1.1 User unknown", "rejected_recipient recipient_unknown"),
            (Rcpt, "550 no", "rejected_recipient recipient_refused"),
            (Rcpt, "450 4.1.1 User unknown", "temporary recipient_unknown"),
            (Rcpt, "550 5.7.1 Message refused by policy", "rejected_recipient content_refused"),
            (Rcpt, "550 5.7.23 SPF check failed", "reputation_block sender_not_authenticated"),
            (Rcpt, "421 4.7.1 Your IP is temporarily blocked", "reputation_block address_blocked"),
            (Mail, "553 5.1.8 Domain of sender address does not exist", "rejected_message sender_not_verified"),
            (Mail, "450 4.1.8 Sender address rejected: Domain not found", "temporary sender_not_verified"),
            (Mail, "550 no", "rejected_message sender_refused"),
            (Mail, "451 Authentication failed: Maximum credits exceeded", "rejected_account account_refused"),
            (Auth, "454 4.7.0 Too many login attempts", "temporary authentication_unavailable 300s"),
            (Rcpt, "554 5.7.1 Relay access denied", "rejected_recipient relay_denied"),
            (Rcpt, "450 4.2.0 Greylisted, try again in 300 seconds", "greylisted greylisted 300s"),
            (Rcpt, "451 4.7.1 Greylisting in action, please come back in 00:04:35", "greylisted greylisted 275s"),
            (Rcpt, "450 4.2.0 Greylisted, see http://postgrey.example/help/x.org.html", "greylisted greylisted"),
            (Rcpt, "452 4.2.2 Mailbox full", "temporary mailbox_full 3600s"),
            (Rcpt, "552 5.2.2 Over quota", "temporary mailbox_full 3600s"),
            (Rcpt, "452 4.5.3 Too many recipients", "temporary too_many_recipients"),
            (Rcpt, "550 5.2.1 The user is receiving mail at a rate that", "Recipient throttled recipient_rate_limited"),
            (Data, "554 5.5.1 Error: no valid recipients", "rejected_recipient recipient_unknown"),
            (Data, "451 4.3.0 Error: queue file write error", "temporary deferred"),
            (Content, "550 5.1.1 User unknown", "rejected_recipient recipient_unknown"),
            (Content, "550 5.4.5 Daily user sending limit exceeded", "Account throttled quota_exceeded"),
            (Content, "554 5.7.1 Message rejected as spam", "rejected_message spam_or_virus"),
            (Content, "552 5.3.4 too big", "rejected_message too_large_by_code"),
            (Content, "550 5.7.1 Message rejected due to poor reputation", "reputation_block bad_reputation"),
            (Content, "550 no", "rejected_message message_refused"),
            (Content, "550 5.5.3 Too many recipients", "rejected_message too_many_recipients"),
            (Content, "451 try later", "temporary try_later"),
            (Content, "421 closing", "temporary deferred"),
            (Data, "250 what?", "temporary unexpected_reply"),
        ] {
            let got = meaning(stage, text);
            if got != want {
                wrong.push(format!("{stage:?} {text}: {got}, not {want}"));
            }
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }

    #[test]
    fn who_is_not_to_be_mailed_again() {
        for (stage, text, want) in [
            (Stage::Rcpt, "550 5.1.1 User unknown", Suppress::Now),
            (Stage::Content, "550 5.1.1 User unknown", Suppress::Now),
            (Stage::Rcpt, "450 4.1.1 User unknown", Suppress::AfterRepeats),
            (Stage::Rcpt, "550 no", Suppress::AfterRepeats),
            (Stage::Rcpt, "554 5.7.1 Relay access denied", Suppress::No),
            (Stage::Rcpt, "550 5.7.1 Message refused by policy", Suppress::No),
            (Stage::Rcpt, "552 5.2.2 Mailbox full", Suppress::No),
            (Stage::Mail, "550 5.1.1 User unknown", Suppress::No),
            (Stage::Content, "550 no", Suppress::No),
        ] {
            let u = EmailAddress::parse("u@x.org").unwrap();
            let outcome = outcome(&ReplyRules::default(), stage, &reply(text), &[u]);
            assert_eq!(outcome.answer().unwrap().suppress, want, "{text}");
        }
    }

    #[test]
    fn a_rule_of_ones_own_decides_whether_to_try_again() {
        let rule = |name: &str, category, action| {
            let code = vec!["550".into(), "450".into()];
            let text = vec![name.to_owned()];
            ReplyRule::new(ReplyRuleText {
                name: name.into(),
                code,
                text,
                category: Some(category),
                action,
                ..Default::default()
            })
            .unwrap()
        };
        let rules = ReplyRules::new(vec![
            rule("later", Category::Temporary, None),
            rule("gone", Category::RecipientPermanent, Some(Action::Suppress)),
        ]);
        let u = EmailAddress::parse("u@x.org").unwrap();
        for (text, want) in [("550 later", "temporary later"), ("450 gone", "rejected_recipient gone")] {
            assert_eq!(brief(&outcome(&rules, Stage::Rcpt, &reply(text), std::slice::from_ref(&u))), want);
        }
    }

    #[test]
    fn after_the_mail_several_recipients_are_not_told_apart() {
        let list = ["u@x.org", "v@x.org"].map(|a| EmailAddress::parse(a).unwrap());
        let outcome = outcome(&ReplyRules::default(), Stage::Content, &reply("550 5.1.1 User unknown"), &list);
        assert_eq!(brief(&outcome), "rejected_message message_refused");
    }

    #[test]
    fn a_reply_is_kept_whole() {
        let reply = reply("550-5.7.25 The address\n550-5.7.25 has no PTR\n550 5.7.25 record");
        assert_eq!(reply.enhanced(), Some(Enhanced(5, 7, 25)));
        assert_eq!(reply.text(), "5.7.25 The address has no PTR record");
        let outcome = outcome(&ReplyRules::default(), Stage::Content, &reply, &[]);
        let answer = outcome.answer().unwrap();
        assert_eq!((answer.status, answer.message.as_str()), (Some(550), "5.7.25 The address has no PTR record"));
    }
}
