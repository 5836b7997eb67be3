//! Mail, and publishing much of it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use paceline_broker::{Broker, Outgoing, Properties, PublishError, Purpose, Route};
use serde_json::{Map, Value, json};

/// A message as a producer publishes it.
#[derive(Debug, Clone)]
pub struct Mail {
    /// `<class>.<recipient-domain>`
    pub key: String,
    pub body: Bytes,
}

impl Mail {
    /// An ordinary message, under the key of its class and domain.
    pub fn new(id: &str, class: &str, to: &str) -> Mail {
        Mail::with(id, class, to, &[])
    }

    /// As [`Mail::new`], with further or other fields.
    pub fn with(id: &str, class: &str, to: &str, fields: &[(&str, Value)]) -> Mail {
        let domain = to.rsplit('@').next().unwrap_or_default();
        let mut body = Map::new();
        let plain = [
            ("id", json!(id)),
            ("class", json!(class)),
            ("from", json!("shop@sender.example")),
            ("to", json!([to])),
            ("subject", json!("A message")),
            ("text", json!("Hello.")),
        ];
        for (name, value) in plain.into_iter().chain(fields.iter().cloned()) {
            body.insert(name.to_owned(), value);
        }
        Mail { key: format!("{class}.{domain}"), body: Value::Object(body).to_string().into() }
    }

    /// The same under another routing key.
    #[must_use]
    pub fn keyed(mut self, key: &str) -> Mail {
        self.key = key.to_owned();
        self
    }

    fn outgoing(&self) -> Outgoing {
        let properties = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
        let (key, body) = (self.key.clone(), self.body.clone());
        Outgoing { to: Route::Producers, key, body, properties, purpose: Purpose::Submit }
    }
}

/// Confirms under way at a time.
const WINDOW: usize = 1000;
/// Bytes under way at a time, about.
const WINDOW_BYTES: usize = 32 << 20;

/// Publishes all with confirms, many at a time and in about this order. What the broker does not take is published
/// again until it does, so some may be there twice after an outage.
pub async fn publish(broker: &dyn Broker, mails: impl IntoIterator<Item = Mail>) {
    let mut mails = mails.into_iter().peekable();
    let bytes = mails.peek().map_or(1, |m| m.body.len().max(1));
    let window = (WINDOW_BYTES / bytes).clamp(1, WINDOW);
    stream::iter(mails).for_each_concurrent(window, async |mail| publish_one(broker, &mail).await).await;
}

/// Publishes one, with its confirm.
pub async fn publish_one(broker: &dyn Broker, mail: &Mail) {
    loop {
        match broker.publish(mail.outgoing()).await {
            Ok(()) => return,
            Err(PublishError::Invalid(why)) => panic!("a message of the scenario cannot be published: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
