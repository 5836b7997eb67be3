//! The bare loop: consume, POST, ack, with the libraries the worker uses and no safety at all.
//!
//! No limits, no classification, no claim, no retry, no time-out: the first thing that goes wrong ends it. What it
//! reaches is the ceiling that the worker is measured against, so it is written as one would write it for speed.

use std::{error::Error, sync::Arc};

use clap::Parser;
use futures_util::{StreamExt, stream::SelectAll};
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use reqwest::{
    Client, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};

/// Messages the broker hands out ahead, per queue.
const PREFETCH: u16 = 300;
/// Calls to the provider at a time.
const IN_FLIGHT: u32 = 64;

/// Consumes, posts each body as it is, acks after the answer. Takes so many messages, then waits for SIGTERM.
#[derive(Parser)]
struct Arguments {
    /// amqp://
    #[arg(long)]
    broker: String,
    /// Where to POST.
    #[arg(long)]
    url: Url,
    /// How many messages to carry.
    #[arg(long)]
    messages: u64,
    /// Queues to consume.
    #[arg(required = true)]
    queues: Vec<String>,
}

/// What each call needs, made once.
struct Provider {
    client: Client,
    url: Url,
    headers: HeaderMap,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let provider = Arc::new(Provider::new(arguments.url)?);
    let connection = Connection::connect(&arguments.broker, ConnectionProperties::default()).await?;
    let mut deliveries = SelectAll::new();
    for queue in &arguments.queues {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consume =
            channel.basic_consume(queue.as_str().into(), "bare".into(), BasicConsumeOptions::default(), FieldTable::default());
        deliveries.push(consume.await?);
    }
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT as usize));
    for _ in 0..arguments.messages {
        let delivery = deliveries.next().await.ok_or("the broker ended the consumer")??;
        let turn = Arc::clone(&in_flight).acquire_owned().await?;
        let provider = Arc::clone(&provider);
        tokio::spawn(async move {
            provider.carry(delivery).await;
            drop(turn);
        });
    }
    let _all_done = in_flight.acquire_many(IN_FLIGHT).await?;
    // RabbitMQ may lose acks that it has read and not yet carried out when the connection closes: stay until told.
    signal(SignalKind::terminate())?.recv().await;
    connection.close(200, "done".into()).await?;
    Ok(())
}

impl Provider {
    fn new(url: Url) -> Result<Provider, Box<dyn Error>> {
        // reqwest asks for one even where it will not be used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .http1_only()
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(IN_FLIGHT as usize)
            .tls_certs_only([])
            .build()?;
        let json = HeaderValue::from_static("application/json");
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, json.clone());
        headers.insert(ACCEPT, json);
        // Of either API that it may be sent to.
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer SG.bench"));
        headers.insert("x-postmark-server-token", HeaderValue::from_static("bench"));
        Ok(Provider { client, url, headers })
    }

    async fn carry(&self, delivery: Delivery) {
        let Delivery { data, acker, .. } = delivery;
        let posted = async {
            let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(data);
            let answer = request.send().await?;
            let status = answer.status();
            // The connection can be used again only once the answer has been read.
            answer.bytes().await?;
            Ok::<_, reqwest::Error>(status)
        };
        let problem = match posted.await {
            Ok(status) if status.is_success() => match acker.ack(BasicAckOptions::default()).await {
                Ok(true) => return,
                Ok(false) => "the ack came too late".to_owned(),
                Err(error) => format!("ack: {error}"),
            },
            Ok(status) => format!("the provider answered {status}"),
            Err(error) => format!("POST: {error}"),
        };
        fail(&problem)
    }
}

#[expect(clippy::print_stderr, reason = "the last words of a development program")]
fn fail(problem: &str) -> ! {
    eprintln!("bare: {problem}");
    std::process::exit(1)
}
