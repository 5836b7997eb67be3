//! `paceline demo` as a user runs it; its report against the sandbox's arrivals file and the store.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use paceline_testkit::{Finished, Launch, Signal};
use serde_json::Value;

/// A demo of few messages takes some twenty seconds: those that fail again and again need them.
const AT_MOST: Duration = Duration::from_secs(200);
const SOON: Duration = Duration::from_secs(60);

fn paceline(arguments: &[&str]) -> Launch {
    Launch::program(env!("CARGO_BIN_EXE_paceline").as_ref()).args(arguments)
}

fn json(said: &Finished) -> Value {
    assert_eq!(said.stdout.lines().count(), 1, "{said:?}");
    serde_json::from_str(&said.stdout).unwrap()
}

fn n(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// The arrivals file, line by line; a line that is being written does not count yet.
fn arrivals(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("arrivals.ndjson")).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Calls and acceptances by message id.
fn by_id(lines: &[Value]) -> BTreeMap<&str, (usize, usize)> {
    let mut by_id: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for line in lines {
        let entry = by_id.entry(line["id"].as_str().unwrap()).or_default();
        entry.0 += 1;
        entry.1 += usize::from(line["accepted"] == true);
    }
    by_id
}

#[tokio::test]
async fn every_figure_stands_in_the_arrivals_file_or_the_store() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("demo");
    let shown = dir.to_str().unwrap();
    let said = paceline(&["demo", "--messages", "600", "--output", "json", "--keep", shown]).run(AT_MOST).await;
    assert!(said.status.success(), "{said:?}");
    assert!(!said.stderr.contains('\x1b') && said.stderr.contains("a campaign"), "{said:?}");
    let report = json(&said);
    assert_eq!((&report["ok"], n(&report["messages"]), n(&report["accounted_for"])), (&true.into(), 600, 600), "{report}");

    let lines = arrivals(&dir);
    let count = |wanted: &dyn Fn(&Value) -> bool| lines.iter().filter(|l| wanted(l)).count();
    for (name, found) in [
        ("calls", lines.len()),
        ("accepted", count(&|l| l["accepted"] == true)),
        ("refused", count(&|l| l["result"] == "refused")),
        ("throttled", count(&|l| l["status"] == 429)),
        ("unanswered", count(&|l| l["result"] == "dropped")),
        ("repeated", count(&|l| l["result"] == "duplicate")),
        ("retried", by_id(&lines).values().filter(|(calls, _)| *calls > 1).count()),
    ] {
        assert_eq!(n(&report[name]), found, "{name}: {report}");
        assert!(found > 0, "{name} did not happen");
    }
    assert_eq!((n(&report["duplicates"]), n(&report["published_again"]) >= 2), (0, true));

    // Complete xor dead-lettered, counted here.
    let said = paceline(&["dlq", "list", "--embedded", shown, "--limit", "1000", "--output", "json"]).run(SOON).await;
    assert!(said.status.success(), "{said:?}");
    let dead = json(&said);
    let dead = dead.as_array().unwrap();
    let accepted: BTreeMap<_, _> = by_id(&lines).into_iter().filter(|(_, (_, accepted))| *accepted > 0).collect();
    assert!(accepted.values().all(|(_, accepted)| *accepted == 1));
    assert!(dead.iter().all(|d| !accepted.contains_key(d["message_id"].as_str().unwrap())));
    assert_eq!((accepted.len() + dead.len(), n(&report["dead"])), (600, dead.len()));
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    dead.iter().for_each(|d| *reasons.entry(d["reason"].as_str().unwrap()).or_default() += 1);
    let reported = report["dead_by_reason"].as_object().unwrap();
    assert_eq!(reported.iter().map(|(r, c)| (r.as_str(), n(c))).collect::<BTreeMap<_, _>>(), reasons);
    for reason in ["retry_budget_exhausted", "rejected_recipient", "expired", "invalid_message"] {
        assert!(reasons.contains_key(reason), "{reason}: {reasons:?}");
    }

    // By class and destination.
    let mut sent = 0;
    for destination in report["destinations"].as_array().unwrap() {
        assert!(n(&destination["sent"]) > 0 && destination["latency"]["p99_ms"].is_f64(), "{destination}");
        assert!(destination["allowed_per_s"].is_f64(), "{destination}");
        let lanes = destination["lanes"].as_array().unwrap();
        assert_eq!(lanes.iter().map(|l| n(&l["sent"])).sum::<usize>(), n(&destination["sent"]));
        for lane in lanes {
            let of_class = ["reset", "receipt", "note", "digest"]
                [["critical", "high", "normal", "low"].iter().position(|c| lane["class"] == *c).unwrap()];
            let here = |domain: &str| match domain {
                "gmail.com" | "googlemail.com" => "google",
                "outlook.com" | "hotmail.com" | "live.com" => "microsoft",
                "yahoo.com" | "aol.com" => "yahoo",
                _ => "tail",
            };
            let of_lane = |l: &Value| {
                let id = l["id"].as_str().unwrap();
                (id.starts_with(of_class) || of_class == "note" && id.starts_with("hello"))
                    && l["accepted"] == true
                    && destination["destination"] == here(l["domain"].as_str().unwrap())
            };
            assert_eq!(n(&lane["sent"]), count(&of_lane), "{lane}");
        }
        sent += n(&destination["sent"]);
    }
    assert_eq!(sent, accepted.len());
    let google = &report["destinations"][0];
    assert!(n(&google["backlog_most"]) > 20 && google["reached_per_s"].as_f64().unwrap() > 10.0, "{google}");

    // Password resets: idle, under load, and all at once.
    for (group, name) in [("idle", "reset-idle"), ("under_load", "reset-load"), ("burst", "reset-burst")] {
        let group = &report["otp"][group];
        assert_eq!(n(&group["count"]), accepted.keys().filter(|id| id.starts_with(name)).count(), "{name}");
        assert!(n(&group["count"]) >= 10 && group["p50_ms"].as_f64() <= group["p95_ms"].as_f64(), "{group}");
    }

    // Nothing is written over.
    let said = paceline(&["demo", "--keep", shown]).run(SOON).await;
    assert!(said.status.code() == Some(2) && said.stderr.contains("is not empty"), "{said:?}");
}

#[tokio::test]
async fn people_get_plain_lines_and_a_table() {
    // Settings have no say, not even wrong ones.
    let demo = paceline(&["demo", "--messages", "200", "--seed", "5"]).env("PACELINE__HTTP__LISTEN", "nowhere");
    let said = demo.run(AT_MOST).await;
    assert!(said.status.success(), "{said:?}");
    assert!(!said.stdout.contains('\x1b') && !said.stderr.contains('\x1b'), "{said:?}");
    for part in ["Accounted for: 200 of 200", "PASSWORD RESETS", "retry_budget_exhausted", "The counts agree", "demo --serve"] {
        assert!(said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    // The directory it names is gone.
    let dir = said.stdout.lines().find_map(|l| l.strip_prefix("In ")?.split_once(", removed")).unwrap().0;
    assert!(!Path::new(dir).exists(), "{dir}");
}

#[tokio::test]
async fn interrupted_it_drains_and_reports_what_there_is() {
    let mut demo = paceline(&["demo", "--plain", "--output", "json"]).spawn();
    demo.wait_for_line(SOON, |line| line.contains("a campaign")).await;
    demo.signal(Signal::SIGINT);
    let said = demo.finish(SOON).await;
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let report = json(&said);
    assert_eq!((&report["interrupted"], &report["ok"]), (&true.into(), &false.into()));
    assert!(n(&report["calls"]) > 0 && n(&report["accounted_for"]) < 4000, "{report}");
}

#[tokio::test]
async fn served_it_takes_mail_until_told_to_end() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("demo");
    let shown = dir.to_str().unwrap();
    let mut demo = paceline(&["demo", "--messages", "200", "--serve", "--keep", shown]).spawn();
    // The last of the lines that say how to use it.
    demo.wait_for_line(AT_MOST, |line| line.contains("dlq list --embedded")).await;
    let address = |path: &str| {
        let lines = demo.stdout_lines();
        let line = lines.iter().find(|line| line.contains(path)).unwrap();
        line.trim().strip_prefix("http://").unwrap().split_once('/').unwrap().0.to_owned()
    };
    let (metrics, sandbox) = (address("/metrics"), address("/sandbox/stats"));
    assert!(get(&metrics, "/metrics").contains("paceline_attempts_total"));
    let before = arrivals(&dir).len();
    let message = r#"{"id":"mine","from":"a@example.com","to":["b@gmail.com"],"subject":"s","text":"x"}"#;
    let said = paceline(&["send", "--embedded", shown, "-"]).stdin(message).run(SOON).await;
    assert!(said.status.success(), "{said:?}");
    let deadline = tokio::time::Instant::now() + SOON;
    while !arrivals(&dir).iter().skip(before).any(|line| line["id"] == "mine" && line["accepted"] == true) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", demo.stderr_lines());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(get(&sandbox, "/sandbox/stats").contains("\"accepted\""));
    demo.term();
    let said = demo.finish(SOON).await;
    assert!(said.status.success() && said.stdout.contains("Drained"), "{said:?}");
    assert!(dir.join("store.db").exists());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
