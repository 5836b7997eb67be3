//! What the fleet learns from answers: a hidden limit is found, kept to and followed when it rises; a circuit opens when
//! calls fail, probes and closes; bad recipients open none; a refused account is left alone until it works again.

use std::time::Duration;

use paceline_sandbox::Scenario;
use paceline_tests::{Fleet, Mail, Plan, Pod, Report, arrivals::Arrival, full, publish, sized, until};

const LONG: Duration = Duration::from_secs(240);

/// Behave so from the next request on.
fn now(fleet: &Fleet, scenario: &str) {
    fleet.sandbox.set_scenario(Scenario::from_toml(scenario).unwrap_or_else(|e| panic!("{e:?}")));
}

fn google(name: &str, count: usize) -> impl Iterator<Item = Mail> {
    let name = name.to_owned();
    (0..count).map(move |i| Mail::new(&format!("{name}-{i}"), "normal", &format!("u{i}@gmail.com")))
}

fn hidden(per_s: u32) -> String {
    format!("[[limit]]\nper = \"domain\"\ndomain = \"gmail.com\"\nrate = \"{per_s}/s\"\nburst = {per_s}\n")
}

/// Changes that any of the workers brought about, for that cause.
async fn changes(workers: &[Pod], cause: &str) -> f64 {
    let mut sum = 0.0;
    for worker in workers {
        let of = |labels: &str| labels.contains(&format!("cause=\"{cause}\""));
        sum += worker.metrics().await.sum("paceline_limit_changes_total", of);
    }
    sum
}

/// Whether every worker sees that circuit in that state.
async fn all_see(workers: &[Pod], destination: &str, state: f64) -> bool {
    for worker in workers {
        let of = |labels: &str| labels.contains(&format!("destination=\"{destination}\""));
        if worker.metrics().await.sum("paceline_circuit_state", of) != state {
            return false;
        }
    }
    true
}

/// Accepted a second, and the share refused, between two moments after the first arrival.
fn rate(arrivals: &[Arrival], from_s: u64, to_s: u64) -> (f64, f64) {
    let start = arrivals.iter().map(|a| a.at_us).min().unwrap_or(0);
    let span = start + from_s * 1_000_000..start + to_s * 1_000_000;
    let within: Vec<_> = arrivals.iter().filter(|a| span.contains(&a.at_us)).collect();
    let accepted = within.iter().filter(|a| a.accepted).count() as f64;
    (accepted / (to_s - from_s) as f64, 1.0 - accepted / (within.len().max(1)) as f64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_limit_is_found_and_followed() {
    let mut report = Report::new("learning");
    let fleet = Fleet::start(Plan {
        account: "rate = \"2000/s\"",
        more: "[[destination]]\nname = \"google\"\nrate = \"500/s\"\n",
        sandbox: &hidden(50),
        ..Plan::default()
    })
    .await;
    let count = sized(1_500, 100_000);
    publish(&*fleet.broker(), google("m", count)).await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    until("the rate is cut", LONG, async || changes(&workers, "refused").await > 0.0).await;
    if full() {
        fleet.accepted(1, LONG).await;
        tokio::time::sleep(Duration::from_secs(302)).await;
        now(&fleet, &hidden(200));
        tokio::time::sleep(Duration::from_secs(300)).await;
        let arrivals = fleet.arrivals().await;
        let (accepted, refused) = rate(&arrivals, 120, 300);
        report.check("hidden 50/s: accepted a second, minutes 3 to 5", format!("{accepted:.1}"), "≥ 45", accepted >= 45.0);
        let percent = format!("{:.2}", refused * 100.0);
        report.check("hidden 50/s: refused, minutes 3 to 5, %", percent, "< 3", refused < 0.03);
        let (accepted, refused) = rate(&arrivals, 540, 600);
        report.check("hidden 200/s: accepted a second, minute 10", format!("{accepted:.1}"), "≥ 180", accepted >= 180.0);
        report.figure("hidden 200/s: refused, minute 10, %", format!("{:.2}", refused * 100.0));
        for minute in 0..10 {
            let (accepted, refused) = rate(&arrivals, minute * 60, minute * 60 + 60);
            report.figure(&format!("minute {}", minute + 1), format!("{accepted:.1}/s, {:.2} % refused", refused * 100.0));
        }
    } else {
        fleet.settled(LONG).await;
        let arrivals = fleet.arrivals().await;
        let accepted = arrivals.iter().filter(|a| a.accepted).count();
        report.check("accepted", accepted, count, accepted == count);
        let refused = arrivals.len() - accepted;
        report.check("refused on the way", refused, format!("< {}", count / 2), refused < count / 2);
        report.check("dead letters", fleet.dead_letters().await.len(), 0, fleet.dead_letters().await.is_empty());
    }
    workers.iter().for_each(Pod::assert_sound);
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_destination_is_left_alone_and_probed() {
    let mut report = Report::new("learning");
    let (per_s, open_s) = sized((50, 3), (50, 30));
    let fleet = Fleet::start(Plan {
        account: "rate = \"2000/s\"",
        more: &format!(
            "[[destination]]\nname = \"google\"\nrate = \"{per_s}/s\"\n[tail]\nrate = \"1000/s\"\nburst = 1000\n\
             [retry]\nattempts = 50\nbase = \"1s\"\nmax = \"2s\"\n[circuit]\nopen = \"{open_s}s\"\n"
        ),
        sandbox: "[[rule]]\nto = \"nobody*\"\nthen = \"reject\"\n",
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];

    // A stream of bad recipients among a little good mail opens nothing.
    let bad = sized(200, 1_000);
    publish(&*fleet.broker(), (0..bad).map(|i| Mail::new(&format!("bad-{i}"), "high", &format!("nobody{i}@gmail.com")))).await;
    fleet.settled(LONG).await;
    let opened = changes(&workers, "failures").await;
    report.check("opened by bad recipients", opened, 0, opened == 0.0);

    // A quarter fails.
    let count = sized(900, 6_000);
    let seen = fleet.arrivals().await.len();
    now(&fleet, "[[rule]]\ndomain = \"gmail.com\"\nevery = 4\nthen = \"503\"\n");
    publish(&*fleet.broker(), google("m", count)).await;
    until("an open circuit", LONG, async || all_see(&workers, "google", 2.0).await).await;
    // Another destination goes on meanwhile.
    publish(&*fleet.broker(), (0..50).map(|i| Mail::new(&format!("other-{i}"), "normal", &format!("u{i}@one.example")))).await;
    until("other mail", LONG, async || {
        fleet.arrivals().await.iter().filter(|a| a.accepted && a.id().starts_with("other-")).count() == 50
    })
    .await;
    now(&fleet, "");
    until("a closed circuit", LONG, async || all_see(&workers, "google", 0.0).await).await;
    let closed = changes(&workers, "probes_passed").await;
    report.check("closed by probes", closed, "≥ 1", closed >= 1.0);
    fleet.settled(LONG).await;

    let arrivals = fleet.arrivals().await;
    let google: Vec<&Arrival> = arrivals[seen..].iter().filter(|a| a.domain == "gmail.com").collect();
    let accepted = google.iter().filter(|a| a.accepted).count();
    report.check("accepted", accepted, count, accepted == count);
    let dead = fleet.dead_letters().await.len();
    report.check("dead letters: the bad recipients alone", dead, bad, dead == bad);
    let gap = google.windows(2).map(|w| w[1].at_us.saturating_sub(w[0].at_us)).max().unwrap_or(0) as f64 / 1e6;
    // Nothing is granted before the end of an open circuit; what was granted before it may arrive up to a second later.
    let least = f64::from(open_s) - 1.0;
    report.check("longest time without a call, s", format!("{gap:.2}"), format!("≥ {least}"), gap >= least);
    let first_failure = google.iter().find(|a| !a.accepted).map_or(0, |a| a.at_us);
    let longest = google.windows(2).max_by_key(|w| w[1].at_us.saturating_sub(w[0].at_us));
    let last_before = longest.map_or(0, |w| w[0].at_us);
    let crossing = crossing(&google);
    let took = last_before.saturating_sub(crossing) as f64 / 1e6;
    report.timing("from crossing to the last call before it is open, s", format!("{took:.2}"), "≤ 5", took <= 5.0);
    report.figure("from the first failure to it, s", format!("{:.2}", last_before.saturating_sub(first_failure) as f64 / 1e6));
    workers.iter().chain([&control]).for_each(Pod::assert_sound);
    report.finish();
}

/// When the share of failures among at least twenty calls first was a fifth.
fn crossing(arrivals: &[&Arrival]) -> u64 {
    let mut failed = 0;
    for (i, arrival) in arrivals.iter().enumerate() {
        failed += usize::from(!arrival.accepted);
        if i + 1 >= 20 && failed * 5 > i {
            return arrival.at_us;
        }
    }
    0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_account_is_left_alone_until_it_works() {
    let mut report = Report::new("learning");
    let open_s = sized(3, 30);
    let fleet = Fleet::start(Plan {
        account: "rate = \"200/s\"",
        more: &format!("[[destination]]\nname = \"google\"\nrate = \"200/s\"\n[circuit]\nopen = \"{open_s}s\"\n"),
        ..Plan::default()
    })
    .await;
    let control = fleet.control().await;
    let workers = [fleet.worker("w1").await, fleet.worker("w2").await];
    let count = sized(1_000, 6_000);
    publish(&*fleet.broker(), google("m", count)).await;
    fleet.accepted(200, LONG).await;
    now(&fleet, "api_key = \"another\"\n");
    until("an open circuit", LONG, async || all_see(&workers, "", 2.0).await).await;
    let refused = |arrivals: &[Arrival]| arrivals.iter().filter(|a| a.status == Some(401)).map(|a| a.at_us).collect::<Vec<_>>();
    // It is probed at the earliest when it has been open for its time: until then, nothing.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let early = refused(&fleet.arrivals().await);
    let took = (early.last().unwrap_or(&0) - early.first().unwrap_or(&0)) as f64 / 1e6;
    report.timing("from the first refusal to the last call, s", format!("{took:.2}"), "≤ 1", took <= 1.0);
    report.check("calls refused at first", early.len(), "≤ 200", (1..=200).contains(&early.len()));
    until("a probe", LONG, async || refused(&fleet.arrivals().await).len() > early.len()).await;
    let all = refused(&fleet.arrivals().await);
    let waited = (all[early.len()] - early[0]) as f64 / 1e6;
    let least = f64::from(open_s) - 0.5;
    report.check("from the first refusal to the first probe, s", format!("{waited:.2}"), format!("≥ {least}"), waited >= least);
    now(&fleet, "");
    fleet.accepted(count as u64, LONG).await;
    fleet.settled(LONG).await;
    let arrivals = fleet.arrivals().await;
    let accepted = arrivals.iter().filter(|a| a.accepted).count();
    report.check("accepted", accepted, count, accepted == count);
    let dead = fleet.dead_letters().await.len();
    report.check("dead letters", dead, 0, dead == 0);
    let opened = changes(&workers, "account_refused").await;
    report.check("opened because the account was refused", opened, "≥ 1", opened >= 1.0);
    workers.iter().chain([&control]).for_each(Pod::assert_sound);
    report.finish();
}
