//! Dead letters are replayed by a process that is killed three times: each arrives exactly once, at the rate that was
//! ordered; the same selection replayed again does nothing, and without `--yes` nothing moves.
#![expect(clippy::unwrap_used, reason = "helpers of a scenario fail by panicking")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use paceline_sandbox::{Handle, Scenario};
use paceline_testkit::{Finished, Process};
use paceline_tests::{Embedded, Fleet, Mail, Plan, Report, arrivals::Arrival, publish, sized, until};
use serde_json::{Value, json};

/// What is refused at first: one recipient, or both at once.
const DEAD: &str = r#"
[[rule]]
domain = "dead.example"
then = "reject"
[[rule]]
domain = "both.example"
answer = { status = 400, body = '{"errors":[{"message":"no","field":"personalizations.0.to.0.email"},{"message":"no","field":"personalizations.0.to.1.email"}]}' }
"#;
const RATE: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleets_dead_letters_are_replayed_once() {
    let fleet = Fleet::start(plan()).await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w0").await, fleet.worker("w1").await];
    publish(&*fleet.broker(), mails()).await;
    let system = System::Fleet(Box::new(fleet));
    replayed_once(&system, Report::new("replay")).await;
    for pod in workers.iter().chain([&control]) {
        pod.assert_sound();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_systems_dead_letters_are_replayed_once() {
    let embedded = Embedded::start(plan(), &[]).await;
    let worker = embedded.worker().await;
    embedded.send(mails().map(|mail| String::from_utf8(mail.body.to_vec()).unwrap())).await;
    let system = System::Embedded(embedded);
    replayed_once(&system, Report::new("replay, embedded")).await;
    worker.assert_sound();
}

fn plan() -> Plan<'static> {
    // Who was refused is to be mailed again.
    let more = "[tail]\nrate = \"5000/s\"\n[suppression]\nauto = false\n";
    Plan { account: "rate = \"5000/s\"", more, sandbox: DEAD, ..Plan::default() }
}

fn count() -> usize {
    sized(1_000, 10_000)
}

/// Messages of two recipients, one of whom is refused.
const PAIRS: usize = 20;
/// Messages of two recipients, both of whom are refused: two dead letters each.
const BOTH: usize = 5;

/// As many dead letters as [`count`] says.
fn mails() -> impl Iterator<Item = Mail> {
    let single = (PAIRS + 2 * BOTH..count()).map(|i| Mail::new(&format!("m-{i}"), "high", &format!("u{i}@dead.example")));
    let pair = (0..PAIRS).map(|i| {
        let to = json!([format!("u{i}@fine.example"), format!("u{i}@dead.example")]);
        Mail::with(&format!("pair-{i}"), "high", "u@fine.example", &[("to", to)])
    });
    let both = (0..BOTH).map(|i| {
        let to = json!([format!("u{i}@both.example"), format!("v{i}@too.example")]);
        Mail::with(&format!("both-{i}"), "high", "u@both.example", &[("to", to)])
    });
    pair.chain(both).chain(single)
}

async fn replayed_once(system: &System, mut report: Report) {
    let count = count() as u64;
    let filter = ["--reason", "rejected_recipient"];
    system.accepted(PAIRS as u64, Duration::from_secs(120)).await;
    until("dead letters in the store", Duration::from_secs(120), async || {
        system.ask(&[&["dlq", "stats"], &filter[..]].concat()).await["total"] == count
    })
    .await;
    system.sandbox().set_scenario(Scenario::from_toml("").unwrap());
    system.sandbox().reset();

    let plan = system.ask(&[&["dlq", "replay", "--rate", "200/s"], &filter[..]].concat()).await;
    report.check("planned", &plan["total"], count, plan["total"] == count);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let jobs = system.ask(&["dlq", "jobs"]).await;
    let moved = system.sandbox().stats().requests;
    report.check("without --yes: jobs, calls", format!("{}, {moved}", len(&jobs)), "0, 0", len(&jobs) == 0 && moved == 0);

    let words = [&["dlq", "replay", "--rate", "200/s", "--by", "scenario", "--note", "a test", "--yes"], &filter[..]].concat();
    let mut running = system.begin(&words);
    let begun = Instant::now();
    for part in 1..=3 {
        // Anywhere in a batch.
        system.accepted(count * part / 4 + part * 7, Duration::from_secs(120)).await;
        running.kill9().await;
        let jobs = system.ask(&["dlq", "jobs"]).await;
        assert_eq!((len(&jobs), &jobs[0]["state"]), (1, &json!("running")), "{jobs}");
        running = system.begin(&["dlq", "replay", "--resume", jobs[0]["id"].as_str().unwrap(), "--output", "json"]);
    }
    let finished = running.finish(Duration::from_secs(180)).await;
    report.figure("seconds, three kills included", format!("{:.1}", begun.elapsed().as_secs_f64()));
    assert!(finished.status.success(), "{finished:?}");
    let job: Value = serde_json::from_str(&finished.stdout).unwrap();
    let (done, failed, state) = (&job["done"], &job["failed"], job["state"].as_str().unwrap());
    let right = *done == count && *failed == 0 && state == "done";
    report.check("done, failed", format!("{done}, {failed}: {state}"), format!("{count}, 0"), right);
    system.settled().await;

    let arrivals = system.arrivals().await;
    // Of two letters about one message, the domain says which of them arrived.
    let mut copies: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let right = |a: &&Arrival| {
        let domains = if a.id().starts_with("both-") { &["both.example", "too.example"][..] } else { &["dead.example"] };
        a.recipients == 1 && domains.contains(&a.domain.as_str())
    };
    for arrival in arrivals.iter().filter(|a| a.accepted).filter(right) {
        *copies.entry((arrival.id(), &arrival.domain)).or_default() += 1;
    }
    report.check("arrived", copies.len(), count, copies.len() as u64 == count);
    let twice = copies.values().filter(|n| **n > 1).count();
    report.check("arrived more than once", twice, 0, twice == 0);
    let others = arrivals.len() as u64 - copies.values().sum::<u64>();
    report.check("calls for anything else", others, 0, others == 0);

    let span_s = sized(1, 10);
    let most = most_within(&arrivals, span_s * 1_000_000);
    let bound = RATE * span_s + RATE / 5;
    report.timing(&format!("most in any {span_s} s"), most, format!("≤ {bound}"), most <= bound);
    let least = RATE * span_s * 95 / 100;
    report.timing(&format!("most in any {span_s} s: the rate is reached"), most, format!("≥ {least}"), most >= least);

    let again = system.run(&[&words[..], &["--output", "json"]].concat()).await;
    assert!(again.status.success(), "{again:?}");
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    let taken = (&again["total"], &again["settled"]);
    report.check("the same again: taken, settled", format!("{}, {}", taken.0, taken.1), format!("0, {count}"), {
        *taken.0 == 0 && *taken.1 == count
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = system.sandbox().stats().requests - arrivals.len() as u64;
    report.check("the same again: calls", calls, 0, calls == 0);
    let audit = system.ask(&["dlq", "audit", "--subject", job["id"].as_str().unwrap()]).await;
    let actions: Vec<_> = audit.as_array().unwrap().iter().rev().map(|e| e["action"].as_str().unwrap()).collect();
    report.check("audit", actions.join(", "), "replay.created, replay.done", actions == ["replay.created", "replay.done"]);
    assert_eq!((&audit[0]["subject"], &audit[1]["by"]), (&job["id"], &json!("scenario")));
    report.finish();
}

fn len(list: &Value) -> usize {
    list.as_array().map_or(usize::MAX, Vec::len)
}

/// The most arrivals in any span of that length.
fn most_within(arrivals: &[Arrival], span_us: u64) -> u64 {
    let times: Vec<u64> = arrivals.iter().map(|a| a.at_us).collect();
    let within = |from: usize| times[from..].partition_point(|at| *at < times[from] + span_us);
    (0..times.len()).map(within).max().unwrap_or(0) as u64
}

/// Either kind, asked the same way.
enum System {
    Fleet(Box<Fleet>),
    Embedded(Embedded),
}

impl System {
    fn sandbox(&self) -> &Handle {
        match self {
            System::Fleet(fleet) => &fleet.sandbox,
            System::Embedded(embedded) => &embedded.sandbox,
        }
    }

    fn begin(&self, words: &[&str]) -> Process {
        match self {
            System::Fleet(fleet) => fleet.begin(words),
            System::Embedded(embedded) => embedded.begin(words),
        }
    }

    async fn run(&self, words: &[&str]) -> Finished {
        self.begin(words).finish(Duration::from_secs(120)).await
    }

    async fn ask(&self, words: &[&str]) -> Value {
        match self {
            System::Fleet(fleet) => fleet.ask(words).await,
            System::Embedded(embedded) => embedded.ask(words).await,
        }
    }

    async fn accepted(&self, count: u64, at_most: Duration) {
        match self {
            System::Fleet(fleet) => fleet.accepted(count, at_most).await,
            System::Embedded(embedded) => embedded.accepted(count, at_most).await,
        }
    }

    async fn settled(&self) {
        let at_most = Duration::from_secs(120);
        match self {
            System::Fleet(fleet) => fleet.settled(at_most).await,
            System::Embedded(embedded) => embedded.settled(at_most).await,
        }
    }

    async fn arrivals(&self) -> Vec<Arrival> {
        match self {
            System::Fleet(fleet) => fleet.arrivals().await,
            System::Embedded(embedded) => embedded.arrivals().await,
        }
    }
}
