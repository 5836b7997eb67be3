use serde_json::{Value, json};

use super::*;
use crate::answer::tests::{answer, brief, full_message, gone, message, now, strangers};

fn sent(m: &Message) -> Value {
    serde_json::from_slice(&request::request(m).unwrap()).unwrap()
}

#[test]
fn everything_of_a_message_is_mapped() {
    let header_to = "u@gmail.com, V <v@y.org>";
    let to = |email: &str| json!({"address": {"email": email, "header_to": header_to}, "tags": ["receipt"]});
    assert_eq!(
        sent(&full_message()),
        json!({
            "options": {"transactional": true},
            "recipients": [to("u@gmail.com"), to("v@y.org"), to("C@x.org"), to("w@z.org")],
            "metadata": {"paceline_id": "order-1", "order": "1", "class": "high"},
            "content": {
                "from": {"email": "shop@b.org", "name": "Shöp"},
                "subject": "Hi",
                "reply_to": "Help <help@b.org>",
                "text": "t",
                "html": "<p>ü</p>",
                "headers": {"Cc": "C@x.org", "List-Unsubscribe": "<https://x>", "X-Note": "ünïcode"},
                "attachments": [{"name": "a \"1\".pdf", "type": "application/pdf", "data": "aGk="}],
                "inline_images": [{"name": "logo", "type": "image/png", "data": "aGk="}],
            },
        })
    );
}

#[test]
fn a_template_gets_its_data_and_campaigns_say_so() {
    let m =
        message(json!({"class": "low", "subject": null, "text": null, "template": {"id": "t-1", "data": {"name": "{{Jo}}"}}}));
    let sent = sent(&m);
    assert_eq!(sent["content"], json!({"template_id": "t-1"}));
    assert_eq!(sent["substitution_data"], json!({"name": "{{Jo}}"}));
    assert_eq!(sent["options"], json!({"transactional": false}));
}

#[test]
fn nothing_in_a_message_is_taken_for_a_template() {
    let m = message(json!({
        "subject": "{{a}}", "text": "{{b}}", "html": "{{{c}}}", "headers": {"X-A": "{{d}}"}, "from": {"email": "a@b.org", "name": "{{e}}"},
    }));
    let content = sent(&m)["content"].clone();
    for (value, letter) in
        [(&content["subject"], "a"), (&content["text"], "b"), (&content["headers"]["X-A"], "d"), (&content["from"]["name"], "e")]
    {
        assert_eq!(value.as_str().unwrap(), format!("{{{{opening_double_curly()}}}}{letter}{{{{closing_double_curly()}}}}"));
    }
    assert_eq!(content["html"], "{{opening_triple_curly()}}c{{closing_triple_curly()}}");
}

#[test]
fn what_sparkpost_cannot_carry_is_refused_by_field() {
    let tags: Vec<_> = (0..11).map(|i| format!("t{i}")).collect();
    let file = json!([{"filename": "a", "content_type": "a/b", "content": ""}]);
    let template = |field: &str, value: Value| json!({"template": {"id": "t"}, "subject": null, "text": null, field: value});
    for (extra, field) in [
        (json!({"tags": tags}), "tags:"),
        (json!({"text": ""}), "text:"),
        (json!({"subject": null}), "subject:"),
        (json!({"metadata": {"k": "x".repeat(1000)}}), "metadata:"),
        (json!({"metadata": {"paceline_id": "x"}}), "metadata.paceline_id:"),
        (template("subject", json!("s")), "subject:"),
        (template("text", json!("t")), "text:"),
        (template("html", json!("h")), "html:"),
        (template("reply_to", json!("a@b.org")), "reply_to:"),
        (template("cc", json!(["a@b.org"])), "cc:"),
        (template("headers", json!({"X-A": "a"})), "headers:"),
        (template("attachments", file), "attachments:"),
    ] {
        let outcome = *request::request(&message(extra)).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

fn says(code: &str, message: &str, description: &str) -> String {
    json!({"errors": [{"message": message, "description": description, "code": code}]}).to_string()
}

/// Every documented answer. Sources: SparkPost's transmissions API and its extended error codes.
#[test]
fn answers() {
    let ok = json!({"results": {"total_rejected_recipients": 0, "total_accepted_recipients": 2, "id": "11668787484950529"}});
    let none = json!({"results": {"total_rejected_recipients": 2, "total_accepted_recipients": 0, "id": "1"}});
    let table: &[(u16, String, &str)] = &[
        (200, ok.to_string(), "accepted"),
        (200, none.to_string(), "rejected_recipient rejected_recipient"),
        (200, json!({"results": {}}).to_string(), "uncertain unexpected_answer"),
        (420, says("2101", "Exceed Sending Limit (hourly)", ""), "throttled hourly_quota_exceeded"),
        (420, says("2102", "Exceed Sending Limit (daily)", ""), "throttled daily_quota_exceeded"),
        (420, says("2103", "Exceed Sending Limit (sandbox)", ""), "rejected_account sandbox_limit"),
        (420, says("2105", "Exceed Sending Limit (monthly)", ""), "throttled monthly_quota_exceeded"),
        (420, says("2999", "Exceed Sending Limit", ""), "throttled rate_limited"),
        (429, json!({"errors": [{"message": "Too many requests"}]}).to_string(), "throttled rate_limited"),
        (
            400,
            says("7001", "Invalid domain", "Unconfigured or unverified sending domain."),
            "rejected_message sender_not_verified",
        ),
        (400, says("7000", "Invalid domain", "Domain is blacklisted"), "rejected_message domain_blacklisted"),
        (400, says("5002", "At least one valid recipient is required", ""), "rejected_recipient no_valid_recipient"),
        (400, says("1902", "Message generation rejected", ""), "rejected_message generation_rejected"),
        (422, says("1300", "Invalid data format/type", "field 'x' is of type 'json'"), "rejected_message invalid_request"),
        (422, says("1400", "required field is missing", "content is required"), "rejected_message invalid_request"),
        (400, says("1400", "required field is missing", "content is required"), "rejected_message invalid_request"),
        (403, says("1100", "Permission denied", "Account is suspended"), "rejected_account forbidden"),
        (401, json!({"errors": [{"message": "Unauthorized."}]}).to_string(), "rejected_account unauthorized"),
        (404, says("1600", "resource not found", ""), "rejected_account not_found"),
        (413, says("1", "Too large", ""), "rejected_message too_large"),
        (500, says("1", "Internal", ""), "temporary server_error"),
        (503, says("2101", "Service unavailable", ""), "temporary unavailable"),
    ];
    let m = message(json!({}));
    for (status, body, want) in table {
        let outcome = outcome(&answer(*status, &[], body.clone()), &m, now());
        assert!(brief(&outcome).starts_with(want), "{status} {body}: {outcome:?}");
    }
    let id = outcome(&answer(200, &[], ok.to_string()), &m, now());
    assert_eq!(id, Outcome::accepted(Some("11668787484950529".into())));
    strangers(|answer| outcome(answer, &m, now()));
}

#[test]
fn what_is_waited_for_and_what_is_found_at_fault() {
    let of = |status, headers: &[(&str, &str)], body: String, m: &Message| outcome(&answer(status, headers, body), m, now());
    let m = message(json!({}));
    for (code, want) in [("2101", 300), ("2102", 600), ("2105", 3600)] {
        assert!(brief(&of(420, &[], says(code, "x", "y"), &m)).ends_with(&format!(" {want}s")), "{code}");
    }
    assert_eq!(brief(&of(420, &[("retry-after", "7")], says("2101", "x", "y"), &m)), "throttled hourly_quota_exceeded 7s");
    assert_eq!(gone(&of(400, &[], says("5002", "no", ""), &m)), ["u@gmail.com", "v@y.org"]);
    let template = message(json!({"text": null, "template": {"id": "t"}}));
    assert_eq!(brief(&of(404, &[], says("1600", "not found", ""), &template)), "rejected_message template_not_found");
}

#[test]
fn those_refused_while_others_are_taken() {
    let some = |errors: Value| {
        let body = json!({
            "errors": [{"message": "transmission created, but with validation errors", "code": "2000"}],
            "results": {"rcpt_to_errors": errors, "total_rejected_recipients": 1, "total_accepted_recipients": 1, "id": 7},
        });
        outcome(&answer(200, &[], body.to_string()), &message(json!({})), now())
    };
    let named = some(json!([{"message": "Invalid recipient", "description": "v@y.org is no address", "code": "5001"}]));
    assert_eq!((brief(&named).as_str(), gone(&named)), ("accepted rejected_recipient", vec!["v@y.org".to_owned()]));
    assert!(matches!(named, Outcome::Accepted { provider_id: Some(id), .. } if id == "7"));
    assert_eq!(gone(&some(json!([{"message": "required field is missing"}]))), [""; 0], "nobody knows who: events will tell");
    assert_eq!(gone(&some(json!("nonsense"))), [""; 0]);
}
