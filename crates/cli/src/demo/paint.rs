//! A frame as lines of a terminal, or as one plain line. Pure.

use paceline_core::Class;

use super::{
    frame::{Bound, Frame, Row},
    render::{span, thousands},
};

/// Columns the view is laid out for; narrower terminals get plain lines.
pub(crate) const COLUMNS: usize = 79;
/// Lines of the view.
pub(crate) const LINES: usize = 14;
const BAR: usize = 5;
const PROGRESS: usize = 40;

/// How a piece of text stands out, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ink {
    Plain,
    Dim,
    Bold,
    Bar,
    Warn,
}

impl Ink {
    const fn code(self) -> &'static str {
        match self {
            Ink::Plain => "",
            Ink::Dim => "\x1b[2m",
            Ink::Bold => "\x1b[1m",
            Ink::Bar => "\x1b[36m",
            Ink::Warn => "\x1b[33m",
        }
    }
}

type Line = Vec<(Ink, String)>;

/// Exactly [`LINES`] lines of at most `columns` characters each.
pub(crate) fn screen(frame: &Frame, columns: usize, colour: bool) -> Vec<String> {
    let mut lines: Vec<Line> = vec![vec![], head(frame), vec![], columns_head()];
    lines.extend(frame.rows.iter().map(|row| destination(row, frame.most)));
    lines.push(account(frame));
    lines.push(vec![]);
    lines.push(resets(frame));
    lines.push(progress(frame));
    lines.push(trouble(frame));
    lines.push(vec![]);
    lines.iter().map(|line| draw(line, columns, colour)).collect()
}

fn head(frame: &Frame) -> Line {
    let seconds = frame.elapsed.as_secs();
    let clock = format!("{}:{:02}", seconds / 60, seconds % 60);
    let title = format!("paceline demo   {}", frame.phase);
    vec![
        (Ink::Bold, title.clone()),
        (Ink::Dim, format!("{clock:>width$}", width = COLUMNS.saturating_sub(title.chars().count()))),
    ]
}

fn columns_head() -> Line {
    let classes: String = Class::ALL.map(|c| format!("{:<width$}", c.as_str(), width = 6 + BAR)).concat();
    vec![(Ink::Dim, format!("{:<10}{classes}{:>6}{:>7}  {}", "waiting", "/s", "of", "bound by"))]
}

fn destination(row: &Row, most: u64) -> Line {
    let mut line = vec![(Ink::Plain, format!("{:<10}", row.name))];
    for waiting in row.waiting {
        let ink = if waiting == 0 { Ink::Dim } else { Ink::Plain };
        line.push((ink, format!("{:<6}", short(waiting))));
        line.push((Ink::Bar, bar(waiting, most)));
    }
    line.push((Ink::Plain, format!("{:>6.1}", row.actual)));
    line.push((Ink::Dim, format!("{:>7}  ", row.allowed)));
    line.push(match row.bound {
        Bound::Nothing => (Ink::Dim, String::new()),
        Bound::Itself if row.name == paceline_core::lane::TAIL => (Ink::Plain, "domains".into()),
        Bound::Itself => (Ink::Plain, "itself".into()),
        Bound::Account => (Ink::Dim, "account".into()),
        Bound::Asked => (Ink::Warn, "429, waits".into()),
    });
    line
}

fn account(frame: &Frame) -> Line {
    let calls = format!("{} under way", frame.in_flight);
    vec![
        (Ink::Plain, format!("{:<10}", "account")),
        (Ink::Dim, format!("{calls:<width$}", width = 4 * (6 + BAR))),
        (Ink::Plain, format!("{:>6.1}", frame.actual)),
        (Ink::Dim, format!("{:>7}", frame.allowed)),
    ]
}

fn resets(frame: &Frame) -> Line {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), span);
    let now = time(frame.late_ms.map(|(p50, _)| p50));
    let p95 = time(frame.late_ms.map(|(_, p95)| p95));
    vec![
        (Ink::Bold, "password resets  ".into()),
        (Ink::Dim, format!("idle {:<8}", time(frame.idle_ms))),
        (Ink::Bold, format!("now {now:<8}")),
        (Ink::Dim, format!("p95 {p95:<8}")),
        (Ink::Bar, frame.history_ms.iter().map(|ms| spark(*ms)).collect()),
    ]
}

fn progress(frame: &Frame) -> Line {
    let done = frame.complete + frame.dead_letters();
    let filled = (done * PROGRESS * 8).checked_div(frame.messages).unwrap_or(0);
    vec![
        (Ink::Plain, format!("{:<17}", "accepted")),
        (Ink::Bar, eighths(filled, PROGRESS)),
        (Ink::Plain, format!("  {} of {}", thousands(frame.complete), thousands(frame.messages))),
    ]
}

fn trouble(frame: &Frame) -> Line {
    let warn = |n: u64| if n == 0 { Ink::Dim } else { Ink::Warn };
    let dead = frame.dead_letters();
    let reasons: Vec<_> = frame.dead.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    vec![
        (Ink::Plain, format!("{:<17}", "refused")),
        (warn(frame.seen.refused), format!("{:<6}", thousands(frame.seen.refused))),
        (Ink::Plain, "trying again ".into()),
        (warn(frame.trying_again as u64), format!("{:<6}", thousands(frame.trying_again))),
        (Ink::Plain, "dead ".into()),
        (warn(dead as u64), format!("{:<5}", thousands(dead))),
        (Ink::Dim, reasons.join(" ")),
    ]
}

/// At most five characters.
fn short(n: u64) -> String {
    if n < 100_000 { n.to_string() } else { format!("{}k", n / 1000) }
}

/// By the square root, so that a few are seen beside many.
fn bar(n: u64, most: u64) -> String {
    let part = if most == 0 { 0.0 } else { (n as f64 / most as f64).sqrt().min(1.0) };
    let least = usize::from(n > 0);
    // One column stays free, as a gap.
    let cells = BAR - 1;
    format!("{} ", eighths(((part * (cells * 8) as f64).round() as usize).max(least), cells))
}

/// A bar of so many eighths of a column, padded to `columns`.
fn eighths(n: usize, columns: usize) -> String {
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let n = n.min(columns * 8);
    let mut bar = "█".repeat(n / 8);
    if !n.is_multiple_of(8) {
        bar.push(PARTS[n % 8]);
    }
    bar.extend(std::iter::repeat_n(' ', columns - n.div_ceil(8)));
    bar
}

/// 2 ms and less is the lowest, 5 s and more the highest; each step some three times the one before.
fn spark(ms: Option<f64>) -> char {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some(ms) = ms else { return ' ' };
    let step = ((ms.max(2.0) / 2.0).ln() / 2500_f64.ln() * 7.0).round();
    STEPS[(step as usize).min(7)]
}

fn draw(line: &Line, columns: usize, colour: bool) -> String {
    let mut left = columns;
    let mut out = String::new();
    for (ink, text) in line {
        let piece: String = text.chars().take(left).collect();
        left -= piece.chars().count();
        match ink.code() {
            code if colour && !code.is_empty() && !piece.is_empty() => out.extend([code, &piece, "\x1b[0m"]),
            _ => out.push_str(&piece),
        }
    }
    out
}

/// The frame in one line, without any escape code.
pub(crate) fn plain(frame: &Frame) -> String {
    let waiting: Vec<_> = frame.rows.iter().map(|row| format!("{} {}", row.name, row.waiting.iter().sum::<u64>())).collect();
    let late = frame.late_ms.map_or_else(String::new, |(p50, p95)| format!(", resets p50 {} p95 {}", span(p50), span(p95)));
    format!(
        "{:>4} s  {}: {} of {} accepted, {:.0}/s; waiting {}; refused {}, trying again {}, dead {}{late}",
        frame.elapsed.as_secs(),
        frame.phase,
        frame.complete,
        frame.messages,
        frame.actual,
        waiting.join(" "),
        frame.seen.refused,
        frame.trying_again,
        frame.dead_letters(),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::frame::tests::frame, *};

    #[test]
    fn bars_and_sparks() {
        assert_eq!([0, 1, 8, 12, 99].map(|n| eighths(n, 3)), ["   ", "▏  ", "█  ", "█▌ ", "███"]);
        assert_eq!([0, 1, 900, 9000].map(|n| bar(n, 900)), ["     ", "▏    ", "████ ", "████ "]);
        assert_eq!([None, Some(0.5), Some(5.9), Some(5000.0), Some(1e9)].map(spark), [' ', '▁', '▂', '█', '█']);
    }

    #[test]
    fn the_screen_as_it_stands() {
        let lines = screen(&frame(), COLUMNS, false);
        assert_eq!(lines.len(), LINES);
        let got = lines.iter().map(|l| l.trim_end()).collect::<Vec<_>>().join("\n");
        assert!(lines.iter().all(|l| l.chars().count() <= COLUMNS), "\n{got}");
        assert_eq!(got, SCREEN, "\n{got}");
    }

    #[test]
    fn colour_changes_nothing_but_colour_and_a_narrow_terminal_is_not_overrun() {
        let strip = |line: &String| {
            let mut out = String::new();
            let mut pieces = line.split('\x1b');
            out.push_str(pieces.next().unwrap_or(""));
            pieces.for_each(|p| out.push_str(p.split_once('m').map_or("", |(_, rest)| rest)));
            out
        };
        let coloured = screen(&frame(), COLUMNS, true);
        assert!(coloured.iter().any(|l| l.contains("\x1b[33m")));
        assert_eq!(coloured.iter().map(strip).collect::<Vec<_>>(), screen(&frame(), COLUMNS, false));
        assert!(screen(&frame(), 30, true).iter().map(strip).all(|l| l.chars().count() <= 30));
    }

    #[test]
    fn the_plain_line() {
        let got = plain(&frame());
        assert_eq!(got, PLAIN, "\n{got}");
    }

    const SCREEN: &str = r#"
paceline demo   the campaign                                               0:10

waiting   critical   high       normal     low            /s     of  bound by
google    0          0          3     ▍    346   ███▊   27.0     27  itself
microsoft 2     ▎    0          0          0             0.5     64
yahoo     0          1     ▎    0          40    █▎      0.5     48  429, waits
tail      0          0          0          60    █▌      1.0     96  domains
account   3 under way                                   29.0    140

password resets  idle 6.0 ms  now 14 ms   p95 14 ms                       ▂
accepted         █████▋                                    56 of 405
refused          3     trying again 2     dead 1    rejected_recipient 1
"#;
    const PLAIN: &str = r#"  10 s  the campaign: 56 of 405 accepted, 29/s; waiting google 349 microsoft 2 yahoo 41 tail 60; refused 3, trying again 2, dead 1, resets p50 14 ms p95 14 ms"#;
}
