use serde_json::{Value, json};

use super::*;
use crate::answer::tests::{answer, brief, full_message, gone, message, now, strangers};

fn sent(m: &Message) -> Value {
    serde_json::from_slice(&request::request(m, None).unwrap()).unwrap()
}

#[test]
fn everything_of_a_message_is_mapped() {
    assert_eq!(
        sent(&full_message()),
        json!({
            "From": "=?UTF-8?B?U2jDtnA=?= <shop@b.org>",
            "To": "u@gmail.com, V <v@y.org>",
            "Cc": "C@x.org",
            "Bcc": "\"W, Jr\" <w@z.org>",
            "ReplyTo": "Help <help@b.org>",
            "Subject": "Hi",
            "TextBody": "t",
            "HtmlBody": "<p>ü</p>",
            "Tag": "receipt",
            "Metadata": {"paceline_id": "order-1", "order": "1", "class": "high"},
            "Headers": [{"Name": "List-Unsubscribe", "Value": "<https://x>"}, {"Name": "X-Note", "Value": "ünïcode"}],
            "Attachments": [
                {"Name": "a \"1\".pdf", "Content": "aGk=", "ContentType": "application/pdf"},
                {"Name": "l.png", "Content": "aGk=", "ContentType": "image/png", "ContentID": "cid:logo"}],
        })
    );
}

#[test]
fn templates_by_id_and_by_alias() {
    let by = |id: &str| {
        let m = message(json!({"subject": null, "text": null, "template": {"id": id, "data": {"name": "Jo"}}}));
        serde_json::from_slice::<Value>(&request::request(&m, Some("broadcast")).unwrap()).unwrap()
    };
    let common = json!({
        "From": "=?UTF-8?B?U2jDtnA=?= <shop@b.org>", "To": "u@gmail.com, V <v@y.org>", "TemplateModel": {"name": "Jo"},
        "Metadata": {"paceline_id": "order-1"}, "MessageStream": "broadcast",
    });
    let with = |key: &str, value: Value| {
        let mut all = common.clone();
        all[key] = value;
        all
    };
    assert_eq!(by("1234"), with("TemplateId", json!(1234)));
    assert_eq!(by("welcome"), with("TemplateAlias", json!("welcome")));
}

#[test]
fn an_id_without_room_stays_here() {
    let metadata = |m: Message| sent(&m)["Metadata"].clone();
    assert_eq!(metadata(message(json!({"id": "x".repeat(81)}))), Value::Null);
    let ten: serde_json::Map<String, Value> = (0..10).map(|i| (format!("k{i}"), json!("v"))).collect();
    assert_eq!(metadata(message(json!({"metadata": ten}))).as_object().unwrap().len(), 10);
}

#[test]
fn what_postmark_cannot_carry_is_refused_by_field() {
    let eleven: serde_json::Map<String, Value> = (0..11).map(|i| (format!("k{i}"), json!("v"))).collect();
    let template = json!({"id": "t"});
    for (extra, field) in [
        (json!({"tags": ["a", "b"]}), "tags:"),
        (json!({"tags": ["x".repeat(1001)]}), "tags[0]:"),
        (json!({"text": ""}), "text:"),
        (json!({"template": template, "text": null}), "subject:"),
        (json!({"template": template, "subject": null}), "text:"),
        (json!({"template": template, "subject": null, "text": null, "html": "x"}), "html:"),
        (json!({"metadata": eleven}), "metadata:"),
        (json!({"metadata": {"k": "x".repeat(81)}}), "metadata.k:"),
        (json!({"metadata": {"paceline_id": "x"}}), "metadata.paceline_id:"),
    ] {
        let outcome = *request::request(&message(extra), None).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

fn says(code: i64, words: &str) -> String {
    json!({"ErrorCode": code, "Message": words}).to_string()
}

/// Every documented answer. Source: Postmark's API overview (error codes).
#[test]
fn answers() {
    let ok = json!({"To": "u@gmail.com", "SubmittedAt": "2026-01-01T00:00:00Z", "MessageID": "b7bc-1", "ErrorCode": 0, "Message": "OK"});
    let delayed = json!({"MessageID": "b7bc-1", "Message": "Message accepted, but delivery may be delayed."});
    let table: &[(u16, String, &str)] = &[
        (200, ok.to_string(), "accepted"),
        (200, delayed.to_string(), "accepted"),
        (200, json!({"ErrorCode": 0, "Message": "Test job accepted"}).to_string(), "accepted"),
        (401, says(10, "Bad or missing API token."), "rejected_account unauthorized"),
        (422, says(10, "Bad or missing API token."), "rejected_account unauthorized"),
        (422, says(100, "Maintenance"), "temporary maintenance 9s"),
        (503, says(100, "Maintenance"), "temporary maintenance 9s"),
        (422, says(300, "Invalid 'From' address: 'x'."), "rejected_message invalid_request"),
        (422, says(300, "Invalid metadata content."), "rejected_message invalid_request"),
        (422, says(300, "Invalid 'To' address: 'v@y.org'."), "rejected_recipient invalid_recipient"),
        (422, says(300, "Invalid 'To' address: 'x'."), "rejected_message invalid_request"),
        (
            422,
            says(400, "The 'From' address you supplied is not a Sender Signature on your account."),
            "rejected_message sender_not_verified",
        ),
        (422, says(401, "Sender signature not confirmed."), "rejected_message sender_not_verified"),
        (422, says(402, "Invalid JSON"), "rejected_message invalid_request"),
        (422, says(403, "Incompatible JSON"), "rejected_message invalid_request"),
        (422, says(405, "Not allowed to send: you ran out of credits."), "rejected_account credits_exceeded"),
        (
            422,
            says(406, "You tried to send to a recipient that has been marked as inactive."),
            "rejected_recipient inactive_recipient",
        ),
        (422, says(410, "Too many batch messages"), "rejected_message invalid_request"),
        (422, says(411, "Forbidden attachment type"), "rejected_message forbidden_attachment"),
        (422, says(412, "Account is pending approval."), "rejected_account account_pending"),
        (422, says(413, "Account may not send."), "rejected_account account_may_not_send"),
        (422, says(429, "Rate limit exceeded"), "throttled rate_limited 9s"),
        (429, says(429, "Rate limit exceeded"), "throttled rate_limited 9s"),
        (422, says(1101, "The template is not valid."), "rejected_message template_not_found"),
        (422, says(9999, "Something new"), "rejected_message invalid_request"),
        (200, says(300, "Invalid 'From' address: 'x'."), "rejected_message invalid_request"),
        (200, says(500, "Internal"), "temporary server_error 9s"),
        (413, says(0, "Payload too large"), "rejected_message too_large"),
        (500, says(500, "Internal"), "temporary server_error 9s"),
        (503, says(503, "Unavailable"), "temporary unavailable 9s"),
        (404, says(404, "No such page"), "rejected_account not_found"),
    ];
    for (status, body, want) in table {
        let answer = answer(*status, &[("retry-after", "9")], body.clone());
        assert_eq!(brief(&outcome(&answer, &message(json!({})), now())), *want, "{status} {body}");
    }
    strangers(|answer| outcome(answer, &message(json!({})), now()));
}

#[test]
fn who_is_refused() {
    let of = |status, code, words: &str, m: &Message| {
        let mut body = json!({"ErrorCode": code, "Message": words});
        if code == 0 {
            body["MessageID"] = json!("b7bc-1");
        }
        outcome(&answer(status, &[], body.to_string()), m, now())
    };
    let m = message(json!({"cc": ["c@x.org"]}));
    let partly = "Message OK, but will not deliver to these inactive addresses: V@y.org. Inactive recipients are ones that have generated a hard bounce.";
    let outcome = of(200, 0, partly, &m);
    assert_eq!((brief(&outcome).as_str(), gone(&outcome)), ("accepted inactive_recipient", vec!["v@y.org".to_owned()]));
    assert!(matches!(outcome, Outcome::Accepted { provider_id: Some(id), .. } if id == "b7bc-1"));
    let named =
        "You tried to send to a recipient that has been marked as inactive.\nFound inactive addresses: c@x.org, u@gmail.com.";
    assert_eq!(gone(&of(422, 406, named, &m)), ["u@gmail.com", "c@x.org"]);
    assert_eq!(gone(&of(422, 406, "Inactive recipient", &m)), ["u@gmail.com", "v@y.org", "c@x.org"], "none named: all");
    assert_eq!(gone(&of(422, 300, "Error parsing 'Cc': Illegal email domain", &m)), ["c@x.org"], "the only one in the field");
    assert_eq!(gone(&of(422, 300, "Error parsing 'To': Illegal email domain", &m)), [""; 0], "which of two nobody knows");
}
