//! One mail over an open connection: `MAIL`, each `RCPT`, `DATA`, the mail.

use std::{fmt::Write as _, time::SystemTime};

use paceline_core::{EmailAddress, Message, Outcome, ProviderAnswer, Rejected, Timestamp};

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

/// Each recipient, in order, with what it was answered; `None` where it was taken. Empty until all have been asked about.
#[derive(Default)]
pub(super) struct Asked(Vec<(EmailAddress, Option<Outcome>)>);

impl Asked {
    /// Whom the mail itself goes to; `all` where nobody has been asked about.
    pub(super) fn taken(&self, all: &[EmailAddress]) -> Vec<EmailAddress> {
        match self.0.as_slice() {
            [] => all.to_vec(),
            each => each.iter().filter(|(_, own)| own.is_none()).map(|(email, _)| email.clone()).collect(),
        }
    }

    /// The outcome of the whole, where `rest` came of those that were taken.
    pub(super) fn with(self, rest: Outcome) -> Outcome {
        if self.0.iter().all(|(_, own)| own.is_none()) || is_of_account(&rest) {
            return rest;
        }
        let refused = |own: &Option<Outcome>| matches!(own, None | Some(Outcome::Rejected { .. }));
        match rest {
            Outcome::Accepted { provider_id, .. } if self.0.iter().all(|(_, own)| refused(own)) => {
                let refused = self.0.into_iter().filter_map(|(email, own)| Some((email, own?.answer()?.clone())));
                Outcome::Accepted { provider_id, refused: refused.collect() }
            }
            rest => {
                let provider_id = rest.provider_id().map(str::to_owned);
                let outcome = |email: &EmailAddress, own: Option<Outcome>| own.unwrap_or_else(|| for_one(&rest, email));
                let each = self.0.into_iter().map(|(email, own)| (email.clone(), outcome(&email, own))).collect();
                Outcome::Divided { provider_id, each }
            }
        }
    }

    /// The outcome where the mail goes to nobody; `None` where it goes to somebody.
    fn nobody(&mut self) -> Option<Outcome> {
        // The account is refused for all, whoever else was taken.
        let account = self.0.iter().find_map(|(_, own)| own.clone().filter(is_of_account));
        if account.is_some() {
            self.0.clear();
            return account;
        }
        if self.0.iter().any(|(_, own)| own.is_none()) {
            return None;
        }
        let mut each: Vec<_> = std::mem::take(&mut self.0).into_iter().filter_map(|(email, own)| Some((email, own?))).collect();
        Some(if each.len() == 1 { each.remove(0).1 } else { Outcome::Divided { provider_id: None, each } })
    }
}

fn is_of_account(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Rejected { what: Rejected::Account, .. })
}

/// An outcome of several recipients as it is for one of them.
fn for_one(outcome: &Outcome, email: &EmailAddress) -> Outcome {
    match outcome {
        Outcome::Rejected { what: Rejected::Recipients(_), answer } => {
            Outcome::Rejected { what: Rejected::Recipients(vec![email.clone()]), answer: answer.clone() }
        }
        other => other.clone(),
    }
}

/// One mail transaction. What recipients were answered stands in `asked` also where it fails after that.
///
/// # Errors
/// Where the connection broke, or the server refused what concerns all that were taken.
pub(super) async fn transact(
    connection: &mut Connection,
    mail: &Mail<'_>,
    rules: &ReplyRules,
    asked: &mut Asked,
) -> Result<Served, Failure> {
    const ASCII_ONLY: &str = "the server does not take addresses that are not ASCII (SMTPUTF8)";
    let ascii_only = !connection.extensions.smtputf8;
    if let Some(field) = mail.international_sender.filter(|_| ascii_only) {
        return Ok(Served { outcome: unsupported(field, ASCII_ONLY), in_order: true });
    }
    let foreign = |email: &&EmailAddress| ascii_only && mail.international.contains(email);
    let (strangers, recipients): (Vec<_>, Vec<_>) = mail.recipients.iter().partition(foreign);
    let utf8 = !ascii_only && (!mail.international.is_empty() || mail.international_sender.is_some());
    let replies = if recipients.is_empty() { Vec::new() } else { envelope(connection, mail, &recipients, utf8).await? };
    let anybody = replies.iter().any(Reply::is_positive);
    let own = |(email, reply): (&EmailAddress, Reply)| {
        let outcome = (!reply.is_positive()).then(|| smtp_reply::recipient(rules, &reply, email, anybody));
        (email.clone(), outcome)
    };
    let unsupported = |email: &EmailAddress| {
        let answer = ProviderAnswer::new("unsupported", None, ASCII_ONLY);
        (email.clone(), Some(Outcome::Rejected { what: Rejected::Recipients(vec![email.clone()]), answer }))
    };
    asked.0 = recipients.iter().copied().zip(replies).map(own).chain(strangers.iter().copied().map(unsupported)).collect();
    if let Some(outcome) = asked.nobody() {
        // What was begun must be ended before the connection serves again.
        let in_order = recipients.is_empty() || connection.reset().await;
        return Ok(Served { outcome, in_order });
    }
    let reply = connection.command(Stage::Data, "DATA\r\n").await?;
    if reply.code != 354 {
        return Err(Failure::Broken { stage: Stage::Data, code: "unexpected_reply", problem: reply.text() });
    }
    let reply = connection.content(&mail.bytes).await?;
    let outcome = match reply.code {
        200..300 => {
            connection.served += 1;
            Outcome::accepted(queue_id(&reply.text()))
        }
        // Neither yes nor no, after everything was written.
        300..400 => Outcome::Uncertain { answer: ProviderAnswer::new("unexpected_reply", Some(reply.code), &reply.text()) },
        _ => smtp_reply::outcome(rules, Stage::Content, &reply, &asked.taken(&mail.recipients)),
    };
    let in_order = reply.code != 421 && !(300..400).contains(&reply.code);
    Ok(Served { outcome: std::mem::take(asked).with(outcome), in_order })
}

/// `MAIL` and the `RCPT` of each recipient, in one write where the server allows; the reply to each `RCPT`.
async fn envelope(
    connection: &mut Connection,
    mail: &Mail<'_>,
    recipients: &[&EmailAddress],
    utf8: bool,
) -> Result<Vec<Reply>, Failure> {
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
    let rcpt = |email: &&EmailAddress| format!("RCPT TO:<{email}>\r\n");
    let pipelined = connection.extensions.pipelining;
    if pipelined {
        commands.extend(recipients.iter().map(rcpt));
    }
    connection.write(Stage::Mail, commands.as_bytes()).await?;
    let sender = connection.reply(Stage::Mail).await?;
    let refused = |reply| Failure::Refused { stage: Stage::Mail, reply };
    if !sender.is_positive() && (!pipelined || sender.code == 421) {
        return Err(refused(sender));
    }
    let mut replies = Vec::with_capacity(recipients.len());
    for email in recipients {
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
        replies.push(reply);
    }
    // The replies to the recipients were read to stay in step; without a sender they say nothing.
    if sender.is_positive() { Ok(replies) } else { Err(refused(sender)) }
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
