//! A real Postfix that limits messages and connections, and a real greylisting server behind it: all mail is delivered, no
//! message spends more than its budget, refusals become rare as the rate settles, and greylisted mail goes at its second try.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use paceline_testkit::{Postfix, Postgrey};
use paceline_tests::{Fleet, Mail, Plan, Report, events::Event, publish, sized, until};

fn tls(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/provider/tests/tls").join(name)
}

async fn postfix(settings: &[(&str, &str)]) -> Postfix {
    // Postfix spares its own networks unless told otherwise.
    let all: Vec<_> = [("smtpd_client_event_limit_exceptions", "")].into_iter().chain(settings.iter().copied()).collect();
    Postfix::with_settings(&tls("server.pem"), &tls("server.key"), &all).await
}

fn relay(postfix: &Postfix, more: &str) -> String {
    format!("provider = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n{more}", postfix.port())
}

/// Calls that were not accepted, among those whose grants are dated in that part of the run.
fn refused_share(events: &[Event], from: f64, to: f64) -> f64 {
    let dates = || events.iter().filter_map(|e| e.granted_at_us);
    let (first, last) = (dates().min().unwrap_or(0), dates().max().unwrap_or(0));
    let at = |share: f64| first + ((last - first) as f64 * share) as u64;
    let within: Vec<_> = events.iter().filter(|e| e.granted_at_us.is_some_and(|t| (at(from)..=at(to)).contains(&t))).collect();
    within.iter().filter(|e| e.event != "sent").count() as f64 / within.len().max(1) as f64
}

struct Run {
    events: Vec<Event>,
    delivered: usize,
    twice: usize,
    dead: usize,
}

/// Sends `count` messages through the relay until none is left anywhere.
async fn run(postfix: &Postfix, provider: &str, more: &str, count: usize, to: impl Fn(usize) -> String) -> Run {
    let fleet = Fleet::start(Plan { provider: Some(provider), more, ..Plan::default() }).await;
    let heard = fleet.events().await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w0").await, fleet.worker("w1").await];
    publish(&*fleet.broker(), (0..count).map(|i| Mail::new(&format!("m{i}"), "normal", &to(i)))).await;
    fleet.settled(Duration::from_secs(900)).await;
    let ended = |events: &[Event]| events.iter().filter(|e| e.event == "sent" || e.event == "dead").count();
    until("every event", Duration::from_secs(10), async || ended(&heard.so_far()) >= count).await;
    let mut by_recipient: BTreeMap<String, usize> = BTreeMap::new();
    for mail in postfix.wait_for(count, Duration::from_secs(60)).await {
        *by_recipient.entry(mail.recipient).or_default() += 1;
    }
    for pod in workers.iter().chain([&control]) {
        pod.assert_sound();
    }
    Run {
        events: heard.so_far(),
        delivered: by_recipient.len(),
        twice: by_recipient.values().filter(|n| **n > 1).count(),
        dead: fleet.dead_letters().await.len(),
    }
}

fn check(report: &mut Report, run: &Run, count: usize) {
    report.check("messages delivered", run.delivered, count, run.delivered == count);
    report.check("delivered twice", run.twice, 0, run.twice == 0);
    report.check("dead letters", run.dead, 0, run.dead == 0);
    // Throttling spends no budget: nothing but it happens here.
    let spent = run.events.iter().filter(|e| e.event == "retrying").count();
    report.check("attempts that spent budget", spent, 0, spent == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_messages_is_found_and_kept_to() {
    // Postfix counts by fixed spans of time, refused messages too: too many of them and nothing goes for the rest of one.
    let (limit, unit_s, count) = sized((25, 5, 150), (200, 10, 8_000));
    let mut report = Report::new("postfix");
    let postfix =
        postfix(&[("smtpd_client_message_rate_limit", &limit.to_string()), ("anvil_rate_time_unit", &format!("{unit_s}s"))])
            .await;
    let account = relay(&postfix, "rate = \"100/s\"\nburst = 10\nmax_connections = 10\n");
    let run = run(&postfix, &account, "[tail]\nrate = \"1000/s\"\n", count, |i| format!("u{i}@d{}.example", i % 7)).await;
    check(&mut report, &run, count);
    let settled = refused_share(&run.events, 0.5, 1.0);
    report.figure("refused in the first tenth", format!("{:.3}", refused_share(&run.events, 0.0, 0.1)));
    report.timing("refused in the second half", format!("{settled:.3}"), "< 0.05", settled < 0.05);
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_connections_is_found_and_kept_to() {
    // Each mail takes a second, so that connections are what is short.
    let (limit, count) = sized((6, 120), (10, 2_000));
    let mut report = Report::new("postfix");
    let postfix = postfix(&[
        ("smtpd_client_connection_count_limit", &limit.to_string()),
        ("smtpd_recipient_restrictions", "sleep 1, permit_mynetworks, reject"),
    ])
    .await;
    let account = relay(&postfix, "rate = \"100/s\"\nmax_connections = 12\nconcurrency = 24\n");
    let run = run(&postfix, &account, "[tail]\nrate = \"1000/s\"\n", count, |i| format!("u{i}@d{}.example", i % 7)).await;
    check(&mut report, &run, count);
    let settled = refused_share(&run.events, 0.5, 1.0);
    report.figure("refused in the first tenth", format!("{:.3}", refused_share(&run.events, 0.0, 0.1)));
    report.timing("refused in the second half", format!("{settled:.3}"), "< 0.05", settled < 0.05);
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greylisted_mail_goes_at_its_second_try() {
    let (delay_s, text, count) = sized((3, Some("Greylisted, try again in %s seconds"), 60), (300, None, 300));
    let mut report = Report::new("postfix");
    let postgrey = Postgrey::start(delay_s, text).await;
    let restrictions = format!("{}, permit_mynetworks, reject", postgrey.restriction());
    let postfix = postfix(&[("smtpd_recipient_restrictions", &restrictions)]).await;
    let account = relay(&postfix, "rate = \"100/s\"\n");
    let run = run(&postfix, &account, "[tail]\nrate = \"1000/s\"\n", count, |i| format!("u{i}@d{}.example", i % 7)).await;
    check(&mut report, &run, count);
    let second = run.events.iter().filter(|e| e.event == "sent" && e.attempts == 2).count();
    report.check("accepted at the second try", second, count, second == count);
    report.finish();
}
