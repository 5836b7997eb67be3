//! Lanes and diagnoses, for people.

use paceline_control::lanes::Explained;
use paceline_core::lanes::{LaneState, LaneStatus};

use crate::output;

const COLUMNS: [&str; 9] = ["LANE", "DEPTH", "CALLS", "ALLOWED/S", "ACTUAL/S", "STATE", "OLDEST", "DONE IN", "BINDING"];

/// Aligned, a line a lane.
pub(super) fn table(lanes: &[&LaneStatus]) -> String {
    output::table(&COLUMNS, &lanes.iter().map(|l| row(l)).collect::<Vec<_>>())
}

fn row(lane: &LaneStatus) -> Vec<String> {
    let dash = || "-".to_owned();
    let unlimited = if lane.state == LaneState::Unattended { "-" } else { "any" };
    vec![
        lane.lane.clone(),
        lane.depth.map_or_else(|| "?".to_owned(), |n| n.to_string()),
        lane.in_flight.to_string(),
        lane.allowed_per_s.map_or_else(|| unlimited.to_owned(), rate),
        rate(lane.actual_per_s),
        lane.state.as_str().to_owned(),
        lane.oldest_s.map_or_else(dash, span),
        lane.drain_eta_s.map_or_else(dash, |s| if lane.depth == Some(0) { "-".to_owned() } else { span(s) }),
        lane.binding.clone().unwrap_or_else(dash),
    ]
}

/// Three digits that tell something.
fn rate(per_s: f64) -> String {
    match per_s {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x if x >= 0.1 || x == 0.0 => format!("{x:.2}"),
        x if x >= 0.001 => format!("{x:.4}"),
        x => format!("{x:.1e}"),
    }
}

fn span(s: u64) -> String {
    match s {
        0..=119 => format!("{s}s"),
        120..=7_199 => format!("{}min", s.div_ceil(60)),
        7_200..=172_799 => format!("{}h", s.div_ceil(3_600)),
        _ => format!("{}d", s.div_ceil(86_400)),
    }
}

/// The whole of it, as paragraphs.
pub(super) fn explained(of: &Explained) -> String {
    let d = &of.diagnosis;
    let mut text = format!("{}\n", d.summary);
    let mut list = |heading: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{heading}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {}\n", clean(line))));
        }
    };
    list("Evidence", d.evidence.clone());
    list("What to do", d.advice.iter().map(|line| (*line).to_owned()).collect());
    list("Where to look", d.look.iter().map(|l| format!("{}: {}", l.name, l.at)).collect());
    let lanes: Vec<&LaneStatus> = of.lanes.iter().collect();
    list("Its lanes", table(&lanes).lines().map(str::to_owned).collect());
    text
}

fn clean(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A page over the one before it: what does not fit is cut off, and nothing flickers.
pub(super) fn screen(page: &str, (columns, lines): (usize, usize), first: bool) -> String {
    let mut out = if first { "\x1b[2J\x1b[H".to_owned() } else { "\x1b[H".to_owned() };
    for line in page.lines().take(lines.saturating_sub(1).max(1)) {
        out.extend(line.chars().take(columns));
        out.push_str("\x1b[K\n");
    }
    out.push_str("\x1b[J");
    out
}

#[cfg(test)]
mod tests {
    use paceline_core::Class;

    use super::*;

    fn lane() -> LaneStatus {
        LaneStatus {
            lane: "low.google".into(),
            class: Class::Low,
            destination: "google".into(),
            depth: Some(1_200),
            held: 30,
            in_flight: 2,
            allowed_per_s: Some(10.0),
            binding: Some("destination google of account main".into()),
            actual_per_s: 9.6,
            state: LaneState::Paced,
            oldest_s: Some(7_200),
            drain_eta_s: Some(125),
        }
    }

    #[test]
    fn a_line_a_lane() {
        let unknown = LaneStatus {
            lane: "low.tail".into(),
            depth: None,
            allowed_per_s: None,
            binding: None,
            actual_per_s: 0.0,
            state: LaneState::Unattended,
            oldest_s: None,
            drain_eta_s: None,
            ..lane()
        };
        assert_eq!(
            table(&[&lane(), &unknown]),
            "LANE        DEPTH  CALLS  ALLOWED/S  ACTUAL/S  STATE       OLDEST  DONE IN  BINDING\n\
             low.google  1200   2      10.0       9.60      paced       2h      3min     destination google of account main\n\
             low.tail    ?      2      -          0.00      unattended  -       -        -\n"
        );
    }

    #[test]
    fn rates_and_spans() {
        let shown = [1234.5, 12.34, 0.5, 0.0, 0.0167, 0.000_012].map(rate);
        assert_eq!(shown, ["1234", "12.3", "0.50", "0.00", "0.0167", "1.2e-5"]);
        assert_eq!([5, 120, 7_201, 200_000].map(span), ["5s", "2min", "3h", "3d"]);
    }

    #[test]
    fn a_screen_is_written_over() {
        assert_eq!(screen("abc\nd\ne\n", (2, 3), true), "\x1b[2J\x1b[Hab\x1b[K\nd\x1b[K\n\x1b[J");
        assert_eq!(screen("x\n", (9, 9), false), "\x1b[Hx\x1b[K\n\x1b[J");
    }
}
