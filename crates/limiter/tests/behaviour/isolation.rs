//! A slow destination holds up nobody but itself.

use paceline_core::Class;

use crate::sim::{Load, Sim, bucket, source};

/// One account with room for all; every destination but the tail is slower than its backlog.
fn sources(with_critical: bool) -> Vec<crate::sim::Source> {
    let account = bucket("a", "2000/s", 200);
    let lane = |class, destination: &str, key: &str, rate: &str, burst| {
        source(0, class, destination, &[account.clone(), bucket(key, rate, burst)], Load::Backlog(250))
    };
    let mut sources = vec![
        lane(Class::High, "microsoft", "microsoft", "100/s", 100),
        lane(Class::Normal, "tail", "a.example", "500/s", 100),
        lane(Class::Low, "tail", "b.example", "500/s", 100),
    ];
    if with_critical {
        sources.push(lane(Class::Critical, "google", "google", "200/s", 50));
    }
    sources
}

#[test]
fn a_critical_backlog_at_a_slow_destination_holds_nobody_up() {
    for with_critical in [false, true] {
        let run = Sim { round_trip_us: (1_000, 3_000), ..Sim::new(sources(with_critical), 10) }.run();
        let google = with_critical.then_some("google");
        for key in ["microsoft", "a.example", "b.example"].into_iter().chain(google) {
            let used = run.utilisation(key);
            assert!(used >= 0.97, "{key} used {used:.3} of its rate, critical {with_critical}");
        }
        assert!(run.worst_excess_us() <= 0);
    }
}
