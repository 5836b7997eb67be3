//! `kill -9` of the embedded worker at random points: nothing is lost, nothing arrives twice but what a kill left claimed
//! without a result and whose class says to send again, and the files stay whole.

use std::{collections::BTreeMap, time::Duration};

use paceline_tests::{Embedded, Plan, Pod, Report, arrivals, now_us, sized, until};
use serde_json::{Value, json};

/// How long the sandbox takes to answer, so that kills find calls under way.
const ANSWER_MS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_points() {
    let (count, kills, per_s) = sized((1_000, 12, 200), (20_000, 200, 250));
    let mut report = Report::new("embedded");
    let system = Embedded::start(
        Plan {
            account: &format!("rate = \"{per_s}/s\"\nconnect_timeout = \"1s\"\nread_timeout = \"2s\"\ntotal_timeout = \"2s\""),
            more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\ndomains = [\"gmail.com\"]\nrate = \"5000/s\"\n\
                   [retry]\nbase = \"1s\"\nmax = \"4s\"\n",
            sandbox: &format!(
                "[[rule]]\ndomain = \"refusing.example\"\nthen = [\"503\", \"accept\"]\n\
                 [[rule]]\ndomain = \"*\"\nthen = \"accept\"\ndelay = [\"{ANSWER_MS}ms\", \"{ANSWER_MS}ms\"]\n"
            ),
            ..Plan::default()
        },
        &["google"],
    )
    .await;
    let ids: Vec<String> = (0..count).map(|i| format!("m-{i}")).collect();
    system
        .send(ids.iter().enumerate().map(|(i, id)| {
            // Classes that send again when in doubt, and classes that do not.
            let class = ["high", "normal", "low", "normal"][i % 4];
            let domain = ["gmail.com", "one.example", "gmail.com", "refusing.example"][i / 4 % 4];
            let to = format!("u{i}@{domain}");
            json!({"id": id, "class": class, "from": "a@sender.example", "to": [to], "subject": "A message", "text": "Hello."})
                .to_string()
        }))
        .await;

    let mut random = seed();
    report.figure("PACELINE_SEED", random);
    let mut uncertainties = Vec::new();
    let mut lives = 0;
    for kill in 0..kills {
        let mut worker = system.spawned().await;
        let from_start = now_us();
        // At any point of a life: while it starts, claims, calls, records, settles. Every second one is killed somewhere in its
        // part of the messages, so that on a machine of whatever speed kills are spread over all of them.
        if kill % 2 == 1 {
            let part = 2 * count as u64 * 9 / 10 / kills;
            let point = kill / 2 * part + next(&mut random) % part;
            let reached = async || system.sandbox.stats().accepted >= point;
            until("the worker is where it is to be killed", Duration::from_secs(120), reached).await;
        }
        let life = Duration::from_millis(next(&mut random) % if kill % 2 == 1 { 20 } else { 400 });
        tokio::time::sleep(life).await;
        let from = now_us();
        worker.process.kill9().await;
        worker.assert_sound();
        uncertainties.extend(uncertain(&worker));
        lives += u64::from(from > from_start);
    }
    let left = system.waiting().await;
    report.check("messages left when the last was killed", left, "> 0", left > 0);
    report.figure("accepted when the last was killed", system.sandbox.stats().accepted);
    report.check("kills", lives, kills, lives == kills);

    let mut worker = system.worker().await;
    let second = system.run(&["worker"]).await;
    report.check("exit of a second worker beside it", second.status.code().unwrap_or(-1), 1, second.status.code() == Some(1));
    report.check("its words", second.stderr.trim().to_owned(), "name the process", second.stderr.contains("process"));
    system.settled(Duration::from_secs(600)).await;
    until("the dead letters are stored", Duration::from_secs(60), async || system.waiting().await == 0).await;
    worker.drain().await;
    uncertainties.extend(uncertain(&worker));

    let arrivals = system.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    let letters = system.dead_letters().await;
    let dead: BTreeMap<&str, &str> =
        letters.iter().filter_map(|l| Some((l["message_id"].as_str()?, l["reason"].as_str()?))).collect();
    let lost: Vec<_> = ids.iter().filter(|id| !accepted.contains_key(id.as_str()) && !dead.contains_key(id.as_str())).collect();
    report.check("neither accepted nor dead-lettered", few(&lost), "[]", lost.is_empty());

    // Found claimed by a life that had ended, without a result: sent or not, nobody knew.
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    uncertainties.iter().for_each(|id| *found.entry(id).or_default() += 1);
    report.figure("messages that a kill left without a result", found.len());
    let again = |id: &str| number(id).is_multiple_of(4);
    let twice: Vec<_> = accepted.iter().filter(|(_, n)| **n > 1).collect();
    report.figure("accepted more than once", twice.len());
    let wrongly: Vec<_> = twice.iter().filter(|(id, n)| !again(id) || **n - 1 > found.get(*id).copied().unwrap_or(0)).collect();
    report.check("of them not high, or more often than found without a result", few(&wrongly), "[]", wrongly.is_empty());
    let given_up: Vec<_> = dead.iter().filter(|(_, reason)| **reason == "uncertain").map(|(id, _)| *id).collect();
    report.figure("dead letters as uncertain: normal and low", given_up.len());
    let wrongly: Vec<_> = given_up.iter().filter(|id| again(id)).collect();
    report.check("uncertain of other classes", few(&wrongly), "[]", wrongly.is_empty());
    // Killed at three attempts in a row: it might be what kills its workers.
    let poison = |id: &str, reason: &str| reason == "poison" && found.get(id).copied().unwrap_or(0) >= 3;
    let others: Vec<_> = dead.iter().filter(|(id, reason)| **reason != "uncertain" && !poison(id, reason)).collect();
    report.check("dead letters of other reasons", few(&others), "[]", others.is_empty());
    let integrity = system.integrity();
    let whole = integrity.len() == 3 && integrity.iter().all(|(_, verdict)| verdict == "ok");
    report.check("integrity check", format!("{integrity:?}"), "ok of three databases", whole);
    report.finish();
}

/// Ids of the messages whose claim an earlier life had left without a result, as this life found them.
fn uncertain(pod: &Pod) -> Vec<String> {
    let lines = pod.process.stderr_lines();
    let logged = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = logged.filter(|log| log["message"].as_str().is_some_and(|m| m.starts_with("claim without a result")));
    found.filter_map(|log| Some(log["id"].as_str()?.to_owned())).collect()
}

/// The first of them, and how many there are.
fn few<T: std::fmt::Debug>(items: &[T]) -> String {
    match items {
        [] => "[]".to_owned(),
        _ => format!("{} such as {:?}", items.len(), &items[..items.len().min(5)]),
    }
}

fn number(id: &str) -> usize {
    id.trim_start_matches("m-").parse().unwrap_or(usize::MAX)
}

/// `PACELINE_SEED=n` repeats a run's kill points.
fn seed() -> u64 {
    std::env::var("PACELINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(now_us) | 1
}

/// Xorshift: enough to scatter kill points.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
