//! One mail over an open connection: `MAIL`, each `RCPT`, `DATA`, the mail.

use std::{fmt::Write as _, time::SystemTime};

use paceline_core::{EmailAddress, Message, Outcome, ProviderAnswer, Rejected, Suppress, Timestamp};

use super::wire::{Connection, Failure};
use crate::{
    answer::unsupported,
    mime,
    reply::ReplyRules,
    smtp_reply::{self, Reply, Stage},
};

/// What goes over the wire.
pub(super) struct Mail<'a> {
    from: &'a EmailAddress,
    /// Each once.
    pub(super) recipients: Vec<EmailAddress>,
    bytes: Vec<u8>,
    /// Recipients whose local part is not ASCII.
    international: Vec<EmailAddress>,
    /// `from` or `reply_to` is not ASCII: nobody can be served without SMTPUTF8.
    international_sender: Option<&'static str>,
}

impl Mail<'_> {
    /// Writes the mail, dated now.
    pub(super) fn new(message: &Message) -> Result<Mail<'_>, Box<Outcome>> {
        let bytes = mime::build(message, Timestamp::from(SystemTime::now()))?;
        let mut recipients: Vec<EmailAddress> = Vec::with_capacity(message.recipient_count());
        for email in message.recipients() {
            if !recipients.contains(email) {
                recipients.push(email.clone());
            }
        }
        let international = recipients.iter().filter(|r| !r.local().is_ascii()).cloned().collect();
        let sender = [("from", Some(&message.from)), ("reply_to", message.reply_to.as_ref())];
        let international_sender =
            sender.into_iter().find(|(_, m)| m.is_some_and(|m| !m.email.local().is_ascii())).map(|(field, _)| field);
        Ok(Mail { from: &message.from.email, recipients, bytes, international, international_sender })
    }
}

/// What came of a transaction in which nothing broke.
pub(super) struct Served {
    pub(super) outcome: Outcome,
    /// The connection can take the next mail.
    pub(super) in_order: bool,
}

/// One mail transaction.
///
/// # Errors
/// Where the connection broke, or the server refused what concerns all recipients.
pub(super) async fn transact(connection: &mut Connection, mail: &Mail<'_>, rules: &ReplyRules) -> Result<Served, Failure> {
    let utf8 = !mail.international.is_empty() || mail.international_sender.is_some();
    if utf8 && !connection.extensions.smtputf8 {
        let answer = ProviderAnswer::new("unsupported", None, "the server does not take addresses that are not ASCII (SMTPUTF8)");
        let outcome = match mail.international_sender {
            Some(field) => unsupported(field, "the server does not take addresses that are not ASCII (SMTPUTF8)"),
            None => Outcome::Rejected { what: Rejected::Recipients(mail.international.clone()), answer },
        };
        return Ok(Served { outcome, in_order: true });
    }
    let replies = envelope(connection, mail, utf8).await?;
    if let Some(outcome) = nobody_yet(rules, &replies) {
        // What was begun must be ended before the connection serves again.
        let in_order = connection.reset().await;
        return Ok(Served { outcome, in_order });
    }
    let reply = connection.command(Stage::Data, "DATA\r\n").await?;
    if reply.code != 354 {
        return Err(Failure::Broken { stage: Stage::Data, code: "unexpected_reply", problem: reply.text() });
    }
    let reply = connection.content(&mail.bytes).await?;
    let served: Vec<_> = replies.iter().filter(|(_, r)| r.is_positive()).map(|(email, _)| email.clone()).collect();
    let refused = replies.into_iter().filter(|(_, r)| !r.is_positive());
    let outcome = match reply.code {
        200..300 => {
            connection.served += 1;
            let refused = refused.map(|(email, reply)| {
                let said = smtp_reply::outcome(rules, Stage::Rcpt, &reply, std::slice::from_ref(&email));
                let answer = said.answer().cloned().unwrap_or_else(|| ProviderAnswer::new("refused", Some(reply.code), ""));
                (email, answer)
            });
            Outcome::Accepted { provider_id: queue_id(&reply.text()), refused: refused.collect() }
        }
        // Neither yes nor no, after everything was written.
        300..400 => Outcome::Uncertain { answer: ProviderAnswer::new("unexpected_reply", Some(reply.code), &reply.text()) },
        _ => smtp_reply::outcome(rules, Stage::Content, &reply, &served),
    };
    let in_order = reply.code != 421 && !(300..400).contains(&reply.code);
    Ok(Served { outcome, in_order })
}

/// `MAIL` and each `RCPT`, in one write where the server allows; the reply to each `RCPT`.
async fn envelope(connection: &mut Connection, mail: &Mail<'_>, utf8: bool) -> Result<Vec<(EmailAddress, Reply)>, Failure> {
    let mut commands = format!("MAIL FROM:<{}>", mail.from);
    if connection.extensions.size {
        // Writing to a string does not fail.
        let _ = write!(commands, " SIZE={}", mail.bytes.len());
    }
    if utf8 {
        commands.push_str(" SMTPUTF8");
        if connection.extensions.eight_bit {
            commands.push_str(" BODY=8BITMIME");
        }
    }
    commands.push_str("\r\n");
    let rcpt = |email: &EmailAddress| format!("RCPT TO:<{email}>\r\n");
    let pipelined = connection.extensions.pipelining;
    if pipelined {
        commands.extend(mail.recipients.iter().map(rcpt));
    }
    connection.write(Stage::Mail, commands.as_bytes()).await?;
    let sender = connection.reply(Stage::Mail).await?;
    let refused = |reply| Failure::Refused { stage: Stage::Mail, reply };
    if !sender.is_positive() && (!pipelined || sender.code == 421) {
        return Err(refused(sender));
    }
    let mut replies = Vec::with_capacity(mail.recipients.len());
    for email in &mail.recipients {
        if !pipelined {
            connection.write(Stage::Rcpt, rcpt(email).as_bytes()).await?;
        }
        let reply = match connection.reply(Stage::Rcpt).await {
            Ok(reply) => reply,
            Err(_) if !sender.is_positive() => break,
            Err(lost) => return Err(lost),
        };
        if reply.code == 421 {
            return Err(Failure::Refused { stage: Stage::Rcpt, reply });
        }
        replies.push((email.clone(), reply));
    }
    // The replies to the recipients were read to stay in step; without a sender they say nothing.
    if sender.is_positive() { Ok(replies) } else { Err(refused(sender)) }
}

/// The outcome where the mail does not go out now: nobody takes it, or somebody takes it later only.
///
/// An outcome cannot say "these have it, those later": so nobody gets it until all can be served or are out of the way.
fn nobody_yet(rules: &ReplyRules, replies: &[(EmailAddress, Reply)]) -> Option<Outcome> {
    let mut gone: Vec<EmailAddress> = Vec::new();
    let mut refusal: Option<Outcome> = None;
    let mut later: Option<Outcome> = None;
    let mut served = 0;
    for (email, reply) in replies {
        if reply.is_positive() {
            served += 1;
            continue;
        }
        let outcome = smtp_reply::outcome(rules, Stage::Rcpt, reply, std::slice::from_ref(email));
        match &outcome {
            Outcome::Rejected { what: Rejected::Recipients(_), .. } => {
                gone.push(email.clone());
                let suppress = outcome.answer().map_or(Suppress::No, |a| a.suppress);
                // One answer stands for all: it must not say more of any than was said of each.
                if let Some(Outcome::Rejected { answer, .. }) = &mut refusal
                    && answer.suppress != suppress
                {
                    answer.suppress = Suppress::No;
                }
                refusal.get_or_insert(outcome);
            }
            // The account or the message: it is the same for all.
            Outcome::Rejected { .. } => return Some(outcome),
            // What waits longest for a reason of its own counts; greylisting passes by itself.
            Outcome::Greylisted { .. } => {
                later.get_or_insert(outcome);
            }
            _ if matches!(later, None | Some(Outcome::Greylisted { .. })) => later = Some(outcome),
            _ => {}
        }
    }
    match (refusal, later) {
        (Some(Outcome::Rejected { answer, .. }), later) if served == 0 || later.is_some() => {
            Some(Outcome::Rejected { what: Rejected::Recipients(gone), answer })
        }
        (None, Some(later)) => Some(later),
        _ => None,
    }
}

/// The server's id in "2.0.0 Ok: queued as 4Xyz", "OK id=1abc-2", "Ok 0102018f-…".
fn queue_id(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let lower = |i: usize| words.get(i).map(|w: &&str| w.to_ascii_lowercase()).unwrap_or_default();
    let id = (0..words.len()).find_map(|i| match lower(i).as_str() {
        "as" if i > 0 && lower(i - 1) == "queued" => words.get(i + 1).copied(),
        "ok" if i + 2 == words.len() => words.get(i + 1).map(|w| w.strip_prefix("id=").unwrap_or(w)),
        word if word.starts_with("id=") => words.get(i)?.get(3..),
        _ => None,
    })?;
    let id = id.trim_matches(['<', '>', '.', ';']);
    (!id.is_empty() && id.len() <= 200).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_ids() {
        for (text, want) in [
            ("2.0.0 Ok: queued as 4Xyz12", Some("4Xyz12")),
            ("OK id=1abc-0002-AB", Some("1abc-0002-AB")),
            ("Ok 0102018f-abc", Some("0102018f-abc")),
            ("2.6.0 <m@b.org> [InternalId=1] Queued mail for delivery", None),
            ("2.0.0 OK  1700000000 abc.123 - gsmtp", None),
            ("Ok", None),
            ("", None),
            ("queued as", None),
            ("queued as <>", None),
        ] {
            assert_eq!(queue_id(text).as_deref(), want, "{text}");
        }
        assert_eq!(queue_id(&format!("queued as {}", "x".repeat(300))), None);
    }
}
