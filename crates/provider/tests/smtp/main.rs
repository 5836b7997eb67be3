//! Provider `smtp` against a raw TCP server that behaves as oddly as servers do.
#![expect(clippy::unwrap_used, reason = "a test")]

mod recipients;
mod server;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use paceline_core::{Outcome, Scope};
use paceline_provider::{Attempt, Credentials, HttpSettings, Secret, Settings, SmtpSettings, Tls, build};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use server::{
    Close, Hang, Say, SayAndClose, SayAndHang, Script, brief, impatient, message_to, once, send, send_to, server, smtp,
};

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
