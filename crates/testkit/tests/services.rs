//! The private services start, keep their data over a stop and a kill, and know nothing of each other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use paceline_testkit::{Postgres, RabbitMq, Redis};

#[tokio::test]
async fn redis_keeps_its_data_over_a_stop_and_loses_it_on_request() {
    let redis = Redis::start().await;
    let other = Redis::with_config(&["--maxmemory", "5mb"]).await;
    assert_eq!(other.command("CONFIG GET maxmemory"), "maxmemory\n5242880");
    assert_eq!(redis.command("SET word kept"), "OK");
    assert_eq!(other.command("EXISTS word"), "0");
    redis.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", redis.port())).is_err());
    redis.start_again().await;
    assert_eq!(redis.command("GET word"), "kept");
    redis.kill9().await;
    redis.start_again_empty().await;
    assert_eq!(redis.command("EXISTS word"), "0");
}

#[tokio::test]
async fn postgres_keeps_committed_rows_over_a_stop_and_a_kill() {
    let postgres = Postgres::start().await;
    let url = postgres.url();
    let other = postgres.database().await;
    postgres.sql(&url, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    assert_eq!(postgres.sql(&other, "SELECT count(*) FROM pg_tables WHERE tablename = 't'").await.trim(), "0");
    postgres.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", postgres.port())).is_err());
    postgres.start_again().await;
    postgres.sql(&url, "INSERT INTO t VALUES (2)").await;
    postgres.kill9().await;
    postgres.start_again().await;
    assert_eq!(postgres.sql(&url, "SELECT sum(n) FROM t").await.trim(), "3");
}

/// One test, so that the broker starts once: see the crate's page.
#[tokio::test]
async fn rabbitmq_serves_isolated_virtual_hosts_is_counted_frozen_stopped_and_killed() {
    let rabbitmq = RabbitMq::start().await;
    assert!(rabbitmq.version().await.starts_with(['3', '4']));
    let case = rabbitmq.vhost().await;
    assert_eq!(rabbitmq.queues(&case).await.len(), 0);

    declare(&rabbitmq, "case-0", "quorum", "lane").await;
    declare(&rabbitmq, "case-0", "classic", "plain").await;
    declare(&rabbitmq, "/", "quorum", "elsewhere").await;
    publish(&rabbitmq, "case-0", "lane").await;
    publish(&rabbitmq, "case-0", "plain").await;
    counted(&rabbitmq, &case, "lane", 1).await;
    counted(&rabbitmq, &case, "plain", 1).await;
    assert!(!rabbitmq.queues(&case).await.contains_key("elsewhere"));
    assert!(rabbitmq.queues(&rabbitmq.url()).await.contains_key("elsewhere"));

    let mut client = TcpStream::connect(("127.0.0.1", rabbitmq.port())).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    rabbitmq.freeze();
    client.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
    assert!(client.read(&mut [0; 1]).is_err(), "a frozen broker says nothing");
    rabbitmq.thaw();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 1);

    rabbitmq.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", rabbitmq.port())).is_err());
    rabbitmq.start_again().await;
    counted(&rabbitmq, &case, "lane", 1).await;
    rabbitmq.kill9().await;
    rabbitmq.start_again().await;
    counted(&rabbitmq, &case, "lane", 1).await;
    rabbitmq.delete_queue(&case, "lane").await;
    assert!(!rabbitmq.queues(&case).await.contains_key("lane"));
}

#[tokio::test]
async fn rabbitmq_management_answers_where_it_is_wanted() {
    let rabbitmq = RabbitMq::with_management().await;
    let url = rabbitmq.management_url().unwrap();
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET /api/overview HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK") && answer.contains("rabbitmq_version"), "{answer}");
}

async fn declare(rabbitmq: &RabbitMq, vhost: &str, kind: &str, name: &str) {
    let expression = format!(
        "{{new, _}} = rabbit_amqqueue:declare({{resource, <<\"{vhost}\">>, queue, <<\"{name}\">>}}, true, false, \
         [{{<<\"x-queue-type\">>, longstr, <<\"{kind}\">>}}], none, <<\"test\">>), true"
    );
    rabbitmq.eval(&expression).await;
}

/// Publishes from within the broker: this crate has no AMQP client.
async fn publish(rabbitmq: &RabbitMq, vhost: &str, queue: &str) {
    let expression = format!(
        "{{ok, Connection}} = amqp_connection:start({{amqp_params_direct, none, none, <<\"{vhost}\">>, node(), none, []}}), \
         {{ok, Channel}} = amqp_connection:open_channel(Connection), \
         ok = amqp_channel:call(Channel, {{'basic.publish', 0, <<>>, <<\"{queue}\">>, false, false}}, \
           {{amqp_msg, {{'P_basic', undefined, undefined, undefined, 2, undefined, undefined, undefined, undefined, \
             undefined, undefined, undefined, undefined, undefined, undefined}}, <<\"body\">>}}), \
         amqp_channel:close(Channel), amqp_connection:close(Connection), true"
    );
    rabbitmq.eval(&expression).await;
}

async fn counted(rabbitmq: &RabbitMq, url: &str, queue: &str, messages: u64) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let state = rabbitmq.queues(url).await.remove(queue);
        if state.as_ref().is_some_and(|state| state.ready == messages && state.messages == messages && state.unacked == 0) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{queue} never held {messages}: {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
