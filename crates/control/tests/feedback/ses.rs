//! Amazon SES through SNS, with certificates made by `openssl`.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use paceline_control::feedback::{Fetch, Scheme, Unfetched};
use paceline_core::{Timestamp, feedback::Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stage::Stage;

const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:ses-events";
const CERTIFICATE: &str = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";
const CONFIRM: &str = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:eu-west-1:123456789012:ses-events&Token=2336412f37";

/// For `sns.amazonaws.com`, valid through the year 2020; its key was thrown away.
const EXPIRED: &[u8] = include_bytes!("expired.pem");

/// What is at addresses, and which were asked.
#[derive(Default)]
struct Web {
    pages: Mutex<BTreeMap<String, Bytes>>,
    asked: Mutex<Vec<String>>,
}

impl Web {
    fn serve(&self, url: &str, page: impl Into<Bytes>) {
        self.pages.lock().unwrap().insert(url.to_owned(), page.into());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Fetch for Web {
    async fn get(&self, url: &str, _: usize) -> Result<Bytes, Unfetched> {
        self.asked.lock().unwrap().push(url.to_owned());
        let page = self.pages.lock().unwrap().get(url).cloned();
        let missing = || match url.contains("away") {
            true => Unfetched::Away("no answer".to_owned()),
            false => Unfetched::Missing("nothing there".to_owned()),
        };
        page.ok_or_else(missing)
    }
}

/// A key with a certificate that its owner signed.
struct Signer(TempDir);

fn openssl(dir: &Path, args: &[&str]) {
    let program = paceline_testkit::find::program("openssl", "openssl", &[]).unwrap();
    let status = Command::new(program).current_dir(dir).args(args).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "openssl {args:?}");
}

impl Signer {
    fn new(name: &str) -> Signer {
        let signer = Signer(tempfile::tempdir().unwrap());
        let (subject, alternative) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "certificate.pem"];
        openssl(signer.0.path(), &[&key[..], &["-days", "2", "-subj", &subject, "-addext", &alternative]].concat());
        signer
    }

    fn certificate(&self) -> Vec<u8> {
        std::fs::read(self.0.path().join("certificate.pem")).unwrap()
    }

    /// `notification` with its signature.
    fn sign(&self, version: &str, mut notification: Value) -> Vec<u8> {
        let kind = notification["Type"].as_str().unwrap().to_owned();
        let fields: &[&str] = match kind.as_str() {
            "Notification" => &["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"],
            _ => &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
        };
        let lines = fields.iter().filter_map(|name| Some(format!("{name}\n{}\n", notification[*name].as_str()?)));
        std::fs::write(self.0.path().join("text"), lines.collect::<String>()).unwrap();
        let digest = if version == "1" { "-sha1" } else { "-sha256" };
        openssl(self.0.path(), &["dgst", digest, "-sign", "key.pem", "-out", "signature", "text"]);
        notification["SignatureVersion"] = version.into();
        notification["Signature"] = STANDARD.encode(std::fs::read(self.0.path().join("signature")).unwrap()).into();
        serde_json::to_vec_pretty(&notification).unwrap()
    }
}

fn at(seconds_ago: u64) -> String {
    let now: Timestamp = std::time::SystemTime::now().into();
    (now - std::time::Duration::from_secs(seconds_ago)).to_string()
}

fn notification(id: &str) -> Value {
    let message = json!({"eventType": "Bounce",
        "mail": {"messageId": "m1", "timestamp": at(60), "destination": ["jo@gmail.com"], "tags": {"paceline_id": ["order-1"]}},
        "bounce": {"bounceType": "Permanent", "bounceSubType": "General",
            "bouncedRecipients": [{"emailAddress": "jo@gmail.com", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 unknown"}]}});
    json!({"Type": "Notification", "MessageId": id, "TopicArn": TOPIC, "Message": message.to_string(), "Timestamp": at(30),
        "SigningCertURL": CERTIFICATE, "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe"})
}

fn confirmation(subscribe_url: &str) -> Value {
    json!({"Type": "SubscriptionConfirmation", "MessageId": "c1", "Token": "2336412f37", "TopicArn": TOPIC,
        "Message": "You have chosen to subscribe", "SubscribeURL": subscribe_url, "Timestamp": at(0), "SigningCertURL": CERTIFICATE})
}

fn with(mut notification: Value, field: &str, value: &str) -> Value {
    notification[field] = value.into();
    notification
}

async fn stage(web: &Arc<Web>) -> Stage {
    Stage::start([("main", Scheme::ses(vec![TOPIC.to_owned()]).unwrap())], Some(web.clone())).await
}

async fn post(stage: &Stage, body: &[u8]) -> u16 {
    stage.post("main", &[("Content-Type", "text/plain; charset=UTF-8")], body).await
}

#[tokio::test]
async fn genuine_notifications_are_taken_once() {
    let (web, signer) = (Arc::new(Web::default()), Signer::new("sns.amazonaws.com"));
    web.serve(CERTIFICATE, signer.certificate());
    let stage = stage(&web).await;
    for (n, version) in ["1", "2"].into_iter().enumerate() {
        let id = format!("n{version}");
        let body = signer.sign(version, with(notification(&id), "Subject", "Amazon SES Email Event Notification"));
        for _ in 0..2 {
            assert_eq!(post(&stage, &body).await, 200, "signature version {version}");
        }
        let events = stage.events(n + 1).await;
        let event = &events[n].event;
        assert_eq!((event.kind, event.event_id.as_str()), (Kind::HardBounce, format!("{id}/0").as_str()));
        assert_eq!((event.message_id.as_deref(), event.provider_id.as_deref()), (Some("order-1"), Some("m1")));
        assert_eq!((event.answer.status, event.enhanced_status.as_deref()), (Some(550), Some("5.1.1")));
    }
    assert_eq!(web.asked(), [CERTIFICATE], "the certificate is fetched once");
    assert_eq!((stage.counted("main", "hard_bounce").await, stage.counted("main", "duplicate").await), (2, 2));
    stage.end().await;
}

#[tokio::test]
async fn forged_notifications_are_refused() {
    let (signer, stranger) = (Signer::new("sns.eu-west-1.amazonaws.com"), Signer::new("sns.amazonaws.com"));
    let web = Arc::new(Web::default());
    web.serve(CERTIFICATE, signer.certificate());
    let elsewhere = CERTIFICATE.replace("sns.eu-west-1.amazonaws.com", "sns.eu-west-1.amazonaws.com.evil.example");
    web.serve(&elsewhere, stranger.certificate());
    let bucket = "https://sns.s3.amazonaws.com.evil.example/a.pem";
    web.serve(bucket, stranger.certificate());
    let named = Signer::new("mail.evil.example");
    let other_names = CERTIFICATE.replace("0123", "aaaa");
    web.serve(&other_names, named.certificate());
    let old_certificate = CERTIFICATE.replace("0123", "bbbb");
    web.serve(&old_certificate, EXPIRED);
    let away = CERTIFICATE.replace("0123", "away");
    let missing = CERTIFICATE.replace("0123", "cccc");
    let stage = stage(&web).await;

    for (version, other) in [("1", "2"), ("2", "1")] {
        let genuine = signer.sign(version, notification("n1"));
        let edit = |field: &str, value: Value| {
            let mut changed: Value = serde_json::from_slice(&genuine).unwrap();
            changed[field] = value;
            serde_json::to_vec(&changed).unwrap()
        };
        let victim = notification("n1")["Message"].as_str().unwrap().replace("jo@gmail.com", "victim@gmail.com");
        let cases = [
            ("a changed message", edit("Message", victim.into()), 401, "signature"),
            ("another id", edit("MessageId", "n2".into()), 401, "signature"),
            ("a subject that was not signed", edit("Subject", "x".into()), 401, "signature"),
            ("another time", edit("Timestamp", at(10).into()), 401, "signature"),
            ("no time", edit("Timestamp", "now".into()), 401, "signature"),
            ("the other version", edit("SignatureVersion", other.into()), 401, "signature"),
            ("a version there is not", edit("SignatureVersion", "3".into()), 401, "signature"),
            ("another key", stranger.sign(version, notification("n1")), 401, "signature"),
            ("no signature", edit("Signature", Value::Null), 401, "unsigned"),
            ("no certificate", edit("SigningCertURL", Value::Null), 401, "unsigned"),
            ("an old notification", signer.sign(version, with(notification("n1"), "Timestamp", &at(6 * 3600))), 403, "timestamp"),
            ("another topic", signer.sign(version, with(notification("n1"), "TopicArn", &format!("{TOPIC}-2"))), 403, "topic"),
            (
                "a certificate elsewhere",
                stranger.sign(version, with(notification("n1"), "SigningCertURL", &elsewhere)),
                403,
                "host",
            ),
            (
                "a certificate in a bucket",
                stranger.sign(version, with(notification("n1"), "SigningCertURL", bucket)),
                403,
                "host",
            ),
            ("a certificate without TLS", edit("SigningCertURL", CERTIFICATE.replace("https", "http").into()), 403, "host"),
            (
                "a certificate of somebody else",
                named.sign(version, with(notification("n1"), "SigningCertURL", &other_names)),
                403,
                "certificate",
            ),
            (
                "a certificate that has ended",
                stranger.sign(version, with(notification("n1"), "SigningCertURL", &old_certificate)),
                403,
                "certificate",
            ),
            ("a certificate that is not there", edit("SigningCertURL", missing.as_str().into()), 403, "certificate"),
            ("a certificate that cannot be had", edit("SigningCertURL", away.as_str().into()), 503, "amazon"),
            ("an event as it is, without its envelope", br#"{"eventType":"Bounce"}"#.to_vec(), 401, "unsigned"),
            ("no JSON", b"Message".to_vec(), 401, "unsigned"),
        ];
        for (what, body, status, why) in cases {
            let before = stage.refused("main", why).await;
            assert_eq!(post(&stage, &body).await, status, "{what}, version {version}");
            assert_eq!(stage.refused("main", why).await, before + 1, "{what}, version {version}");
        }
    }
    let asked = web.asked();
    assert!(asked.iter().all(|url| url.starts_with("https://sns.eu-west-1.amazonaws.com/")), "{asked:?}");
    assert_eq!(stage.events(0).await, []);

    assert_eq!(post(&stage, &signer.sign("2", notification("n1"))).await, 200);
    stage.events(1).await;
    stage.end().await;
}

#[tokio::test]
async fn subscriptions_are_confirmed_at_amazon_alone() {
    let (web, signer) = (Arc::new(Web::default()), Signer::new("sns.amazonaws.com"));
    web.serve(CERTIFICATE, signer.certificate());
    let stage = stage(&web).await;
    let genuine = signer.sign("1", confirmation(CONFIRM));
    assert_eq!(post(&stage, &genuine).await, 503, "Amazon does not answer");
    web.serve(CONFIRM, "<ConfirmSubscriptionResponse/>");
    web.asked();
    assert_eq!(post(&stage, &genuine).await, 200);
    assert_eq!(web.asked(), [CONFIRM]);

    let foreign = "https://evil.example/?Action=ConfirmSubscription&Token=2336412f37";
    let unsubscribe = CONFIRM.replace("ConfirmSubscription", "Unsubscribe");
    for url in [foreign, &unsubscribe] {
        assert_eq!(post(&stage, &signer.sign("2", confirmation(url))).await, 403, "{url}");
    }
    let mut unsigned: Value = serde_json::from_slice(&genuine).unwrap();
    unsigned["Token"] = "other".into();
    assert_eq!(post(&stage, &serde_json::to_vec(&unsigned).unwrap()).await, 401);
    let other_topic = signer.sign("2", with(confirmation(CONFIRM), "TopicArn", &format!("{TOPIC}-2")));
    assert_eq!(post(&stage, &other_topic).await, 403);
    assert_eq!(web.asked(), [""; 0], "nothing is asked for these");
    assert_eq!((stage.refused("main", "host").await, stage.refused("main", "topic").await), (2, 1));

    let ended = with(confirmation(CONFIRM), "Type", "UnsubscribeConfirmation");
    assert_eq!(post(&stage, &signer.sign("2", ended)).await, 200);
    assert_eq!(web.asked(), [""; 0], "an operator's unsubscribing stands");
    stage.end().await;
}
