//! Single values: from what is written to the type it stands for.

use std::{str::FromStr, time::Duration};

use paceline_classifier::Glob;
use paceline_core::{Class, Domain, EmailAddress, Rate};

use super::tree::{Node, Value};

fn expected(what: &str, node: &Node) -> String {
    format!("must be {what}, not {}", node.value.kind())
}

pub(super) fn text(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Text(text) | Value::Bare(text) => Ok(text.clone()),
        _ => Err(expected("a text in quotes", node)),
    }
}

/// A text of one line that is not empty.
pub(super) fn line(node: &Node) -> Result<String, String> {
    let text = text(node)?;
    match () {
        () if text.is_empty() => Err("is empty".into()),
        () if text.chars().any(char::is_control) => Err("contains a line break or another control character".into()),
        () => Ok(text),
    }
}

pub(super) fn boolean(node: &Node) -> Result<bool, String> {
    match &node.value {
        Value::Boolean(b) => Ok(*b),
        Value::Bare(text) if text == "true" => Ok(true),
        Value::Bare(text) if text == "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

/// An integer within bounds.
pub(super) fn integer(from: u64, to: u64) -> impl Fn(&Node) -> Result<u64, String> {
    move |node| {
        let bounds = || format!("must be an integer from {from} to {to}");
        let value = match &node.value {
            Value::Integer(i) => u64::try_from(*i).map_err(|_| bounds())?,
            Value::Bare(text) => text.parse().map_err(|_| bounds())?,
            other => return Err(format!("{}, not {}", bounds(), other.kind())),
        };
        if (from..=to).contains(&value) { Ok(value) } else { Err(bounds()) }
    }
}

/// As [`integer`], in 32 bits.
pub(super) fn integer32(from: u32, to: u32) -> impl Fn(&Node) -> Result<u32, String> {
    // Within `to`, so it always fits.
    move |node| integer(from.into(), to.into())(node).map(|i| u32::try_from(i).unwrap_or(to))
}

/// A number within bounds, both included.
pub(super) fn number(from: f64, to: f64) -> impl Fn(&Node) -> Result<f64, String> {
    move |node| {
        let bounds = || format!("must be a number from {from} to {to}");
        let value = match &node.value {
            Value::Float(f) => *f,
            Value::Integer(i) => *i as f64,
            Value::Bare(text) => text.parse().map_err(|_| bounds())?,
            other => return Err(format!("{}, not {}", bounds(), other.kind())),
        };
        if (from..=to).contains(&value) { Ok(value) } else { Err(bounds()) }
    }
}

/// Bytes: an integer, or a text with a unit such as `"64MiB"`.
pub(super) fn bytes(from: u64, to: u64) -> impl Fn(&Node) -> Result<u64, String> {
    move |node| {
        let value = match &node.value {
            Value::Text(text) | Value::Bare(text) => {
                let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let (digits, unit) = text.split_at(at);
                let unit: u64 = match unit.trim() {
                    "" => 1,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    "GiB" => 1 << 30,
                    _ => return Err("must be a number of bytes, or one with KiB, MiB or GiB such as \"64MiB\"".into()),
                };
                digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or("is not a number of bytes")?
            }
            _ => return integer(from, to)(node),
        };
        if (from..=to).contains(&value) { Ok(value) } else { Err(format!("must be from {from} to {to} bytes")) }
    }
}

/// A duration with its unit, such as `"60s"`, within bounds.
pub(super) fn duration(from: Duration, to: Duration) -> impl Fn(&Node) -> Result<Duration, String> {
    move |node| {
        let text = match &node.value {
            Value::Text(text) | Value::Bare(text) => text,
            Value::Integer(i) => return Err(format!("needs a unit: \"{i}s\", \"{i}min\" …")),
            _ => return Err(expected("a duration such as \"60s\"", node)),
        };
        let value = parse_duration(text)?;
        match () {
            () if value < from => Err(format!("must be at least {}", show_duration(from))),
            () if value > to => Err(format!("must be at most {}", show_duration(to))),
            () => Ok(value),
        }
    }
}

/// `"250ms"`, `"60s"`, `"1.5h"`, `"15min"`, `"3d"`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let form =
        || "is not a duration; write a number and a unit, such as \"250ms\", \"60s\", \"15min\", \"1h\" or \"3d\"".to_owned();
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(form)?;
    let (number, unit) = text.split_at(at);
    let unit_s = match unit.trim() {
        "ms" => 0.001,
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(form()),
    };
    let seconds = number.parse::<f64>().map_err(|_| form())? * unit_s;
    // Whole microseconds: what is written in decimal comes out as written.
    let micros = (seconds * 1e6).round();
    if micros > 1e18 { Err("is longer than thirty thousand years".into()) } else { Ok(Duration::from_micros(micros as u64)) }
}

/// In the largest unit that leaves a whole number.
pub fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// Whatever reads itself from a text and says what is wrong.
fn parsed<T: FromStr>(node: &Node) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text(node)?.parse().map_err(|e: T::Err| e.to_string())
}

pub(super) fn rate(node: &Node) -> Result<Rate, String> {
    match &node.value {
        Value::Integer(i) => Err(format!("needs a unit: \"{i}/s\", \"{i}/min\", \"{i}/h\" or \"{i}/d\"")),
        _ => parsed(node),
    }
}

/// A quota window: at least one whole unit in its unit of time.
pub(super) fn quota(node: &Node) -> Result<Rate, String> {
    let quota = rate(node)?;
    if quota.units() == 0 { Err("must be at least 1 in its unit of time".into()) } else { Ok(quota) }
}

pub(super) fn class(node: &Node) -> Result<Class, String> {
    parsed(node)
}

pub(super) fn domain(node: &Node) -> Result<Domain, String> {
    let text = text(node)?;
    Domain::parse(&text).map_err(|_| match text.contains(['*', '@']) {
        true => format!("`{text}` is not a domain; list each domain by itself, without `*` and `@`"),
        false => format!("`{text}` is not a domain"),
    })
}

/// A domain, or a whole address.
pub(super) fn sender(node: &Node) -> Result<String, String> {
    let text = text(node)?;
    if text.contains('@') {
        EmailAddress::parse(&text).map(|a| a.to_string()).map_err(|e| format!("the address {e}"))
    } else {
        domain(node).map(|d| d.to_string())
    }
}

pub(super) fn glob(node: &Node) -> Result<Glob, String> {
    Glob::new(&text(node)?).map_err(|e| e.to_string())
}

pub(super) fn glob_ignoring_case(node: &Node) -> Result<Glob, String> {
    Glob::ignoring_case(&text(node)?).map_err(|e| e.to_string())
}

/// A name for an account, a tenant, a prefix: 1 to 40 of `a-z 0-9 -`, and `_` where `underscore`.
pub(super) fn name(underscore: bool) -> impl Fn(&Node) -> Result<String, String> {
    move |node| {
        let text = text(node)?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (underscore && b == b'_');
        if text.is_empty() || text.len() > 40 || !text.bytes().all(fits) {
            return Err(format!("must be 1 to 40 of a-z 0-9 -{}", if underscore { " _" } else { "" }));
        }
        Ok(text)
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(&Node) -> Result<T, String> {
    move |node| {
        let text = text(node)?;
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            format!("must be {}", words.join(" or "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("250ms", 250), ("60s", 60_000), ("15min", 900_000), ("1.5h", 5_400_000), ("3d", 259_200_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "60", "s", "-1s", "1w", "1.2.3s", "1e3s", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for text in ["250ms", "60min", "15min", "24h", "3d"] {
            let shown = show_duration(parse_duration(text).unwrap());
            assert_eq!(parse_duration(&shown), parse_duration(text), "{text} {shown}");
        }
    }
}
