//! What strangers and broken clients get.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use paceline_control::feedback::{MAX_BODY_BYTES, MAX_EVENTS, Scheme};

use crate::stage::Stage;

#[tokio::test]
async fn bodies_and_batches_are_bounded() {
    let accounts = [("mailgun", Scheme::mailgun("key")), ("sparkpost", Scheme::sparkpost("jo", "pw").unwrap())];
    let stage = Stage::start(accounts, None).await;
    let authorization = format!("Basic {}", STANDARD.encode("jo:pw"));
    let authorized = [("Authorization", authorization.as_str())];

    assert_eq!(stage.post("mailgun", &[], &vec![b' '; MAX_BODY_BYTES + 1]).await, 413);
    assert_eq!(stage.refused("mailgun", "too_large").await, 1);
    // Of any length, as far as its sender says.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let endless =
        "POST /v1/feedback/mailgun HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let answer = stage.exchange((endless + &chunk.repeat(20)).as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(stage.refused("mailgun", "too_large").await, 2);

    let many = format!("[{}1]", "1,".repeat(MAX_EVENTS));
    assert_eq!(stage.post("sparkpost", &authorized, many.as_bytes()).await, 413);
    let nested = "[".repeat(MAX_BODY_BYTES);
    assert_eq!(stage.post("sparkpost", &authorized, nested.as_bytes()).await, 400);
    assert_eq!(stage.post("mailgun", &[], nested.as_bytes()).await, 401);
    let objects = format!("[{}1]", r#"{"msys":{"message_event":{"type":{"a":[{}]}}}},"#.repeat(5_000));
    assert_eq!(stage.post("sparkpost", &authorized, objects.as_bytes()).await, 200);
    assert_eq!((stage.counted("sparkpost", "ignored").await, stage.counted("sparkpost", "unreadable").await), (5_000, 1));
    stage.end().await;
}

#[tokio::test]
async fn strangers_learn_nothing_of_accounts() {
    let stage = Stage::start([("main", Scheme::mailgun("key"))], None).await;
    for path in ["other", "main%00", "..%2fmain", "MAIN", &"x".repeat(4000)] {
        assert_eq!(stage.post(path, &[], b"{}").await, 404, "{path}");
    }
    assert_eq!(stage.refused("", "unknown_account").await, 5);
    let get = b"GET /v1/feedback/main HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(stage.exchange(get).await.starts_with("HTTP/1.1 405 "));
    assert!(!stage.metrics().await.contains("account=\"other\""), "no label is a stranger's");
    stage.end().await;
}
