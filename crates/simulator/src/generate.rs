//! Small random scenarios: whatever a seed brings must keep every promise.

use paceline_core::{Class, Rate};

use crate::{
    chance::Chance,
    scenario::{Account, Destination, Event, Fleet, Load, Receiver, Reserves, Retry, Scenario, Tail, What},
    span::Span,
};

/// The scenario that `seed` stands for: some workers, limits, mail and receivers, and some misfortune.
pub fn random(seed: u64) -> Scenario {
    let c = &mut Chance::of(seed, 7);
    let concurrency = maybe(c, 0.4, |c| c.between(1, 12) as u32);
    let account = Account {
        name: "main".into(),
        rate: Some(per_second(c, 5, 60)),
        max_rate: None,
        burst: Some(c.between(1, 30) as u32),
        quota: maybe(c, 0.3, |c| format!("{}/min", c.between(60, 900)).parse().ok()).flatten().into_iter().collect(),
        concurrency,
    };
    let destination = Destination {
        name: "google".into(),
        domains: vec!["gmail.com".into()],
        rate: maybe(c, 0.6, |c| per_second(c, 2, 30)),
        max_rate: None,
        burst: Some(c.between(1, 20) as u32),
        fleet_rate: maybe(c, 0.2, |c| per_second(c, 5, 40)),
        fleet_burst: None,
        quota: Vec::new(),
        concurrency: maybe(c, 0.2, |c| c.between(1, 8) as u32),
    };
    let destination = Destination { burst: destination.burst.filter(|_| destination.rate.is_some()), ..destination };
    let receiver = |c: &mut Chance, domains: &str| Receiver {
        domains: vec![domains.into()],
        each: c.happens(0.5),
        rate: maybe(c, 0.3, |c| per_second(c, 2, 20)),
        burst: Some(c.between(1, 10) as u32),
        greylist: maybe(c, 0.15, |c| Span::secs(c.between(1, 8))),
        concurrency: maybe(c, 0.2, |c| c.between(1, 10) as u32),
        latency: Some([Span::millis(c.between(1, 100)), Span::millis(c.between(100, 900))]),
        outages: maybe(c, 0.2, |c| [Span::secs(c.between(0, 5)), Span::secs(c.between(6, 12))]).into_iter().collect(),
        bad_recipients: maybe(c, 0.3, |c| c.part() * 0.1).unwrap_or(0.0),
        lost_answers: maybe(c, 0.3, |c| c.part() * 0.1).unwrap_or(0.0),
        ..Receiver::default()
    };
    let workers = c.between(1, 3) as usize;
    Scenario {
        about: format!("a small fleet by chance, seed {seed}"),
        seed,
        duration: Span::secs(600),
        config: None,
        fleet: Fleet {
            workers,
            concurrency: c.between(1, 64) as usize,
            crash_every: maybe(c, 0.6, |c| Span::millis(c.between(1_000, 8_000))),
            restart_after: Span::millis(c.between(100, 3_000)),
            idempotent: c.happens(0.5),
            total_timeout: Span::secs(c.between(1, 4)),
            ..Fleet::default()
        },
        limits: Reserves::default(),
        accounts: vec![account],
        destinations: vec![destination],
        tail: Some(Tail { rate: per_second(c, 1, 10), burst: Some(c.between(1, 10) as u32) }),
        tenants: Vec::new(),
        senders: Vec::new(),
        recipient: None,
        retry: Retry {
            attempts: Some(c.between(2, 6) as u32),
            base: Some(Span::millis(c.between(200, 2_000))),
            max: Some(Span::secs(c.between(2, 6))),
            max_age: maybe(c, 0.2, |c| Span::secs(c.between(10, 60))),
        },
        loads: (0..c.between(1, 3)).map(|n| load(c, n)).collect(),
        receivers: vec![receiver(c, "gmail.com"), receiver(c, "*")],
        events: (0..c.below(4)).map(|_| event(c)).collect(),
        phases: vec![],
        expects: Vec::new(),
    }
}

fn load(c: &mut Chance, n: u64) -> Load {
    let at_once = c.happens(0.6);
    Load {
        name: format!("load{n}"),
        class: Class::ALL[c.below(4) as usize],
        to: if c.happens(0.5) { vec!["gmail.com".into()] } else { vec!["gmail.com".into(), "d{1..6}.example".into()] },
        count: at_once.then(|| c.between(1, 60)),
        rate: (!at_once).then(|| per_second(c, 1, 15)),
        from: Span::millis(c.below(3_000)),
        until: Some(Span::secs(c.between(4, 8))),
        recipients: if c.happens(0.7) { 1 } else { c.between(2, 5) as u32 },
        tenant: None,
        sender: "shop@sender.example".into(),
        account: None,
    }
}

fn event(c: &mut Chance) -> Event {
    let what = [What::Join, What::Leave, What::Crash, What::RedisAway, What::BrokerAway][c.below(5) as usize];
    // Somebody has to stay.
    let workers = Some(1);
    Event { at: Span::millis(c.below(15_000)), what, workers, lasts: Some(Span::millis(c.between(500, 5_000))) }
}

fn maybe<T>(c: &mut Chance, probability: f64, then: impl FnOnce(&mut Chance) -> T) -> Option<T> {
    c.happens(probability).then(|| then(c))
}

fn per_second(c: &mut Chance, least: u64, most: u64) -> Rate {
    Rate::per_second(c.between(least, most) as u32)
}
