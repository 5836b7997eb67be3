//! Several recipients of one mail, each answered by itself.

use paceline_core::{Outcome, Rejected, Scope, Suppress};
use paceline_provider::Attempt;

use crate::server::{Act, Close, Hang, Say, SayAndClose, Script, brief, impatient, message_to, send_to, server, smtp};

/// What came of each recipient: its name, outcome, code, and status.
fn each(outcome: &Outcome) -> Vec<String> {
    let Outcome::Divided { each, .. } = outcome else { panic!("{outcome:?}") };
    each.iter()
        .map(|(email, outcome)| {
            if let Outcome::Rejected { what: Rejected::Recipients(gone), .. } = outcome {
                assert_eq!(gone, std::slice::from_ref(email));
            }
            let status = outcome.answer().and_then(|a| a.status).map(|s| format!(" {s}")).unwrap_or_default();
            format!("{}: {}{status}", email.local(), brief(outcome))
        })
        .collect()
}

const ODD: Script = &[
    ("RCPT TO:<gone", Say(b"550 5.1.1 User unknown\r\n")),
    ("RCPT TO:<policy", Say(b"550 5.7.1 Message refused by policy\r\n")),
    ("RCPT TO:<later", Say(b"451 4.3.0 try later\r\n")),
    ("RCPT TO:<grey", Say(b"450 4.2.0 Greylisted, try again in 60 seconds\r\n")),
    ("RCPT TO:<full", Say(b"452 4.2.2 Mailbox full\r\n")),
    ("RCPT TO:<fast", Say(b"450 4.7.1 Error: too much mail from 192.0.2.1\r\n")),
];

#[tokio::test]
async fn who_is_taken_has_it_now_and_the_others_have_answers_of_their_own() {
    let server = server(&[ODD]).await;
    let provider = smtp(&server, |_| {});
    let Outcome::Accepted { refused, provider_id } =
        send_to(&provider, &["a@x.org", "gone@x.org", "policy@x.org", "b@x.org"]).await
    else {
        panic!()
    };
    assert_eq!(provider_id.as_deref(), Some("Q1"));
    let refused: Vec<_> = refused.iter().map(|(e, a)| (e.local(), a.status, a.message.as_str(), a.suppress)).collect();
    assert_eq!(
        refused,
        [
            ("gone", Some(550), "5.1.1 User unknown", Suppress::Now),
            ("policy", Some(550), "5.7.1 Message refused by policy", Suppress::No)
        ]
    );
    let all = ["gone@x.org", "a@x.org", "grey@x.org", "later@x.org", "full@x.org", "fast@x.org", "b@x.org"];
    let outcome = send_to(&provider, &all).await;
    assert_eq!((outcome.label(), outcome.provider_id()), ("accepted", Some("Q1")));
    assert_eq!(
        each(&outcome),
        [
            "gone: rejected_recipient recipient_unknown 550",
            "a: accepted",
            "grey: greylisted greylisted 450",
            "later: temporary try_later 451",
            "full: temporary mailbox_full 452",
            "fast: throttled rate_limited 450",
            "b: accepted",
        ]
    );
    assert_eq!((server.heard("DATA"), server.heard("RSET"), server.connections()), (2, 0, 1));
}

#[tokio::test]
async fn where_nobody_is_taken_no_mail_is_sent() {
    let server = server(&[ODD]).await;
    let provider = smtp(&server, |_| {});
    for (to, label, want) in [
        (
            &["grey@x.org", "later@x.org"] as &[&str],
            "temporary",
            &["grey: greylisted greylisted 450", "later: temporary try_later 451"] as &[&str],
        ),
        (
            &["gone@x.org", "policy@x.org"],
            "rejected_recipient",
            &["gone: rejected_recipient recipient_unknown 550", "policy: rejected_recipient content_refused 550"],
        ),
        (
            &["gone@x.org", "grey@x.org"],
            "greylisted",
            &["gone: rejected_recipient recipient_unknown 550", "grey: greylisted greylisted 450"],
        ),
    ] {
        let outcome = send_to(&provider, to).await;
        assert_eq!((outcome.label(), each(&outcome)), (label, want.iter().map(ToString::to_string).collect()));
    }
    assert_eq!((server.heard("DATA"), server.heard("RSET"), server.connections()), (0, 3, 1));
    // An address given twice is served once.
    assert_eq!(brief(&send_to(&provider, &["a@x.org", "a@x.org"]).await), "accepted");
    assert_eq!(server.heard("RCPT TO:<a@x.org>"), 1);
}

const TO: [&str; 4] = ["a@x.org", "gone@x.org", "grey@x.org", "b@x.org"];

/// `ODD` for two of the four, and something odd later on.
async fn after(act: Act, command: &'static str) -> (Outcome, usize) {
    let script = vec![ODD[0], ODD[3], (command, act)].leak();
    let server = server(vec![&*script].leak()).await;
    let provider = if matches!(act, Hang) { impatient(&server) } else { smtp(&server, |_| {}) };
    let outcome = send_to(&provider, &TO).await;
    (outcome, server.heard("RCPT TO:<b@x.org>"))
}

#[tokio::test]
async fn what_befalls_the_mail_befalls_those_it_was_for() {
    for (command, act, of_taken) in [
        ("DATA", Say(b"451 4.3.0 queue file write error\r\n"), "temporary deferred 451"),
        ("DATA", Close, "temporary connection_lost"),
        (".", Say(b"554 5.7.1 spam\r\n"), "rejected_message spam_or_virus 554"),
        (".", Say(b"451 4.3.0 try later\r\n"), "temporary try_later 451"),
        (".", Say(b"550 5.4.5 Daily user sending limit exceeded\r\n"), "throttled quota_exceeded 550"),
        (".", SayAndClose("250"), "uncertain connection_lost"),
        (".", Close, "uncertain connection_lost"),
        (".", Hang, "uncertain timeout"),
        (".", Say(b"354 go on\r\n"), "uncertain unexpected_reply 354"),
    ] {
        let (outcome, asked) = after(act, command).await;
        assert_eq!(
            each(&outcome),
            [
                format!("a: {of_taken}"),
                "gone: rejected_recipient recipient_unknown 550".to_owned(),
                "grey: greylisted greylisted 450".to_owned(),
                format!("b: {of_taken}"),
            ],
            "{command}"
        );
        assert_eq!((asked, outcome.provider_id()), (1, None));
    }
}

#[tokio::test]
async fn what_concerns_the_account_concerns_everybody() {
    for (command, act, want) in [
        ("RCPT TO:<b", Say(b"535 5.7.8 log in\r\n"), "rejected_account authentication_failed"),
        ("RCPT TO:<b", SayAndClose("421 4.7.0 too many connections\r\n"), "throttled too_many_connections"),
        ("RCPT TO:<b", Close, "temporary connection_lost"),
        (".", Say(b"535 5.7.8 log in\r\n"), "rejected_account authentication_failed"),
        ("MAIL", Say(b"450 4.7.1 Error: too much mail\r\n"), "throttled rate_limited"),
    ] {
        let (outcome, _) = after(act, command).await;
        assert!(!matches!(outcome, Outcome::Divided { .. }), "{outcome:?}");
        assert_eq!(brief(&outcome), want);
    }
}

#[tokio::test]
async fn more_than_a_server_takes_at_a_time_come_later_at_no_cost() {
    for reply in [Say(b"452 4.5.3 Too many recipients\r\n"), Say(b"552 5.5.3 Too many recipients\r\n")] {
        let script = vec![("3 RCPT", reply), ("4 RCPT", reply)].leak();
        let server = server(vec![&*script].leak()).await;
        let provider = smtp(&server, |_| {});
        let outcome = send_to(&provider, &["a@x.org", "b@x.org", "c@x.org", "d@x.org"]).await;
        let Outcome::Divided { each, .. } = &outcome else { panic!("{outcome:?}") };
        let waiting: Vec<_> = each
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Throttled { scope: Scope::Message, .. }))
            .map(|(email, _)| email.local())
            .collect();
        assert_eq!((waiting, outcome.label(), server.heard(".")), (vec!["c", "d"], "accepted", 2));
    }
}

#[tokio::test]
async fn foreign_addresses_need_a_server_that_takes_them() {
    let server = server(&[&[], &[("EHLO", Say(b"250-mx\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"))]]).await;
    let provider = smtp(&server, |s| s.messages_per_connection = 1);
    let to: &[&str] = &["u@x.org", "zoë@bücher.example"];
    // Nobody is asked about where all are.
    assert_eq!(brief(&send_to(&provider, &to[1..]).await), "rejected_recipient unsupported");
    let mut message = message_to(&["u@x.org"]);
    message.from = serde_json::from_str("\"zoë@b.org\"").unwrap();
    let outcome = provider.send(Attempt { message: &message, idempotency_key: "m" }).await;
    assert_eq!(brief(&outcome), "rejected_message unsupported");
    assert_eq!((server.heard("MAIL"), server.connections()), (0, 1));
    let outcome = send_to(&provider, to).await;
    let Outcome::Accepted { refused, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((refused.len(), refused[0].0.local(), refused[0].1.code.as_str()), (1, "zoë", "unsupported"));
    assert_eq!(server.heard("MAIL FROM:<s@b.org> SIZE"), 1, "on the first connection, its last");
    assert_eq!(brief(&send_to(&provider, to).await), "accepted");
    assert_eq!(server.heard("MAIL FROM:<s@b.org> SMTPUTF8 BODY=8BITMIME"), 1);
    assert_eq!(server.heard("RCPT TO:<zoë@xn--bcher-kva.example>"), 1);
}
