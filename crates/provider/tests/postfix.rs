//! A thousand mails of all kinds through a real Postfix over TLS: what arrives is what `capture` writes, and an
//! independent parser finds in it what the messages held.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mail_parser::{Address, HeaderForm, MessageParser, MimeHeaders};
use paceline_core::{Message, Outcome};
use paceline_provider::{Attempt, HttpSettings, Provider, Settings, SmtpSettings, Tls, build};
use paceline_testkit::Postfix;
use serde_json::{Value, json};

const MAILS: usize = 1000;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

fn http() -> HttpSettings {
    HttpSettings { ca_file: Some(file("ca.pem")), ..HttpSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_mails_arrive_as_they_were_meant() {
    let postfix = Postfix::start(&file("server.pem"), &file("server.key")).await;
    let dir = tempfile::tempdir().unwrap();
    let capture = build(Settings::Capture { dir: dir.path().to_owned() }, &http(), "t").unwrap();
    let smtp = [(Tls::StartTls, postfix.port()), (Tls::Implicit, postfix.tls_port())].map(|(tls, port)| {
        let settings = SmtpSettings { port, messages_per_connection: 20, ..SmtpSettings::new("localhost", tls) };
        build(Settings::Smtp(settings), &http(), "t").unwrap()
    });

    let messages: Arc<Vec<Message>> = Arc::new((0..MAILS).map(message).collect());
    // Eight senders to five connections of each kind.
    let senders = (0..8).map(|sender| {
        let (messages, smtp, capture) = (Arc::clone(&messages), smtp.clone(), Arc::clone(&capture));
        tokio::spawn(async move {
            for (i, message) in messages.iter().enumerate().filter(|(i, _)| i % 8 == sender) {
                accepted(&smtp[i / 8 % 2], message).await;
                accepted(&capture, message).await;
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }

    let wanted: BTreeSet<(String, String)> =
        messages.iter().flat_map(|m| m.recipients().map(|r| (m.id.clone(), r.to_string()))).collect();
    let delivered = postfix.wait_for(wanted.len(), Duration::from_secs(240)).await;
    assert_eq!(delivered.len(), wanted.len());
    let by_id: BTreeMap<String, &Message> = messages.iter().map(|m| (format!("{}@shop.example", m.id), m)).collect();
    let mut arrived = BTreeSet::new();
    for delivered in &delivered {
        let parsed = MessageParser::default().parse(&delivered.mail).unwrap();
        let message = by_id[parsed.message_id().unwrap()];
        assert_eq!(delivered.sender, message.from.email.to_string());
        assert!(arrived.insert((message.id.clone(), delivered.recipient.clone())), "{} twice", message.id);
        let captured = std::fs::read(dir.path().join(format!("{}.eml", message.id))).unwrap();
        assert_eq!(undated(&delivered.mail), undated(&captured), "{}", message.id);
        same(&parsed, message);
    }
    assert_eq!(arrived, wanted);
}

#[tokio::test]
async fn an_authority_nobody_named_is_not_trusted() {
    let postfix = Postfix::start(&file("server.pem"), &file("server.key")).await;
    let message = message(0);
    for (host, tls, port, ca_file) in [
        ("localhost", Tls::StartTls, postfix.port(), None),
        ("localhost", Tls::Implicit, postfix.tls_port(), None),
        ("127.0.0.1", Tls::StartTls, postfix.port(), Some(file("ca.pem"))),
    ] {
        let settings = SmtpSettings { port, ..SmtpSettings::new(host, tls) };
        // Not built on a machine that has no authorities of its own and was given none.
        let Ok(provider) = build(Settings::Smtp(settings), &HttpSettings { ca_file, ..HttpSettings::default() }, "t") else {
            continue;
        };
        let outcome = provider.send(Attempt { message: &message, idempotency_key: "m" }).await;
        assert_eq!((outcome.label(), outcome.answer().unwrap().code.as_str()), ("temporary", "tls_failed"));
    }
    assert!(postfix.delivered().is_empty());
}

#[tokio::test]
async fn postfix_refusals_mean_what_they_say() {
    let settings = [
        ("smtpd_client_message_rate_limit", "3"),
        ("smtpd_client_event_limit_exceptions", ""),
        ("message_size_limit", "20000"),
        ("smtpd_recipient_restrictions", "check_recipient_access inline:{gone@x.example=REJECT, later@x.example=DEFER}, permit"),
    ];
    let postfix = Postfix::with_settings(&file("server.pem"), &file("server.key"), &settings).await;
    let settings = SmtpSettings { port: postfix.port(), ..SmtpSettings::new("localhost", Tls::StartTls) };
    let smtp = build(Settings::Smtp(settings), &http(), "t").unwrap();
    let to = |list: &[&str], text: &str| {
        let body = json!({"id": "m", "from": "s@shop.example", "to": list, "text": text}).to_string();
        Message::parse(body.as_bytes(), None, 1 << 20).unwrap()
    };
    let send = async |message: &Message| smtp.send(Attempt { message, idempotency_key: "m" }).await;
    let big = send(&to(&["u@x.example"], &"big ".repeat(8000))).await;
    assert_eq!((big.label(), big.answer().unwrap().code.as_str()), ("rejected_message", "too_large"), "{big:?}");
    let all = send(&to(&["gone@x.example"], "t")).await;
    assert_eq!((all.label(), all.answer().unwrap().status), ("rejected_recipient", Some(554)), "{all:?}");
    // One is taken, one refused, one deferred: each has an outcome of its own, and one mail is delivered.
    let three = send(&to(&["gone@x.example", "u@x.example", "later@x.example"], "t")).await;
    let Outcome::Divided { provider_id: Some(_), each } = &three else { panic!("{three:?}") };
    let each: Vec<_> = each.iter().map(|(e, o)| (e.local(), o.label(), o.answer().and_then(|a| a.status))).collect();
    assert_eq!(
        each,
        [("gone", "rejected_recipient", Some(554)), ("u", "accepted", None), ("later", "temporary", Some(450))],
        "{three:?}"
    );
    // The rate limit counts MAIL commands, those of refused mail too.
    let fast = send(&to(&["u@x.example"], "t")).await;
    assert_eq!((fast.label(), fast.answer().unwrap().status), ("throttled", Some(450)), "{fast:?}");
    assert!(fast.answer().unwrap().message.contains("4.7.1 Error: too much mail"), "{fast:?}");
    assert_eq!(postfix.wait_for(1, Duration::from_secs(30)).await.len(), 1);
}

#[tokio::test]
async fn a_restarted_server_costs_nothing_but_the_time_it_was_away() {
    let postfix = Postfix::start(&file("server.pem"), &file("server.key")).await;
    let settings = SmtpSettings { port: postfix.port(), ..SmtpSettings::new("localhost", Tls::StartTls) };
    let smtp = build(Settings::Smtp(settings), &http(), "t").unwrap();
    let message = message(0);
    accepted(&smtp, &message).await;
    postfix.stop().await;
    let outcome = smtp.send(Attempt { message: &message, idempotency_key: "m" }).await;
    assert_eq!((outcome.label(), outcome.answer().unwrap().code.as_str()), ("temporary", "connection_failed"));
    postfix.start_again().await;
    accepted(&smtp, &message).await;
    postfix.kill9().await;
    postfix.start_again().await;
    accepted(&smtp, &message).await;
    let recipients = message.recipient_count();
    assert_eq!(postfix.wait_for(3 * recipients, Duration::from_secs(60)).await.len(), 3 * recipients);
}

async fn accepted(provider: &Arc<dyn Provider>, message: &Message) {
    let outcome = provider.send(Attempt { message, idempotency_key: &message.id }).await;
    let whole = matches!(&outcome, Outcome::Accepted { provider_id: Some(_), refused } if refused.is_empty());
    assert!(whole, "{}: {outcome:?}", message.id);
}

/// Line breaks as the Maildir has them, and without the `Date`, which is the moment of the call.
fn undated(mail: &[u8]) -> String {
    let text = String::from_utf8(mail.to_vec()).unwrap().replace("\r\n", "\n");
    let (date, rest) = text.split_once('\n').unwrap();
    assert!(date.starts_with("Date: "), "{date}");
    rest.to_owned()
}

/// What the parser found is what the message held.
fn same(parsed: &mail_parser::Message<'_>, message: &Message) {
    let id = &message.id;
    assert_eq!(parsed.subject().unwrap_or_default(), message.subject.as_deref().unwrap_or_default(), "{id}");
    let people = |address: Option<&Address<'_>>| -> Vec<(String, String)> {
        let one =
            |a: &mail_parser::Addr<'_>| (a.name().unwrap_or_default().to_owned(), a.address().unwrap_or_default().to_owned());
        address.into_iter().flat_map(|a| a.iter()).map(one).collect()
    };
    let wanted = |list: &[paceline_core::Mailbox]| -> Vec<(String, String)> {
        list.iter().map(|m| (m.name.as_deref().unwrap_or_default().to_owned(), m.email.to_string())).collect()
    };
    assert_eq!(people(parsed.from()), wanted(std::slice::from_ref(&message.from)), "{id}");
    assert_eq!(people(parsed.to()), wanted(&message.to), "{id}");
    assert_eq!(people(parsed.cc()), wanted(&message.cc), "{id}");
    assert_eq!(people(parsed.reply_to()), wanted(&Vec::from_iter(message.reply_to.clone())), "{id}");
    assert!(parsed.bcc().is_none(), "{id}");
    for (name, value) in &message.headers {
        let found = parsed.header_as(name.as_str(), HeaderForm::Text);
        assert_eq!(found.first().and_then(|h| h.as_text()), Some(value.as_str()), "{id} {name}");
    }
    let lines = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n").trim_end_matches('\n').to_owned();
    let text = parsed.text_bodies().find(|p| p.is_text() && !p.is_text_html()).and_then(|p| p.text_contents()).map(lines);
    let html = parsed.html_bodies().find(|p| p.is_text_html()).and_then(|p| p.text_contents()).map(lines);
    assert_eq!((text, html), (message.text.as_deref().map(lines), message.html.as_deref().map(lines)), "{id}");
    type File = (String, Option<String>, Vec<u8>);
    let mut files: Vec<File> = parsed
        .attachments()
        .map(|a| (a.attachment_name().unwrap().to_owned(), a.content_id().map(str::to_owned), a.contents().to_vec()))
        .collect();
    let mut expected: Vec<File> = message
        .attachments
        .iter()
        .map(|a| (a.filename.clone(), a.content_id.clone(), STANDARD.decode(&a.content).unwrap()))
        .collect();
    files.sort();
    expected.sort();
    assert_eq!(files, expected, "{id}");
}

/// The nth message: what it has follows from `n` alone.
fn message(n: usize) -> Message {
    let pick = |salt: usize, of: &[&str]| of[(n * 7 + n / 13 + salt * 5) % of.len()].to_owned();
    let texts = [
        "Hello,\n\nthis is plain.\n",
        "Dots:\n.\n..\n.hidden\n\n.\r\nend.",
        "From here on\nFrom there\n>From nowhere\n",
        "Grüße aus Köln, 12 €, naïve café — “quotes”\n",
        "パスワードの再設定\n\n次のリンクをクリックしてください。\n",
        "trailing space \nand tab\t\n\n\n  indented = and =3D and =\n",
        "old\rmac\rlines\r\nand others\n",
        "--=_a0123456789abcdef0123456789abcdef--\n\n--\nsignature",
        "control \u{1}\u{7f}\u{0} and 😀😀😀\n",
        "x",
    ];
    let mut text = pick(1, &texts);
    if n.is_multiple_of(17) {
        text.push_str(&"long ".repeat(700));
        text.push_str(&"wide".repeat(700));
    }
    let names = [
        "Ann Other",
        "Other, Ann",
        "Zoë",
        "\"Q\" \\ B",
        "株式会社ペースライン営業部の山田太郎さん、長い名前の持ち主",
        "o'Neil (x)",
        "a@b",
    ];
    let subjects = [
        "Your order",
        "Ihre Bestellung für Größe 42 — bestätigt",
        "=?utf-8?q?not_encoded?=",
        "注文の確認 🎉 本日中に発送されますので、しばらくお待ちくださいますようお願い申し上げます",
        "  spaces  around  ",
        "a long subject that goes on and on and on until it has to be folded somewhere, which should leave no trace at all",
        "",
    ];
    let person = |salt: usize, local: &str| match (n + salt) % 3 {
        0 => json!(format!("{local}{n}@mail.example")),
        _ => json!({"email": format!("{local}+{salt}@bücher.example"), "name": pick(salt, &names)}),
    };
    let mut body = json!({
        "id": format!("m-{n}"), "from": {"email": "orders@shop.example", "name": pick(0, &names)},
        "to": [person(1, "to")],
    });
    let mut set = |key: &str, value: Value| body[key] = value;
    let subject = pick(3, &subjects);
    if !subject.is_empty() {
        set("subject", json!(subject));
    }
    if n % 5 != 1 {
        set("text", json!(text));
    }
    if !n.is_multiple_of(5) {
        set("html", json!(format!("<html><body><p>{}</p><img src=\"cid:logo.{n}@x\"></body></html>\n", text.replace('\0', ""))));
    }
    if n.is_multiple_of(4) {
        set("cc", json!([person(2, "cc"), person(3, "copy")]));
    }
    if n.is_multiple_of(6) {
        set("bcc", json!([person(4, "hidden")]));
    }
    if n.is_multiple_of(3) {
        set("reply_to", person(5, "reply"));
    }
    if n.is_multiple_of(2) {
        set("headers", json!({"X-Campaign": "spring 2026", "X-Note": "Frühling ✿", "X-Long": "word ".repeat(60).trim_end()}));
    }
    let filenames =
        ["a.pdf", "Übersicht 2026.pdf", "quote\".txt", "请求书.xlsx", &"long-name-".repeat(12), "semi;colon=.csv", "50% off.txt"];
    let bytes = |length: usize, mask: usize| {
        STANDARD.encode((0..length).map(|i| ((i * i + n + i / 251) & mask) as u8).collect::<Vec<_>>())
    };
    let mut files = Vec::new();
    for k in 0..n % 4 % 3 {
        let length = [0, 1, 57, 58, 3000, 40_000][(n + k) % 6];
        let kind = pick(k, &["application/pdf", "text/plain; charset=utf-8", "image/png", "application/octet-stream"]);
        // The parser takes text for UTF-8, so text is ASCII here.
        let mask = if kind.starts_with("text/") { 127 } else { 255 };
        files.push(json!({"filename": pick(k + 6, &filenames), "content_type": kind, "content": bytes(length, mask)}));
    }
    if !n.is_multiple_of(5) && n.is_multiple_of(3) {
        let name = pick(9, &filenames);
        files.push(json!({"filename": name, "content_type": "image/png", "content": bytes(500, 255), "content_id": format!("logo.{n}@x")}));
    }
    set("attachments", json!(files));
    Message::parse(body.to_string().as_bytes(), None, 10 << 20).unwrap()
}
