//! Two workers share one account's limit and one destination's: no window exceeds them, a slow destination holds up
//! nobody else and costs no republish, and every message arrives once.

use std::time::Duration;

use paceline_tests::{
    Fleet, Mail, Plan, Report,
    arrivals::{self, Arrival},
    events::{self, Event},
    publish, sized,
    windows::{self, Limit},
};

const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_keep_an_accounts_and_a_destinations_limit() {
    let account = sized(Limit { per_s: 300, burst: 30 }, Limit { per_s: 2000, burst: 200 });
    let google = sized(Limit { per_s: 30, burst: 10 }, Limit { per_s: 200, burst: 50 });
    let (others, slow) = sized((900, 150), (16_000, 4_000));
    let mut report = Report::new("limits");
    let fleet = Fleet::start(Plan {
        account: &format!("rate = \"{}/s\"\nburst = {}", account.per_s, account.burst),
        more: &format!(
            "[[destination]]\nname = \"google\"\nrate = \"{}/s\"\nburst = {}\n\
             [[destination]]\nname = \"microsoft\"\nrate = \"1500/s\"\n\
             [[destination]]\nname = \"yahoo\"\nrate = \"1500/s\"\n\
             [tail]\nrate = \"1500/s\"\nburst = 200\n",
            google.per_s, google.burst
        ),
        ..Plan::default()
    })
    .await;
    let events = fleet.events().await;

    // Without google, for comparison.
    let alone = run(&fleet, "alone", others, 0).await;
    let alone_s = seconds(&alone.arrivals, |a| !is_google(a));
    // With it.
    let mixed = run(&fleet, "mixed", others, slow).await;
    let mixed_s = seconds(&mixed.arrivals, |a| !is_google(a));

    let published = others * 2 + slow;
    let all = fleet.arrivals().await;
    let accepted = arrivals::accepted(&all);
    report.check("messages that arrived", accepted.len(), published, accepted.len() == published);
    report.check("requests in all", all.len(), published, all.len() == published);
    let publishes = alone.publishes + mixed.publishes;
    report.check("publishes by workers, events apart", publishes, 0, publishes == 0.0);

    paceline_tests::until("every event", Duration::from_secs(10), async || events.count() >= published).await;
    let heard = events.so_far();
    let worst = windows::worst_excess(&events::grants(&heard), account);
    report.check("account: worst window of grant dates, millionths over", worst, "≤ 0", worst <= 0);
    let of_google = |e: &&Event| e.destination == "google";
    let worst = windows::worst_excess(&events::grants(heard.iter().filter(of_google)), google);
    report.check("google: worst window of grant dates, millionths over", worst, "≤ 0", worst <= 0);

    for (name, arrivals, limit) in [
        ("account, google apart", uses(&alone.arrivals, |_| true), account),
        ("account", uses(&mixed.arrivals, |_| true), account),
        ("google", uses(&mixed.arrivals, is_google), google),
    ] {
        let excess = windows::excess(&arrivals, limit);
        let (worst, over) = (excess.worst_s, excess.over * 100.0);
        report.timing(&format!("{name}: worst window of arrivals, s of rate over"), format!("{worst:.3}"), "≤ 0.5", worst <= 0.5);
        report.timing(&format!("{name}: windows over by more than 0.1 s, %"), format!("{over:.3}"), "≤ 1", over <= 1.0);
        report.figure(&format!("{name}: arrivals that end such a window, %"), format!("{:.2}", excess.ends_over * 100.0));
    }

    // Where the account and the destination bind together, and where only the destination does.
    let start = mixed.arrivals.iter().map(|a| a.at_us).min().unwrap_or(0);
    let shared_until = start + (mixed_s * 1e6) as u64;
    let during = |wanted: fn(&Arrival) -> bool, from: f64| {
        let from = start + (from * 1e6) as u64;
        let in_time = |a: &&Arrival| wanted(a) && a.at_us >= from && a.at_us < shared_until;
        mixed.arrivals.iter().filter(in_time).count() as f64 / (mixed_s - from.saturating_sub(start) as f64 / 1e6)
    };
    report.figure("account: arrivals a second while the others had mail", format!("{:.1}", during(|_| true, 0.0)));
    report.figure("the same after the first second", format!("{:.1}", during(|_| true, 1.0)));
    report.figure("google: arrivals a second while the others had mail", format!("{:.1}", during(is_google, 0.0)));
    report.figure("the same after the first second", format!("{:.1}", during(is_google, 1.0)));
    let mut tenths = [0; 15];
    for arrival in mixed.arrivals.iter().filter(|a| is_google(a)) {
        if let Some(tenth) = tenths.get_mut(((arrival.at_us - start) / 100_000) as usize) {
            *tenth += 1;
        }
    }
    report.figure("google: arrivals in the first tenths of a second", format!("{tenths:?}"));
    let google_s = seconds(&mixed.arrivals, is_google);
    let used = (slow as f64 - google.burst as f64) / google_s / google.per_s as f64;
    report.timing("google: part of its rate used while it had backlog", format!("{used:.3}"), "≥ 0.95", used >= 0.95);
    report.figure("other destinations without google, s", format!("{alone_s:.2}"));
    let ratio = mixed_s / alone_s;
    report.timing("other destinations with google ÷ without", format!("{ratio:.3}"), "≤ 1.15", ratio <= 1.15);
    report.finish();
}

struct Run {
    arrivals: Vec<Arrival>,
    /// By the workers, events apart.
    publishes: f64,
}

/// Queues the mail, lets two workers send it, and ends them.
async fn run(fleet: &Fleet, name: &str, others: usize, slow: usize) -> Run {
    let before = fleet.arrivals().await.len();
    publish(&*fleet.broker(), mails(name, others, slow)).await;
    let mut workers = [fleet.worker(&format!("{name}-1")).await, fleet.worker(&format!("{name}-2")).await];
    fleet.settled(PATIENCE).await;
    let mut publishes = 0.0;
    for worker in &mut workers {
        publishes += worker.metrics().await.sum("paceline_broker_publishes_total", |labels| !labels.contains("\"event\""));
        worker.drain().await;
    }
    Run { arrivals: fleet.arrivals().await.split_off(before), publishes }
}

/// Mail of all classes, the slow destination's evenly among the others'.
fn mails(name: &str, others: usize, slow: usize) -> Vec<Mail> {
    const DOMAINS: [&str; 5] = ["outlook.com", "yahoo.com", "one.example", "two.example", "hotmail.com"];
    let mut mails = Vec::with_capacity(others + slow);
    for i in 0..others {
        let domain = DOMAINS[i % DOMAINS.len()];
        mails.push(Mail::new(&format!("{name}-{i}"), class(i), &format!("u{i}@{domain}")));
        if i * slow / others != (i + 1) * slow / others {
            // Of every class too: a slow destination without critical mail would rightly wait for the others' to end.
            let g = i * slow / others;
            mails.push(Mail::new(&format!("{name}-google-{g}"), class(g), &format!("u{g}@gmail.com")));
        }
    }
    mails
}

fn class(i: usize) -> &'static str {
    match i % 10 {
        0 => "critical",
        1..4 => "high",
        4..8 => "normal",
        _ => "low",
    }
}

fn is_google(arrival: &Arrival) -> bool {
    arrival.domain == "gmail.com"
}

/// From the first arrival of any to the last of those wanted.
fn seconds(arrivals: &[Arrival], wanted: impl Fn(&Arrival) -> bool) -> f64 {
    let first = arrivals.iter().map(|a| a.at_us).min().unwrap_or(0);
    let last = arrivals.iter().filter(|a| wanted(a)).map(|a| a.at_us).max().unwrap_or(0);
    (last - first) as f64 / 1e6
}

fn uses(arrivals: &[Arrival], wanted: impl Fn(&Arrival) -> bool) -> Vec<windows::Use> {
    arrivals.iter().filter(|a| wanted(a)).map(|a| (a.at_us, a.recipients)).collect()
}
