//! Several messages in one `POST /v3/mail/send`: a personalization each, with all the rest in common.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use paceline_core::Message;
use reqwest::header::HeaderMap;

use super::{SendGrid, outcome, request::Body};
use crate::{
    Attempt,
    answer::Answer,
    batch::{Batches, Called, Prepared},
    json,
};

/// Most messages of a call, and most recipients.
pub(super) const MAX: usize = 1000;

#[async_trait]
impl Batches for SendGrid {
    async fn call(&self, attempts: &[Attempt<'_>], within: Duration) -> Called {
        let mut prepared = Prepared::of(attempts, Body::of);
        let messages = &prepared.messages;
        let recipients: usize = messages.iter().map(|m| m.recipient_count()).sum();
        if recipients > MAX && messages.len() > 1 {
            return Called::Divide;
        }
        let Some(body) = Body::joined(std::mem::take(&mut prepared.bodies)) else {
            return prepared.merged(Called::Each(Vec::new()));
        };
        let called = match json::write(&body, messages.first().map_or(0, |m| json::expected_len(m)) + 256 * recipients) {
            Ok(bytes) => {
                let exchange = self.endpoint.post_within(bytes, HeaderMap::new(), within).await;
                exchange.outcomes(messages.len(), |answer| outcomes(answer, messages, SystemTime::now()))
            }
            Err(refused) => Called::all(&refused, messages.len()),
        };
        prepared.merged(called)
    }
}

/// SendGrid takes all or none, and gives them one id.
fn outcomes(answer: &Answer, messages: &[&Message], now: SystemTime) -> Called {
    match messages.first() {
        Some(first) => Called::all(&outcome(answer, first, now), messages.len()),
        None => Called::Each(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use paceline_core::Outcome;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::tests::{answer, message, now};

    fn campaign(id: &str, to: &str, data: Value) -> Message {
        message(json!({
            "id": id, "to": [to], "subject": null, "text": null, "template": {"id": "d-1", "data": data}, "tags": ["june"],
            "metadata": {"class": "low"},
        }))
    }

    #[test]
    fn messages_with_all_else_in_common_become_personalizations() {
        let (a, b) = (campaign("a", "u@x.org", json!({"name": "Jo"})), campaign("b", "v@x.org", json!({"name": "Al"})));
        let body = Body::joined(vec![Body::of(&a).unwrap(), Body::of(&b).unwrap()]).unwrap();
        assert_eq!(
            serde_json::to_value(&body).unwrap(),
            json!({
                "personalizations": [
                    {"to": [{"email": "u@x.org"}], "custom_args": {"paceline_id": "a", "class": "low"}, "dynamic_template_data": {"name": "Jo"}},
                    {"to": [{"email": "v@x.org"}], "custom_args": {"paceline_id": "b", "class": "low"}, "dynamic_template_data": {"name": "Al"}}],
                "from": {"email": "shop@b.org", "name": "Shöp"}, "template_id": "d-1", "categories": ["june"],
            })
        );
    }

    #[test]
    fn what_may_travel_together() {
        let key = |extra: Value| Body::of(&message(extra)).unwrap().shared();
        let plain = key(json!({}));
        for same in [json!({"id": "x"}), json!({"to": ["w@z.org"], "cc": ["c@z.org"]}), json!({"metadata": {"k": "v"}})] {
            assert_eq!(key(same.clone()), plain, "{same}");
        }
        for other in [
            json!({"subject": "Ho"}),
            json!({"text": "T"}),
            json!({"html": "h"}),
            json!({"from": "a@b.org"}),
            json!({"reply_to": "a@b.org"}),
            json!({"headers": {"X-A": "a"}}),
            json!({"tags": ["t"]}),
            json!({"template": {"id": "t"}}),
        ] {
            assert_ne!(key(other.clone()), plain, "{other}");
        }
    }

    #[test]
    fn all_or_none() {
        let (a, b) = (message(json!({"id": "a"})), message(json!({"id": "b"})));
        let of = |status, body: &str| outcomes(&answer(status, &[("x-message-id", "id-1")], body.to_owned()), &[&a, &b], now());
        assert_eq!(of(202, ""), Called::Each(vec![Outcome::accepted(Some("id-1".into())); 2]));
        let error = |field: &str| json!({"errors": [{"message": "no", "field": field}]}).to_string();
        assert_eq!(of(400, &error("personalizations.1.to.0.email")), Called::Divide);
        assert_eq!(of(400, &error("personalizations.0.to.0.email")), Called::Divide);
        assert_eq!(of(413, ""), Called::Divide);
        let Called::Each(limited) = of(429, "") else { panic!("divided") };
        assert!(limited.len() == 2 && limited.iter().all(|o| o.label() == "throttled"));
    }
}
