//! `paceline lanes`: what waits, what binds it and what is left, of a slow destination, one whose quota is spent and one
//! that is free; without a worker, with one, after it; while it is watched; and the same of an embedded system.

#![expect(clippy::unwrap_used, reason = "what is printed is known")]

use std::time::Duration;

use paceline_tests::{Embedded, Fleet, Mail, Plan, publish, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const SLOW: u64 = 60;
const LIMITS: &str = "[[destination]]\nname = \"google\"\ndomains = [\"gmail.com\"]\nrate = \"0.5/s\"\nburst = 1\n\
                      [[destination]]\nname = \"microsoft\"\ndomains = [\"outlook.com\"]\nquota = [\"1/d\"]\n\
                      [[destination]]\nname = \"yahoo\"\ndomains = [\"yahoo.com\"]\nrate = \"200/s\"\nburst = 50\n";

/// Sixty messages for the slow one, three for the one whose quota allows one, twenty for the free one.
fn mails() -> Vec<(String, &'static str, String)> {
    let google = (0..SLOW).map(|i| (format!("g{i}"), "low", format!("u{i}@gmail.com")));
    let microsoft = (0..3).map(|i| (format!("m{i}"), "normal", format!("u{i}@outlook.com")));
    let yahoo = (0..20).map(|i| (format!("y{i}"), "high", format!("u{i}@yahoo.com")));
    google.chain(microsoft).chain(yahoo).collect()
}

fn of<'a>(lanes: &'a Value, lane: &str) -> &'a Value {
    lanes.as_array().unwrap().iter().find(|l| l["lane"] == lane).unwrap_or_else(|| panic!("no {lane} in {lanes}"))
}

/// Asks until the lanes are as wanted.
async fn seen(what: &str, mut ask: impl AsyncFnMut() -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut lanes = Value::Null;
    until(what, PATIENCE, async || {
        lanes = ask().await;
        wanted(&lanes)
    })
    .await;
    lanes
}

/// Whether a worker has all three lanes where their limits leave them.
fn settled(lanes: &Value) -> bool {
    let is = |lane: &str, state: &str| of(lanes, lane)["state"] == state;
    is("low.google", "paced") && is("normal.microsoft", "resting") && of(lanes, "high.yahoo")["depth"] == 0
}

/// What is said of lanes that a worker has settled.
fn check(lanes: &Value) {
    let google = of(lanes, "low.google");
    assert_eq!((&google["allowed_per_s"], &google["binding"]), (&json!(0.5), &json!("destination google of account main")));
    let depth = google["depth"].as_u64().unwrap();
    assert!((1..=SLOW).contains(&depth), "{google}");
    assert!(google["held"].as_u64().unwrap() + google["in_flight"].as_u64().unwrap() <= depth, "{google}");
    assert!(google["oldest_s"].is_u64() && google["drain_eta_s"].as_u64().unwrap() >= depth, "{google}");
    let microsoft = of(lanes, "normal.microsoft");
    // On a slow machine the one grant may come to nothing, and stays spent.
    assert!((2..=3).contains(&microsoft["depth"].as_u64().unwrap()), "{microsoft}");
    assert_eq!(microsoft["binding"], "quota 1/d of destination microsoft of account main");
    assert!(microsoft["drain_eta_s"].as_u64().unwrap() > 86_400, "{microsoft}");
    assert_eq!(of(lanes, "high.yahoo")["drain_eta_s"], 0);
    assert_eq!(of(lanes, "critical.tail")["state"], "idle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_shows_what_waits_and_why() {
    let plan = Plan { account: "rate = \"100/s\"", more: &format!("[classify]\npresets = false\n{LIMITS}"), ..Plan::default() };
    let fleet = Fleet::start(plan).await;
    publish(&*fleet.broker(), mails().into_iter().map(|(id, class, to)| Mail::new(&id, class, &to))).await;
    let lanes = fleet.ask(&["lanes"]).await;
    assert_eq!(lanes.as_array().unwrap().len(), 16);
    let google = of(&lanes, "low.google");
    assert_eq!((&google["depth"], &google["state"]), (&json!(SLOW), &json!("unattended")));
    assert_eq!((&google["allowed_per_s"], &google["drain_eta_s"]), (&Value::Null, &Value::Null));

    let mut worker = fleet.worker("w").await;
    check(&seen("three lanes, each in its way", async || fleet.ask(&["lanes"]).await, settled).await);
    let said = fleet.command(&["lanes"]).await.stdout;
    let first: Vec<_> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(first.starts_with(&["LANE"]) && first.contains(&"low.google") && !first.contains(&"critical.google"), "{said}");
    let said = fleet.command(&["lanes", "--all"]).await.stdout;
    assert_eq!(said.lines().count(), 17, "{said}");

    let explain = async || fleet.ask(&["lanes", "--explain", "high.yahoo"]).await;
    let yahoo = seen("all calls counted", explain, |said| said["places"][0]["now"]["accepted"] == 20).await;
    assert_eq!(yahoo["verdict"], "nothing_wrong");
    let said = fleet.command(&["lanes", "--explain", "microsoft"]).await.stdout;
    assert!(said.starts_with("microsoft: too few calls") && said.contains("normal.microsoft"), "{said}");

    let mut watching = fleet.begin(&["lanes", "--watch", "--every", "300ms", "--output", "json"]);
    until("two looks", PATIENCE, async || watching.stdout_lines().len() >= 2).await;
    watching.term();
    let ended = watching.finish(PATIENCE).await;
    assert!(ended.status.success(), "{ended:?}");
    for line in ended.stdout.lines() {
        let lanes: Value = serde_json::from_str(line).unwrap();
        assert_eq!(lanes.as_array().unwrap().len(), 16);
    }

    worker.drain().await;
    let unattended = |lanes: &Value| lanes.as_array().unwrap().iter().all(|l| l["state"] == "unattended");
    let lanes = seen("nobody speaks for the lanes", async || fleet.ask(&["lanes"]).await, unattended).await;
    assert!(of(&lanes, "normal.microsoft")["depth"].as_u64().unwrap() >= 2, "{lanes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_system_shows_the_same() {
    let plan = Plan { account: "rate = \"100/s\"", more: LIMITS, ..Plan::default() };
    let system = Embedded::start(plan, &["google", "microsoft", "yahoo"]).await;
    let bodies = mails().into_iter().map(|(id, class, to)| {
        json!({"id": id, "class": class, "from": "a@sender.example", "to": [to], "subject": "A message", "text": "Hello."})
            .to_string()
    });
    system.send(bodies).await;
    let lanes = system.ask(&["lanes"]).await;
    assert_eq!((&of(&lanes, "low.google")["depth"], &of(&lanes, "low.google")["state"]), (&json!(SLOW), &json!("unattended")));
    let mut worker = system.worker().await;
    check(&seen("three lanes, each in its way", async || system.ask(&["lanes"]).await, settled).await);
    worker.drain().await;
    let unattended = |lanes: &Value| lanes.as_array().unwrap().iter().all(|l| l["state"] == "unattended");
    seen("nobody speaks for the lanes", async || system.ask(&["lanes"]).await, unattended).await;
}
