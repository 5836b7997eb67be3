//! `paceline sandbox` as a user runs it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use paceline_testkit::Launch;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn serves_until_told_to_end_and_prints_what_it_saw() {
    let dir = tempfile::tempdir().unwrap();
    let arrivals = dir.path().join("arrivals.ndjson");
    let mut sandbox = Launch::program(env!("CARGO_BIN_EXE_paceline").as_ref())
        .args(["sandbox", "--listen", "127.0.0.1:0", "--output", "json", "--arrivals"])
        .args([&arrivals])
        .spawn();
    let log = sandbox.wait_for_log(SOON, |v| v["message"] == "listening").await;
    let addr = log["addr"].as_str().unwrap().to_owned();
    let body = r#"{"id":"1","from":"a@example.com","to":["b@example.org"],"text":"x"}"#;
    let mut stream = TcpStream::connect(&addr).unwrap();
    let head = format!(
        "POST /send HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    sandbox.term();
    let finished = sandbox.finish(SOON).await;
    assert!(finished.status.success(), "{finished:?}");
    let stats: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((stats["requests"].as_u64(), stats["accepted"].as_u64()), (Some(1), Some(1)));
    assert_eq!(std::fs::read_to_string(arrivals).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn mistakes_in_a_scenario_have_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("s.toml");
    std::fs::write(&scenario, "colour = 1\n").unwrap();
    let paceline = || Launch::program(env!("CARGO_BIN_EXE_paceline").as_ref());
    let said = paceline().args(["sandbox", "--scenario"]).args([&scenario]).run(SOON).await;
    assert_eq!(said.status.code(), Some(2));
    assert!(said.stderr.contains("s.toml:1:1: "), "{said:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = paceline().args(["sandbox", "--listen", &address]).run(SOON).await;
    assert!(said.status.code() == Some(1) && said.stderr.contains("cannot listen on"), "{said:?}");
}
