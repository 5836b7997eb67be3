//! Spans of time as scenarios write them: `250ms`, `90s`, `10min`, `2h`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A span of time, at most 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    pub const fn secs(s: u64) -> Span {
        Span(Duration::from_secs(s))
    }

    pub const fn millis(ms: u64) -> Span {
        Span(Duration::from_millis(ms))
    }

    pub fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    fn parse(text: &str) -> Option<Span> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let ms = match unit {
            "ms" => number,
            "s" => number.checked_mul(1_000)?,
            "min" | "m" => number.checked_mul(60_000)?,
            "h" => number.checked_mul(3_600_000)?,
            "d" => number.checked_mul(86_400_000)?,
            _ => return None,
        };
        (ms <= 30 * 86_400_000).then(|| Span::millis(ms))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Span, D::Error> {
        let text = String::deserialize(d)?;
        Span::parse(&text).ok_or_else(|| {
            de::Error::custom("a span of time is a whole number and a unit, such as \"90s\": ms, s, min, h, d; at most 30d")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, ms) in [("250ms", 250), ("90s", 90_000), ("10min", 600_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            assert_eq!(Span::parse(text), Some(Span::millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "31d", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(Span::parse(bad), None, "{bad}");
        }
    }
}
