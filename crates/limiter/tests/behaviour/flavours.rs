//! Redis in its other forms: a Cluster, over TLS, for a user of few rights. All that a fleet keeps there works in each.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use paceline_core::Class;
use paceline_limiter::{
    Ask, BucketSpec, Held, LaneAsk, Limiter, LimiterError, Seed, Spent,
    degraded::{Guarded, Mode},
    fleet::{RedisFleet, RedisReports, Reports},
    ledger::{Claim, Claimed, Ledger, Recorded, RedisLedger},
    redis::{RedisClient, RedisLimiter},
    signals::RedisSignals,
};
use paceline_testkit::{Port, Redis, RedisCluster};

use crate::sim::bucket;

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
/// Any key of the fleet: they all have the same slot.
const KEY: &str = "{paceline}:epoch";

fn client(urls: &[&str], ca_pem: Option<Vec<u8>>) -> RedisClient {
    RedisClient::of(urls, ca_pem, "paceline").unwrap()
}

/// A rate, a quota and slots in one ask.
fn ask(seq: u64) -> Ask {
    let buckets = vec![
        bucket("a", "1000/s", 1000),
        BucketSpec::window("a:quota", "1000/min".parse().unwrap(), 0.0),
        BucketSpec::slots("a:concurrency", 100, 60_000_000),
    ];
    let lane = LaneAsk {
        class: Class::Normal,
        destination: "google".into(),
        weight: 1,
        buckets: vec![0, 1, 2],
        costs: vec![1.into()],
        since_us: 0,
        id: "w1.1".into(),
        seq,
    };
    Ask { buckets, lanes: vec![lane], worker: "w1".into(), held: vec![Held { bucket: 2, calls: 0 }], ..Ask::default() }
}

/// One grant, however long it takes.
async fn granted(limiter: &dyn Limiter) -> u64 {
    for seq in 1.. {
        if let Ok(reply) = limiter.ask(&ask(seq)).await
            && let Some(date) = reply.lanes[0].dates_us.first()
        {
            return *date;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("the runner's time-out is the limit")
}

/// Everything that a worker does with Redis.
async fn everything(client: &RedisClient) {
    let limiter = RedisLimiter::new(client.clone());
    assert!(limiter.now_us().await.unwrap() <= granted(&limiter).await);
    let buckets = ask(1).buckets;
    limiter.charge(&[(buckets[0].clone(), Spent::Now(2)), (buckets[1].clone(), Spent::Now(3))], 0).await.unwrap();
    limiter.seed(&[Seed { window: buckets[1].clone(), spent: vec![] }], true).await.unwrap();
    crate::ledger::conformance(&RedisLedger::new(client.clone(), DAY)).await;
    let fleet = RedisFleet::new(client.clone());
    crate::fleet::conformance(&fleet).await;
    crate::fleet::lists(&fleet).await;
    crate::reports::together(&RedisReports::new(client.clone())).await;
    crate::signals::conformance(&RedisSignals::new(client.clone())).await;
    let guarded = Guarded::start(client.clone(), "w1", MINUTE, None);
    guarded.mode().wait_for(|mode| *mode == Mode::Shared).await.unwrap();
    granted(&guarded).await;
    paceline_limiter::fleet::Fleet::leave(&guarded, "w1").await.unwrap();
}

fn claim(id: &str) -> Claim {
    Claim::new(id.into(), None, 1, 7, "w1".into(), MINUTE)
}

/// Claims a message and records that it was sent.
async fn sent(ledger: &dyn Ledger, id: &str) {
    let claim = claim(id);
    while ledger.claim(claim.clone()).await != Ok(Claimed::Granted) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.record(&claim, Recorded::Sent { note: String::new() }).await.unwrap();
}

/// That it was is still known.
async fn was_sent(ledger: &dyn Ledger, id: &str) {
    loop {
        match ledger.claim(claim(id)).await {
            Ok(found) => return assert!(matches!(found, Claimed::Done { .. }), "{id}: {found:?}"),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cluster_is_followed_when_keys_move_and_when_a_node_dies() {
    let mut cluster = RedisCluster::start().await;
    let urls = cluster.urls();
    let all: Vec<&str> = urls.iter().map(String::as_str).collect();
    // Whichever node is asked first.
    for url in &urls {
        granted(&RedisLimiter::new(client(&[url], None))).await;
    }
    everything(&client(&all, None)).await;

    // A worker that has been there all the time follows its keys to another node, and what was known is still known.
    let followed = client(&all, None);
    let guarded = Guarded::start(followed.clone(), "w2", MINUTE, None);
    let ledger = RedisLedger::new(followed.clone(), DAY);
    let reports = RedisReports::new(followed.clone());
    let before = granted(&guarded).await;
    sent(&ledger, "before the move").await;
    reports.report("w2", "here", DAY).await.unwrap();
    let from = cluster.owner(KEY, &[0, 1, 2]);
    let to = (from + 1) % 3;
    cluster.move_slot(KEY, to);
    assert_eq!(cluster.owner(KEY, &[0, 1, 2]), to);
    assert!(granted(&guarded).await >= before);
    was_sent(&ledger, "before the move").await;
    assert_eq!(reports.reports().await.unwrap(), ["here"]);
    assert_eq!(*guarded.mode().borrow(), Mode::Shared);

    // Its node dies and a replica takes over, whose address the worker was never given.
    let replica = cluster.replicate(to).await;
    sent(&ledger, "before the death").await;
    cluster.caught_up(to, replica).await;
    let before = granted(&guarded).await;
    cluster.node(to).kill9().await;
    cluster.promoted(replica).await;
    assert!(granted(&guarded).await > before);
    was_sent(&ledger, "before the move").await;
    was_sent(&ledger, "before the death").await;
    let survivors: Vec<usize> = (0..4).filter(|node| *node != to).collect();
    assert_eq!(cluster.owner(KEY, &survivors), replica);
    // One that starts now, and asks the dead one first; of another fleet, whose keys may be elsewhere.
    everything(&RedisClient::of(&[all[to], all[from]], None, "another").unwrap()).await;
}

fn certificate(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../provider/tests/tls").join(name)
}

/// Speaks TLS on a second port, with the certificate of `localhost`.
async fn with_tls() -> (Redis, Port) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let port = Port::reserve();
    let (number, file) = (port.number().to_string(), |name| certificate(name).to_str().unwrap().to_owned());
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let certificates = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let redis = Redis::with_config(&[&["--tls-port", &number, "--tls-auth-clients", "no"], &certificates[..]].concat()).await;
    (redis, port)
}

#[tokio::test]
async fn tls_is_checked_against_who_vouches_for_it() {
    let (redis, port) = with_tls().await;
    let ours = || Some(std::fs::read(certificate("ca.pem")).unwrap());
    let url = format!("rediss://localhost:{}", port.number());
    everything(&client(&[&url], ours())).await;
    // Users log in over it as over anything else.
    assert_eq!(redis.command("ACL SETUSER paceline on >s3cret ~{paceline}:* +@all"), "OK");
    granted(&RedisLimiter::new(client(&[&format!("rediss://paceline:s3cret@localhost:{}", port.number())], ours()))).await;

    let refused = async |url: &str, ca_pem| {
        let limiter = RedisLimiter::new(client(&[url], ca_pem));
        let error = limiter.ask(&ask(1)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        error.to_string()
    };
    // Signed by nobody that the system knows; by nobody that is named; for another name.
    let error = refused(&url, None).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
    let error = refused(&url, Some(std::fs::read(certificate("server.pem")).unwrap())).await;
    assert!(error.contains("certificate"), "{error}");
    let error = refused(&format!("rediss://127.0.0.1:{}", port.number()), ours()).await;
    assert!(error.contains("not valid for name"), "{error}");
    // Plain text to a port that speaks TLS.
    let error = refused(&format!("redis://localhost:{}", port.number()), None).await;
    assert!(error.contains("connection lost"), "{error}");
    let error = RedisClient::of(&[&url], Some(b"no certificate".to_vec()), "paceline").unwrap_err();
    assert!(error.to_string().contains("limits.ca_file"), "{error}");
}

/// The line of docs/redis.md that makes a user.
fn documented() -> &'static str {
    let page = include_str!("../../../../docs/redis.md");
    page.lines().map(str::trim).find(|line| line.starts_with("ACL SETUSER")).unwrap()
}

#[tokio::test]
async fn a_user_needs_what_the_documentation_says_and_no_more() {
    let redis = Redis::start().await;
    let line = documented();
    assert_eq!(redis.command(line), "OK", "{line}");
    let password = line.split_whitespace().find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://paceline:{password}@127.0.0.1:{}", redis.port());
    everything(&client(&[&url], None)).await;
    assert_eq!(redis.command("ACL LOG"), "", "something was refused on the way");

    // Each right is used.
    let rights: BTreeSet<&str> = line.split_whitespace().filter_map(|word| word.strip_prefix('+')).collect();
    let stats = redis.command("INFO commandstats");
    let used: BTreeSet<&str> = stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next())
        .filter(|c| rights.contains(c))
        .collect();
    assert_eq!(rights, used);

    // Where something is missing, that is said, and where to look, of whatever comes first.
    for (missing, words) in [("-evalsha", "'evalsha'"), ("-script|load", "'script|load'"), ("-hset", "script")] {
        assert_eq!((redis.command(line), redis.command("SCRIPT FLUSH")), ("OK".into(), "OK".into()));
        assert_eq!(redis.command(&format!("ACL SETUSER paceline {missing}")), "OK");
        let error = kept_out(client(&[&url], None)).await;
        assert!(error.contains(words) && error.contains("docs/redis.md"), "{missing}: {error}");
    }
    // The keys of another fleet.
    assert_eq!(redis.command(line), "OK");
    let error = kept_out(RedisClient::new(&url, "other").unwrap()).await;
    assert!(error.contains("access") && error.contains("key") && error.contains("docs/redis.md"), "{error}");
    let wrong = format!("redis://paceline:hunter2@127.0.0.1:{}", redis.port());
    let error = RedisLimiter::new(client(&[&wrong], None)).ask(&ask(1)).await.unwrap_err();
    assert!(matches!(error, LimiterError::Unreachable { .. }) && !error.to_string().contains("hunter2"), "{error}");
}

/// Why a worker never gets to see the limiter.
async fn kept_out(client: RedisClient) -> String {
    let guarded = Guarded::start(client, "w3", MINUTE, None);
    loop {
        match guarded.ask(&ask(1)).await {
            Err(error @ LimiterError::Refused { .. }) => {
                assert_eq!(*guarded.mode().borrow(), Mode::Unknown);
                return error.to_string();
            }
            Err(LimiterError::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => panic!("{other:?}"),
        }
    }
}
