//! Durations as scenarios and addresses write them: `250ms`, `2s`, `1min`.

use std::time::Duration;

/// Whole milliseconds, seconds or minutes; at most an hour.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "min" => number.checked_mul(60_000)?,
        _ => return None,
    };
    (millis <= 3_600_000).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, ms) in [("250ms", 250), ("2s", 2000), ("1min", 60_000), ("0s", 0), ("60min", 3_600_000)] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "61min", "99999999999999999999s", "18446744073709551615min"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
