//! The report as people read it. Pure.

use super::{
    report::{Destination, Lane, Paced, Report},
    stats::Latency,
};

/// 4000 as `4,000`.
pub(crate) fn thousands(n: impl TryInto<u64>) -> String {
    let digits = n.try_into().unwrap_or(u64::MAX).to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in milliseconds, in the unit that reads best.
pub(crate) fn span(ms: f64) -> String {
    match ms {
        _ if ms < 9.95 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

fn rate(per_s: Option<f64>) -> String {
    per_s.map_or_else(|| "-".into(), |r| if r.fract() == 0.0 { format!("{r}/s") } else { format!("{r:.1}/s") })
}

/// All of it, lines ending in line breaks.
pub(crate) fn text(report: &Report) -> String {
    let mut out = Lines(String::new());
    let ended = if report.interrupted { ", interrupted" } else { "" };
    out.line(format!("{} messages in {:.1} s (seed {}){ended}", thousands(report.messages), report.seconds, report.seed));
    out.gap();
    lanes(&mut out, report);
    out.gap();
    resets(&mut out, report);
    out.gap();
    totals(&mut out, report);
    out.gap();
    verdict(&mut out, report);
    out.0
}

struct Lines(String);

impl Lines {
    fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref().trim_end());
        self.0.push('\n');
    }

    fn gap(&mut self) {
        self.0.push('\n');
    }
}

fn lanes(out: &mut Lines, report: &Report) {
    let row = |out: &mut Lines, cells: [&str; 9]| {
        let [destination, class, sent, retried, dead, allowed, reached, p50, p99] = cells;
        out.line(format!("{destination:<12}{class:<9}{sent:>7}{retried:>8}{dead:>6}{allowed:>8}{reached:>9}{p50:>9}{p99:>9}"));
    };
    let figures = |counts: [usize; 3], paced: &Paced, latency: &Option<Latency>| {
        let time = |of: fn(&Latency) -> f64| latency.as_ref().map_or_else(|| "-".into(), |l| span(of(l)));
        let [sent, retried, dead] = counts.map(thousands);
        [sent, retried, dead, rate(Some(paced.allowed_per_s)), rate(paced.reached_per_s), time(|l| l.p50_ms), time(|l| l.p99_ms)]
    };
    row(out, ["DESTINATION", "CLASS", "SENT", "RETRIED", "DEAD", "ALLOWED", "REACHED", "P50", "P99"]);
    for Destination { destination, sent, retried, dead, paced, latency, lanes, .. } in &report.destinations {
        let [s, r, d, allowed, reached, p50, p99] = figures([*sent, *retried, *dead], paced, latency);
        row(out, [destination, "all", &s, &r, &d, &allowed, &reached, &p50, &p99]);
        for Lane { class, sent, retried, dead, paced, latency, .. } in lanes {
            let [s, r, d, _, reached, p50, p99] = figures([*sent, *retried, *dead], paced, latency);
            row(out, ["", class.as_str(), &s, &r, &d, "", &reached, &p50, &p99]);
        }
    }
    let (allowed, reached) = (rate(Some(report.account.allowed_per_s)), rate(report.account.reached_per_s));
    row(out, ["account", "", "", "", "", &allowed, &reached, "", ""]);
    out.line("REACHED is measured while there was a backlog; classes share what is allowed.");
}

fn resets(out: &mut Lines, report: &Report) {
    out.line(format!("{:<22}{:>7}{:>10}{:>10}{:>10}", "PASSWORD RESETS", "COUNT", "P50", "P95", "MAX"));
    let otp = &report.otp;
    for (name, latency) in [("idle", otp.idle), ("under load", otp.under_load), ("all at once, in load", otp.burst)] {
        match latency {
            None => out.line(format!("{name:<22}{:>7}", 0)),
            Some(Latency { count, p50_ms, p95_ms, max_ms, .. }) => {
                out.line(format!("{name:<22}{:>7}{:>10}{:>10}{:>10}", thousands(count), span(p50_ms), span(p95_ms), span(max_ms)))
            }
        }
    }
}

fn totals(out: &mut Lines, report: &Report) {
    let mut total = |what: &str, n: u64, more: String| out.line(format!("{what:<16}{:>8}   {more}", thousands(n)));
    total("Published", report.messages as u64, format!("{} of them twice, by their producer", thousands(report.published_again)));
    let (retried, duplicates) = (thousands(report.retried), thousands(report.duplicates));
    total("Accepted", report.accepted, format!("by the sandbox; {duplicates} more than once"));
    total("Calls", report.calls, format!("{retried} of the messages took more than one"));
    total("  refused", report.refused, format!("{} of them with 429, \"slow down\"", thousands(report.throttled)));
    let repeated = thousands(report.repeated);
    total("  unanswered", report.unanswered, format!("sent again with the same key; {repeated} known by it, not taken twice"));
    let mut reasons: Vec<_> = report.dead_by_reason.iter().collect();
    reasons.sort_by_key(|(reason, n)| (std::cmp::Reverse(**n), **reason));
    total("Dead letters", report.dead as u64, String::new());
    for (reason, n) in reasons {
        out.line(format!("{:>24}   {reason}", thousands(*n)));
    }
}

fn verdict(out: &mut Lines, report: &Report) {
    out.line(format!("Accounted for: {} of {}", thousands(report.accounted_for), thousands(report.messages)));
    if report.interrupted {
        let waiting = report.messages.saturating_sub(report.accounted_for);
        let unpublished = thousands(report.unpublished);
        out.line(format!("  Interrupted: {} were still in the queues, {unpublished} not yet published", thousands(waiting)));
    } else {
        if report.unpublished > 0 {
            out.line(format!("  Not published: {}", thousands(report.unpublished)));
        }
        for (what, ids) in [("Neither accepted nor dead", &report.missing), ("More than once", &report.twice)] {
            if !ids.is_empty() {
                out.line(format!("  {what}: {}", ids.join(", ")));
            }
        }
    }
    if report.checks.iter().all(|c| c.agrees) {
        out.line("The counts agree: arrivals file, sandbox and worker; store and worker");
    }
    for check in report.checks.iter().filter(|c| !c.agrees) {
        out.line(format!("  NOT in agreement: {}: {}, not {}", check.what, thousands(check.here), thousands(check.there)));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::report::tests::{books, report, told},
        *,
    };

    #[test]
    fn figures_read_well() {
        assert_eq!([0_u64, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.84, 9.96, 412.4, 999.6, 14_230.0].map(span), ["0.8 ms", "10 ms", "412 ms", "1.0 s", "14.2 s"]);
        assert_eq!([None, Some(27.0), Some(26.96)].map(rate), ["-", "27/s", "27.0/s"]);
    }

    #[test]
    fn the_report_as_it_stands() {
        let got = text(&report(&books(), told()));
        assert_eq!(got, SNAPSHOT, "\n{got}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut books = books();
        books.buried([(Some("garbage"), paceline_core::Reason::InvalidMessage)]);
        let text = text(&report(&books, told()));
        for part in ["Accounted for: 64 of 65\n", "Neither accepted nor dead: nobody\n"] {
            assert!(text.contains(part), "{text}");
        }
        let interrupted = super::text(&Report { interrupted: true, ..report(&books, told()) });
        assert!(interrupted.contains("  Interrupted: 1 were still in the queues, 0 not yet published\n"), "{interrupted}");
        let told = super::super::report::Told { worker_calls: 1, ..told() };
        let text = super::text(&report(&books, told));
        assert!(text.contains("  NOT in agreement: calls, as the worker counts them: 1, not 65\n"), "{text}");
    }

    const SNAPSHOT: &str = r#"65 messages in 2.5 s (seed 7)

DESTINATION CLASS       SENT RETRIED  DEAD ALLOWED  REACHED      P50      P99
google      all           60       1     0    27/s   29.4/s   968 ms    2.0 s
            critical       0       0     0                -        -        -
            high           0       0     0                -        -        -
            normal         0       0     0                -        -        -
            low           60       1     0           29.4/s   968 ms    2.0 s
microsoft   all            3       0     0    64/s        -   9.0 ms    30 ms
            critical       3       0     0                -   9.0 ms    30 ms
            high           0       0     0                -        -        -
            normal         0       0     0                -        -        -
            low            0       0     0                -        -        -
yahoo       all            0       0     0    48/s        -        -        -
            critical       0       0     0                -        -        -
            high           0       0     0                -        -        -
            normal         0       0     0                -        -        -
            low            0       0     0                -        -        -
tail        all            0       0     1    96/s        -        -        -
            critical       0       0     0                -        -        -
            high           0       0     0                -        -        -
            normal         0       0     1                -        -        -
            low            0       0     0                -        -        -
account                                      140/s        -
REACHED is measured while there was a backlog; classes share what is allowed.

PASSWORD RESETS         COUNT       P50       P95       MAX
idle                        1    5.0 ms    5.0 ms    5.0 ms
under load                  1    9.0 ms    9.0 ms    9.0 ms
all at once, in load        1     30 ms     30 ms     30 ms

Published             65   1 of them twice, by their producer
Accepted              63   by the sandbox; 0 more than once
Calls                 65   1 of the messages took more than one
  refused              2   0 of them with 429, "slow down"
  unanswered           0   sent again with the same key; 0 known by it, not taken twice
Dead letters           2
                       1   rejected_recipient
                       1   invalid_message

Accounted for: 65 of 65
The counts agree: arrivals file, sandbox and worker; store and worker
"#;
}
