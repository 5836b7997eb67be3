//! The mail that is carried: the same message as a producer publishes it and as SendGrid takes it.

use paceline_core::{Class, Lane};
use serde_json::json;

/// Length of a message as producers publish it.
const MESSAGE_BYTES: usize = 2000;
/// Typical of an e-mail's HTML: quotes and slashes, which JSON escapes.
const PARAGRAPH: &str = "<p style=\"margin:0 0 12px\">Your order is on its way. Track it at \
    <a href=\"https://shop.example/orders\">shop.example/orders</a>, or reply to this mail.</p>\n";

/// Destinations by name, each with the domain mail goes to.
pub(crate) const DESTINATIONS: [(&str, &str); 4] =
    [("google", "gmail.com"), ("microsoft", "outlook.com"), ("yahoo", "yahoo.com"), ("apple", "icloud.com")];
const MIXED_CLASSES: [Class; 3] = [Class::High, Class::Normal, Class::Low];

/// Which lanes the mail is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// One class and one destination.
    One,
    /// Three classes, four destinations, in turn.
    Mixed,
}

/// Whose API both sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    SendGrid,
    /// The worker in batches.
    Postmark,
}

impl Api {
    /// The path of a call for one message.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Api::SendGrid => "/v3/mail/send",
            Api::Postmark => "/email",
        }
    }
}

/// One message of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) id: String,
    class: Class,
    domain: &'static str,
}

impl Mix {
    /// The lanes that get mail.
    pub(crate) fn lanes(self) -> Vec<Lane> {
        match self {
            Mix::One => vec![Lane::new(Class::Normal, DESTINATIONS[0].0)],
            Mix::Mixed => {
                let of_class = |class| DESTINATIONS.map(|(destination, _)| Lane::new(class, destination));
                MIXED_CLASSES.into_iter().flat_map(of_class).collect()
            }
        }
    }

    /// The `n`th message of a run; its id is of no other message.
    pub(crate) fn mail(self, run: u32, n: u32) -> Mail {
        let i = n as usize;
        let (class, domain) = match self {
            Mix::One => (Class::Normal, DESTINATIONS[0].1),
            Mix::Mixed => (MIXED_CLASSES[i / DESTINATIONS.len() % MIXED_CLASSES.len()], DESTINATIONS[i % DESTINATIONS.len()].1),
        };
        Mail { id: format!("bench-{run:04}-{n:08}"), class, domain }
    }
}

impl Mail {
    /// As producers address it.
    pub(crate) fn routing_key(&self) -> String {
        format!("{}.{}", self.class, self.domain)
    }

    /// As producers publish it, 2,000 bytes.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut html = String::new();
        let empty = self.message_with(&html).len();
        // What a character takes in JSON differs: grow by characters until the length is met.
        let mut missing = MESSAGE_BYTES.saturating_sub(empty);
        for c in PARAGRAPH.chars().cycle() {
            let takes = if matches!(c, '"' | '\n') { 2 } else { c.len_utf8() };
            if missing < 2 {
                break;
            }
            missing -= takes;
            html.push(c);
        }
        html.extend(std::iter::repeat_n(' ', missing));
        self.message_with(&html)
    }

    fn message_with(&self, html: &str) -> Vec<u8> {
        let message = json!({
            "id": self.id,
            "class": self.class.to_string(),
            "from": {"email": "orders@shop.example", "name": "Shop"},
            "to": [self.recipient()],
            "subject": "Your order is on its way",
            "html": html,
            "tags": ["orders"],
            "metadata": {"order": "A-10293"},
        });
        message.to_string().into_bytes()
    }

    /// As the worker writes it for a call of its own, made from [`message`](Mail::message).
    pub(crate) fn request(&self, api: Api) -> Vec<u8> {
        match api {
            Api::SendGrid => self.sendgrid(),
            Api::Postmark => self.postmark(),
        }
    }

    fn postmark(&self) -> Vec<u8> {
        let message: serde_json::Value = serde_json::from_slice(&self.message()).unwrap_or_default();
        let request = json!({
            "From": "Shop <orders@shop.example>",
            "To": self.recipient(),
            "Subject": message["subject"],
            "HtmlBody": message["html"],
            "Tag": "orders",
            "Metadata": {"paceline_id": self.id, "order": "A-10293"},
        });
        request.to_string().into_bytes()
    }

    fn sendgrid(&self) -> Vec<u8> {
        let message: serde_json::Value = serde_json::from_slice(&self.message()).unwrap_or_default();
        let request = json!({
            "personalizations": [{"to": [{"email": self.recipient()}]}],
            "from": message["from"],
            "custom_args": {"paceline_id": self.id, "order": "A-10293"},
            "subject": message["subject"],
            "content": [{"type": "text/html", "value": message["html"]}],
            "categories": ["orders"],
        });
        request.to_string().into_bytes()
    }

    fn recipient(&self) -> String {
        format!("someone@{}", self.domain)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use paceline_core::Message;

    use super::*;

    #[test]
    fn every_message_is_valid_and_of_the_same_length() {
        for mix in [Mix::One, Mix::Mixed] {
            for n in 0..24 {
                let mail = mix.mail(7, n);
                let body = mail.message();
                assert_eq!(body.len(), MESSAGE_BYTES);
                let message = Message::parse(&body, None, 10 << 20).unwrap();
                assert_eq!(message.id, mail.id);
                assert!((2000..2200).contains(&mail.sendgrid().len()), "{}", mail.sendgrid().len());
            }
        }
    }

    #[test]
    fn mixed_mail_fills_each_lane_alike() {
        let mut keys: BTreeMap<String, usize> = BTreeMap::new();
        for n in 0..24 {
            *keys.entry(Mix::Mixed.mail(1, n).routing_key()).or_default() += 1;
        }
        assert_eq!(keys.len(), Mix::Mixed.lanes().len());
        assert!(keys.values().all(|&count| count == 2), "{keys:?}");
    }
}
