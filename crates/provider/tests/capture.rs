//! Provider `capture`: files that are whole, and an envelope beside each.
#![expect(clippy::unwrap_used, reason = "a test")]

use paceline_core::{Message, Outcome};
use paceline_provider::{Attempt, HttpSettings, Settings, build};
use serde_json::Value;

fn message() -> Message {
    let body =
        br#"{"id":"m:1","from":"s@b.org","to":["u@x.org"],"bcc":["hidden@x.org"],"text":"t","tags":["a"],"metadata":{"k":"v"}}"#;
    Message::parse(body, None, 1 << 20).unwrap()
}

#[tokio::test]
async fn a_mail_and_its_envelope() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("made/on/demand");
    let provider = build(Settings::Capture { dir: inside.clone() }, &HttpSettings::default(), "t").unwrap();
    assert!(provider.idempotent());
    for _ in 0..2 {
        let outcome = provider.send(Attempt { message: &message(), idempotency_key: "m:1" }).await;
        assert_eq!(outcome, Outcome::accepted(Some("m:1".into())));
    }
    // A key that is no file name stays in the directory.
    let outcome = provider.send(Attempt { message: &message(), idempotency_key: "../../etc/x y" }).await;
    assert_eq!(outcome, Outcome::accepted(Some(".._.._etc_x_y".into())));
    let mut names: Vec<_> = std::fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".._.._etc_x_y.eml", ".._.._etc_x_y.json", "m:1.eml", "m:1.json"]);
    let mail = std::fs::read_to_string(inside.join("m:1.eml")).unwrap();
    assert!(mail.contains("\r\nTo: u@x.org\r\n") && !mail.contains("hidden"));
    let envelope: Value = serde_json::from_slice(&std::fs::read(inside.join("m:1.json")).unwrap()).unwrap();
    assert_eq!(envelope["recipients"], serde_json::json!(["u@x.org", "hidden@x.org"]));
    assert_eq!(
        (&envelope["from"], &envelope["tags"][0], &envelope["metadata"]["k"]),
        (&"s@b.org".into(), &"a".into(), &"v".into())
    );
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("mail");
    let provider = build(Settings::Capture { dir: inside.clone() }, &HttpSettings::default(), "t").unwrap();
    assert!(!inside.exists(), "made for the first mail");
    std::fs::write(&inside, "a file").unwrap();
    let outcome = provider.send(Attempt { message: &message(), idempotency_key: "m" }).await;
    assert_eq!((outcome.label(), outcome.answer().unwrap().code.as_str()), ("temporary", "not_written"));
    assert!(build(Settings::Capture { dir: inside }, &HttpSettings::default(), "t").is_err());
}
