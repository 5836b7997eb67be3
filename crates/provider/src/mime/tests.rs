use mail_parser::{MessageParser, MimeHeaders};

use super::*;

const DATE: Timestamp = Timestamp::from_secs(1_800_000_000);

fn message(extra: &str) -> Message {
    let body = format!(r#"{{"id":"m:1","from":{{"email":"s@b.org","name":"Zoë, S"}},"to":["u@x.org"],{extra}}}"#);
    Message::parse(body.as_bytes(), None, 1 << 20).unwrap()
}

fn mail(extra: &str) -> String {
    let bytes = build(&message(extra), DATE).unwrap();
    assert!(bytes.ends_with(b"\r\n") && !bytes.windows(2).any(|w| w[0] != b'\r' && w[1] == b'\n'), "LF alone");
    assert!(!bytes.windows(2).any(|w| w[0] == b'\r' && w[1] != b'\n'), "CR alone");
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_plain_mail_in_full() {
    let text = r#""subject":"Hi","text":"Hello\n.\nbye\n","bcc":["hidden@x.org"],"cc":["c@x.org"],"tags":["t"],"metadata":{"k":"v"},"headers":{"List-Id":"<a.b>"}"#;
    let want = "Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n\
        From: =?utf-8?b?Wm/DqywgUw==?= <s@b.org>\r\n\
        To: u@x.org\r\n\
        Cc: c@x.org\r\n\
        Subject: Hi\r\n\
        Message-ID: <m=3A1@b.org>\r\n\
        List-Id: <a.b>\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=utf-8\r\n\
        Content-Transfer-Encoding: 7bit\r\n\r\n\
        Hello\r\n.\r\nbye\r\n";
    assert_eq!(mail(text), want);
}

#[test]
fn layers_only_where_they_hold_something() {
    let image = r#"{"filename":"i.png","content_type":"image/png","content":"aGk=","content_id":"<logo>"}"#;
    let file = r#"{"filename":"Übersicht \"1\".pdf","content_type":"application/pdf","content":"aGk="}"#;
    let kinds = |extra: &str| {
        let mail = mail(extra);
        let mut kinds: Vec<String> = Vec::new();
        for line in mail.lines().filter_map(|l| l.strip_prefix("Content-Type: ")) {
            kinds.push(line.split(';').next().unwrap().to_owned());
        }
        kinds.join(" ")
    };
    for (extra, want) in [
        (r#""html":"h""#.to_owned(), "text/html"),
        (r#""text":"t","html":"h""#.to_owned(), "multipart/alternative text/plain text/html"),
        (format!(r#""html":"h","attachments":[{image}]"#), "multipart/related text/html image/png"),
        (format!(r#""text":"t","attachments":[{image}]"#), "multipart/mixed text/plain image/png"),
        (
            format!(r#""text":"t","html":"h","attachments":[{file},{image}]"#),
            "multipart/mixed multipart/alternative text/plain multipart/related text/html image/png application/pdf",
        ),
    ] {
        assert_eq!(kinds(&extra), want);
    }
    let mail = mail(&format!(r#""text":"t","html":"h","attachments":[{file},{image}]"#));
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let names: Vec<_> = parsed.attachments().map(|a| (a.attachment_name().unwrap(), a.content_id(), a.contents())).collect();
    assert_eq!(names, [("i.png", Some("logo"), &b"hi"[..]), ("Übersicht \"1\".pdf", None, b"hi")]);
}

#[test]
fn the_same_message_gives_the_same_bytes() {
    let extra = r#""text":"t","html":"h","attachments":[{"filename":"a","content_type":"a/b","content":""}]"#;
    assert_eq!(mail(extra), mail(extra));
}

#[test]
fn ids_stay_apart() {
    let mut seen = std::collections::BTreeSet::new();
    for id in ["a", "a.b", "a..b", ".a", "a.", ".", "..", "a:b", "a-b", "a_b", "a=b"] {
        let mut message = message(r#""text":"t""#);
        message.id = id.to_owned();
        let id = message_id(&message);
        assert!(!id.contains("..") && !id.contains("<.") && !id.contains(".@"), "{id}");
        assert!(seen.insert(id));
    }
}

#[test]
fn no_text_can_end_its_part() {
    let hash = xxh3_128(b"m:1");
    let evil = format!("a\\n--=_a{hash:032x}--\\n\\n.\\r.\\n");
    let mail = mail(&format!(r#""text":"{evil}","html":"{evil}""#));
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let want = format!("a\n--=_a{hash:032x}--\n\n.\n.\n");
    assert_eq!(parsed.text_bodies().next().unwrap().text_contents().unwrap().replace("\r\n", "\n"), want);
    assert_eq!(parsed.parts.len(), 3);
}

#[test]
fn producers_may_set_date_and_message_id() {
    let mail = mail(r#""text":"t","headers":{"message-id":"<own@b.org>","Date":"Mon, 01 Jan 2029 00:00:00 +0000"}"#);
    assert_eq!(mail.matches("Date:").count() + mail.to_lowercase().matches("message-id:").count(), 2);
    assert!(mail.contains("message-id: <own@b.org>"));
}

#[test]
fn what_a_mail_cannot_carry_is_named() {
    let file = |field: &str, value: &str| {
        let mut file = serde_json::json!({"filename": "a", "content_type": "a/b", "content": ""});
        file[field] = value.into();
        format!(r#""text":"t","attachments":[{file}]"#)
    };
    for (extra, field) in [
        (r#""template":{"id":"t"}"#.to_owned(), "template"),
        (r#""text":"t","headers":{"Date":"a","date":"b"}"#.to_owned(), "headers.date"),
        (r#""text":"t","headers":{"Content-ID":"a"}"#.to_owned(), "headers.Content-ID"),
        (format!(r#""text":"t","headers":{{"X-{}":"a"}}"#, "a".repeat(999)), "headers"),
        (file("content_type", "a b/c"), "attachments[0].content_type"),
        (file("content_type", "multipart/mixed"), "attachments[0].content_type"),
        (file("content_type", &format!("a/{}", "b".repeat(300))), "attachments[0].content_type"),
        (file("content_id", "a b"), "attachments[0].content_id"),
        (file("content_id", "<>"), "attachments[0].content_id"),
    ] {
        let refused = build(&message(&extra), DATE).unwrap_err();
        assert_eq!(refused.label(), "rejected_message");
        assert!(refused.answer().unwrap().message.starts_with(&format!("{field}:")), "{field} {refused:?}");
    }
}

proptest::proptest! {
    /// Whatever text a message holds, a reader gets the same.
    #[test]
    fn any_text_comes_back(
        subject in "[ -~\u{a0}-\u{1f9ff}]{0,150}",
        name in "[ -~\u{a0}-\u{1f9ff}]{0,100}",
        filename in "[ -~\u{a0}-\u{1f9ff}]{1,150}",
        text in "[ -~\t\r\n\u{a0}-\u{1f9ff}]{0,400}",
        html in "(?s).{0,100}",
        content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
    ) {
        use base64::Engine as _;
        let body = serde_json::json!({
            "id": "m", "from": {"email": "s@b.org", "name": name}, "to": ["u@x.org"], "subject": subject, "text": text, "html": html,
            "attachments": [{
                "filename": filename, "content_type": "application/octet-stream",
                "content": base64::engine::general_purpose::STANDARD.encode(&content),
            }],
        });
        let message = Message::parse(body.to_string().as_bytes(), None, 1 << 20).unwrap();
        let mail = build(&message, DATE).unwrap();
        assert!(mail.is_ascii() && mail.split(|&b| b == b'\n').all(|line| line.len() <= 999));
        let parsed = MessageParser::default().parse(&mail).unwrap();
        assert_eq!(parsed.subject().unwrap_or_default(), subject);
        let from = parsed.from().unwrap().first().unwrap();
        assert_eq!((from.name().unwrap_or_default(), from.address()), (name.as_str(), Some("s@b.org")));
        let file = parsed.attachments().next().unwrap();
        assert_eq!((file.attachment_name(), file.contents()), (Some(filename.as_str()), &content[..]));
        let lines = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!(lines(parsed.text_bodies().next().unwrap().text_contents().unwrap()), lines(&text));
        assert_eq!(lines(parsed.html_bodies().next().unwrap().text_contents().unwrap()), lines(&html));
    }
}
