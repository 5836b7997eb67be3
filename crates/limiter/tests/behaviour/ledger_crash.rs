//! A worker that is killed, and a disk without room, under the ledger in a file.

use std::{collections::BTreeSet, io::Write, path::Path, process::Command, sync::Arc, time::Duration};

use paceline_limiter::ledger::{Claim, Claimed, Ledger, Recorded, SqliteLedger};
use paceline_testkit::{Launch, Process};

const DAY: Duration = Duration::from_secs(86_400);
const PATIENCE: Duration = Duration::from_secs(60);
const PART: [&str; 4] = ["--exact", "ledger_crash::part", "--ignored", "--nocapture"];

fn open(path: &Path) -> SqliteLedger {
    SqliteLedger::open(path, DAY).unwrap()
}

fn claim(n: u32) -> Claim {
    Claim::new(format!("m{n}").into(), None, 1, 7, "w1".into(), Duration::from_secs(600))
}

fn sent(n: u32) -> Recorded {
    Recorded::Sent { note: format!("note {n}") }
}

#[tokio::test]
async fn killed_at_any_point_it_knows_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (mut claimed, mut recorded) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..20u32 {
        let start = round * 100_000;
        let mut child = Launch::program(&std::env::current_exe().unwrap())
            .args(PART)
            .env("PART", format!("work {start}"))
            .env("LEDGER", &path)
            .spawn();
        child.wait_for_line(PATIENCE, |line| line.contains("ready")).await;
        tokio::time::sleep(Duration::from_millis(u64::from(round * 37 % 60))).await;
        child.kill9().await;
        for line in child.finish(PATIENCE).await.stdout.lines() {
            // The last line may be cut off: without its end mark it does not count.
            let said = line.strip_prefix("> ").and_then(|line| line.strip_suffix('.'));
            match said.and_then(|said| said.split_once(' ')) {
                Some(("claimed", n)) => _ = claimed.insert(n.parse::<u32>().unwrap()),
                Some(("recorded", n)) => _ = recorded.insert(n.parse::<u32>().unwrap()),
                _ => {}
            }
        }
        let ledger = open(&path);
        for n in &recorded {
            assert_eq!(ledger.claim(claim(*n)).await, Ok(Claimed::Done { attempt: 1, result: sent(*n) }), "round {round}");
        }
        for n in claimed.difference(&recorded).filter(|n| **n >= start) {
            // Its owner is dead: nobody waits for the deadline. Its result may have been stored all the same.
            let found = ledger.claim(claim(*n)).await.unwrap();
            let done = Claimed::Done { attempt: 1, result: sent(*n) };
            assert!(found == Claimed::Expired { lost: 1 } || found == done, "round {round}: {found:?}");
        }
        drop(ledger);
        let db = paceline_sqlite::reader(&path).unwrap();
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok", "round {round}");
    }
    assert!(recorded.len() > 500, "{}", recorded.len());
}

/// The file may grow no further: to the process the same as a full disk. Its limit is lifted while it runs.
#[tokio::test]
async fn results_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    drop(open(&path));
    // Ignored, the signal leaves the error to the one who writes.
    let script = r#"trap "" XFSZ; ulimit -S -f 1000; exec "$@""#;
    let mut child = Launch::program(Path::new("/bin/bash"))
        .args(["-c", script, "limited"])
        .args([std::env::current_exe().unwrap()])
        .args(PART)
        .env("PART", "fill")
        .env("LEDGER", &path)
        .spawn();
    let full = says(&mut child, "refused").await;
    assert!(full.contains("ledger.db"), "{full}");
    says(&mut child, "a result waits").await;
    let lift = format!("--pid={} --fsize=unlimited", child.pid());
    assert!(Command::new("prlimit").args(lift.split(' ')).status().unwrap().success());
    says(&mut child, "stored").await;
    assert!(child.finish(PATIENCE).await.status.success());
    let ledger = open(&path);
    assert_eq!(ledger.claim(claim(0)).await, Ok(Claimed::Done { attempt: 1, result: sent(0) }));
}

async fn says(process: &mut Process, start: &str) -> String {
    let start = format!("> {start}");
    process.wait_for_line(PATIENCE, |line| line.contains(&start)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the part that another process plays in the tests above"]
async fn part() {
    let (Ok(part), Ok(path)) = (std::env::var("PART"), std::env::var("LEDGER")) else { return };
    let ledger = Arc::new(open(Path::new(&path)));
    match part.split_once(' ') {
        Some(("work", start)) => work(ledger, start.parse().unwrap()).await,
        _ => fill(ledger).await,
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {line}").unwrap();
}

/// Claims and records until it is killed.
async fn work(ledger: Arc<SqliteLedger>, start: u32) {
    say("ready");
    let workers = (0..20).map(|w| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            for n in (start + w..).step_by(20) {
                let claim = claim(n);
                assert_eq!(ledger.claim(claim.clone()).await, Ok(Claimed::Granted));
                say(&format!("claimed {n}."));
                if !n.is_multiple_of(5) {
                    ledger.record(&claim, sent(n)).await.unwrap();
                    say(&format!("recorded {n}."));
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

async fn fill(ledger: Arc<SqliteLedger>) {
    let first = claim(0);
    assert_eq!(ledger.claim(first.clone()).await, Ok(Claimed::Granted));
    // Until not even the log can be written back any more.
    let (mut n, mut refusals) = (1, Vec::new());
    let owner: Arc<str> = "w".repeat(5_000).into();
    while refusals.len() < 10 {
        let mut next = claim(n);
        if refusals.is_empty() && n < 500 {
            next.owner = owner.clone();
        }
        match ledger.claim(next).await {
            Ok(claimed) => {
                assert_eq!(claimed, Claimed::Granted);
                refusals.clear();
            }
            Err(error) => refusals.push(error),
        }
        n += 1;
    }
    let why = &refusals[0];
    say(&format!("refused: {why}"));
    let mut recording = std::pin::pin!(ledger.record(&first, sent(0)));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut recording).await;
    assert!(early.is_err(), "{early:?}");
    say("a result waits");
    recording.await.unwrap();
    say("stored");
}
