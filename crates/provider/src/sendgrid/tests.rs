use serde_json::json;

use super::*;
use crate::answer::tests::{NOW, answer, brief, now};

fn message(extra: Value) -> Message {
    let mut body = json!({
        "id": "order-1", "from": {"email": "shop@b.org", "name": "Shöp"}, "to": ["u@gmail.com", {"email": "v@y.org", "name": "V"}],
        "subject": "Hi", "text": "t",
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    Message::parse(body.to_string().as_bytes(), None, 20 << 20).unwrap()
}

fn plain() -> Message {
    message(json!({}))
}

fn sent(m: &Message) -> Value {
    serde_json::from_slice(&request::request(m).unwrap()).unwrap()
}

#[test]
fn everything_of_a_message_is_mapped() {
    let m = message(json!({
        "class": "high", "stream": "receipts", "tenant": "acme",
        "cc": ["C@x.org", "u@gmail.com"], "bcc": [{"email": "c@x.org", "name": "dup"}, "w@z.org", "V@y.org"],
        "reply_to": {"email": "help@b.org", "name": "Help"}, "html": "<p>ü</p>",
        "headers": {"List-Unsubscribe": "<https://x>", "X-Note": "ünïcode"},
        "attachments": [
            {"filename": "a.pdf", "content_type": "application/pdf", "content": "aGk="},
            {"filename": "l.png", "content_type": "image/png", "content": "aGk=", "content_id": "logo"}],
        "tags": ["receipt", "shop", "receipt"], "metadata": {"order": "1", "class": "high"},
        "template": {"id": "d-1", "data": {"name": "Jo", "n": [1, 2]}},
    }));
    assert_eq!(
        sent(&m),
        json!({
            "personalizations": [{
                "to": [{"email": "u@gmail.com"}, {"email": "v@y.org", "name": "V"}],
                "cc": [{"email": "C@x.org"}],
                "bcc": [{"email": "w@z.org"}],
                "dynamic_template_data": {"name": "Jo", "n": [1, 2]},
            }],
            "from": {"email": "shop@b.org", "name": "Shöp"},
            "reply_to": {"email": "help@b.org", "name": "Help"},
            "subject": "Hi",
            "content": [{"type": "text/plain", "value": "t"}, {"type": "text/html", "value": "<p>ü</p>"}],
            "template_id": "d-1",
            "attachments": [
                {"content": "aGk=", "type": "application/pdf", "filename": "a.pdf", "disposition": "attachment"},
                {"content": "aGk=", "type": "image/png", "filename": "l.png", "disposition": "inline", "content_id": "logo"}],
            "headers": {"List-Unsubscribe": "<https://x>", "X-Note": "=?UTF-8?B?w7xuw69jb2Rl?="},
            "categories": ["receipt", "shop"],
            "custom_args": {"paceline_id": "order-1", "order": "1", "class": "high"},
        })
    );
}

#[test]
fn the_least_message() {
    assert_eq!(
        sent(&message(json!({"to": ["u@gmail.com"], "text": null, "html": "<p>"}))),
        json!({
            "personalizations": [{"to": [{"email": "u@gmail.com"}]}],
            "from": {"email": "shop@b.org", "name": "Shöp"},
            "subject": "Hi",
            "content": [{"type": "text/html", "value": "<p>"}],
            "custom_args": {"paceline_id": "order-1"},
        })
    );
    let template = message(json!({"text": null, "subject": null, "template": {"id": "d-1"}}));
    assert_eq!(sent(&template)["template_id"], "d-1");
}

#[test]
fn long_header_values_become_several_encoded_words() {
    let m = message(json!({"headers": {"X-Note": "ü".repeat(100)}}));
    let value = sent(&m)["headers"]["X-Note"].as_str().unwrap().to_owned();
    assert!(value.is_ascii() && value.split(' ').all(|word| word.len() <= 75), "{value}");
    assert_eq!(value.split(' ').count(), 5);
}

#[test]
fn what_sendgrid_cannot_carry_is_refused_by_field() {
    let tags: Vec<_> = (0..11).map(|i| format!("t{i}")).collect();
    for (extra, field) in [
        (json!({"tags": tags}), "tags:"),
        (json!({"tags": ["ok", "x".repeat(256)]}), "tags[1]:"),
        (json!({"tags": [""]}), "tags[0]:"),
        (json!({"subject": null}), "subject:"),
        (json!({"subject": ""}), "subject:"),
        (json!({"text": ""}), "text:"),
        (json!({"headers": {"X-SG-EID": "1"}}), "headers.X-SG-EID:"),
        (json!({"metadata": {"paceline_id": "x"}}), "metadata.paceline_id:"),
        (json!({"metadata": {"k": "x".repeat(10_000)}}), "metadata:"),
    ] {
        let outcome = *request::request(&message(extra)).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

fn error(message: &str, field: Value) -> String {
    json!({"errors": [{"message": message, "field": field, "help": null}]}).to_string()
}

/// Every documented answer, and hostile ones. Sources: SendGrid's OpenAPI document for Mail Send and its error pages.
#[test]
fn answers() {
    let many = format!(r#"{{"errors":[{}{{}}]}}"#, r#"{"field":1},"#.repeat(5000));
    let deep = format!(r#"{{"errors":{}"#, "[".repeat(60_000));
    let sender = "The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.";
    let table: &[(u16, String, &str)] = &[
        (202, String::new(), "accepted"),
        (202, "<html>".into(), "accepted"),
        (200, String::new(), "accepted"),
        (200, "<html>Please log in to the guest network</html>".into(), "uncertain unexpected_answer"),
        (206, "{}".into(), "uncertain unexpected_answer"),
        (400, error("Bad Request", Value::Null), "rejected_message invalid_request"),
        (
            400,
            error("Does not contain a valid address.", json!("personalizations.0.to.1.email")),
            "rejected_recipient invalid_recipient",
        ),
        (
            400,
            error("Does not contain a valid address.", json!("personalizations[0].to[0].email")),
            "rejected_recipient invalid_recipient",
        ),
        (
            400,
            error("Does not contain a valid address.", json!("personalizations.0.to.9.email")),
            "rejected_message invalid_request",
        ),
        (
            400,
            error("Does not contain a valid address.", json!("personalizations.0.to.-1.email")),
            "rejected_message invalid_request",
        ),
        (
            400,
            error("Does not contain a valid address.", json!("personalizations.0.to.0.name")),
            "rejected_message invalid_request",
        ),
        (400, error("The personalizations field is required", json!("personalizations")), "rejected_message invalid_request"),
        (400, error("The from email does not contain a valid address.", json!("from.email")), "rejected_message invalid_request"),
        (400, error("The subject is required.", json!("subject")), "rejected_message invalid_request"),
        (400, error("Maximum credits exceeded", Value::Null), "rejected_account credits_exceeded"),
        (400, "<html>400 Bad Request</html>".into(), "temporary unexpected_answer 9s"),
        (400, "{\"errors\":[]}".into(), "temporary unexpected_answer 9s"),
        (400, "{\"errors\":[\"x\"]}".into(), "temporary unexpected_answer 9s"),
        (400, many, "rejected_message invalid_request"),
        (400, deep, "temporary unexpected_answer 9s"),
        (400, "\u{0}".repeat(70_000), "temporary unexpected_answer 9s"),
        (
            401,
            error("The provided authorization grant is invalid, expired, or revoked", Value::Null),
            "rejected_account unauthorized",
        ),
        (401, error("Maximum credits exceeded", Value::Null), "rejected_account credits_exceeded"),
        (401, "nonsense".into(), "rejected_account unauthorized"),
        (403, error(sender, json!("from")), "rejected_message sender_not_verified"),
        (403, error(sender, Value::Null), "rejected_message sender_not_verified"),
        (403, error("access forbidden", Value::Null), "rejected_account forbidden"),
        (404, error("not found", Value::Null), "rejected_account not_found"),
        (405, error("method not allowed", Value::Null), "rejected_account method_not_allowed"),
        (413, error("Payload too large", Value::Null), "rejected_message too_large"),
        (413, "<html>nginx".into(), "rejected_message too_large"),
        (415, String::new(), "temporary unexpected_answer 9s"),
        (422, error("no", Value::Null), "rejected_message invalid_request"),
        (418, String::new(), "temporary unexpected_answer 9s"),
        (408, String::new(), "temporary try_again 9s"),
        (425, String::new(), "temporary try_again 9s"),
        (429, error("too many requests", Value::Null), "throttled rate_limited 9s"),
        (429, String::new(), "throttled rate_limited 9s"),
        (500, json!({"errors": [{"message": "Internal error"}]}).to_string(), "temporary server_error 9s"),
        (502, "<html>".into(), "temporary bad_gateway 9s"),
        (503, String::new(), "temporary unavailable 9s"),
        (301, String::new(), "rejected_account unexpected_redirect"),
        (101, String::new(), "temporary unexpected_answer 9s"),
    ];
    for (status, body, want) in table {
        let answer = answer(*status, &[("retry-after", "9")], body.clone());
        assert_eq!(brief(&outcome(&answer, &plain(), now())), *want, "{status} {}", &body[..body.len().min(200)]);
    }
}

#[test]
fn the_id_is_kept() {
    let got = |headers| outcome(&answer(202, headers, ""), &plain(), now());
    assert_eq!(got(&[("X-Message-Id", "abc.filter-1")]), Outcome::accepted(Some("abc.filter-1".into())));
    assert_eq!(got(&[("X-Message-Id", "")]), Outcome::accepted(None));
    let id = Outcome::accepted(Some("x".into()));
    assert_eq!(outcome(&answer(200, &[("x-message-id", "x")], "{}"), &plain(), now()), id);
}

#[test]
fn how_long_a_throttle_lasts() {
    let s = NOW.as_secs();
    let (reset, past) = ((s + 30).to_string(), (s - 30).to_string());
    for (headers, want) in [
        (vec![("retry-after", "5"), ("x-ratelimit-reset", &*reset)], "throttled rate_limited 5s"),
        (vec![("retry-after", "Fri, 15 Jan 2027 08:01:40 GMT")], "throttled rate_limited 100s"),
        (vec![("x-ratelimit-reset", &*reset)], "throttled rate_limited 30s"),
        (vec![("retry-after", "later"), ("x-ratelimit-reset", &*reset)], "throttled rate_limited 30s"),
        (vec![("x-ratelimit-reset", &*past)], "throttled rate_limited"),
        (vec![("x-ratelimit-reset", "12")], "throttled rate_limited 12s"),
        (vec![("x-ratelimit-reset", "-1")], "throttled rate_limited"),
        (vec![("x-ratelimit-reset", "inf")], "throttled rate_limited"),
        (vec![("x-ratelimit-reset", "18446744073709551615")], "throttled rate_limited"),
        (vec![], "throttled rate_limited"),
    ] {
        assert_eq!(brief(&outcome(&answer(429, &headers, ""), &plain(), now())), want, "{headers:?}");
    }
}

#[test]
fn recipients_at_fault_are_those_of_the_request() {
    // The second `to` repeats the first, so that position 1 of the request is the third of the message.
    let m = message(json!({"to": ["u@gmail.com", "U@gmail.com", "w@z.org"], "cc": ["c@x.org"], "bcc": ["b@x.org"]}));
    let gone = |fields: &[&str]| {
        let errors: Vec<_> =
            fields.iter().map(|f| json!({"message": "no", "field": format!("personalizations.0.{f}")})).collect();
        match outcome(&answer(400, &[], json!({"errors": errors}).to_string()), &m, now()) {
            Outcome::Rejected { what: Rejected::Recipients(gone), .. } => gone.iter().map(ToString::to_string).collect(),
            Outcome::Rejected { what: Rejected::Message, .. } => vec![],
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(gone(&["to.1.email"]), ["w@z.org"]);
    assert_eq!(gone(&["to.0.email"]), ["u@gmail.com", "U@gmail.com"]);
    assert_eq!(gone(&["cc.0.email", "bcc.0", "cc.0.email"]), ["c@x.org", "b@x.org"]);
    assert_eq!(gone(&["to.1.email", "subject"]), [""; 0], "another field at fault: the message is");
    assert_eq!(gone(&["to"]), [""; 0]);
}
