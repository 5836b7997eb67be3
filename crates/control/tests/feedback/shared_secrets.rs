//! Postmark and SparkPost, which show a user name and a password.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_control::feedback::Scheme;
use paceline_core::feedback::Kind;

use crate::stage::Stage;

const POSTMARK: &[u8] = br#"{"RecordType":"Bounce","ID":42,"Type":"HardBounce","MessageID":"m1","Email":"jo@gmail.com",
    "Metadata":{"paceline_id":"order-1"},"Details":"smtp;550 5.1.1 unknown","BouncedAt":"2026-01-15T07:00:00Z"}"#;
const SPARKPOST: &[u8] =
    br#"[{"msys":{"message_event":{"type":"delay","event_id":"e1","transmission_id":"t1","rcpt_to":"jo@gmail.com",
    "rcpt_meta":{"paceline_id":"order-1"},"error_code":"421","raw_reason":"421 4.7.0 later"}}},{"msys":{}}]"#;

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}

#[tokio::test]
async fn who_shows_the_credentials_is_taken_and_nobody_else() {
    let accounts = [
        ("postmark", Scheme::postmark("events", "s3cret").unwrap()),
        ("sparkpost", Scheme::sparkpost("events", "s3cret").unwrap()),
    ];
    let stage = Stage::start(accounts, None).await;
    let mut expected = 0;
    for (account, body, kind, label) in
        [("postmark", POSTMARK, Kind::HardBounce, "hard_bounce"), ("sparkpost", SPARKPOST, Kind::Deferred, "deferred")]
    {
        for _ in 0..2 {
            assert_eq!(stage.post(account, &[("Authorization", &basic("events:s3cret"))], body).await, 200);
        }
        expected += 1;
        let events = stage.events(expected).await;
        let event = &events.last().unwrap().event;
        assert_eq!((event.kind, event.account.as_str()), (kind, account));
        assert_eq!((stage.counted(account, label).await, stage.counted(account, "duplicate").await), (1, 1));

        for (what, header, why) in [
            ("another password", Some(basic("events:s3cres")), "signature"),
            ("another name", Some(basic("event:s3cret")), "signature"),
            ("a longer password", Some(basic("events:s3cret ")), "signature"),
            ("no password", Some(basic("events")), "signature"),
            ("no base64", Some("Basic %%%".to_owned()), "signature"),
            ("another scheme", Some("Bearer s3cret".to_owned()), "unsigned"),
            ("nothing", None, "unsigned"),
        ] {
            let before = stage.refused(account, why).await;
            let headers: Vec<_> = header.iter().map(|value| ("Authorization", value.as_str())).collect();
            assert_eq!(stage.post(account, &headers, body).await, 401, "{account}: {what}");
            assert_eq!(stage.refused(account, why).await, before + 1, "{account}: {what}");
        }
    }
    assert_eq!(stage.counted("sparkpost", "ignored").await, 2);
    // Twice in one batch is once too often.
    let one = std::str::from_utf8(SPARKPOST).unwrap().trim_matches(['[', ']']).replace("e1", "e2");
    assert_eq!(
        stage.post("sparkpost", &[("Authorization", &basic("events:s3cret"))], format!("[{one},{one}]").as_bytes()).await,
        200
    );
    assert_eq!((stage.counted("sparkpost", "deferred").await, stage.counted("sparkpost", "duplicate").await), (2, 2));
    let request = "POST /v1/feedback/postmark HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let answer = stage.exchange(request.as_bytes()).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 401 ") && answer.contains("\r\nwww-authenticate: basic realm="), "{answer}");
    stage.events(3).await;
    stage.end().await;
}
