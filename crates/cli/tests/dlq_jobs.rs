//! `dlq replay|discard|jobs|audit|export|purge` and `cancel` on embedded parts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use paceline_core::{Class, DeadLetter, Journey, Reason, Timestamp};
use paceline_store::{DeadLetters, JobState, Jobs, Options, SqliteStore, StoredDeadLetter};
use serde_json::{Value, json};
use support::{Said, ops, paceline_in};
use tempfile::TempDir;

/// A directory of embedded parts.
struct Place {
    dir: TempDir,
    store: SqliteStore,
}

impl Place {
    async fn new(count: u32) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::new(dir.path().join("store.db").to_str().unwrap(), Options::default()).unwrap();
        let place = Place { dir, store };
        place.store.insert(&(0..count).map(|n| letter(n, Reason::MaxAgeExceeded)).collect::<Vec<_>>()).await.unwrap();
        let said = place.paceline(&["topology", "apply"]).await;
        assert_eq!(said.status, 0, "{said:?}");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn paceline(&self, words: &[&str]) -> Said {
        let dir = self.dir.path().to_owned();
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let run = move || {
            let mut all: Vec<&str> = words.iter().map(String::as_str).collect();
            all.extend(["--embedded", "."]);
            paceline_in(&dir, &all, &[("USER", "ann")], "")
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    async fn json(&self, words: &[&str]) -> Value {
        let said = self.paceline(&[words, &["--output", "json"]].concat()).await;
        assert_eq!(said.status, 0, "{words:?}: {said:?}");
        said.json()
    }

    /// How many entries there are in each state.
    async fn states(&self) -> Value {
        let mut counts = serde_json::Map::new();
        for entry in self.json(&["dlq", "list", "--state", "all", "--limit", "100000"]).await.as_array().unwrap() {
            let count = counts.entry(entry["state"].as_str().unwrap().to_owned()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap() + 1);
        }
        Value::Object(counts)
    }
}

fn letter(n: u32, reason: Reason) -> StoredDeadLetter {
    let at = Timestamp::from(SystemTime::now()) - Duration::from_secs(60 * (u64::from(n) + 1));
    let body = format!(r#"{{"id":"m{n}","from":"a@example.com","to":["u{n}@x.example"],"text":"hi"}}"#);
    StoredDeadLetter {
        entry: DeadLetter {
            message_id: Some(format!("m{n}")),
            to: Some(format!("u{n}@x.example")),
            class: Some(Class::High),
            destination: Some("tail".into()),
            domain: Some("x.example".into()),
            ..DeadLetter::new(format!("d{n}"), reason, &Journey::starting(at), at)
        },
        amqp_message_id: None,
        content_type: Some("application/json".into()),
        headers: json!({"x-trace": "t"}).as_object().unwrap().clone(),
        body: body.into_bytes().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changes_nothing_and_its_last_line_does_it() {
    let place = Place::new(30).await;
    place.store.insert(&[letter(100, Reason::InvalidMessage), letter(101, Reason::Uncertain)]).await.unwrap();
    let said = place.paceline(&["dlq", "replay", "--since", "24h", "--rate", "500/s"]).await;
    assert_eq!(said.status, 0, "{said:?}");
    for words in
        ["31 open dead letters match.", "max_age_exceeded  30", "whether 1 of them were sent", "Left out: 1 invalid_message"]
    {
        assert!(said.stdout.contains(words), "{words}: {said:?}");
    }
    assert_eq!(place.states().await, json!({"open": 32}));
    assert_eq!(place.json(&["dlq", "jobs"]).await, json!([]));

    let line = said.stdout.lines().last().unwrap().trim().to_owned();
    let words: Vec<&str> = line.strip_prefix("paceline --embedded . ").unwrap().split(' ').collect();
    let said = place.paceline(&words).await;
    assert_eq!(said.status, 0, "{line}: {said:?}");
    assert!(said.stdout.contains("done: 31 of 31 replayed, 0 failed, 0 left"), "{said:?}");
    assert!(said.stderr.contains("31 entries to replay"), "{said:?}");
    assert_eq!(place.states().await, json!({"open": 1, "replayed": 31}));

    let again = place.json(&words).await;
    assert_eq!((&again["total"], &again["settled"], &again["would_run"]), (&json!(0), &json!(31), &Value::Null));
    let jobs = place.json(&["dlq", "jobs"]).await;
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["state"], &jobs[0]["rate"]), (1, &json!("done"), &json!("500/s")));
    assert!(jobs[0]["by"].as_str().unwrap().starts_with("ann@"), "{jobs}");
    let table = place.paceline(&["dlq", "jobs"]).await.stdout;
    assert!(table.starts_with("ID ") && table.contains(" done "), "{table}");
    let shown = place.json(&["dlq", "show", "m3"]).await;
    assert_eq!((&shown["state"], &shown["job"]), (&json!("replayed"), &jobs[0]["id"]));
    // What was asked for by name is taken.
    let named = place.json(&["dlq", "replay", "--reason", "invalid_message"]).await;
    assert_eq!((&named["total"], &named["left_out"]), (&json!(1), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_interrupted_resumed_watched_and_cancelled() {
    let place = Place::new(400).await;
    let mut replay = Command::new(env!("CARGO_BIN_EXE_paceline"))
        .args(["dlq", "replay", "--yes", "--rate", "100/s", "--embedded", ".", "--output", "json"])
        .current_dir(place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let job = until(async || {
        let jobs = place.store.jobs(1).await.unwrap();
        jobs.into_iter().find(|job| job.done >= 20)
    })
    .await;
    // SIGINT, as Ctrl-C sends it.
    assert!(Command::new("kill").args(["-INT", &replay.id().to_string()]).status().unwrap().success());
    let output = tokio::task::spawn_blocking(move || {
        let status = replay.wait().unwrap();
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            pipe.unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let stdout = read(replay.stdout.as_mut().map(|p| p as &mut dyn std::io::Read));
        (status.code(), stdout, read(replay.stderr.as_mut().map(|p| p as &mut dyn std::io::Read)))
    })
    .await
    .unwrap();
    let (status, stdout, stderr) = output;
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains(&format!("--resume {}", job.id)), "{stderr}");
    let stopped: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&stopped["state"], &stopped["id"]), (&json!("running"), &json!(job.id)));
    let done = place.store.job(&job.id).await.unwrap().unwrap().done;
    assert_eq!(stopped["done"], done, "what was published is recorded");

    let wrong = place.paceline(&["dlq", "discard", "--resume", &job.id]).await;
    assert!(wrong.status == 2 && wrong.stderr.contains("is a job to replay"), "{wrong:?}");
    let cancelled = place.json(&["dlq", "replay", "--cancel", &job.id, "--by", "bob", "--note", "enough"]).await;
    assert_eq!((&cancelled["state"], &cancelled["cancelled_by"]), (&json!("cancelled"), &json!("bob")));
    assert_eq!(place.states().await, json!({"open": 400 - done, "replayed": done}));
    let watched = place.paceline(&["dlq", "replay", "--watch", &job.id]).await;
    assert!(watched.status == 1 && watched.stdout.contains("Cancelled by bob"), "{watched:?}");

    let order = ["dlq", "replay", "--yes", "--detach", "--rate", "2000/s"];
    let detached = place.json(&order).await;
    assert_eq!((&detached["state"], &detached["total"]), (&json!("running"), &json!(400 - done)));
    let id = detached["id"].as_str().unwrap();
    let (watch, resume) = (["dlq", "replay", "--watch", id], ["dlq", "replay", "--resume", id]);
    let (watching, resumed) = tokio::join!(place.paceline(&watch), place.json(&resume));
    assert_eq!((watching.status, &resumed["state"], &resumed["left"]), (0, &json!("done"), &json!(0)), "{watching:?}");
    assert_eq!(place.states().await, json!({"replayed": 400}));
    let ended = place.paceline(&["dlq", "replay", "--cancel", id]).await;
    assert!(ended.status == 1 && ended.stderr.contains("is done"), "{ended:?}");
    for option in ["--resume", "--watch", "--cancel"] {
        let unknown = place.paceline(&["dlq", "replay", option, "r-0"]).await;
        assert!(unknown.status == 1 && unknown.stderr.contains("there is no job r-0"), "{unknown:?}");
    }
    let audit = place.json(&["dlq", "audit", "--subject", &job.id]).await;
    let trail: Vec<_> =
        audit.as_array().unwrap().iter().map(|e| (e["action"].as_str().unwrap(), e["by"].as_str().unwrap())).collect();
    assert_eq!((trail[0], trail[1].0, trail.len()), (("replay.cancelled", "bob"), "replay.created", 2), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_replayed_stays_open_and_the_exit_says_so() {
    let place = Place::new(5).await;
    let mut stranger = letter(50, Reason::RejectedRecipient);
    stranger.entry.to = Some("nobody@x.example".into());
    place.store.insert(&[stranger]).await.unwrap();
    let said = place.paceline(&["dlq", "replay", "--yes", "--rate", "1000/s"]).await;
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stdout.contains("5 of 6 replayed, 1 failed") && said.stdout.contains("d50 "), "{said:?}");
    assert_eq!(place.states().await, json!({"open": 1, "replayed": 5}));
    assert!(!format!("{said:?}").contains("nobody@"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_exported_and_purged() {
    let place = Place::new(1200).await;
    let mut raw = letter(5000, Reason::InvalidMessage);
    raw.body = vec![0xff, 0].into();
    place.store.insert(&[raw]).await.unwrap();
    let said = place.paceline(&["dlq", "discard", "--until", "1000min", "--yes", "--note", "old"]).await;
    assert!(said.status == 0 && said.stdout.contains("202 of 202 discarded"), "{said:?}");

    let said = place.paceline(&["dlq", "export", "--state", "all"]).await;
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((said.status, lines.len(), said.stderr.as_str()), (0, 1201, ""));
    let died: Vec<_> = lines.iter().map(|l| l["died_at"].as_str().unwrap().to_owned()).collect();
    assert!(died.is_sorted_by(|a, b| a >= b), "the latest first");
    assert_eq!(
        (&lines[0]["id"], &lines[0]["headers"]["x-trace"], &lines[0]["state"]),
        (&json!("d0"), &json!("t"), &json!("open"))
    );
    assert!(lines[0]["body"].as_str().unwrap().contains("u0@x.example"));
    assert_eq!((&lines[1200]["body_base64"], &lines[1200]["state"]), (&json!("/wA="), &json!("discarded")));
    let said = place.json(&["dlq", "export", "--to", "out.ndjson", "--limit", "700"]).await;
    let text = std::fs::read_to_string(place.path("out.ndjson")).unwrap();
    assert_eq!((&said["exported"], text.lines().count(), &said["bytes"]), (&json!(700), 700, &json!(text.len())));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[699]["id"], "d699");
    assert_eq!(parts(place.dir.path()), 0);
    let said = place.paceline(&["dlq", "export", "--to", "no/such/dir.ndjson"]).await;
    assert!(said.status == 1 && said.stderr.contains("cannot be written"), "{said:?}");

    let plan = place.json(&["dlq", "purge", "--older-than", "900min"]).await;
    assert_eq!((&plan["total"], &plan["by_state"][0]["count"]), (&json!(302), &json!(100)), "{plan}");
    assert_eq!(place.states().await, json!({"open": 999, "discarded": 202}));
    let said = place.json(&["dlq", "purge", "--older-than", "900min", "--state", "discarded", "--yes"]).await;
    assert_eq!(said["purged"], 202);
    let said = place.paceline(&["dlq", "purge", "--older-than", "900min", "--yes"]).await;
    assert_eq!(said.stdout, "100 dead letters deleted\n");
    assert_eq!(place.states().await, json!({"open": 899}));
    let audit = place.json(&["dlq", "audit"]).await;
    let actions: Vec<_> = audit.as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["purge", "purge", "discard.done", "discard.created"]);
    let table = place.paceline(&["dlq", "audit"]).await.stdout;
    assert!(table.contains("discard.created") && table.contains("ann@") && table.contains("old"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_orders_are_given_listed_and_taken_back() {
    let place = Place::new(0).await;
    let order = place.json(&["cancel", "--tag", "spring-sale", "--note", "wrong price", "--until", "2h"]).await;
    assert_eq!(order["selector"], json!({"by": "tag", "value": "spring-sale"}), "{order}");
    let (since, until): (Timestamp, Timestamp) =
        (order["since"].as_str().unwrap().parse().unwrap(), order["until"].as_str().unwrap().parse().unwrap());
    assert!((7000..=7260).contains(&until.since(since).as_secs()), "{order}");
    let said = place.paceline(&["cancel", "--id", "order-4711"]).await;
    assert!(
        said.status == 0 && said.stdout.contains("mail with id order-4711") && said.stdout.contains("--remove c-"),
        "{said:?}"
    );
    let said = place.paceline(&["cancel", "--list"]).await;
    assert!(said.stdout.contains("tag spring-sale") && said.stdout.contains("wrong price"), "{said:?}");
    assert_eq!(place.json(&["cancel", "--list"]).await.as_array().unwrap().len(), 2);
    let removed = place.json(&["cancel", "--remove", order["id"].as_str().unwrap(), "--by", "bob"]).await;
    assert_eq!((&removed["id"], &removed["removed_by"]), (&order["id"], &json!("bob")));
    assert_eq!(place.json(&["cancel", "--list"]).await.as_array().unwrap().len(), 1);
    assert_eq!(place.json(&["cancel", "--list", "--all"]).await.as_array().unwrap().len(), 2);
    let said = place.paceline(&["cancel", "--remove", "c-0"]).await;
    assert!(said.status == 1 && said.stderr.contains("there is no order c-0"), "{said:?}");
    for words in
        [&["cancel"][..], &["cancel", "--id", "a", "--tag", "b"], &["cancel", "--tag", "x", "--until", "2020-01-01T00:00:00Z"]]
    {
        assert_eq!(place.paceline(words).await.status, 2, "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_do_not_go_together_are_refused() {
    let place = Place::new(0).await;
    for words in [
        &["dlq", "replay", "--resume", "r-1", "--reason", "expired"][..],
        &["dlq", "replay", "--resume", "r-1", "--cancel", "r-1"],
        &["dlq", "replay", "--resume", "r-1", "--rate", "5/s"],
        &["dlq", "replay", "--detach"],
        &["dlq", "replay", "--rate", "0/s", "--yes"],
        &["dlq", "replay", "--by", " "],
        &["dlq", "discard", "--rate", "5/s"],
        &["dlq", "purge"],
        &["dlq", "list", "--state", "closed"],
        &["dlq", "export", "--format", "csv"],
    ] {
        assert_eq!(place.paceline(words).await.status, 2, "{words:?}");
    }
    let none = place.paceline(&["dlq", "replay", "--yes"]).await;
    assert!(none.status == 0 && none.stdout.contains("nothing to replay"), "{none:?}");
    // A broker that is not there: nothing is ordered.
    place.store.insert(&[letter(0, Reason::Poison)]).await.unwrap();
    let store = format!("sqlite://{}", place.path("store.db").display());
    let run = move || {
        let environment = [("PACELINE__BROKER__URL", "amqp://127.0.0.1:1/%2f"), ("PACELINE__STORE__URL", &*store)];
        paceline_in(&ops(), &["dlq", "replay", "--yes"], &environment, "")
    };
    let said = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(said.status == 1 && said.stderr.contains("cannot be reached"), "{said:?}");
    assert!(place.store.jobs(10).await.unwrap().iter().all(|job| job.state != JobState::Running));
}

fn parts(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part")).count()
}

async fn until<T>(mut found: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = found().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never")
}
