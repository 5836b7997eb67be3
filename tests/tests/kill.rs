//! `kill -9` of one of two workers, again and again under load: nothing is lost, and nothing arrives twice but what
//! was under way at a kill.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use paceline_tests::{Fleet, Mail, Plan, Report, arrivals, now_us, publish, sized};

const KILLS: usize = 5;
/// How long the sandbox takes to answer: what it has read and not answered at a kill is a call under way.
const ANSWER_MS: u64 = 50;
/// An answer on its way is not an answer yet.
const TRANSIT_US: u64 = 5_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_mail_is_sent_by_the_others() {
    let (count, per_s) = sized((2_500, 150), (20_000, 900));
    let mut report = Report::new("kill");
    let fleet = Fleet::start(Plan {
        // Claims of a killed worker run out after the time-out and a margin.
        account: &format!("rate = \"{per_s}/s\"\nconnect_timeout = \"1s\"\nread_timeout = \"2s\"\ntotal_timeout = \"2s\""),
        more: "[tail]\nrate = \"5000/s\"\n[[destination]]\nname = \"google\"\nrate = \"5000/s\"\n[retry]\nbase = \"1s\"\nmax = \"4s\"\n",
        sandbox: &format!("[[rule]]\ndomain = \"*\"\nthen = \"accept\"\ndelay = [\"{ANSWER_MS}ms\", \"{ANSWER_MS}ms\"]\n"),
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let ids: Vec<String> = (0..count).map(|i| format!("m-{i}")).collect();
    let mails = ids.iter().enumerate().map(|(i, id)| {
        // Classes that send again when in doubt, and classes that do not; one lane each, so that a worker that comes finds
        // mail that nobody holds yet.
        let class = ["high", "normal"][i % 2];
        Mail::new(id, class, &format!("u{i}@one.example"))
    });
    publish(&*fleet.broker(), mails).await;

    let survivor = fleet.worker("survivor").await;
    let mut kills = Vec::new();
    for n in 0..KILLS {
        let name = format!("victim-{n}");
        let mut victim = fleet.worker(&name).await;
        // Mid-load, whatever the machine's speed: when it has had time to send some, and much is left.
        let some = fleet.sandbox.stats().accepted + per_s / 2;
        fleet.accepted(some, Duration::from_secs(120)).await;
        let from = now_us();
        victim.process.kill9().await;
        kills.push((name, from, now_us()));
        victim.assert_sound();
    }
    let left = fleet.waiting().await;
    report.check("messages left when the last was killed", left, "> 0", left > 0);
    fleet.settled(Duration::from_secs(240)).await;

    let arrivals = fleet.arrivals().await;
    let accepted = arrivals::accepted(&arrivals);
    let letters = fleet.dead_letters().await;
    let dead: BTreeSet<&str> = letters.iter().filter_map(|l| l["message_id"].as_str()).collect();
    let lost: Vec<_> = ids.iter().filter(|id| !accepted.contains_key(id.as_str()) && !dead.contains(id.as_str())).collect();
    report.check("neither accepted nor dead-lettered", format!("{lost:?}"), "[]", lost.is_empty());

    let mut open = 0;
    for (name, from, to) in &kills {
        let of = arrivals.iter().filter(|a| a.pod() == name);
        let under_way = of.filter(|a| a.at_us <= *to && a.at_us + ANSWER_MS * 1000 + TRANSIT_US >= *from).count();
        report.figure(&format!("calls under way when {name} was killed"), under_way);
        open += under_way;
    }
    let twice: BTreeMap<_, _> = accepted.iter().filter(|(_, n)| **n > 1).collect();
    let duplicates: u64 = twice.values().map(|n| **n - 1).sum();
    report.check("duplicates at the sandbox", duplicates, format!("≤ {open}"), duplicates <= open as u64);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for letter in &letters {
        *reasons.entry(letter["reason"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let uncertain = reasons.remove("uncertain").unwrap_or(0);
    report.check("dead letters as uncertain", uncertain, format!("≤ {open}"), uncertain <= open);
    report.check("dead letters of other reasons", format!("{reasons:?}"), "{}", reasons.is_empty());
    // Each such call was one or the other: sent again, or left to a person.
    report.figure("sent again or uncertain", duplicates + uncertain as u64);
    for pod in [&survivor, &control] {
        pod.assert_sound();
    }
    report.finish();
}
