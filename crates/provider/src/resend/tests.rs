use serde_json::{Value, json};

use super::*;
use crate::answer::tests::{answer, brief, full_message, gone, message, now, strangers};

fn sent(m: &Message) -> Value {
    serde_json::from_slice(&request::request(m).unwrap()).unwrap()
}

#[test]
fn everything_of_a_message_is_mapped() {
    assert_eq!(
        sent(&full_message()),
        json!({
            "from": "Shöp <shop@b.org>",
            "to": ["u@gmail.com", "V <v@y.org>"],
            "cc": ["C@x.org"],
            "bcc": ["=?UTF-8?B?VywgSnI=?= <w@z.org>"],
            "reply_to": "Help <help@b.org>",
            "subject": "Hi",
            "text": "t",
            "html": "<p>ü</p>",
            "headers": {"List-Unsubscribe": "<https://x>", "X-Note": "ünïcode"},
            "attachments": [
                {"filename": "a \"1\".pdf", "content": "aGk=", "content_type": "application/pdf"},
                {"filename": "l.png", "content": "aGk=", "content_type": "image/png", "content_id": "logo"}],
            "tags": [
                {"name": "paceline_id", "value": "order-1"}, {"name": "receipt", "value": "true"},
                {"name": "class", "value": "high"}, {"name": "order", "value": "1"}],
        })
    );
}

#[test]
fn a_template_brings_what_is_left_out() {
    let m = message(json!({"subject": null, "text": null, "template": {"id": "t-1", "data": {"name": "Jo", "n": 2}}}));
    assert_eq!(
        sent(&m),
        json!({
            "from": "Shöp <shop@b.org>", "to": ["u@gmail.com", "V <v@y.org>"],
            "template": {"id": "t-1", "variables": {"name": "Jo", "n": 2}},
            "tags": [{"name": "paceline_id", "value": "order-1"}],
        })
    );
}

#[test]
fn what_resend_cannot_carry_is_refused_by_field() {
    for (extra, field) in [
        (json!({"subject": null}), "subject:"),
        (json!({"text": ""}), "text:"),
        (json!({"template": {"id": "t"}}), "text:"),
        (json!({"template": {"id": "t"}, "text": null, "html": "x"}), "html:"),
        (json!({"template": {"id": "t", "data": {"list": []}}, "text": null}), "template.data.list:"),
        (json!({"from": {"email": "a@b.org", "name": "X <y@z.org>"}}), "from.name:"),
        (json!({"tags": ["two words"]}), "tags[0]:"),
        (json!({"metadata": {"k": "a b"}}), "metadata.k:"),
    ] {
        let outcome = *request::request(&message(extra)).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

#[test]
fn the_key_is_passed_on_or_refused() {
    assert_eq!(idempotency_key("order-1").unwrap()["idempotency-key"], "order-1");
    for bad in ["", "a\nb", &"x".repeat(257)] {
        assert_eq!(brief(&idempotency_key(bad).unwrap_err()), "rejected_message unsupported", "{bad:?}");
    }
}

fn says(status: u16, name: &str, words: &str) -> String {
    json!({"statusCode": status, "name": name, "message": words}).to_string()
}

/// Every documented answer. Source: Resend's page of errors.
#[test]
fn answers() {
    let only_testing = "You can only send testing emails to your own email address (me@b.org). To send emails to other recipients, \
                        please verify a domain at resend.com/domains, and change the from address to an email using this domain.";
    let table: &[(u16, &str, &str, &str)] = &[
        (400, "invalid_idempotency_key", "The key must be between 1-256 chars.", "rejected_message invalid_request"),
        (400, "validation_error", "We found an error with one or more fields.", "rejected_message invalid_request"),
        (401, "missing_api_key", "Missing API key in the authorization header.", "rejected_account unauthorized"),
        (401, "restricted_api_key", "This API key is restricted to only send emails.", "rejected_account unauthorized"),
        (403, "invalid_api_key", "API key is invalid.", "rejected_account unauthorized"),
        (403, "suspended_api_key", "Your API key has been suspended.", "rejected_account suspended"),
        (403, "validation_error", only_testing, "rejected_account test_mode"),
        (403, "validation_error", "The b.org domain is not verified.", "rejected_message sender_not_verified"),
        (403, "validation_error", "Something else", "rejected_account forbidden"),
        (404, "not_found", "The requested endpoint does not exist.", "rejected_account not_found"),
        (
            405,
            "method_not_allowed",
            "This endpoint does not support the specified HTTP method.",
            "rejected_account method_not_allowed",
        ),
        (
            409,
            "invalid_idempotent_request",
            "Same idempotency key used with a different request payload.",
            "rejected_message idempotency_key_reused",
        ),
        (
            409,
            "concurrent_idempotent_requests",
            "Same idempotency key used while original request is still in progress.",
            "temporary concurrent_request 9s",
        ),
        (413, "payload_too_large", "Too large", "rejected_message too_large"),
        (422, "invalid_attachment", "Attachment must have either a content or path.", "rejected_message invalid_request"),
        (422, "invalid_from_address", "Invalid from field.", "rejected_message invalid_sender"),
        (422, "invalid_parameter", "The parameter must be a valid UUID.", "rejected_message invalid_request"),
        (422, "missing_required_field", "Missing `to` field.", "rejected_message invalid_request"),
        (422, "validation_error", "Invalid `to` field.", "rejected_message invalid_request"),
        (422, "validation_error", "Invalid `to` field: v@y.org", "rejected_recipient invalid_recipient"),
        (
            429,
            "rate_limit_exceeded",
            "Too many requests. Please limit the number of requests per second.",
            "throttled rate_limited 9s",
        ),
        (429, "daily_quota_exceeded", "You have reached your daily email sending quota.", "throttled daily_quota_exceeded 9s"),
        (429, "monthly_quota_exceeded", "You have reached your monthly quota.", "throttled monthly_quota_exceeded 9s"),
        (429, "something_new", "Slow down", "throttled rate_limited 9s"),
        (451, "security_error", "We may have found a security issue with the request.", "rejected_message security_error"),
        (500, "application_error", "An unexpected error occurred.", "temporary server_error 9s"),
        (500, "internal_server_error", "An unexpected error occurred.", "temporary server_error 9s"),
        (503, "service_unavailable", "Try again later", "temporary unavailable 9s"),
    ];
    let m = message(json!({}));
    for (status, name, words, want) in table {
        let answer = answer(*status, &[("retry-after", "9")], says(*status, name, words));
        assert_eq!(brief(&outcome(&answer, &m, now())), *want, "{status} {name} {words}");
    }
    assert_eq!(outcome(&answer(200, &[], r#"{"id":"e-1"}"#), &m, now()), Outcome::accepted(Some("e-1".into())));
    strangers(|answer| outcome(answer, &m, now()));
}

#[test]
fn a_template_and_a_single_recipient_are_found_at_fault() {
    let of = |status, name: &str, words: &str, m: &Message| outcome(&answer(status, &[], says(status, name, words)), m, now());
    let m = message(json!({"to": ["u@gmail.com"], "text": null, "template": {"id": "t-1"}}));
    assert_eq!(brief(&of(404, "not_found", "Template not found", &m)), "rejected_message template_not_found");
    assert_eq!(gone(&of(422, "validation_error", "Invalid `to` field.", &m)), ["u@gmail.com"]);
}

#[test]
fn how_long_a_throttle_lasts() {
    let m = message(json!({}));
    let of = |name: &str, headers: &[(&str, &str)]| brief(&outcome(&answer(429, headers, says(429, name, "")), &m, now()));
    for (name, headers, want) in [
        ("rate_limit_exceeded", vec![("retry-after", "3"), ("ratelimit-reset", "5")], "throttled rate_limited 3s"),
        ("rate_limit_exceeded", vec![("ratelimit-reset", "5")], "throttled rate_limited 5s"),
        ("rate_limit_exceeded", vec![("ratelimit-reset", "soon")], "throttled rate_limited"),
        ("rate_limit_exceeded", vec![("ratelimit-reset", "1.5")], "throttled rate_limited 1s"),
        ("rate_limit_exceeded", vec![("ratelimit-reset", "1800000030")], "throttled rate_limited 30s"),
        ("daily_quota_exceeded", vec![], "throttled daily_quota_exceeded 600s"),
        ("monthly_quota_exceeded", vec![("ratelimit-reset", "1")], "throttled monthly_quota_exceeded 3600s"),
    ] {
        assert_eq!(of(name, &headers), want, "{name} {headers:?}");
    }
}
