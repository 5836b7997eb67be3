use serde_json::json;

use super::*;
use crate::answer::tests::{answer, brief, full_message, gone, message, now, strangers};

fn fields(m: &Message) -> Vec<(String, String)> {
    let form = request::request(m).unwrap();
    assert_eq!(form.content_type, "application/x-www-form-urlencoded");
    form_urlencoded::parse(&form.body).into_owned().collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn the_form_of_a_message_without_files() {
    let m =
        message(json!({"tags": ["a", "b", "a"], "metadata": {"k": "1 & 2"}, "reply_to": "r@b.org", "headers": {"X-A": "ü=1"}}));
    assert_eq!(
        fields(&m),
        pairs(&[
            ("from", "=?UTF-8?B?U2jDtnA=?= <shop@b.org>"),
            ("to", "u@gmail.com, V <v@y.org>"),
            ("subject", "Hi"),
            ("h:Reply-To", "r@b.org"),
            ("h:X-A", "ü=1"),
            ("o:tag", "a"),
            ("o:tag", "b"),
            ("v:paceline_id", "order-1"),
            ("v:k", "1 & 2"),
            ("text", "t"),
        ])
    );
    let template = message(json!({"text": null, "template": {"id": "welcome", "data": {"name": "Jo"}}}));
    let fields = fields(&template);
    assert!(pairs(&[("template", "welcome"), ("t:variables", r#"{"name":"Jo"}"#)]).iter().all(|p| fields.contains(p)));
}

#[test]
fn everything_of_a_message_with_files_is_mapped() {
    let form = request::request(&full_message()).unwrap();
    let content_type = form.content_type.to_str().unwrap();
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let body = String::from_utf8(form.body).unwrap();
    let parts: Vec<&str> =
        body.strip_suffix(&format!("--{boundary}--\r\n")).unwrap().split(&format!("--{boundary}\r\n")).collect();
    let field = |name: &str, value: &str| format!("Content-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let file = |name: &str, filename: &str, kind: &str| {
        format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"{filename}\"\r\nContent-Type: {kind}\r\n\r\nhi\r\n")
    };
    assert_eq!(
        parts,
        [
            String::new(),
            field("from", "=?UTF-8?B?U2jDtnA=?= <shop@b.org>"),
            field("to", "u@gmail.com, V <v@y.org>"),
            field("cc", "C@x.org"),
            field("bcc", "\"W, Jr\" <w@z.org>"),
            field("subject", "Hi"),
            field("h:Reply-To", "Help <help@b.org>"),
            field("h:List-Unsubscribe", "<https://x>"),
            field("h:X-Note", "ünïcode"),
            field("o:tag", "receipt"),
            field("v:paceline_id", "order-1"),
            field("v:class", "high"),
            field("v:order", "1"),
            field("text", "t"),
            field("html", "<p>ü</p>"),
            file("attachment", "a %221%22.pdf", "application/pdf"),
            file("inline", "logo", "image/png"),
        ]
    );
}

#[test]
fn the_boundary_depends_on_all_that_is_sent() {
    let boundary = |text: &str| {
        let file = json!([{"filename": "a", "content_type": "a/b", "content": "aGk="}]);
        request::request(&message(json!({"text": text, "attachments": file}))).unwrap().content_type
    };
    assert_eq!(boundary("a"), boundary("a"));
    assert_ne!(boundary("a"), boundary("b"));
}

#[test]
fn what_mailgun_cannot_carry_is_refused_by_field() {
    for (extra, field) in [
        (json!({"tags": ["a", "b", "c", "d"]}), "tags:"),
        (json!({"tags": ["ok", "ü"]}), "tags[1]:"),
        (json!({"tags": ["x".repeat(129)]}), "tags[0]:"),
        (json!({"text": ""}), "text:"),
        (json!({"template": {"id": "t"}}), "text:"),
        (json!({"template": {"id": "t"}, "text": null, "html": "x"}), "html:"),
        (json!({"metadata": {"paceline_id": "x"}}), "metadata.paceline_id:"),
    ] {
        let outcome = *request::request(&message(extra)).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

fn says(words: &str) -> String {
    json!({"message": words}).to_string()
}

/// Every documented answer. Source: Mailgun's documentation of sending and of errors.
#[test]
fn answers() {
    let limited = |what: &str| {
        format!("Domain b.org is not allowed to send: {what} limit exceeded, try again after Fri, 15 Jan 2027 08:01:40 GMT")
    };
    let table: &[(u16, String, &str)] = &[
        (429, says(&limited("request")), "throttled rate_limited 100s"),
        (429, says(&limited("bytes")), "throttled rate_limited 100s"),
        (429, says(&limited("recipient")), "throttled rate_limited 100s"),
        (420, says(&limited("recipient")), "throttled rate_limited 100s"),
        (400, says(&limited("recipient")), "throttled rate_limited 100s"),
        (429, says(&limited("request").replace("GMT", "+0000")), "throttled rate_limited 100s"),
        (429, says(&limited("request").replace("2027", "2021")), "throttled rate_limited 0s"),
        (429, says("Too many requests"), "throttled rate_limited"),
        (
            400,
            says("Domain b.org is not allowed to send: The domain is unverified and requires DNS configuration."),
            "rejected_account not_allowed_to_send",
        ),
        (
            400,
            says("Domain b.org is not allowed to send: Sandbox subdomains are for test purposes only."),
            "rejected_account not_allowed_to_send",
        ),
        (
            403,
            says("Domain b.org is not allowed to send: Free accounts are for test purposes only."),
            "rejected_account not_allowed_to_send",
        ),
        (
            400,
            says("Please activate your Mailgun account. Check your inbox or log in to your control panel."),
            "rejected_account not_allowed_to_send",
        ),
        (400, says("to parameter is not a valid address. please check documentation"), "rejected_message invalid_request"),
        (400, says("'from' parameter is not a valid address. please check documentation"), "rejected_message invalid_request"),
        (400, says("Too many recipients, max is 1000"), "rejected_message too_many_recipients"),
        (400, says("Need at least one of 'text', 'html' or 'template' parameters specified"), "rejected_message invalid_request"),
        (401, "Forbidden".to_owned(), "rejected_account unauthorized"),
        (401, says("Invalid private key"), "rejected_account unauthorized"),
        (402, says("Request failed"), "temporary request_failed"),
        (403, says("Domain b.org is not allowed to send large batches yet"), "rejected_message too_many_recipients"),
        (403, says("Rejected: IP 192.0.2.1 can't be used to send the message"), "rejected_account ip_not_allowed"),
        (403, says("Forbidden"), "rejected_account forbidden"),
        (404, says("Domain not found: b.org"), "rejected_account domain_not_found"),
        (413, says("request size exceeds 52.4MiB limit"), "rejected_message too_large"),
        (500, says("Internal Server Error"), "temporary server_error"),
        (502, says("Bad gateway"), "temporary bad_gateway"),
        (503, says("Unavailable"), "temporary unavailable"),
        (504, says("Timeout"), "temporary gateway_timeout"),
        (200, "Mailgun Magnificent API".to_owned(), "rejected_account not_found"),
        (200, says("Queued. Thank you."), "uncertain unexpected_answer"),
    ];
    let m = message(json!({}));
    for (status, body, want) in table {
        assert_eq!(brief(&outcome(&answer(*status, &[], body.clone()), &m, now())), *want, "{status} {body}");
    }
    let ok = r#"{"id":"<20260101.1@b.org>","message":"Queued. Thank you."}"#;
    assert_eq!(outcome(&answer(200, &[], ok), &m, now()), Outcome::accepted(Some("20260101.1@b.org".into())));
    strangers(|answer| outcome(answer, &m, now()));
}

#[test]
fn who_and_what_is_at_fault() {
    let of = |status, words: &str, m: &Message| outcome(&answer(status, &[], says(words)), m, now());
    let words = "to parameter is not a valid address. please check documentation";
    assert_eq!(gone(&of(400, words, &message(json!({"to": ["u@gmail.com"]})))), ["u@gmail.com"], "the only one");
    let cc = message(json!({"cc": ["c@x.org"]}));
    assert_eq!(gone(&of(400, "'cc' parameter is not a valid address", &cc)), ["c@x.org"]);
    assert_eq!(gone(&of(400, "to parameter is not a valid address: v@y.org", &cc)), ["v@y.org"], "the one named");
    let template = message(json!({"text": null, "template": {"id": "t"}}));
    assert_eq!(brief(&of(400, "template 't' not found", &template)), "rejected_message template_not_found");
}
