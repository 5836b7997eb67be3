//! What is printed.

use std::fmt::Write as _;

use crate::{
    cpu::Who,
    run::{Client, Run},
};

/// Column heads, above what [`line`] writes.
pub(crate) fn head() -> String {
    "                               µs of processor time a message\n\
     round client      msg/s      s   client rabbitmq  redis sandbox   rest    all  each once"
        .to_owned()
}

/// One run as a line of the table.
pub(crate) fn line(round: &str, run: &Run) -> String {
    let mut line = format!("{round:<5} {:<8} {:>8.0} {:>6.1}", run.client, run.rate, run.seconds);
    columns(&mut line, &run.cpu_us);
    let _ = write!(line, "  {}", run.exact);
    line
}

/// The medians of a client's runs as a line of the table.
pub(crate) fn medians(client: Client, runs: &[Run]) -> String {
    let of = |what: &dyn Fn(&Run) -> f64| median(runs.iter().filter(|run| run.client == client).map(what).collect());
    let mut line = format!("{:<5} {client:<8} {:>8.0} {:>6.1}", "med.", of(&|run| run.rate), of(&|run| run.seconds));
    columns(&mut line, &Who::ALL.map(|who| of(&|run| run.cpu_us[who as usize])));
    line
}

/// The rates' ratio, worker to bare, of each pair of runs in turn.
pub(crate) fn ratios(runs: &[Run]) -> Vec<f64> {
    let of = |bare| runs.iter().filter(move |run| (run.client == Client::Bare) == bare).map(|run| run.rate);
    of(true).zip(of(false)).map(|(bare, worker)| worker / bare).collect()
}

/// Processor time of client, broker, Redis and sandbox a message, bare to worker: what the ratio of the rates would be on
/// a machine that does nothing else and is always busy.
pub(crate) fn cpu_ratio(runs: &[Run]) -> f64 {
    let own = |run: &Run| run.cpu_us.iter().sum::<f64>() - run.cpu_us[Who::Rest as usize];
    let of = |bare| median(runs.iter().filter(|run| (run.client == Client::Bare) == bare).map(own).collect());
    of(true) / of(false)
}

/// The middle one, or between the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn columns(line: &mut String, cpu_us: &[f64; Who::ALL.len()]) {
    let widths = [8, 8, 6, 7, 6];
    for (us, width) in cpu_us.iter().zip(widths) {
        let _ = write!(line, " {us:>width$.0}");
    }
    let _ = write!(line, " {:>6.0}", cpu_us.iter().sum::<f64>());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Exact;

    fn run(client: Client, rate: f64) -> Run {
        Run { client, seconds: 8.0, rate, cpu_us: [100.0; 5], request_bytes: 2000.0, exact: Exact::default() }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let runs = [run(Client::Bare, 100.0), run(Client::Worker, 60.0), run(Client::Bare, 50.0), run(Client::Worker, 40.0)];
        assert_eq!(ratios(&runs), [0.6, 0.8]);
        assert!((median(ratios(&runs)) - 0.7).abs() < 1e-9);
        assert_eq!(ratios(&runs[..1]), [] as [f64; 0]);
        assert!((cpu_ratio(&runs) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn lines_stand_under_their_heads() {
        let line = line("1", &run(Client::Bare, 6543.2));
        let head = head();
        let last = head.lines().last().unwrap();
        let ends = |word: &str| last.find(word).unwrap() + word.len();
        for (word, value) in [("msg/s", "6543"), ("client ", ""), ("redis", "100"), ("rest", "100"), ("all", "500")] {
            assert!(line[..ends(word)].ends_with(value), "{word}: {line}");
        }
        assert!(line.ends_with("yes"));
        assert!(medians(Client::Bare, &[run(Client::Bare, 10.0), run(Client::Worker, 99.0)]).contains("  10 "));
    }
}
