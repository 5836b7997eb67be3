//! Mail published under a wrong key, or under one that says nothing, is classified and takes one hop to its lane.

use std::{collections::BTreeMap, time::Duration};

use paceline_tests::{Fleet, Mail, Plan, Report, publish, until};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_finds_its_lane_from_anywhere() {
    const EACH: usize = 10;
    let mut report = Report::new("routing");
    let fleet = Fleet::start(Plan {
        more: "[tail]\nrate = \"1000/s\"\n\
               [[rule]]\nname = \"resets\"\nstream = \"password-*\"\nclass = \"critical\"\n\
               [[rule]]\nname = \"bulk\"\ntag = \"bulk\"\nmax_class = \"low\"\n",
        ..Plan::default()
    })
    .await;
    let events = fleet.events().await;
    let worker = fleet.worker("w").await;
    // Name, key, class asked for, domain, further fields; then the lane it belongs to and whether it was put there.
    type Case = (&'static str, &'static str, Value, &'static str, Vec<(&'static str, Value)>, &'static str, bool);
    let cases: Vec<Case> = vec![
        ("right", "normal.gmail.com", json!("normal"), "gmail.com", vec![], "normal.google", true),
        ("upper", "normal.one.example", json!("normal"), "ONE.Example.", vec![], "normal.tail", true),
        ("domain", "normal.outlook.com", json!("normal"), "gmail.com", vec![], "normal.google", false),
        ("tail", "high.one.example", json!("high"), "gmail.com", vec![], "high.google", false),
        ("class", "low.gmail.com", json!("high"), "gmail.com", vec![], "high.google", false),
        ("key", "high.gmail.com", Value::Null, "gmail.com", vec![], "high.google", true),
        ("intake", "anything", json!("low"), "gmail.com", vec![], "low.google", false),
        ("nothing", "", Value::Null, "one.example", vec![], "normal.tail", false),
        (
            "rule",
            "normal.gmail.com",
            json!("normal"),
            "gmail.com",
            vec![("stream", json!("password-reset"))],
            "critical.google",
            false,
        ),
        ("capped", "critical.gmail.com", json!("critical"), "gmail.com", vec![("tags", json!(["bulk"]))], "low.google", false),
    ];
    let mut mails = Vec::new();
    for (name, key, class, domain, fields, _, _) in &cases {
        for i in 0..EACH {
            let mut all = fields.clone();
            all.push(("class", class.clone()));
            let id = format!("{name}-{i}");
            let mail = Mail::with(&id, "unused", &format!("u{i}@{domain}"), &all);
            mails.push(mail.keyed(key));
        }
    }
    publish(&*fleet.broker(), mails).await;
    fleet.settled(Duration::from_secs(120)).await;
    until("every event", Duration::from_secs(10), async || events.count() >= cases.len() * EACH).await;

    let mut lanes: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for event in events.so_far() {
        let name = event.id.split('-').next().unwrap_or_default().to_owned();
        *lanes.entry(name).or_default().entry(format!("{}.{}", event.class, event.destination)).or_default() += 1;
    }
    for (name, key, _, _, _, lane, _) in &cases {
        let found = lanes.remove(*name).unwrap_or_default();
        let holds = found == BTreeMap::from([((*lane).to_owned(), EACH)]);
        report.check(&format!("{name}: sent from (key {key:?})"), format!("{found:?}"), lane, holds);
    }
    let wanted = (cases.iter().filter(|c| !c.6).count() * EACH) as f64;
    let rerouted = worker.metrics().await.sum("paceline_broker_publishes_total", |labels| labels.contains("\"reroute\""));
    report.check("hops", rerouted, wanted, rerouted == wanted);
    let requests = fleet.sandbox.stats().requests;
    report.check("requests", requests, cases.len() * EACH, requests == (cases.len() * EACH) as u64);
    worker.assert_sound();
    report.finish();
}
