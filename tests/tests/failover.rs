//! Several accounts: one that is refused, or has spent its quota, is left alone, and what routing allows goes through the
//! next. Mail that may go through it alone waits. Nothing is lost, dead-lettered or sent twice.

use std::time::Duration;

use paceline_sandbox::Scenario;
use paceline_tests::{Fleet, Mail, Plan, Report, arrivals, publish, sized, until};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);
const DOMAINS: [&str; 3] = ["gmail.com", "outlook.com", "one.example"];

/// A second account, `other`, whose calls arrive under `/other`.
fn other(keys: &str, more: &str) -> String {
    format!(
        "[[account]]\nname = \"other\"\nprovider = \"sendgrid\"\napi_key = \"SG.other\"\n\
         base_url = \"http://@SANDBOX@/other\"\n{keys}\n[tail]\nrate = \"1000/s\"\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_account_is_left_alone_and_comes_back() {
    const PINNED: usize = 10;
    let (rate, messages) = sized((100, 400), (500, 10_000));
    let mut report = Report::new("failover");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{rate}/s\"\nburst = 5"),
        more: &other(&format!("rate = \"{rate}/s\"\nburst = 5"), ""),
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let mail = |i: usize| Mail::new(&format!("m{i}"), "normal", &format!("u{i}@{}", DOMAINS[i % 3]));
    publish(&*fleet.broker(), (0..messages).map(mail)).await;
    let worker = fleet.worker("w").await;
    fleet.accepted(messages as u64 / 4, PATIENCE).await;
    let through_other = fleet.arrivals().await.iter().filter(|a| a.pod() == "other").count();
    report.check("through the second account while the first is open", through_other, 0, through_other == 0);

    let refusing = "[[rule]]\npath = \"/w/*\"\nthen = \"401\"\n";
    fleet.sandbox.set_scenario(Scenario::from_toml(refusing).unwrap());
    let pinned = |i| Mail::with(&format!("p{i}"), "normal", "u@gmail.com", &[("account", json!("main"))]);
    publish(&*fleet.broker(), (0..PINNED).map(pinned)).await;
    fleet.accepted(messages as u64, PATIENCE).await;
    let all = fleet.arrivals().await;
    let refused: Vec<u64> = all.iter().filter(|a| a.status == Some(401)).map(|a| a.at_us).collect();
    let first = refused.iter().min().copied().unwrap_or(0);
    let last = refused.iter().max().copied().unwrap_or(0);
    report.check("calls to the refused account", refused.len(), "1 to 64", (1..=64).contains(&refused.len()));
    report.timing("last call to it after the first, ms", (last - first) / 1000, "≤ 1000", last - first <= 1_000_000);
    let accepted = arrivals::accepted(&all);
    let pinned_sent = accepted.keys().filter(|id| id.starts_with('p')).count();
    report.check("pinned messages sent meanwhile", pinned_sent, 0, pinned_sent == 0);

    fleet.sandbox.set_scenario(Scenario::default());
    fleet.settled(PATIENCE).await;
    let all = fleet.arrivals().await;
    let accepted = arrivals::accepted(&all);
    let once = accepted.len() == messages + PINNED && accepted.values().all(|n| *n == 1);
    report.check("accepted once each", accepted.len(), messages + PINNED, once);
    let pinned: Vec<_> = all.iter().filter(|a| a.accepted && a.id().starts_with('p')).collect();
    let back = pinned.iter().filter(|a| a.pod() == "w").count();
    report.check("pinned messages through the first account, open again", back, PINNED, back == PINNED);
    let dead = fleet.dead_letters().await;
    report.check("dead letters", dead.len(), 0, dead.is_empty());
    worker.assert_sound();
    control.assert_sound();
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_quota_and_a_foreign_sender_go_elsewhere() {
    const QUOTA: usize = 40;
    const MESSAGES: usize = 200;
    let mut report = Report::new("failover of a spent quota");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"200/s\"\nquota = [\"{QUOTA}/d\"]\nsenders = [\"sender.example\"]"),
        more: &other(
            "rate = \"200/s\"",
            "[[route]]\nstream = \"only-main\"\naccounts = [\"main\"]\n\
             [[route]]\nstream = \"shared\"\naccounts = { main = 0, other = 1 }\n",
        ),
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let worker = fleet.worker("w").await;
    let of = |id: String, fields: &[(&str, serde_json::Value)]| Mail::with(&id, "normal", "u@gmail.com", fields);
    let foreign = ("from", json!("news@elsewhere.example"));
    let mut mails = vec![
        of("foreign".into(), std::slice::from_ref(&foreign)),
        of("weighted".into(), &[("stream", json!("shared"))]),
        of("foreign-pinned".into(), &[foreign.clone(), ("account", json!("main"))]),
        of("foreign-routed".into(), &[foreign, ("stream", json!("only-main"))]),
    ];
    mails.extend((0..MESSAGES).map(|i| of(format!("m{i}"), &[])));
    publish(&*fleet.broker(), mails).await;
    fleet.accepted(MESSAGES as u64 + 2, PATIENCE).await;
    until("two dead letters", Duration::from_secs(60), async || fleet.dead_letters().await.len() >= 2).await;

    let all = fleet.arrivals().await;
    let through = |pod: &str| all.iter().filter(|a| a.accepted && a.pod() == pod).map(|a| a.id()).collect::<Vec<_>>();
    let (main, other) = (through("w"), through("other"));
    report.check("through the account with the quota", main.len(), format!("≤ {QUOTA}"), main.len() <= QUOTA);
    report.check("it used what it may", main.len(), "≥ 30", main.len() >= 30);
    for id in ["foreign", "weighted"] {
        report.check(&format!("{id}: through the other account"), other.contains(&id), true, other.contains(&id));
    }
    let accepted = arrivals::accepted(&all);
    report.check("accepted once each", accepted.len(), MESSAGES + 2, accepted.values().all(|n| *n == 1));
    let mut dead: Vec<_> = fleet
        .dead_letters()
        .await
        .iter()
        .map(|d| [&d["message_id"], &d["reason"], &d["field"]].map(|v| v.as_str().unwrap_or_default().to_owned()).join(" "))
        .collect();
    dead.sort_unstable();
    let wanted = ["foreign-pinned invalid_message account", "foreign-routed invalid_message from"];
    report.check("dead letters", format!("{dead:?}"), format!("{wanted:?}"), dead == wanted);
    let published = worker.metrics().await.sum("paceline_broker_publishes_total", |l| l.contains("retry") || l.contains("delay"));
    report.check("messages published again", published, 0, published == 0.0);
    worker.assert_sound();
    control.assert_sound();
    report.finish();
}
