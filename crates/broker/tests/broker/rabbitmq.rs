use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lapin::{
    Connection, ConnectionProperties,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use paceline_broker::{
    Broker, Route,
    rabbitmq::{Options, RabbitMq},
    topology::{Argument, Queue},
};
use paceline_testkit::RabbitMq as Server;

use crate::stage::{Stage, conformance, message, next_n, topology};

pub(crate) async fn client(url: &str) -> RabbitMq {
    let options = Options { urls: vec![url.to_owned()], prefix: "paceline".to_owned(), name: "paceline test".to_owned() };
    let broker = RabbitMq::start(options).unwrap();
    broker.wait_until_up(Duration::from_secs(20)).await.unwrap();
    broker
}

struct Real<'a> {
    server: &'a Server,
    last: Mutex<String>,
}

#[async_trait]
impl Stage for Real<'_> {
    async fn empty(&self) -> Arc<dyn Broker> {
        let url = self.server.vhost().await;
        *self.last.lock().unwrap() = url.clone();
        Arc::new(client(&url).await)
    }

    async fn another(&self) -> Arc<dyn Broker> {
        let url = self.last.lock().unwrap().clone();
        Arc::new(client(&url).await)
    }

    async fn declare(&self, queue: &Queue) {
        let url = self.last.lock().unwrap().clone();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let mut arguments = FieldTable::default();
        for (name, value) in &queue.arguments {
            let value = match value {
                Argument::Int(n) => AMQPValue::LongLongInt(*n),
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            };
            arguments.insert((*name).into(), value);
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.name.as_str().into(), options, arguments).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_conforms() {
    let server = Server::start().await;
    println!("RabbitMQ {}", server.version().await);
    conformance(&Real { server: &server, last: Mutex::default() }).await;
    rungs_keep_nothing(&server).await;
    closing_sends_the_acks(&server).await;
}

/// At-least-once dead-lettering holds a message until it has arrived: nothing may stay behind.
async fn rungs_keep_nothing(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    let publishes = (0..500).map(|n: u32| broker.publish(message(Route::Delay { rung_s: 1 }, "high.google", n.to_string())));
    futures_util::future::join_all(publishes).await.into_iter().for_each(|result| result.unwrap());
    let mut lane = broker.consume("paceline.lane.high.google", 500).await.unwrap();
    next_n(&mut lane, 500).await.into_iter().for_each(|delivery| delivery.settle.ack());
    lane.flush().await;
    let empty = async {
        loop {
            let queues = server.queues(&url).await;
            if queues["paceline.delay.1s"].messages == 0 && queues["paceline.lane.high.google"].messages == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("the rung is empty again");
}

async fn closing_sends_the_acks(server: &Server) {
    let url = server.vhost().await;
    let broker = client(&url).await;
    broker.apply(&topology()).await.unwrap();
    crate::stage::submit_numbered(&broker, "low.gmail.com", 50).await;
    let mut lane = broker.consume("paceline.lane.low.google", 50).await.unwrap();
    let mut held = next_n(&mut lane, 50).await;
    let kept = held.split_off(30);
    held.into_iter().for_each(|delivery| delivery.settle.ack());
    broker.close().await;
    assert!(lane.next().await.is_none());
    assert!(!broker.state().borrow().is_up());
    drop(kept);
    let again = client(&url).await;
    crate::stage::reaches_depth(&again, "paceline.lane.low.google", 20).await;
}
