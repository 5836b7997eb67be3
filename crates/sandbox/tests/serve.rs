//! The sandbox over real sockets: each behaviour that a scenario or an address can ask for.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use paceline_sandbox::{Handle, Options, Sandbox, Scenario, Stats};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SENDGRID: &str = "/v3/mail/send";

async fn sandbox(toml: &str) -> Handle {
    let scenario = Scenario::from_toml(toml).unwrap();
    Sandbox::start(Options { scenario, ..Options::default() }).await.unwrap()
}

/// What came back: status 0 where the connection was closed without an answer.
#[derive(Debug, Default, PartialEq)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name))).map(|(_, v)| v)
    }
}

async fn call(stream: &mut TcpStream, method: &str, path: &str, headers: &str, body: &[u8]) -> Got {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: sandbox\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    // A connection that is closed early may refuse the rest of the request: that is no answer either.
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let got = Got { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() };
            let length: usize = got.header("content-length").map_or(0, |l| l.parse().unwrap());
            if body.len() >= length {
                return got;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return Got::default(),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

async fn post(sandbox: &Handle, path: &str, headers: &str, body: &str) -> Got {
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    call(&mut stream, "POST", path, headers, body.as_bytes()).await
}

fn sendgrid(id: &str, to: &str) -> String {
    format!(
        r#"{{"personalizations":[{{"to":[{{"email":"{to}"}}]}}],"from":{{"email":"s@b.org"}},"custom_args":{{"paceline_id":"{id}","class":"low"}},"subject":"Hi","content":[{{"type":"text/plain","value":"t"}}]}}"#
    )
}

fn http(id: &str, to: &str) -> String {
    format!(r#"{{"id":"{id}","class":"high","from":"s@b.org","to":["{to}"],"text":"t"}}"#)
}

/// Statuses of `n` attempts at one message.
async fn attempts(sandbox: &Handle, id: &str, to: &str, n: usize) -> Vec<u16> {
    let mut out = Vec::new();
    for _ in 0..n {
        out.push(post(sandbox, SENDGRID, "", &sendgrid(id, to)).await.status);
    }
    out
}

#[tokio::test]
async fn sendgrid_and_http_are_accepted_in_their_own_forms() {
    let sandbox = sandbox("").await;
    let got = post(&sandbox, "/any/prefix/v3/mail/send", "", &sendgrid("m-1", "u@gmail.com")).await;
    assert_eq!((got.status, got.header("x-message-id"), got.body.as_str()), (202, Some("sandbox-1"), ""));
    let got = post(&sandbox, "/send", "", &http("m-2", "u@Gmail.com")).await;
    assert_eq!((got.status, got.body.as_str()), (200, r#"{"id":"sandbox-2"}"#));
    let stats = sandbox.stop().await;
    assert_eq!((stats.requests, stats.accepted, stats.accepted_recipients, stats.refused), (2, 2, 2, 0));
    assert_eq!(stats.by_status, [(200, 1), (202, 1)].into());
}

#[tokio::test]
async fn keys_are_checked_where_the_scenario_names_them() {
    let sandbox = sandbox("api_key = [\"one\", \"two\"]").await;
    let body = sendgrid("m-1", "u@x.org");
    for (headers, want) in [
        ("", 401),
        ("Authorization: Bearer three\r\n", 401),
        ("Authorization: Bearer two\r\n", 202),
        ("Authorization: one\r\n", 202),
    ] {
        assert_eq!(post(&sandbox, SENDGRID, headers, &body).await.status, want, "{headers}");
    }
    assert!(post(&sandbox, SENDGRID, "", &body).await.body.contains("authorization grant is invalid"));
}

#[tokio::test]
async fn malformed_requests_are_refused_with_the_field() {
    let sandbox = sandbox("").await;
    for (path, body, field) in [
        (SENDGRID, "{".to_owned(), "no JSON"),
        (SENDGRID, "{}".to_owned(), r#""field":"personalizations""#),
        (SENDGRID, sendgrid("m", "nonsense"), r#""field":"personalizations.0.to.0.email""#),
        (SENDGRID, sendgrid("m", "u@x.org").replace("s@b.org", ""), r#""field":"from.email""#),
        (SENDGRID, sendgrid("m", "u@x.org").replace("Hi", ""), r#""field":"subject""#),
        (SENDGRID, sendgrid("m", "u@x.org").replace("content", "c"), r#""field":"content""#),
        ("/send", http("m", "u@x.org").replace("\"to\"", "\"ot\""), "to: "),
        ("/send", http("m", "u@x.org").replace("text", "tetx"), "content: "),
    ] {
        let got = post(&sandbox, path, "", &body).await;
        assert!(got.status == 400 && got.body.contains(field), "{body}: {got:?}");
    }
    assert_eq!(sandbox.stats().accepted, 0);
}

#[tokio::test]
async fn by_address() {
    let sandbox = sandbox("").await;
    assert_eq!(attempts(&sandbox, "a", "sandbox+503x2+_user7@x.org", 4).await, [503, 503, 202, 202]);
    assert_eq!(attempts(&sandbox, "b", "sandbox+503x2@x.org", 1).await, [503], "counted by message");
    assert_eq!(attempts(&sandbox, "c", "sandbox+503@x.org", 3).await, [503, 503, 503]);
    assert_eq!(
        attempts(&sandbox, "d", "sandbox+throttle+reject+drop+unavailable+accept@x.org", 6).await,
        [429, 400, 0, 503, 202, 202]
    );
    assert_eq!(attempts(&sandbox, "e", "sandbox+hagn@x.org", 1).await, [400]);
    let got = post(&sandbox, SENDGRID, "", &sendgrid("f", "sandbox+throttle-5s@x.org")).await;
    assert_eq!((got.status, got.header("retry-after"), got.header("x-ratelimit-reset").is_some()), (429, Some("5"), true));
    let got = post(&sandbox, "/send", "", &http("g", "sandbox+throttle-5s@x.org")).await;
    assert!(got.body.contains(r#""outcome":"throttled""#) && got.body.contains(r#""retry_after_s":5.0"#), "{got:?}");
    let got = post(&sandbox, "/send", "", &http("h", "sandbox+reject@x.org")).await;
    assert!(got.status == 422 && got.body.contains(r#""recipients":["sandbox+reject@x.org"]"#), "{got:?}");
}

#[tokio::test]
async fn time_is_taken_where_it_is_asked_for() {
    let sandbox = sandbox("[[rule]]\ndomain = \"late.org\"\ndelay = [\"200ms\", \"300ms\"]").await;
    for (to, least) in [("sandbox+delay-200ms@x.org", 200), ("sandbox+slow-200ms@x.org", 200), ("u@late.org", 200)] {
        let begun = Instant::now();
        assert_eq!(post(&sandbox, SENDGRID, "", &sendgrid("m", to)).await.status, 202, "{to}");
        assert!(begun.elapsed() >= Duration::from_millis(least), "{to}");
    }
    let got = post(&sandbox, "/send", "", &http("m", "sandbox+slow-10ms@x.org")).await;
    assert_eq!(got.body.trim_end(), r#"{"id":"sandbox-4"}"#);
}

#[tokio::test]
async fn hanging_and_dropping() {
    let toml = r#"
        [[rule]]
        path = "/unread/*"
        then = "drop-unread"
        [[rule]]
        to = "lost@*"
        then = "drop"
        accepted = false
    "#;
    let sandbox = sandbox(toml).await;
    let begun = Instant::now();
    assert_eq!(attempts(&sandbox, "a", "sandbox+hang-200ms@x.org", 1).await, [0]);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(attempts(&sandbox, "b", "sandbox+drop@x.org", 1).await, [0]);
    assert_eq!(attempts(&sandbox, "c", "lost@x.org", 1).await, [0]);
    assert_eq!(post(&sandbox, "/unread/v3/mail/send", "", &sendgrid("d", "u@x.org")).await.status, 0);
    // One that hangs for good is let go when the sandbox stops.
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let hanging = tokio::spawn(async move {
        let body = sendgrid("e", "sandbox+hang@x.org");
        call(&mut stream, "POST", SENDGRID, "", body.as_bytes()).await
    });
    while sandbox.stats().hung < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stats = sandbox.stop().await;
    assert_eq!(hanging.await.unwrap().status, 0);
    assert_eq!((stats.requests, stats.accepted, stats.hung, stats.dropped), (4, 3, 2, 3));
}

#[tokio::test]
async fn rules_by_order_attempt_turn_and_sender() {
    let toml = r#"
        [[rule]]
        domain = "flaky.org"
        then = "503"
        fail_times = 2
        [[rule]]
        domain = "each.org"
        then = "503"
        fail_times = 1
        per = "recipient"
        [[rule]]
        to = "second@*"
        attempt = 2
        answer = { status = 418, headers = { X-Own = "1" }, body = "tea" }
        [[rule]]
        from = "*@nobody.org"
        then = "403"
        [[rule]]
        class = "low"
        domain = "turns.org"
        every = 3
        then = "500"
        [[rule]]
        domain = "script.org"
        then = ["503x2", "429", "accept"]
    "#;
    let sandbox = sandbox(toml).await;
    assert_eq!(attempts(&sandbox, "a", "u@FLAKY.org", 3).await, [503, 503, 202]);
    assert_eq!(attempts(&sandbox, "b", "u@flaky.org", 1).await, [503]);
    assert_eq!(attempts(&sandbox, "a", "u@each.org", 2).await, [503, 202]);
    assert_eq!(attempts(&sandbox, "b", "u@each.org", 1).await, [202]);
    assert_eq!(attempts(&sandbox, "c", "second@x.org", 3).await, [202, 418, 202]);
    assert_eq!(attempts(&sandbox, "t", "u@turns.org", 6).await, [202, 202, 500, 202, 202, 500]);
    assert_eq!(attempts(&sandbox, "s", "u@script.org", 5).await, [503, 503, 429, 202, 202]);
    let own = post(&sandbox, SENDGRID, "", &sendgrid("m", "u@x.org").replace("b.org", "nobody.org")).await;
    assert_eq!(own.status, 403);
}

#[tokio::test]
async fn limits_per_account_and_domain() {
    let toml = r#"
        [[limit]]
        per = "account"
        rate = "1/h"
        burst = 4
        retry_after = "7s"
        [[limit]]
        per = "domain"
        domain = "gmail.com"
        rate = "1/h"
        burst = 2
    "#;
    let sandbox = sandbox(toml).await;
    let go = async |key: &str, to: &str| {
        let got = post(&sandbox, SENDGRID, &format!("Authorization: Bearer {key}\r\n"), &sendgrid("m", to)).await;
        (got.status, got.header("retry-after").map(str::to_owned))
    };
    let ok = (202, None);
    assert_eq!(go("a", "u@gmail.com").await, ok);
    assert_eq!(go("a", "u@GMAIL.com").await, ok);
    assert_eq!(go("a", "u@gmail.com").await, (429, None), "the domain's");
    assert_eq!(go("a", "u@x.org").await, ok);
    assert_eq!(go("a", "u@x.org").await, (429, Some("7".into())), "the account's");
    assert_eq!(go("b", "u@x.org").await, ok);
    assert_eq!(go("b", "u@gmail.com").await, (429, None), "another account, the same domain");
    let got = post(&sandbox, "/send", "", &http("m", "u@gmail.com")).await;
    assert!(got.body.contains(r#""scope":"destination""#), "{got:?}");
}

#[tokio::test]
async fn an_idempotency_key_is_carried_out_once() {
    let sandbox = sandbox("").await;
    let key = "Idempotency-Key: k-1\r\n";
    let first = post(&sandbox, "/send", key, &http("m", "u@x.org")).await;
    let again = post(&sandbox, "/send", key, &http("m", "u@x.org")).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    post(&sandbox, SENDGRID, key, &sendgrid("m", "u@x.org")).await;
    let stats = sandbox.stats();
    assert_eq!((stats.requests, stats.accepted, stats.duplicates), (3, 2, 1));
}

#[tokio::test]
async fn arrivals_are_written_and_can_be_reset() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arrivals.ndjson");
    let options = Options { arrivals: Some(path.clone()), ..Options::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    call(&mut stream, "POST", SENDGRID, "", sendgrid("early", "u@x.org").as_bytes()).await;
    assert_eq!(call(&mut stream, "DELETE", "/sandbox/arrivals", "", b"").await.status, 200);
    assert_eq!(sandbox.stats(), Stats::default());
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    let key = "Authorization: Bearer k\r\n";
    call(&mut stream, "POST", "/eu/v3/mail/send", key, sendgrid("m-\\u00fc1", "u@gmail.com").as_bytes()).await;
    call(&mut stream, "POST", "/send", "", http("m-2", "sandbox+503@y.org").as_bytes()).await;
    call(&mut stream, "POST", "/send", "Idempotency-Key: k-3\r\n", b"nonsense").await;
    call(&mut stream, "POST", "/send", "", http("m-4", "sandbox+drop@y.org").as_bytes()).await;
    let stats = sandbox.stop().await;
    assert_eq!((stats.requests, stats.arrivals_lost), (4, 0));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let brief: Vec<_> = lines
        .iter()
        .map(|l| {
            format!(
                "{} {} {} {} {} {} {} {} {}",
                l["seq"], l["id"], l["api"], l["domain"], l["class"], l["recipients"], l["status"], l["accepted"], l["result"]
            )
        })
        .collect();
    assert_eq!(
        brief,
        [
            r#"1 "m-ü1" "sendgrid" "gmail.com" "low" 1 202 true "accepted""#,
            r#"2 "m-2" "http" "y.org" "high" 1 503 false "refused""#,
            r#"3 "k-3" "http" "" null 0 400 false "refused""#,
            r#"4 "m-4" "http" "y.org" "high" 1 null true "dropped""#,
        ]
    );
    assert_eq!((lines[0]["path"].as_str(), lines[1]["account"].as_str()), (Some("/eu/v3/mail/send"), Some("none")));
    assert_ne!(lines[0]["account"], "none");
    let times: Vec<_> = lines.iter().map(|l| u128::from(l["at_us"].as_u64().unwrap())).collect();
    assert!(times[0] >= before && times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn the_scenario_can_change_under_way() {
    let sandbox = sandbox("").await;
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let mut put = async |toml: &str| call(&mut stream, "PUT", "/sandbox/scenario", "", toml.as_bytes()).await;
    assert_eq!(put("[[rule]]\nthen = \"503\"").await.status, 200);
    assert_eq!(attempts(&sandbox, "m", "u@x.org", 1).await, [503]);
    let refused = put("[[rule]]\nthen = \"5o3\"\n").await;
    assert!(refused.status == 400 && refused.body.starts_with("line 2, column 8: rule 1: then: `5o3`"), "{refused:?}");
    assert_eq!(attempts(&sandbox, "m", "u@x.org", 1).await, [503]);
    sandbox.set_scenario(Scenario::default());
    assert_eq!(attempts(&sandbox, "m", "u@x.org", 1).await, [202]);
    let stats = call(&mut stream, "GET", "/sandbox/stats", "", b"").await.body;
    assert!(stats.contains(r#""requests":3"#) && stats.contains(r#""503":2"#), "{stats}");
    assert_eq!(call(&mut stream, "GET", "/", "", b"").await.status, 405);
    assert_eq!(call(&mut stream, "GET", "/sandbox/nothing", "", b"").await.status, 404);
}

#[tokio::test]
async fn large_bodies_are_read_to_the_end_and_known_by_their_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arrivals.ndjson");
    let sandbox = Sandbox::start(Options { arrivals: Some(path.clone()), ..Options::default() }).await.unwrap();
    for (n, megabytes) in [(1, 9), (2, 31)] {
        let body = sendgrid("big", "u@x.org").replace(r#""value":"t""#, &format!(r#""value":"{}""#, "x".repeat(megabytes << 20)));
        let status = post(&sandbox, SENDGRID, "", &body).await.status;
        assert_eq!(status, if n == 1 { 202 } else { 413 });
    }
    sandbox.stop().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((line["id"].as_str(), line["recipients"].as_u64()), (Some("big"), Some(1)));
    assert!(line["bytes"].as_u64().unwrap() > 9 << 20);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let first = sandbox("").await;
    let taken = Sandbox::start(Options { listen: Some(first.addr()), ..Options::default() }).await.unwrap_err();
    assert!(taken.to_string().contains(&first.addr().to_string()), "{taken}");
    let nowhere = Options { arrivals: Some("/nonexistent/arrivals".into()), ..Options::default() };
    assert!(Sandbox::start(nowhere).await.unwrap_err().to_string().contains("/nonexistent/arrivals"));
}

/// For each API that wants its caller to show a credential: path, headers that do, a message, its id, and its answers to
/// acceptance, refusal of the recipient, a rate, an error of its own and a caller without credentials.
struct Spoken {
    path: &'static str,
    headers: String,
    body: fn(&str, &str) -> String,
    accepted: (u16, &'static str),
    rejected: (u16, &'static str),
    throttled: (u16, &'static str),
    unavailable: (u16, &'static str),
    stranger: (u16, &'static str),
}

fn spoken() -> [Spoken; 5] {
    let signature = format!(
        "Authorization: AWS4-HMAC-SHA256 Credential=AKID/20260102/eu-west-1/ses/aws4_request, \
         SignedHeaders=content-type;host;x-amz-date, Signature={}\r\nX-Amz-Date: 20260102T030405Z\r\n",
        "0f".repeat(32)
    );
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    [
        Spoken {
            path: "/eu/v2/email/outbound-emails",
            headers: signature,
            body: |id, to| {
                format!(
                    r#"{{"FromEmailAddress":"s@b.org","Destination":{{"ToAddresses":["{to}"]}},"EmailTags":[{{"Name":"paceline_id","Value":"{id}"}}],
                    "Content":{{"Simple":{{"Subject":{{"Data":"Hi"}},"Body":{{"Text":{{"Data":"t"}}}}}}}}}}"#
                )
            },
            accepted: (200, r#"{"MessageId":"0102000000000000-"#),
            rejected: (400, r#"{"message":"Illegal address: sandbox+reject"#),
            throttled: (429, "Maximum sending rate exceeded."),
            unavailable: (503, r#"{"message":"Service Unavailable"}"#),
            stranger: (403, "Missing Authentication Token"),
        },
        Spoken {
            path: "/email",
            headers: "X-Postmark-Server-Token: t-1\r\n".to_owned(),
            body: |id, to| format!(r#"{{"From":"s@b.org","To":"{to}","TextBody":"t","Metadata":{{"paceline_id":"{id}"}}}}"#),
            accepted: (200, r#""ErrorCode":0"#),
            rejected: (422, r#"{"ErrorCode":406,"#),
            throttled: (429, r#"{"ErrorCode":429,"#),
            unavailable: (503, r#"{"ErrorCode":100,"#),
            stranger: (401, r#"{"ErrorCode":10,"#),
        },
        Spoken {
            path: "/v3/mg.b.org/messages",
            headers: format!("Authorization: Basic YXBpOmtleS0x\r\n{form}"),
            body: |id, to| format!("from=s@b.org&to={}&text=t&v:paceline_id={id}", to.replace('+', "%2B")),
            accepted: (200, r#"Queued. Thank you."#),
            rejected: (400, "'to' parameter is not a valid address"),
            throttled: (429, "request limit exceeded, try again after "),
            unavailable: (503, r#"{"message":"Service Unavailable"}"#),
            stranger: (401, "Forbidden"),
        },
        Spoken {
            path: "/emails",
            headers: "Authorization: Bearer re_1\r\n".to_owned(),
            body: |id, to| {
                format!(
                    r#"{{"from":"s@b.org","to":["{to}"],"subject":"Hi","text":"t","tags":[{{"name":"paceline_id","value":"{id}"}}]}}"#
                )
            },
            accepted: (200, r#"{"id":"5a4db0c5-"#),
            rejected: (422, r#""name":"validation_error""#),
            throttled: (429, r#""name":"rate_limit_exceeded""#),
            unavailable: (503, r#""name":"service_unavailable""#),
            stranger: (401, r#""name":"missing_api_key""#),
        },
        Spoken {
            path: "/api/v1/transmissions",
            headers: "Authorization: key-1\r\n".to_owned(),
            body: |id, to| {
                format!(
                    r#"{{"recipients":[{{"address":{{"email":"{to}"}}}}],"content":{{"from":"s@b.org","subject":"Hi","text":"t"}},"metadata":{{"paceline_id":"{id}"}}}}"#
                )
            },
            accepted: (200, r#""total_accepted_recipients":1"#),
            rejected: (400, r#""code":"5002""#),
            throttled: (429, "Too many requests"),
            unavailable: (503, "Service Unavailable"),
            stranger: (401, "Unauthorized."),
        },
    ]
}

#[tokio::test]
async fn every_api_answers_in_its_own_form() {
    let sandbox = sandbox("").await;
    for Spoken { path, headers, body, accepted, rejected, throttled, unavailable, stranger } in spoken() {
        for (to, headers, (status, words)) in [
            ("u@gmail.com", headers.as_str(), accepted),
            ("sandbox+reject@x.org", &headers, rejected),
            ("sandbox+throttle-7s@x.org", &headers, throttled),
            ("sandbox+503@x.org", &headers, unavailable),
            ("u@gmail.com", "Content-Type: application/x-www-form-urlencoded\r\n", stranger),
        ] {
            let got = post(&sandbox, path, headers, &body("m-1", to)).await;
            assert!(got.status == status && got.body.contains(words), "{path} {to}: {got:?}");
            assert_eq!(got.header("retry-after"), (status == 429).then_some("7"), "{path} {to}");
        }
        let mut statuses = Vec::new();
        for _ in 0..3 {
            // Another API's message of this id would have been counted along.
            let message = body(&path.replace('/', "-"), "sandbox+503x2@x.org");
            statuses.push(post(&sandbox, path, &headers, &message).await.status);
        }
        assert_eq!(statuses, [503, 503, 200], "{path}: the id is found");
    }
    let stats = sandbox.stop().await;
    assert_eq!((stats.requests, stats.accepted, stats.accepted_recipients), (40, 10, 10));
}

#[tokio::test]
async fn keys_of_every_api_are_checked_where_the_scenario_names_them() {
    let sandbox = sandbox("api_key = [\"AKID\", \"t-1\", \"key-1\", \"re_1\"]").await;
    for Spoken { path, headers, body, accepted: (status, _), .. } in spoken() {
        assert_eq!(post(&sandbox, path, &headers, &body("m-1", "u@x.org")).await.status, status, "{path}");
    }
    sandbox.set_scenario(Scenario::from_toml("api_key = \"another\"").unwrap());
    for Spoken { path, headers, body, stranger: (status, _), .. } in spoken() {
        assert_eq!(post(&sandbox, path, &headers, &body("m-1", "u@x.org")).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn resend_knows_a_key_by_its_request() {
    let sandbox = sandbox("").await;
    let headers = "Authorization: Bearer re_1\r\nIdempotency-Key: k-1\r\n";
    let body = r#"{"from":"s@b.org","to":["u@x.org"],"subject":"Hi","text":"t"}"#;
    let first = post(&sandbox, "/emails", headers, body).await;
    let again = post(&sandbox, "/emails", headers, body).await;
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    let other = post(&sandbox, "/emails", headers, &body.replace("Hi", "Ho")).await;
    assert!(other.status == 409 && other.body.contains("invalid_idempotent_request"), "{other:?}");
    let stats = sandbox.stats();
    assert_eq!((stats.accepted, stats.duplicates, stats.refused), (1, 1, 1));
}

#[tokio::test]
async fn batches_are_answered_message_by_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arrivals.ndjson");
    let sandbox = Sandbox::start(Options { arrivals: Some(path.clone()), ..Options::default() }).await.unwrap();
    let [_, postmark, _, resend, _] = spoken();
    let batch = |s: &Spoken, to: &[&str]| {
        let all: Vec<_> = to.iter().enumerate().map(|(i, to)| (s.body)(&format!("m-{i}"), to)).collect();
        format!("[{}]", all.join(","))
    };
    let to = ["u@x.org", "sandbox+reject@x.org", "v@x.org"];
    let got = post(&sandbox, "/email/batch", &postmark.headers, &batch(&postmark, &to)).await;
    let codes: Vec<_> = serde_json::from_str::<serde_json::Value>(&got.body)
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["ErrorCode"].clone())
        .collect();
    assert_eq!((got.status, codes), (200, vec![0.into(), 406.into(), 0.into()]));
    let stats = sandbox.stats();
    assert_eq!((stats.requests, stats.accepted, stats.refused), (3, 2, 1));
    // A rate is the caller's: nobody is sent anything.
    let got = post(&sandbox, "/email/batch", &postmark.headers, &batch(&postmark, &["u@x.org", "sandbox+throttle@x.org"])).await;
    assert_eq!((got.status, sandbox.stats().accepted), (429, 2));
    let templates = format!("{{\"Messages\":{}}}", batch(&postmark, &["u@x.org"]));
    assert_eq!(post(&sandbox, "/email/batchWithTemplates", &postmark.headers, &templates).await.status, 200);
    for body in ["[]".to_owned(), batch(&postmark, &["u@x.org"; 501])] {
        assert!(post(&sandbox, "/email/batch", &postmark.headers, &body).await.body.contains("\"ErrorCode\":410"));
    }
    let bad = post(&sandbox, "/email/batch", &postmark.headers, &(postmark.body)("m", "u@x.org")).await;
    assert_eq!(bad.status, 422, "one message is no batch");
    let strict = post(&sandbox, "/emails/batch", &resend.headers, &batch(&resend, &to)).await;
    assert_eq!((strict.status, sandbox.stats().accepted), (422, 3), "all or nobody");
    let headers = format!("{}X-Batch-Validation: permissive\r\nIdempotency-Key: k-1\r\n", resend.headers);
    let got = post(&sandbox, "/emails/batch", &headers, &batch(&resend, &to)).await;
    let json: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!((json["data"].as_array().unwrap().len(), json["errors"][0]["index"].as_u64()), (2, Some(1)));
    let again = post(&sandbox, "/emails/batch", &headers, &batch(&resend, &to)).await;
    assert_eq!((again.body, sandbox.stats().accepted), (got.body, 5), "a key is the batch's");
    assert_eq!(
        post(&sandbox, "/emails/batch", &resend.headers, &batch(&resend, &["sandbox+drop@x.org", "u@x.org"])).await.status,
        0
    );
    let stats = sandbox.stop().await;
    assert_eq!((stats.accepted, stats.dropped), (7, 1), "what was dropped had been taken");
    let text = std::fs::read_to_string(&path).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((first["api"].as_str(), first["id"].as_str(), first["seq"].as_u64()), (Some("postmark"), Some("m-0"), Some(1)));
}

#[tokio::test]
async fn a_batch_counts_whole_whatever_its_size() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let [_, postmark, ..] = spoken();
    let to = format!("{}@x.org", "u".repeat(1_000));
    let all: Vec<_> = (0..500).map(|i| (postmark.body)(&format!("m-{i}"), &to)).collect();
    let got = post(&sandbox, "/email/batch", &postmark.headers, &format!("[{}]", all.join(","))).await;
    assert_eq!((got.status, sandbox.stats().accepted), (200, 500));
}
