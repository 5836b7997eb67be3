//! Provider `smtp` against a raw TCP server that behaves as oddly as servers do.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use paceline_core::{Message, Outcome, Rejected, Scope};
use paceline_provider::{Attempt, Credentials, HttpSettings, Provider, Secret, Settings, SmtpSettings, Tls, build};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What the server does when a command comes.
#[derive(Clone, Copy)]
enum Act {
    Say(&'static [u8]),
    SayAndClose(&'static str),
    Close,
    /// Says nothing any more, and reads nothing.
    Hang,
    /// Says it without waiting for the mail that was promised, and reads nothing.
    SayAndHang(&'static str),
}
use Act::{Close, Hang, Say, SayAndClose, SayAndHang};

/// What one connection does otherwise than well, by the start of the command; `220` is the greeting and `.` the end of
/// a mail. A number in front counts: `2 MAIL` is the second `MAIL`.
type Script = &'static [(&'static str, Act)];

struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    /// Every line of every connection, mails included, each connection's number in front.
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn heard(&self, start: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|line| line.split_once(' ').unwrap().1.starts_with(start)).count()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// The nth connection gets the nth script, the last one from then on.
async fn server(scripts: &'static [Script]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, most_at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (heard, now) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let out = Server {
        port,
        connections: Arc::clone(&connections),
        most_at_once: Arc::clone(&most_at_once),
        heard: Arc::clone(&heard),
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let n = connections.fetch_add(1, Ordering::SeqCst);
            let script = *scripts.get(n).or(scripts.last()).unwrap();
            let (heard, now, most) = (Arc::clone(&heard), Arc::clone(&now), Arc::clone(&most_at_once));
            tokio::spawn(async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // A client may go away at any moment.
                let _ = serve(n, stream, script, &heard).await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    out
}

const WELL: [(&str, &str); 9] = [
    ("220", "220 mx.test ESMTP\r\n"),
    ("EHLO", "250-mx.test\r\n250-PIPELINING\r\n250-AUTH LOGIN PLAIN\r\n250 SIZE 1000000\r\n"),
    ("MAIL", "250 2.1.0 Ok\r\n"),
    ("RCPT", "250 2.1.5 Ok\r\n"),
    ("DATA", "354 go on\r\n"),
    (".", "250 2.0.0 Ok: queued as Q1\r\n"),
    ("RSET", "250 2.0.0 Ok\r\n"),
    ("AUTH", "235 2.7.0 welcome\r\n"),
    ("QUIT", "221 2.0.0 Bye\r\n"),
];

async fn serve(n: usize, stream: TcpStream, script: Script, heard: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut counts = BTreeMap::new();
    let mut command = "220".to_owned();
    let mut in_mail = false;
    loop {
        let verb = command.split([' ', ':']).next().unwrap_or_default().to_owned();
        let count: &mut usize = counts.entry(verb.clone()).or_default();
        *count += 1;
        let odd = script.iter().find(|(start, _)| {
            let (nth, start) = start.split_once(' ').filter(|(nth, _)| nth.parse::<usize>().is_ok()).unwrap_or(("", start));
            command.starts_with(start) && (nth.is_empty() || nth == count.to_string())
        });
        let well = WELL.iter().find(|(start, _)| command.starts_with(start)).map_or("500 what?\r\n", |(_, say)| say);
        match odd.map_or(Say(well.as_bytes()), |(_, act)| *act) {
            Say(bytes) => stream.write_all(bytes).await?,
            SayAndClose(text) => return stream.write_all(text.as_bytes()).await,
            Close => return Ok(()),
            SayAndHang(text) => {
                stream.write_all(text.as_bytes()).await?;
                std::future::pending().await
            }
            Hang => std::future::pending().await,
        }
        in_mail = in_mail || verb == "DATA";
        if verb == "." {
            in_mail = false;
        }
        command.clear();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            heard.lock().unwrap().push(format!("{n} {}", line.trim_end()));
            if !in_mail || line == ".\r\n" {
                line.trim_end().clone_into(&mut command);
                break;
            }
        }
    }
}

fn smtp(server: &Server, change: impl FnOnce(&mut SmtpSettings)) -> Arc<dyn Provider> {
    let mut settings = SmtpSettings { port: server.port, ..SmtpSettings::new("127.0.0.1", Tls::None) };
    change(&mut settings);
    build(Settings::Smtp(settings), &HttpSettings::default(), "t").unwrap()
}

/// For servers that say nothing; only where silence is what is waited for.
fn impatient(server: &Server) -> Arc<dyn Provider> {
    let settings = SmtpSettings { port: server.port, ..SmtpSettings::new("127.0.0.1", Tls::None) };
    let http = HttpSettings { read_timeout: Duration::from_millis(400), ..HttpSettings::default() };
    build(Settings::Smtp(settings), &http, "t").unwrap()
}

fn message_to(to: &[&str]) -> Message {
    let body = serde_json::json!({"id": "m-1", "from": "s@b.org", "to": to, "subject": "Hi", "text": "one\n.two\n"});
    Message::parse(body.to_string().as_bytes(), None, 20 << 20).unwrap()
}

async fn send_to(provider: &Arc<dyn Provider>, to: &[&str]) -> Outcome {
    provider.send(Attempt { message: &message_to(to), idempotency_key: "m-1" }).await
}

async fn send(provider: &Arc<dyn Provider>) -> Outcome {
    send_to(provider, &["u@x.org"]).await
}

fn brief(outcome: &Outcome) -> String {
    format!("{} {}", outcome.label(), outcome.answer().map(|a| a.code.as_str()).unwrap_or_default()).trim_end().to_owned()
}

/// A fresh server with this script, one call.
async fn once(script: &'static [Script]) -> (String, Server) {
    let server = server(script).await;
    (brief(&send(&smtp(&server, |_| {})).await), server)
}

#[tokio::test]
async fn replies_in_odd_forms_are_understood() {
    for script in [
        &[&[(".", Say(b"250\r\n"))] as Script] as &[Script],
        &[&[("MAIL", Say(b"250\r\n")), ("RCPT", Say(b"250 \r\n")), (".", Say(b"250-\r\n250\r\n"))]],
        &[&[("220", Say(b"220-hello\n220 there\n")), ("EHLO", Say(b"250 mx\n")), (".", Say(b"250 ok\n"))]],
        &[&[("EHLO", Say(b"250-mx\r\n250-PIPELINING\r\n250 SIZE\r\n")), (".", Say(b"250 re\xe7u\r\n"))]],
        &[&[("RCPT", Say(b"251 will forward\r\n")), (".", Say(b"252 perhaps\r\n"))]],
    ] {
        let (got, server) = once(script).await;
        assert_eq!(got, "accepted");
        assert_eq!((server.heard("."), server.heard("..two")), (2, 1), "the end and one doubled dot");
    }
}

#[tokio::test]
async fn the_reply_is_kept_whole() {
    let server = server(&[&[(".", Say(b"550-5.7.26 unauthenticated\r\n550-5.7.26 mail,\r\n550 5.7.26 see help\r\n"))]]).await;
    let outcome = send(&smtp(&server, |_| {})).await;
    let answer = outcome.answer().unwrap();
    assert_eq!((answer.status, answer.message.as_str()), (Some(550), "5.7.26 unauthenticated mail, see help"));
}

#[tokio::test]
async fn lost_before_the_end_of_the_mail_is_temporary_and_after_it_uncertain() {
    for (script, want) in [
        (&[&[("220", Close)] as Script] as &[Script], "temporary connection_lost"),
        (&[&[("220", Hang)]], "temporary timeout"),
        (&[&[("220", Say(b"SSH-2.0-OpenSSH\r\n"))]], "temporary unreadable_reply"),
        (&[&[("EHLO", Close)]], "temporary connection_lost"),
        (&[&[("MAIL", Close)]], "temporary connection_lost"),
        (&[&[("RCPT", Close)]], "temporary connection_lost"),
        (&[&[("DATA", Close)]], "temporary connection_lost"),
        (&[&[("DATA", Hang)]], "temporary timeout"),
        (&[&[("DATA", Say(b"250 what mail?\r\n"))]], "temporary unexpected_reply"),
        (&[&[("DATA", Say(b"354-go\r\n3x\r\n"))]], "temporary unreadable_reply"),
        (&[&[(".", Close)]], "uncertain connection_lost"),
        (&[&[(".", Hang)]], "uncertain timeout"),
        (&[&[(".", SayAndClose("250"))]], "uncertain connection_lost"),
        (&[&[(".", SayAndClose("250-half\r\n"))]], "uncertain connection_lost"),
        (&[&[(".", Say(b"all fine\r\n"))]], "uncertain unreadable_reply"),
        (&[&[(".", Say(b"354 go on\r\n"))]], "uncertain unexpected_reply"),
        (&[&[(".", SayAndClose("421 4.3.2 closing\r\n"))]], "temporary deferred"),
        (&[&[(".", SayAndClose("451 4.3.0 try later\r\n"))]], "temporary try_later"),
    ] {
        let server = server(script).await;
        let provider = if want.ends_with("timeout") { impatient(&server) } else { smtp(&server, |_| {}) };
        assert_eq!(brief(&send(&provider).await), want);
        assert_eq!(server.connections(), 1, "{want}: called once");
    }
}

#[tokio::test]
async fn refusals_at_every_stage() {
    for (script, want) in [
        (&[&[("220", SayAndClose("554 no\r\n"))] as Script] as &[Script], "rejected_account connection_refused"),
        (&[&[("220", SayAndClose("421 4.7.0 too many connections\r\n"))]], "throttled too_many_connections"),
        (&[&[("EHLO", Say(b"501 5.5.4 name\r\n"))]], "rejected_account session_refused"),
        (&[&[("MAIL", Say(b"530 5.7.0 log in first\r\n"))]], "rejected_account authentication_failed"),
        (&[&[("MAIL", Say(b"450 4.7.1 Error: too much mail\r\n"))]], "throttled rate_limited"),
        (&[&[("RCPT", Say(b"550 5.1.1 unknown\r\n"))]], "rejected_recipient recipient_refused"),
        (&[&[("RCPT", Say(b"450 4.2.0 Greylisted\r\n"))]], "greylisted greylisted"),
        (&[&[("RCPT", Say(b"535 5.7.8 log in\r\n"))]], "rejected_account authentication_failed"),
        (&[&[("DATA", Say(b"554 5.5.1 no valid recipients\r\n"))]], "rejected_recipient recipient_unknown"),
        (&[&[(".", Say(b"554 5.7.1 spam\r\n"))]], "rejected_message spam_or_virus"),
    ] {
        assert_eq!(once(script).await.0, want);
    }
}

#[tokio::test]
async fn a_connection_serves_on_after_a_refusal() {
    let server =
        server(&[&[("1 MAIL", Say(b"451 later\r\n")), ("2 RCPT", Say(b"550 no\r\n")), ("1 .", Say(b"554 spam\r\n"))]]).await;
    let provider = smtp(&server, |_| {});
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(brief(&send(&provider).await));
    }
    assert_eq!(
        got,
        ["temporary try_later", "rejected_recipient recipient_refused", "rejected_message spam_or_virus", "accepted"]
    );
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced_once() {
    for (script, connections, want) in [
        (&[&[("2 MAIL", SayAndClose("421 4.4.2 timeout\r\n"))] as Script, &[]] as &[Script], 2, "accepted"),
        (&[&[("2 MAIL", Close)], &[]], 2, "accepted"),
        (&[&[("1 .", SayAndClose("250 ok\r\n"))], &[]], 2, "accepted"),
        // The new one fares no better: that is that.
        (&[&[("2 MAIL", Close)], &[("MAIL", Close)]], 2, "temporary connection_lost"),
        (&[&[("2 MAIL", Close)], &[("220", SayAndClose("421 4.7.0 go\r\n"))]], 2, "throttled connection_deferred"),
        // Later than at the first command nothing is repeated.
        (&[&[("2 DATA", Close)], &[]], 1, "temporary connection_lost"),
        (&[&[("2 .", Close)], &[]], 1, "uncertain connection_lost"),
    ] {
        let server = server(script).await;
        let provider = smtp(&server, |_| {});
        assert_eq!(brief(&send(&provider).await), "accepted");
        assert_eq!(brief(&send(&provider).await), want);
        assert_eq!(server.connections(), connections, "{want}");
    }
}

#[tokio::test]
async fn each_recipient_has_a_reply_of_its_own() {
    let server = server(&[&[
        ("RCPT TO:<gone", Say(b"550 5.1.1 unknown\r\n")),
        ("RCPT TO:<later", Say(b"451 4.3.0 try later\r\n")),
        ("RCPT TO:<grey", Say(b"450 4.2.0 Greylisted, try again in 60 seconds\r\n")),
    ]])
    .await;
    let provider = smtp(&server, |_| {});
    let Outcome::Accepted { refused, provider_id } = send_to(&provider, &["a@x.org", "gone@x.org", "b@x.org"]).await else {
        panic!()
    };
    assert_eq!(provider_id.as_deref(), Some("Q1"));
    let refused: Vec<_> =
        refused.iter().map(|(email, answer)| (email.to_string(), answer.status, answer.message.as_str())).collect();
    assert_eq!(refused, [("gone@x.org".to_owned(), Some(550), "5.1.1 unknown")]);
    assert_eq!(server.heard("DATA"), 1);
    // Nobody is sent a mail that another is to get later: the outcome could not say so.
    for (to, want) in [
        (&["a@x.org", "later@x.org"] as &[&str], "temporary try_later"),
        (&["a@x.org", "grey@x.org"], "greylisted greylisted"),
        (&["grey@x.org", "later@x.org"], "temporary try_later"),
    ] {
        assert_eq!(brief(&send_to(&provider, to).await), want);
    }
    let outcome = send_to(&provider, &["a@x.org", "gone@x.org", "later@x.org"]).await;
    let Outcome::Rejected { what: Rejected::Recipients(gone), .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((gone.len(), gone[0].local()), (1, "gone"));
    assert_eq!((server.heard("DATA"), server.connections()), (1, 1));
    // An address given twice is served once.
    assert_eq!(brief(&send_to(&provider, &["a@x.org", "a@x.org"]).await), "accepted");
    assert_eq!(server.heard("RCPT TO:<a@x.org>"), 5);
}

#[tokio::test]
async fn commands_go_one_by_one_where_the_server_wants_it() {
    // Everything the client sends before it was answered would be taken for the mail.
    let server = server(&[&[("EHLO", Say(b"250 mx\r\n")), ("RCPT TO:<b", Say(b"550 no\r\n"))]]).await;
    let provider = smtp(&server, |s| s.hello_name = Some("mail.b.org".into()));
    assert!(matches!(send_to(&provider, &["a@x.org", "b@x.org"]).await, Outcome::Accepted { refused, .. } if refused.len() == 1));
    let heard: Vec<String> = server.heard.lock().unwrap().iter().take(5).cloned().collect();
    assert_eq!(heard, ["0 EHLO mail.b.org", "0 MAIL FROM:<s@b.org>", "0 RCPT TO:<a@x.org>", "0 RCPT TO:<b@x.org>", "0 DATA"]);
}

#[tokio::test]
async fn so_many_messages_a_connection() {
    let server = server(&[&[]]).await;
    let provider = smtp(&server, |s| s.messages_per_connection = 2);
    for _ in 0..5 {
        assert_eq!(brief(&send(&provider).await), "accepted");
    }
    assert_eq!(server.connections(), 3);
    while server.heard("QUIT") < 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn so_many_connections_at_once_and_none_kept_for_ever() {
    let server = server(&[&[]]).await;
    let provider = smtp(&server, |s| (s.max_connections, s.max_idle) = (2, Duration::from_millis(50)));
    let calls: Vec<_> = (0..12)
        .map(|_| {
            tokio::spawn({
                let provider = Arc::clone(&provider);
                async move { brief(&send(&provider).await) }
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), "accepted");
    }
    assert!(server.most_at_once.load(Ordering::SeqCst) <= 2);
    while server.heard("QUIT") < server.connections() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn no_free_connection_spends_no_budget() {
    let server = server(&[&[("MAIL", Hang)]]).await;
    let settings = SmtpSettings { port: server.port, max_connections: 1, ..SmtpSettings::new("127.0.0.1", Tls::None) };
    let http = HttpSettings { total_timeout: Duration::from_millis(600), ..HttpSettings::default() };
    let provider = build(Settings::Smtp(settings), &http, "t").unwrap();
    let (one, two) = tokio::join!(send(&provider), send(&provider));
    assert_eq!(brief(&one), "temporary timeout");
    assert!(matches!(two, Outcome::Throttled { scope: Scope::Connection, .. }), "{two:?}");
}

#[tokio::test]
async fn a_server_that_has_heard_enough_says_why() {
    // It reads no more of a mail too large for the buffers in between.
    let server = server(&[&[("DATA", SayAndHang("354 go\r\n552 5.3.4 message too large\r\n"))]]).await;
    let provider = impatient(&server);
    let mut message = message_to(&["u@x.org"]);
    message.text = Some("a line of some length, again and again\n".repeat(400_000));
    let outcome = provider.send(Attempt { message: &message, idempotency_key: "m" }).await;
    assert_eq!(brief(&outcome), "rejected_message too_large");
}

#[tokio::test]
async fn replies_without_end_are_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for chunk in ["x".repeat(1000), "220-more\r\n".repeat(100)] {
        let settings = SmtpSettings { port, ..SmtpSettings::new("127.0.0.1", Tls::None) };
        let provider = build(Settings::Smtp(settings), &HttpSettings::default(), "t").unwrap();
        let flood = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
            let _ = stream.read(&mut [0; 1]).await;
        };
        let (outcome, ()) = tokio::join!(send(&provider), flood);
        assert_eq!(outcome.label(), "temporary");
    }
}

#[tokio::test]
async fn credentials_go_by_what_is_offered() {
    for (script, want, lines) in [
        (&[&[] as Script] as &[Script], "accepted", &["AUTH PLAIN AG1lAHMzY3JldA=="] as &[&str]),
        (
            &[&[
                ("EHLO", Say(b"250-mx\r\n250 AUTH=LOGIN\r\n")),
                ("AUTH LOGIN", Say(b"334 VXNlcm5hbWU6\r\n")),
                ("bWU=", Say(b"334 UGFzc3dvcmQ6\r\n")),
                ("czNjcmV0", Say(b"235 ok\r\n")),
            ]],
            "accepted",
            &["AUTH LOGIN", "bWU=", "czNjcmV0"],
        ),
        (&[&[("EHLO", Say(b"250-mx\r\n250 AUTH GSSAPI\r\n"))]], "rejected_account auth_not_offered", &[]),
        (&[&[("AUTH", Say(b"535 5.7.8 no\r\n"))]], "rejected_account authentication_failed", &["AUTH PLAIN"]),
        (&[&[("AUTH", Say(b"454 4.7.0 later\r\n"))]], "temporary authentication_unavailable", &["AUTH PLAIN"]),
    ] {
        let server = server(script).await;
        let credentials = Credentials { username: "me".into(), password: Secret::new("s3cret") };
        let outcome = send(&smtp(&server, |s| s.credentials = Some(credentials))).await;
        assert_eq!(brief(&outcome), want);
        assert!(!format!("{outcome:?}").contains("s3cret"));
        assert!(lines.iter().all(|line| server.heard(line) == 1), "{lines:?}");
    }
}

#[tokio::test]
async fn starttls_is_insisted_on_and_cannot_be_slipped_past() {
    for (script, want) in [
        (&[&[] as Script] as &[Script], "rejected_account starttls_not_offered"),
        (
            &[&[("EHLO", Say(b"250-mx\r\n250 STARTTLS\r\n")), ("STARTTLS", Say(b"454 4.7.0 TLS not available\r\n"))]],
            "temporary deferred",
        ),
        (
            &[&[("EHLO", Say(b"250-mx\r\n250 STARTTLS\r\n")), ("STARTTLS", Say(b"220 go\r\n250-mx\r\n250 AUTH PLAIN\r\n"))]],
            "temporary tls_failed",
        ),
        (&[&[("EHLO", Say(b"250-mx\r\n250 STARTTLS\r\n")), ("STARTTLS", SayAndClose("220 go\r\n"))]], "temporary tls_failed"),
    ] {
        let server = server(script).await;
        let ca_file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/ca.pem");
        let settings = SmtpSettings {
            port: server.port,
            credentials: Some(Credentials { username: "me".into(), password: Secret::new("s3cret") }),
            ..SmtpSettings::new("127.0.0.1", Tls::StartTls)
        };
        let http = HttpSettings { ca_file: Some(ca_file), ..HttpSettings::default() };
        let provider = build(Settings::Smtp(settings), &http, "t").unwrap();
        assert_eq!(brief(&send(&provider).await), want);
        assert_eq!((server.heard("AUTH"), server.heard("MAIL")), (0, 0));
    }
}

#[tokio::test]
async fn foreign_addresses_need_a_server_that_takes_them() {
    let server = server(&[&[], &[("EHLO", Say(b"250-mx\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"))]]).await;
    let provider = smtp(&server, |s| s.messages_per_connection = 1);
    let to: &[&str] = &["u@x.org", "zoë@bücher.example"];
    let outcome = send_to(&provider, to).await;
    let Outcome::Rejected { what: Rejected::Recipients(gone), .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((gone.len(), gone[0].local()), (1, "zoë"));
    let mut message = message_to(&["u@x.org"]);
    message.from = serde_json::from_str("\"zoë@b.org\"").unwrap();
    let outcome = provider.send(Attempt { message: &message, idempotency_key: "m" }).await;
    assert_eq!(brief(&outcome), "rejected_message unsupported");
    assert_eq!(brief(&send(&provider).await), "accepted", "on the first connection, its last");
    assert_eq!(brief(&send_to(&provider, to).await), "accepted");
    assert_eq!(server.heard("MAIL FROM:<s@b.org> SMTPUTF8 BODY=8BITMIME"), 1);
    assert_eq!(server.heard("RCPT TO:<zoë@xn--bcher-kva.example>"), 1);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let credentials = |user: &str, password: &str| Some(Credentials { username: user.into(), password: Secret::new(password) });
    let base = || SmtpSettings::new("127.0.0.1", Tls::None);
    for (settings, field) in [
        (SmtpSettings { host: "a b".into(), ..base() }, "host"),
        (SmtpSettings { host: String::new(), ..base() }, "host"),
        (SmtpSettings { hello_name: Some("a\r\nb".into()), ..base() }, "hello_name"),
        (SmtpSettings { max_connections: 0, ..base() }, "max_connections"),
        (SmtpSettings { messages_per_connection: 0, ..base() }, "messages_per_connection"),
        (SmtpSettings { credentials: credentials("", "p"), ..base() }, "username"),
        (SmtpSettings { credentials: credentials("u", "s3cret\0"), ..base() }, "password"),
    ] {
        let error = build(Settings::Smtp(settings), &HttpSettings::default(), "t").err().unwrap().to_string();
        assert!(error.starts_with(field) && !error.contains("s3cret"), "{error}");
    }
}
