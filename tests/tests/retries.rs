//! What fails twice is delivered by the third attempt, on schedule; what always fails is dead-lettered after exactly
//! the budget, with a complete entry.

use std::{collections::BTreeMap, time::Duration};

use paceline_tests::{Fleet, Mail, Plan, Report, publish, sized};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_retried_on_schedule_until_the_budget_is_spent() {
    // The full size takes the contract's own figures for critical mail.
    let (base_s, max_s, count) = sized((1u64, 4u64, 20), (5, 60, 200));
    let mut report = Report::new("retries");
    let fleet = Fleet::start(Plan {
        account: "rate = \"1000/s\"",
        // All that fails here fails at tail domains, and next to nothing else is sent: rightly, the account's circuit would
        // open. This is about the schedule.
        more: &format!(
            "[tail]\nrate = \"1000/s\"\n[retry.critical]\nattempts = 5\nbase = \"{base_s}s\"\nmax = \"{max_s}s\"\n\
             [circuit]\nmin_samples = 1000000\n"
        ),
        sandbox: "[[rule]]\ndomain = \"flaky.example\"\nthen = \"503\"\nfail_times = 2\n\
                  [[rule]]\ndomain = \"down.example\"\nthen = \"503\"\n",
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let worker = fleet.worker("w").await;
    let mails = (0..count).flat_map(|i| {
        ["flaky", "down"].map(|kind| Mail::new(&format!("{kind}-{i}"), "critical", &format!("u{i}@{kind}.example")))
    });
    publish(&*fleet.broker(), mails).await;
    fleet.settled(Duration::from_secs(240)).await;

    let arrivals = fleet.arrivals().await;
    let mut times: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for arrival in &arrivals {
        times.entry(arrival.id()).or_default().push(arrival.at_us);
    }
    let of = |kind: &'static str| times.iter().filter(move |(id, _)| id.starts_with(kind));
    let right = of("flaky").filter(|(_, t)| t.len() == 3).count();
    report.check("failing twice: delivered by the third attempt", right, count, right == count);
    let accepted = arrivals.iter().filter(|a| a.accepted).count();
    report.check(
        "accepted",
        accepted,
        count,
        accepted == count && arrivals.iter().all(|a| !a.accepted || a.id().starts_with("flaky")),
    );
    let right = of("down").filter(|(_, t)| t.len() == 5).count();
    report.check("always failing: exactly five attempts", right, count, right == count);

    for n in 1..5 {
        let d = (base_s * 2u64.pow(n - 1)).min(max_s) as f64;
        let at = |t: &Vec<u64>| Some((t.get(n as usize)? - t.get(n as usize - 1)?) as f64 / 1e6);
        let gaps: Vec<f64> = times.values().filter_map(at).collect();
        let (least, most) = gaps.iter().fold((f64::MAX, 0f64), |(least, most), g| (least.min(*g), most.max(*g)));
        report.check(&format!("gap {n}: shortest, s"), format!("{least:.3}"), format!("≥ {d}"), least >= d);
        let latest = d * 1.25 + (d * 0.125).max(1.0);
        report.timing(&format!("gap {n}: longest, s"), format!("{most:.3}"), format!("≤ {latest:.2}"), most <= latest);
    }

    let list = fleet.ask(&["dlq", "list", "--limit", "1000"]).await;
    let entries = list.as_array().unwrap();
    report.check("dead letters", entries.len(), count, entries.len() == count);
    let complete = entries.iter().filter(|e| is_complete(e)).count();
    report.check("dead letters with a complete entry", complete, count, complete == count);
    if let Some(bad) = entries.iter().find(|e| !is_complete(e)) {
        report.figure("an entry that is not", bad);
    }
    for pod in [&worker, &control] {
        pod.assert_sound();
    }
    report.finish();
}

fn is_complete(entry: &Value) -> bool {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let id = text("message_id");
    let n = id.trim_start_matches("down-");
    id.starts_with("down-")
        && text("to") == format!("u{n}@down.example")
        && text("class") == "critical"
        && text("destination") == "tail"
        && text("domain") == "down.example"
        && text("account") == "main"
        && text("reason") == "retry_budget_exhausted"
        && text("first_attempt_at") < text("last_attempt_at")
        && !text("first_attempt_at").is_empty()
        && entry["attempts"] == 5
        && entry["last_error"]["code"].as_str().is_some_and(|code| !code.is_empty())
        && entry["last_error"]["http_status"] == 503
        && entry["last_error"]["provider_message"].is_string()
}
