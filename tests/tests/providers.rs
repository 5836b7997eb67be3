//! Every HTTP provider against the sandbox in its role: requests it understands, answers that are understood.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use paceline_core::{Message, Outcome};
use paceline_provider::{
    Attempt, AwsCredentials, HttpSettings, MailgunSettings, PostmarkSettings, Provider, Secret, SesSettings, Settings, Url, build,
};
use paceline_sandbox::{Handle, Options, Sandbox, Scenario};
use serde_json::{Value, json};

const KEY: &str = "key-1";

/// All of them, with a prefix before the provider's own path.
fn settings(sandbox: &Handle, key: &str) -> Vec<Settings> {
    let url = |path: &str| Url::parse(&format!("http://{}/{path}", sandbox.addr())).unwrap();
    let (secret, base) = (|| Secret::new(key), || Some(url("some/prefix")));
    let credentials =
        AwsCredentials { access_key_id: secret(), secret_access_key: Secret::new("s"), session_token: Some(Secret::new("t")) };
    let domain = paceline_core::Domain::parse("mg.b.org").unwrap();
    vec![
        Settings::Ses(SesSettings {
            region: Some("eu-west-1".into()),
            credentials: Some(credentials),
            configuration_set: Some("events".into()),
            base_url: base(),
        }),
        Settings::SendGrid { api_key: secret(), base_url: base() },
        Settings::Postmark(PostmarkSettings { server_token: secret(), message_stream: None, base_url: base() }),
        Settings::Mailgun(MailgunSettings { api_key: secret(), domain, base_url: base() }),
        Settings::Resend { api_key: secret(), base_url: base() },
        Settings::SparkPost { api_key: secret(), base_url: base() },
        Settings::Http { url: url("send"), bearer_token: Some(secret()) },
    ]
}

/// Name and provider of each.
fn providers(sandbox: &Handle, key: &str) -> Vec<(&'static str, Arc<dyn Provider>)> {
    let made = |settings: Settings| (settings.provider(), build(settings, &HttpSettings::default(), "paceline/test").unwrap());
    settings(sandbox, key).into_iter().map(made).collect()
}

fn message(id: &str, to: &str, extra: Value) -> Message {
    let mut body = json!({
        "id": id, "from": {"email": "shop@b.org", "name": "Shöp"}, "to": [{"email": to, "name": "Ü, Ser"}], "subject": "Hi",
        "text": "t", "metadata": {"class": "high"},
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    Message::parse(body.to_string().as_bytes(), None, 20 << 20).unwrap()
}

async fn send(provider: &Arc<dyn Provider>, message: &Message) -> Outcome {
    provider.send(Attempt { message, idempotency_key: &message.id }).await
}

async fn sandbox(scenario: &str) -> Handle {
    let scenario = Scenario::from_toml(scenario).unwrap();
    Sandbox::start(Options { scenario, ..Options::default() }).await.unwrap()
}

#[tokio::test]
async fn answers_are_understood() {
    let sandbox = sandbox("").await;
    for (name, provider) in providers(&sandbox, KEY) {
        let ended = |to: &'static str| {
            let m = message(&format!("{name}-{}", to.len()), to, json!({}));
            let provider = Arc::clone(&provider);
            async move { send(&provider, &m).await }
        };
        for (to, want) in [
            ("u@gmail.com", "accepted"),
            ("sandbox+reject@x.org", "rejected_recipient"),
            ("sandbox+throttle-7s@x.org", "throttled"),
            ("sandbox+503@x.org", "temporary"),
            ("sandbox+500@x.org", "temporary"),
            ("sandbox+401@x.org", "rejected_account"),
            ("sandbox+403@x.org", "rejected_account"),
            ("sandbox+400@x.org", "rejected_message"),
            ("sandbox+413@x.org", "rejected_message"),
            ("sandbox+302@x.org", "rejected_account"),
            ("sandbox+drop@x.org", "uncertain"),
            ("sandbox+slow-5ms@x.org", "accepted"),
        ] {
            let got = ended(to).await;
            assert_eq!(got.label(), want, "{name} {to}: {got:?}");
            match got {
                Outcome::Accepted { provider_id, refused } => assert!(provider_id.is_some() && refused.is_empty(), "{name}"),
                Outcome::Throttled { retry_after, .. } => {
                    let wait = retry_after.unwrap().as_secs();
                    assert!((5..=7).contains(&wait), "{name}: {wait}");
                }
                _ => {}
            }
        }
    }
    let stats = sandbox.stop().await;
    // Accepted, slow, and taken but not answered, by seven.
    assert_eq!((stats.accepted, stats.dropped), (21, 7));
}

#[tokio::test]
async fn everything_of_a_message_gets_through() {
    let directory = tempfile::tempdir().unwrap();
    let arrivals = directory.path().join("arrivals.ndjson");
    let sandbox = Sandbox::start(Options { arrivals: Some(arrivals.clone()), ..Options::default() }).await.unwrap();
    let all = providers(&sandbox, KEY);
    let full = json!({
        "cc": ["c@x.org", {"email": "d@x.org", "name": "D \"d\""}], "bcc": ["e@z.org"], "reply_to": "r@b.org",
        "html": format!("<p>{}</p>", "x".repeat(300 * 1024)), "headers": {"X-Note": "ü"}, "tags": ["receipt"],
        "attachments": [
            {"filename": "ä.pdf", "content_type": "application/pdf", "content": "QUJD".repeat(100_000)},
            {"filename": "l.png", "content_type": "image/png", "content": "aGk=", "content_id": "logo"}],
    });
    let template = json!({"subject": null, "text": null, "template": {"id": "welcome", "data": {"name": "Jo"}}});
    for (name, provider) in &all {
        for (kind, extra) in [("plain", json!({})), ("full", full.clone()), ("template", template.clone())] {
            let got = send(provider, &message(&format!("{name}-{kind}"), "u@gmail.com", extra)).await;
            assert_eq!(got.label(), "accepted", "{name} {kind}: {got:?}");
        }
    }
    let stats = sandbox.stop().await;
    assert_eq!((stats.accepted, stats.accepted_recipients), (21, 42));
    let text = std::fs::read_to_string(&arrivals).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (i, (name, _)) in all.iter().enumerate() {
        for (kind, line) in ["plain", "full", "template"].into_iter().zip(&lines[3 * i..]) {
            let want = json!([name, format!("{name}-{kind}"), if kind == "full" { 4 } else { 1 }, "gmail.com"]);
            assert_eq!(json!([line["api"], line["id"], line["recipients"], line["domain"]]), want);
            // What is no part of the generic form's own is found in the metadata of the others.
            if *name != "http" {
                assert_eq!(line["class"], "high", "{name} {kind}");
            }
        }
    }
}

#[tokio::test]
async fn a_wrong_key_is_the_accounts_fault() {
    let sandbox = sandbox("api_key = \"key-1\"").await;
    for (name, provider) in providers(&sandbox, "key-2") {
        let got = send(&provider, &message(name, "u@gmail.com", json!({}))).await;
        assert_eq!(got.label(), "rejected_account", "{name}: {got:?}");
    }
    for (name, provider) in providers(&sandbox, KEY) {
        assert_eq!(send(&provider, &message(name, "u@gmail.com", json!({}))).await.label(), "accepted", "{name}");
    }
}

#[tokio::test]
async fn a_repeated_call_is_carried_out_once_where_that_is_promised() {
    let sandbox = sandbox("").await;
    for (name, provider) in providers(&sandbox, KEY) {
        let before = sandbox.stats();
        let m = message(name, "sandbox+drop+accept@x.org", json!({}));
        assert_eq!(send(&provider, &m).await.label(), "uncertain", "{name}");
        assert_eq!(send(&provider, &m).await.label(), "accepted", "{name}");
        let accepted = sandbox.stats().accepted - before.accepted;
        assert_eq!(accepted == 1, provider.idempotent(), "{name} took it {accepted} times");
    }
}

async fn send_batch(provider: &Arc<dyn Provider>, messages: &[Message]) -> Vec<Outcome> {
    let attempts: Vec<_> = messages.iter().map(|m| Attempt { message: m, idempotency_key: &m.id }).collect();
    provider.send_batch(&attempts).await
}

#[tokio::test]
async fn batches_are_taken_message_by_message() {
    let directory = tempfile::tempdir().unwrap();
    let arrivals = directory.path().join("arrivals.ndjson");
    let sandbox = Sandbox::start(Options { arrivals: Some(arrivals.clone()), ..Options::default() }).await.unwrap();
    let mut sizes = Vec::new();
    for (name, provider) in providers(&sandbox, KEY) {
        sizes.push(format!("{name} {}", provider.max_batch()));
        let batch: Vec<Message> = (0..120)
            .map(|i| {
                let to = if i == 77 { "sandbox+reject@x.org".to_owned() } else { format!("u{i}@x.org") };
                message(&format!("{name}-{i}"), &to, json!({"cc": ["c@z.org"]}))
            })
            .collect();
        let keys: std::collections::HashSet<_> = batch.iter().map(|m| provider.batch_key(m)).collect();
        assert!(keys.len() == 1 && keys.contains(&None) == (provider.max_batch() == 1), "{name}: {keys:?}");
        let got = send_batch(&provider, &batch).await;
        for (i, outcome) in got.iter().enumerate() {
            let want = if i == 77 { "rejected_recipient" } else { "accepted" };
            assert_eq!(outcome.label(), want, "{name} {i}: {outcome:?}");
        }
        assert_eq!(got.len(), batch.len(), "{name}");
    }
    assert_eq!(sizes, ["ses 1", "sendgrid 1000", "postmark 500", "mailgun 1", "resend 100", "sparkpost 1", "http 1"]);
    let stats = sandbox.stop().await;
    assert_eq!((stats.accepted, stats.accepted_recipients), (7 * 119, 7 * 119 * 2));
    let text = std::fs::read_to_string(&arrivals).unwrap();
    let taken = |l: &str| serde_json::from_str::<Value>(l).unwrap();
    let mut ids: Vec<_> = text.lines().map(taken).filter(|l| l["accepted"] == true).map(|l| l["id"].to_string()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 7 * 119, "each once");
}

#[tokio::test]
async fn what_befalls_a_batch_befalls_all_of_it() {
    let sandbox = sandbox("").await;
    for (name, provider) in providers(&sandbox, KEY).into_iter().filter(|(_, provider)| provider.max_batch() > 1) {
        for (to, want) in [
            ("sandbox+503@x.org", "temporary"),
            ("sandbox+throttle-7s@x.org", "throttled"),
            ("sandbox+401@x.org", "rejected_account"),
            ("sandbox+drop@x.org", "uncertain"),
        ] {
            let to = ["u@x.org", to, "v@x.org"];
            let batch: Vec<Message> =
                to.iter().enumerate().map(|(i, to)| message(&format!("{name}-{}-{i}", to.len()), to, json!({}))).collect();
            let got: Vec<_> = send_batch(&provider, &batch).await.iter().map(Outcome::label).collect();
            assert_eq!(got, [want; 3], "{name} {}", to[1]);
        }
    }
}
