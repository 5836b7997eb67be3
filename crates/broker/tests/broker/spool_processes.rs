//! Several handles and processes on one spool, killed ones among them, and a disk without room.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::future::join_all;
use paceline_broker::{Broker, BrokerError, Outgoing, Route, State};
use paceline_sqlite::reader;
use paceline_testkit::{Launch, Process};
use tokio::{sync::watch, time::timeout};

use crate::{
    spool::{applied, open},
    stage::{message, next, number, reaches_depth, submit, submit_numbered},
};

const LANE: &str = "paceline.lane.low.google";
const KEY: &str = "low.gmail.com";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_consumer_is_refused_and_may_follow() {
    let (_dir, path, first) = applied().await;
    let second = open(&path);
    submit_numbered(&second, KEY, 3).await;
    let mut lane = first.consume(LANE, 1).await.unwrap();
    assert_eq!(number(&next(&mut lane).await), 0);
    let refused = second.consume(LANE, 1).await.unwrap_err();
    let pid = std::process::id().to_string();
    assert!(matches!(&refused, BrokerError::Refused(why) if why.contains(&pid) && why.contains("spool.db")), "{refused}");
    assert_eq!(second.take_over().await, Err(refused));
    assert!(second.state().borrow().is_up());
    // Another process hears the same.
    let heard = says(&mut play("consume", &path), "refused").await;
    assert!(heard.contains(&pid) && heard.contains("stop it first"), "{heard}");
    drop((lane, first));
    let mut lane = second.consume(LANE, 3).await.unwrap();
    assert_eq!(number(&next(&mut lane).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_makes_way_at_once() {
    let (_dir, path, spool) = applied().await;
    submit_numbered(&spool, KEY, 5).await;
    let mut child = play("consume", &path);
    says(&mut child, "got 0").await;
    child.kill9().await;
    let mut lane = spool.consume(LANE, 5).await.unwrap();
    let first = next(&mut lane).await;
    assert_eq!((number(&first), first.redelivered), (0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_from_another_process_wakes_the_consumer() {
    let (_dir, path, spool) = applied().await;
    let mut lane = spool.consume(LANE, 10).await.unwrap();
    let mut child = play("publish 200", &path);
    for n in 0..200 {
        let delivery = next(&mut lane).await;
        assert_eq!(number(&delivery), n);
        delivery.settle.ack();
    }
    says(&mut child, "published").await;
    lane.flush().await;
    reaches_depth(&spool, LANE, 0).await;
    assert_eq!(open(&path).depth(LANE).await, Ok(0), "also seen from elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_publishers_and_a_consumer() {
    const EACH: u32 = 2_000;
    let (_dir, path, spool) = applied().await;
    let mut lane = spool.consume(LANE, 300).await.unwrap();
    let publishers = (0..3).map(|p| {
        let handle = open(&path);
        tokio::spawn(async move {
            let publishes = (0..EACH).map(|n| submit(&handle, KEY, (p * EACH + n).to_string()));
            join_all(publishes).await;
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut got = BTreeSet::new();
    while got.len() < 3 * EACH as usize {
        let delivery = next(&mut lane).await;
        assert!(got.insert(number(&delivery)), "{} came twice", number(&delivery));
        delivery.settle.ack();
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    lane.flush().await;
    assert_eq!(spool.depth(LANE).await, Ok(0));
}

/// What the books of a process that was killed must say.
#[derive(Default)]
struct Books {
    tried: BTreeSet<u32>,
    confirmed: BTreeSet<u32>,
    acked: BTreeSet<u32>,
    flushed: BTreeSet<u32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_nothing_is_lost() {
    const ROUNDS: u64 = 25;
    let (_dir, path, spool) = applied().await;
    drop(spool);
    let mut books = Books::default();
    let mut seed = 11u64;
    for round in 0..ROUNDS {
        let mut child = play(&format!("churn {}", round * 100_000), &path);
        says(&mut child, "ready").await;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_micros((seed >> 33) % 120_000)).await;
        child.kill9().await;
        for line in child.finish(Duration::from_secs(10)).await.stdout.lines() {
            // The last line may be cut off: without its end mark it does not count.
            let said = line.strip_prefix("> ").and_then(|line| line.strip_suffix('.'));
            let Some((what, n)) = said.and_then(|said| said.split_once(' ')) else { continue };
            let n = n.parse().unwrap();
            match what {
                "try" => books.tried.insert(n),
                "ok" => books.confirmed.insert(n),
                "ack" => books.acked.insert(n),
                "flushed" => books.flushed.insert(n),
                other => panic!("{other}"),
            };
        }
        let there = messages(&path);
        let there_once: BTreeSet<u32> = there.iter().copied().collect();
        assert_eq!(there.len(), there_once.len(), "round {round}: some are there twice");
        let lost: Vec<_> = books.confirmed.difference(&there_once).filter(|n| !books.acked.contains(n)).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        let back: Vec<_> = books.flushed.intersection(&there_once).collect();
        assert!(back.is_empty(), "round {round}: acked and there again: {back:?}");
        let unknown: Vec<_> = there_once.difference(&books.tried).collect();
        assert!(unknown.is_empty(), "round {round}: never published: {unknown:?}");
    }
    assert!(books.confirmed.len() > 1_000 && books.flushed.len() > 100, "{} {}", books.confirmed.len(), books.flushed.len());
    // And the rest can be consumed.
    let spool = open(&path);
    let left = messages(&path).len();
    let mut lane = spool.consume(LANE, 300).await.unwrap();
    for _ in 0..left {
        next(&mut lane).await.settle.ack();
    }
    lane.flush().await;
    assert!(messages(&path).is_empty());
}

/// Every message in the file, which must be sound.
fn messages(path: &Path) -> Vec<u32> {
    let db = reader(path).unwrap();
    let text = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    let wrong = "SELECT count(*) || '' FROM queue WHERE depth <>
                 (SELECT count(*) FROM message WHERE message.id BETWEEN queue.id << 40 AND (queue.id + 1) << 40)";
    assert_eq!(text(wrong), "0", "depths are exact");
    let mut bodies = db.prepare("SELECT body FROM message").unwrap();
    let bodies = bodies.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    bodies.map(|body| first_number(&body.unwrap())).collect()
}

fn first_number(body: &[u8]) -> u32 {
    let end = body.iter().position(|b| *b == b' ').unwrap_or(body.len());
    std::str::from_utf8(&body[..end]).unwrap().parse().unwrap()
}

/// The file may grow no further: to the process the same as a full disk. Its limit is lifted while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_mail_and_loses_none() {
    let (_dir, path, spool) = applied().await;
    drop(spool);
    let mut child = play_limited("fill", &path, 3_000);
    let full = says(&mut child, "refused").await;
    assert!(full.contains("spool.db"), "{full}");
    says(&mut child, "not up").await;
    says(&mut child, "held 50").await;
    let lift = format!("--pid={} --fsize=unlimited", child.pid());
    assert!(Command::new("prlimit").args(lift.split(' ')).status().unwrap().success());
    says(&mut child, "up").await;
    says(&mut child, "all there").await;
    assert!(messages(&path).is_empty());
}

/// Another process: this very binary, told to run [`part`] only.
fn play(what: &str, path: &Path) -> Process {
    Launch::program(&std::env::current_exe().unwrap()).args(PART).env("PART", what).env("SPOOL", path).spawn()
}

/// With files of at most `kib`, until that is lifted from outside.
fn play_limited(what: &str, path: &Path, kib: u32) -> Process {
    // Ignored, the signal leaves the error to the one who writes.
    let script = r#"trap "" XFSZ; ulimit -S -f "$0"; exec "$@""#;
    let bash = Launch::program(Path::new("/bin/bash")).args(["-c", script, &kib.to_string()]);
    bash.args([std::env::current_exe().unwrap()]).args(PART).env("PART", what).env("SPOOL", path).spawn()
}

const PART: [&str; 4] = ["--exact", "spool_processes::part", "--ignored", "--nocapture"];

/// The first line that starts so.
async fn says(process: &mut Process, start: &str) -> String {
    let start = format!("> {start}");
    process.wait_for_line(Duration::from_secs(60), |line| line.contains(&start)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the part that another process plays in the tests above"]
async fn part() {
    let (Ok(part), Ok(path)) = (std::env::var("PART"), std::env::var("SPOOL")) else { return };
    let path = PathBuf::from(path);
    let mut words = part.split(' ');
    let (what, n) = (words.next().unwrap(), words.next().map(|n| n.parse::<u32>().unwrap()));
    match what {
        "consume" => consume(&path).await,
        "publish" => publish(&path, n.unwrap()).await,
        "churn" => churn(&path, n.unwrap()).await,
        "fill" => fill(&path).await,
        other => panic!("{other}"),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {line}").unwrap();
}

async fn consume(path: &Path) {
    let spool = open(path);
    match spool.consume(LANE, 1).await {
        Err(error) => say(&format!("refused: {error}")),
        Ok(mut lane) => {
            let got = next(&mut lane).await;
            say(&format!("got {}", number(&got)));
            std::future::pending::<()>().await;
        }
    }
}

async fn publish(path: &Path, count: u32) {
    submit_numbered(&open(path), KEY, count).await;
    say("published");
}

/// Publishes and consumes until it is killed.
async fn churn(path: &Path, start: u32) {
    let spool = open(path);
    let mut lane = spool.consume(LANE, 50).await.unwrap();
    say("ready");
    let publishers = (0..20).map(|p| {
        let spool = spool.clone();
        tokio::spawn(async move {
            for n in (start + p..).step_by(20) {
                say(&format!("try {n}."));
                let body = format!("{n} {}", "x".repeat((n as usize * 37) % 5_000));
                let to = if n % 10 == 0 { Route::Delay { rung_s: 1 } } else { Route::Lanes };
                spool.publish(message(to, "low.google", body)).await.unwrap();
                say(&format!("ok {n}."));
            }
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut unflushed = Vec::new();
    while let Some(delivery) = lane.next().await {
        let n = first_number(&delivery.body);
        if n.is_multiple_of(7) {
            // Held, and there again after the end.
            delivery.settle.release();
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        say(&format!("ack {n}."));
        delivery.settle.ack();
        unflushed.push(n);
        if unflushed.len() == 20 {
            lane.flush().await;
            unflushed.drain(..).for_each(|n| say(&format!("flushed {n}.")));
        }
    }
    join_all(publishers).await;
}

async fn becomes(state: &mut watch::Receiver<State>, wanted: impl Fn(&State) -> bool + Send) -> bool {
    timeout(Duration::from_secs(30), state.wait_for(|state| wanted(state))).await.is_ok_and(|state| state.is_ok())
}

async fn fill(path: &Path) {
    let spool = open(path);
    let mut state = spool.state();
    let mut confirmed = BTreeSet::new();
    let mut refused = BTreeSet::new();
    let body = |n: u32| format!("{n} {}", "x".repeat(2_000));
    let mut n = 0;
    let why = loop {
        match spool.publish(message(Route::Producers, KEY, body(n))).await {
            Ok(()) => _ = confirmed.insert(n),
            Err(error) => break error,
        }
        n += 1;
    };
    refused.insert(n);
    say(&format!("refused {why}"));
    assert!(becomes(&mut state, |state| !state.is_up()).await);
    say("not up");
    let mut lane = spool.consume(LANE, 50).await.unwrap();
    let mut got = BTreeSet::new();
    for _ in 0..50 {
        let delivery = next(&mut lane).await;
        assert!(got.insert(first_number(&delivery.body)));
        delivery.settle.ack();
    }
    say(&format!("held {}", got.len()));
    assert!(becomes(&mut state, State::is_up).await);
    say("up");
    let last = Outgoing { body: body(n + 1).into(), ..message(Route::Producers, KEY, "") };
    spool.publish(last).await.unwrap();
    confirmed.insert(n + 1);
    while !got.contains(&(n + 1)) {
        let delivery = next(&mut lane).await;
        assert!(got.insert(first_number(&delivery.body)), "twice");
        delivery.settle.ack();
    }
    lane.flush().await;
    assert!(confirmed.is_subset(&got), "lost {:?}", confirmed.difference(&got).collect::<Vec<_>>());
    assert!(got.difference(&confirmed).all(|n| refused.contains(n)));
    say("all there");
}
