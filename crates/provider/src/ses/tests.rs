use serde_json::json;

use super::*;
use crate::answer::tests::{answer, brief, full_message, gone, message, now, strangers};

fn sent(m: &Message) -> Value {
    serde_json::from_slice(&request::request(m, Some("events"), timestamp(now())).unwrap()).unwrap()
}

#[test]
fn a_message_of_text_and_html_is_simple() {
    let m = message(json!({
        "html": "<p>ü</p>", "cc": ["C@x.org", "U@gmail.com"], "bcc": [{"email": "w@z.org", "name": "W, Jr"}],
        "reply_to": {"email": "help@b.org", "name": "Help"}, "tags": ["receipt"], "metadata": {"order": "1"},
    }));
    let text = |data: &str| json!({"Data": data, "Charset": "UTF-8"});
    assert_eq!(
        sent(&m),
        json!({
            "FromEmailAddress": "=?UTF-8?B?U2jDtnA=?= <shop@b.org>",
            "Destination": {
                "ToAddresses": ["u@gmail.com", "V <v@y.org>"], "CcAddresses": ["C@x.org"], "BccAddresses": ["\"W, Jr\" <w@z.org>"]},
            "ReplyToAddresses": ["Help <help@b.org>"],
            "Content": {"Simple": {"Subject": text("Hi"), "Body": {"Text": text("t"), "Html": text("<p>ü</p>")}}},
            "EmailTags": [
                {"Name": "paceline_id", "Value": "order-1"}, {"Name": "receipt", "Value": "true"}, {"Name": "order", "Value": "1"}],
            "ConfigurationSetName": "events",
        })
    );
}

#[test]
fn headers_and_attachments_make_it_raw() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let sent = sent(&full_message());
    let raw = STANDARD.decode(sent["Content"]["Raw"]["Data"].as_str().unwrap()).unwrap();
    let mail = mail_parser::MessageParser::default().parse(&raw).unwrap();
    assert_eq!((mail.subject(), mail.attachment_count()), (Some("Hi"), 2));
    assert_eq!(mail.header("X-Note").unwrap().as_text(), Some("=?utf-8?b?w7xuw69jb2Rl?="));
    assert!(mail.reply_to().is_some() && sent.get("ReplyToAddresses").is_none(), "said once, in the mail");
    assert!(mail.bcc().is_none(), "hidden recipients stand in the request only");
    assert_eq!(sent["Destination"]["BccAddresses"], json!(["\"W, Jr\" <w@z.org>"]));
    let bare = message(json!({"subject": null}));
    assert!(request::request(&bare, None, timestamp(now())).is_ok_and(|b| String::from_utf8(b).unwrap().contains("Raw")));
}

#[test]
fn a_template_gets_its_data_as_text() {
    let m =
        message(json!({"subject": null, "text": null, "template": {"id": "t-1", "data": {"n": [1]}}, "headers": {"X-A": "ü"}}));
    assert_eq!(
        sent(&m)["Content"],
        json!({"Template": {
            "TemplateName": "t-1", "TemplateData": "{\"n\":[1]}", "Headers": [{"Name": "X-A", "Value": "=?UTF-8?B?w7w=?="}]}})
    );
}

#[test]
fn what_ses_cannot_carry_is_refused_by_field() {
    let file = json!([{"filename": "a", "content_type": "a/b", "content": ""}]);
    let template = json!({"id": "t"});
    for (extra, field) in [
        (json!({"tags": ["two words"]}), "tags[0]:"),
        (json!({"metadata": {"k": "a b"}}), "metadata.k:"),
        (json!({"template": template, "text": null}), "subject:"),
        (json!({"template": template, "subject": null}), "text:"),
        (json!({"template": template, "subject": null, "text": null, "html": "x"}), "html:"),
        (json!({"template": template, "subject": null, "text": null, "attachments": file}), "attachments:"),
    ] {
        let outcome = *request::request(&message(extra), None, timestamp(now())).unwrap_err();
        assert_eq!(brief(&outcome), "rejected_message unsupported", "{field}");
        assert!(outcome.answer().unwrap().message.starts_with(field), "{outcome:?}");
    }
}

/// Every documented answer. Sources: the service's model (botocore), the developer guide's page on quota errors, and the
/// errors common to all AWS services.
#[test]
fn answers() {
    let table: &[(u16, &str, &str, &str)] = &[
        (429, "TooManyRequestsException", "Too many requests have been made.", "throttled rate_limited 9s"),
        (400, "ThrottlingException", "Maximum sending rate exceeded.", "throttled rate_limited 9s"),
        (429, "ThrottlingException", "Maximum sending rate exceeded.", "throttled rate_limited 9s"),
        (429, "TooManyRequestsException", "Daily message quota exceeded.", "throttled daily_quota_exceeded 9s"),
        (400, "ThrottlingException", "Daily message quota exceeded.", "throttled daily_quota_exceeded 9s"),
        (400, "LimitExceededException", "Account daily quota exceeded", "throttled daily_quota_exceeded 9s"),
        (400, "LimitExceededException", "Maximum sending rate exceeded.", "throttled rate_limited 9s"),
        (400, "LimitExceededException", "There are too many instances of the resource.", "throttled limit_exceeded 9s"),
        (
            400,
            "AccountSuspendedException",
            "The account's ability to send email is suspended.",
            "rejected_account account_suspended",
        ),
        (400, "SendingPausedException", "Sending is paused for the account.", "rejected_account sending_paused"),
        (400, "MessageRejected", "The message contains invalid content.", "rejected_message message_rejected"),
        (
            400,
            "MessageRejected",
            "Email address is not verified. The following identities failed the check in region EU-WEST-1: u@gmail.com",
            "rejected_message identity_not_verified",
        ),
        (400, "MailFromDomainNotVerifiedException", "The sending domain isn't verified.", "rejected_message sender_not_verified"),
        (400, "BadRequestException", "The input you provided is invalid.", "rejected_message invalid_request"),
        (400, "BadRequestException", "Illegal address: v@y.org", "rejected_recipient invalid_recipient"),
        (404, "NotFoundException", "Configuration set x does not exist.", "rejected_account not_found"),
        (403, "AccessDeniedException", "User is not authorized to perform ses:SendEmail", "rejected_account unauthorized"),
        (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", "rejected_account unauthorized"),
        (403, "InvalidSignatureException", "Signature expired", "rejected_account unauthorized"),
        (403, "UnrecognizedClientException", "The security token included is invalid.", "rejected_account unauthorized"),
        (403, "InvalidClientTokenId", "The certificate or key ID does not exist.", "rejected_account unauthorized"),
        (403, "MissingAuthenticationTokenException", "Missing Authentication Token", "rejected_account unauthorized"),
        (400, "IncompleteSignature", "The signature does not conform.", "rejected_account unauthorized"),
        (403, "OptInRequired", "The key ID needs a subscription.", "rejected_account unauthorized"),
        (
            403,
            "ExpiredTokenException",
            "The security token included in the request is expired",
            "rejected_account credentials_expired",
        ),
        (
            400,
            "RequestExpired",
            "The request reached the service more than 15 minutes after.",
            "rejected_account credentials_expired",
        ),
        (409, "ConflictException", "A conflict", "temporary server_error 9s"),
        (500, "ConcurrentModificationException", "Being modified", "temporary server_error 9s"),
        (500, "InternalFailure", "Unknown error", "temporary server_error 9s"),
        (503, "ServiceUnavailable", "Temporary failure", "temporary unavailable 9s"),
        (400, "SomethingNewException", "What?", "rejected_message invalid_request"),
        (500, "SomethingNewException", "What?", "temporary server_error 9s"),
        (413, "RequestEntityTooLarge", "Too long", "rejected_message too_large"),
    ];
    let m = message(json!({}));
    for (status, kind, words, want) in table {
        let by_header = answer(
            *status,
            &[("retry-after", "9"), ("x-amzn-errortype", &format!("{kind}:http://internal.amazon.com/"))],
            json!({"message": words}).to_string(),
        );
        let by_body = answer(
            *status,
            &[("retry-after", "9")],
            json!({"__type": format!("com.amazonaws.sesv2#{kind}"), "Message": words}).to_string(),
        );
        for answer in [by_header, by_body] {
            assert_eq!(brief(&outcome(&answer, &m, now())), *want, "{status} {kind} {words}");
        }
    }
    let ok = r#"{"MessageId":"0102018f-6d5e-000000"}"#;
    assert_eq!(outcome(&answer(200, &[], ok), &m, now()), Outcome::accepted(Some("0102018f-6d5e-000000".into())));
    strangers(|answer| outcome(answer, &m, now()));
}

#[test]
fn what_is_waited_for_and_what_is_found_at_fault() {
    let of = |status, kind: &str, words: &str, m: &Message| {
        outcome(&answer(status, &[("x-amzn-errortype", kind)], json!({"message": words}).to_string()), m, now())
    };
    let m = message(json!({}));
    let quota = of(429, "TooManyRequestsException", "Daily message quota exceeded.", &m);
    assert_eq!(brief(&quota), "throttled daily_quota_exceeded 600s");
    assert_eq!(gone(&of(400, "BadRequestException", "Illegal address: <V@y.org>", &m)), ["v@y.org"]);
    let template = message(json!({"subject": null, "text": null, "template": {"id": "t"}}));
    let missing = of(404, "NotFoundException", "Template t does not exist", &template);
    assert_eq!(brief(&missing), "rejected_message template_not_found");
}
