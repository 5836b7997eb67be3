//! The wait that a reply names.

use std::time::Duration;

use super::words::head;

/// Longest wait believed.
const MAX_S: u64 = 86_400;

/// The wait a reply names: "try again in 300 seconds", "for five minutes", "after 00:05:00", "1 hour 30 min". At most a
/// day; `None` for a span that is looked back on ("in the last 30 minutes", "5 messages per 60 seconds").
pub(crate) fn named_delay(text: &str) -> Option<Duration> {
    let lower = head(text).to_lowercase();
    let tokens: Vec<&str> = lower
        .split(|c: char| c.is_whitespace() || "(),;=[]<>\"/".contains(c))
        .map(|t| t.trim_matches(['.', ':']))
        .filter(|t| !t.is_empty())
        .collect();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).and_then(|i| tokens.get(i)).copied().unwrap_or_default();
        match span(&tokens[at..], before) {
            Some((_, used)) if LOOKS_BACK.contains(&before) => at += used,
            Some((seconds, used)) => {
                let more = span(&tokens[at + used..], "").map_or(0, |(more, _)| if more < seconds { more } else { 0 });
                let seconds = seconds.saturating_add(more);
                if (1..=MAX_S).contains(&seconds) {
                    return Some(Duration::from_secs(seconds));
                }
                at += used;
            }
            None => at += 1,
        }
    }
    None
}

/// Words before a span that has gone by, or that a rate is counted over.
const LOOKS_BACK: [&str; 9] = ["last", "past", "previous", "per", "every", "each", "within", "over", "this"];
/// Words before a number in letters: "one hour" alone may be anything.
const LOOKS_AHEAD: [&str; 7] = ["in", "for", "after", "least", "about", "next", "another"];

/// A span at the start of `tokens` in seconds, and how many tokens it takes.
fn span(tokens: &[&str], before: &str) -> Option<(u64, usize)> {
    let first = tokens.first()?;
    if first.contains(':') {
        // Otherwise it is a time of day.
        let ahead = LOOKS_AHEAD.contains(&before) || before == "wait";
        return clock(first).filter(|_| ahead).map(|seconds| (seconds, 1));
    }
    let digits = first.len() - first.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit, used) = if digits == 0 {
        let number = in_letters(first).filter(|_| LOOKS_AHEAD.contains(&before))?;
        (number, *tokens.get(1)?, 2)
    } else if digits < first.len() {
        (first.get(..digits)?.parse().ok()?, first.get(digits..)?.trim_start_matches('-'), 1)
    } else {
        (first.parse().ok()?, *tokens.get(1)?, 2)
    };
    let unit_s = match unit.trim_end_matches("(s)") {
        "s" | "sec" | "secs" | "second" | "seconds" | "sekunden" | "secondes" | "segundos" => 1,
        "m" | "min" | "mins" | "minute" | "minutes" | "minuten" | "minutos" => 60,
        "h" | "hr" | "hrs" | "hour" | "hours" | "stunde" | "stunden" | "heure" | "heures" | "hora" | "horas" => 3600,
        "day" | "days" => 86_400,
        _ => return None,
    };
    Some((u64::saturating_mul(number, unit_s), used))
}

fn in_letters(word: &str) -> Option<u64> {
    const NUMBERS: [(&str, u64); 16] = [
        ("a", 1),
        ("an", 1),
        ("one", 1),
        ("two", 2),
        ("three", 3),
        ("four", 4),
        ("five", 5),
        ("six", 6),
        ("eight", 8),
        ("ten", 10),
        ("twelve", 12),
        ("fifteen", 15),
        ("twenty", 20),
        ("thirty", 30),
        ("sixty", 60),
        ("ninety", 90),
    ];
    NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, number)| *number)
}

/// `hh:mm:ss`.
fn clock(token: &str) -> Option<u64> {
    let parts: Vec<u64> = token.split(':').map(|p| p.parse().ok().filter(|_| p.len() == 2)).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    Some(hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        for (text, want) in [
            ("try again in 5 minutes", Some(300)),
            ("wait 300s", Some(300)),
            ("retry after 1 hour.", Some(3600)),
            ("(retry=60 seconds)", Some(60)),
            ("in 00:05:00", Some(300)),
            ("Greylisted for five minutes. Please come back", Some(300)),
            ("come back in an hour", Some(3600)),
            ("in 4 minutes and", Some(240)),
            ("in 1 hour 30 min", Some(5400)),
            ("retry in 5min 10sec", Some(310)),
            ("in 15 Minuten erneut", Some(900)),
            ("in 1 day", Some(86_400)),
            ("not seen in the last 30 minutes, wait 60 seconds", Some(60)),
            ("in the past 24 hours", None),
            ("5 messages per 60 seconds", None),
            ("sent too many this hour", None),
            ("one hour", None),
            ("in a few minutes", None),
            ("in 0 seconds", None),
            ("in 99999999999999999999 hours", None),
            ("in 18446744073709551615 hours", None),
            ("in 90 hours", None),
            ("at 12:30", None),
            ("refused at 11/27/15 11:25:27", None),
            ("error 450 from 10.0.0.1", None),
            ("5", None),
            ("five", None),
            ("for five", None),
            ("\u{e9}5\u{e9} 5\u{e9}", None),
            ("", None),
        ] {
            assert_eq!(named_delay(text).map(|d| d.as_secs()), want, "{text}");
        }
    }
}
