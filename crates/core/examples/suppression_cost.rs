//! What the suppression filter costs: time a message, bytes an entry, time to read the list.
//!
//! `cargo run --release -p paceline-core --example suppression_cost -- 100000 5000000`
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures, and prints what it found")]

use std::{hint::black_box, time::Instant};

use paceline_core::{
    Class, Message, SuppressionSet, Timestamp,
    suppression::{Change, Entry, Kind},
};

/// Messages asked about, half of them to listed recipients.
const MESSAGES: u32 = 20_000;
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn main() {
    let sizes: Vec<u32> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    for size in if sizes.is_empty() { vec![100_000] } else { sizes } {
        let begun = Instant::now();
        let mut set = SuppressionSet::new(42, false);
        for from in (0..size).step_by(10_000) {
            let page = (from..size.min(from + 10_000)).map(|i| Change {
                address: address(i),
                entry: Some(Entry { kind: if i % 2 == 0 { Kind::Hard } else { Kind::Soft }, until: None }),
            });
            set = set.after(page, NOW);
        }
        let read = begun.elapsed();
        let messages: Vec<Message> = (0..MESSAGES).map(|i| message(if i % 2 == 0 { i * 7 % size } else { size + i })).collect();
        let asked = |set: &SuppressionSet| {
            let begun = Instant::now();
            let mut listed = 0;
            for _ in 0..50 {
                // Both looks of a worker: at intake, and right before the call.
                listed = messages.iter().filter(|m| black_box(set.holds_back_all(m, Class::Normal, NOW))).count();
                black_box(messages.iter().filter(|m| !set.held_back(m, Class::Normal, NOW).is_empty()).count());
            }
            (begun.elapsed() / (50 * MESSAGES), listed)
        };
        let (settled, listed) = asked(&set);
        let changed = set.after([Change { address: address(size + 1_000_000), entry: None }], NOW);
        let (with_changes, _) = asked(&changed);
        println!(
            "{size} entries: {} ns a message (both looks; {} ns with changes apart), {listed} of {MESSAGES} listed, read in {:.2} s",
            settled.as_nanos(),
            with_changes.as_nanos(),
            read.as_secs_f64(),
        );
    }
}

fn address(i: u32) -> String {
    format!("some.user{i}@mail{}.example.com", i % 1000)
}

fn message(i: u32) -> Message {
    let body = format!(r#"{{"id":"m{i}","from":"a@example.com","to":["{}"],"text":"x"}}"#, address(i));
    Message::parse(body.as_bytes(), None, 10_000).unwrap_or_else(|e| panic!("{e}"))
}
