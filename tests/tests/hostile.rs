//! Bodies that are no message end in the dead letters, byte for byte and with the field at fault; the good ones among
//! them are delivered, and no worker stops.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use paceline_tests::{Fleet, Mail, Plan, Report, arrivals, hostile, publish, sized};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bodies_are_kept_whole_and_stop_nobody() {
    let (bad, good) = sized((100, 1000), (1000, 10_000));
    // In the full size the contract's own limit.
    let max_bytes = sized(64 << 10, 10 << 20);
    let mut report = Report::new("hostile");
    let fleet = Fleet::start(Plan {
        broker: &format!("max_message_bytes = {max_bytes}"),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n",
        ..Plan::default()
    })
    .await;
    let mut control = fleet.control().await;
    let mut workers = [fleet.worker("w1").await, fleet.worker("w2").await];

    let keys = ["normal.gmail.com", "critical.one.example", "low.outlook.com", "no-class-at-all"];
    let hostiles: Vec<_> = (0..bad).map(|n| hostile::body(n, max_bytes)).collect();
    let mails = (0..good).flat_map(|i| {
        let mail = Mail::new(&format!("good-{i}"), "normal", &format!("u{i}@{}", ["gmail.com", "one.example"][i % 2]));
        let every = good / bad;
        let hostile = (i % every == 0)
            .then(|| Mail { key: keys[i / every % keys.len()].to_owned(), body: hostiles[i / every].body.clone() });
        [Some(mail), hostile].into_iter().flatten()
    });
    publish(&*fleet.broker(), mails).await;
    fleet.settled(Duration::from_secs(240)).await;

    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    report.check("good messages delivered", accepted.len(), good, accepted.len() == good);
    report.check("requests in all", arrivals.len(), good, arrivals.len() == good);
    report.check("kinds of hostile bodies", hostile::kinds(), "≥ 30", hostile::kinds() >= 30);

    let sql = "select json_build_array(reason, field, detail, encode(body, 'hex')) from dead_letters";
    let rows = fleet.postgres.sql(&fleet.postgres.url(), sql).await;
    let mut wanted: HashMap<Bytes, _> = hostiles.iter().map(|h| (h.body.clone(), h)).collect();
    let (mut letters, mut equal, mut reasoned, mut misnamed) = (0, 0, 0, Vec::new());
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        letters += 1;
        reasoned += usize::from(row[0] == "invalid_message" && row[2].as_str().is_some_and(|d| !d.is_empty()));
        if let Some(hostile) = wanted.remove(&Bytes::from(bytes_of(row[3].as_str().unwrap()))) {
            equal += 1;
            let field = row[1].as_str().unwrap_or_default();
            if field.is_empty() || !field.starts_with(hostile.field) {
                misnamed.push(format!("{}: {field:?}", hostile.kind));
            }
        }
    }
    report.check("dead letters", letters, bad, letters == bad);
    report.check("of reason invalid_message with words", reasoned, bad, reasoned == bad);
    report.check("with their bytes untouched", equal, bad, equal == bad);
    report.check("that name another field than the one at fault", format!("{misnamed:?}"), "[]", misnamed.is_empty());
    for pod in workers.iter_mut().chain([&mut control]) {
        assert!(pod.process.exited().is_none(), "{} has ended", pod.name);
        pod.assert_sound();
    }
    report.finish();
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let nibble = |b: u8| (b as char).to_digit(16).map_or(0, |n| n as u8);
    hex.as_bytes().chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
}
