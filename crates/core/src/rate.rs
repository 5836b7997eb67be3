//! Rates as configuration writes them: `"100/s"`, `"300/h"`, `"0.5/min"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// So many units in so long, as written; exact to a millionth of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Millionths of a unit in one `per`.
    micro_units: u64,
    per: Per,
}

/// The unit of time of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Per {
    Second,
    Minute,
    Hour,
    Day,
}

impl Per {
    /// Length in microseconds.
    pub const fn micros(self) -> u64 {
        match self {
            Per::Second => 1_000_000,
            Per::Minute => 60_000_000,
            Per::Hour => 3_600_000_000,
            Per::Day => 86_400_000_000,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Per::Second => "s",
            Per::Minute => "min",
            Per::Hour => "h",
            Per::Day => "d",
        }
    }
}

impl Rate {
    /// So many whole units a second.
    pub const fn per_second(units: u32) -> Rate {
        Rate { micro_units: units as u64 * 1_000_000, per: Per::Second }
    }

    /// The time one unit takes, in whole microseconds, rounded up: pacing by it never exceeds the rate.
    ///
    /// Rates above 1,000,000/s cannot be told apart by it and are refused when parsed.
    pub const fn interval_us(self) -> u64 {
        let span = self.per.micros() as u128 * 1_000_000;
        let t = span.div_ceil(self.micro_units as u128);
        // At least 1: the largest rate is 10⁶ a second. At most 8.64e10·10⁶: fits.
        t as u64
    }

    /// Whole units in one unit of time: what a quota of that rate allows.
    pub const fn units(self) -> u64 {
        self.micro_units / 1_000_000
    }

    /// Units a second, for display and for sizing.
    pub fn as_per_second(self) -> f64 {
        self.micro_units as f64 / self.per.micros() as f64
    }

    /// So many a second and hardly less, in the unit of time it reads best in: to show what is known as a number only.
    /// `None` for what is no rate.
    pub fn about(per_second: f64) -> Option<Rate> {
        let hundredths = |per: Per| (per_second * per.micros() as f64 / 1e6 * 100.0 + 1e-6).floor();
        let per = [Per::Second, Per::Hour, Per::Day].into_iter().find(|per| hundredths(*per) >= 100.0);
        // Finite and bounded: what is above the largest rate is no rate, like what is not a number.
        let per = per.filter(|_| per_second <= 1e6)?;
        Some(Rate { micro_units: hundredths(per) as u64 * 10_000, per })
    }

    /// Whole units in one second, at least 1: the default burst.
    pub fn one_second(self) -> u32 {
        (self.as_per_second().floor() as u32).max(1)
    }

    /// The unit of time as it is written: `s`, `min`, `h` or `d`.
    pub const fn unit(self) -> &'static str {
        self.per.as_str()
    }

    /// Length of the unit of time.
    pub const fn period(self) -> Duration {
        Duration::from_micros(self.per.micros())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, frac) = (self.micro_units / 1_000_000, self.micro_units % 1_000_000);
        if frac == 0 {
            write!(f, "{whole}/{}", self.per.as_str())
        } else {
            let digits = format!("{frac:06}");
            write!(f, "{whole}.{}/{}", digits.trim_end_matches('0'), self.per.as_str())
        }
    }
}

/// Why a text is not a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotARate {
    #[error("not a rate; write a number and a unit, such as \"100/s\", \"20/min\", \"300/h\" or \"50000/d\"")]
    Form,
    #[error("a rate must be more than zero; to hold mail back, use `paceline pause`")]
    Zero,
    #[error("a rate can be at most 1000000/s")]
    TooFast,
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (number, unit) = s.trim().split_once('/').ok_or(NotARate::Form)?;
        let per = match unit.trim() {
            "s" | "sec" | "second" => Per::Second,
            "min" | "m" | "minute" => Per::Minute,
            "h" | "hour" => Per::Hour,
            "d" | "day" => Per::Day,
            _ => return Err(NotARate::Form),
        };
        let (whole, frac) = number.trim().split_once('.').unwrap_or((number.trim(), "0"));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(frac) || whole.len() > 12 {
            return Err(if digits(whole) && whole.len() > 12 { NotARate::TooFast } else { NotARate::Form });
        }
        let micros = format!("{:0<6.6}", frac).parse::<u64>().map_err(|_| NotARate::Form)?;
        let units = whole.parse::<u64>().map_err(|_| NotARate::Form)?;
        let rate = Rate { micro_units: units * 1_000_000 + micros, per };
        if rate.micro_units == 0 {
            return Err(NotARate::Zero);
        }
        if rate.micro_units as u128 > per.micros() as u128 * 1_000_000 {
            return Err(NotARate::TooFast);
        }
        Ok(rate)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_as_a_rate() {
        let about = |per_s: f64| Rate::about(per_s).map(|r| r.to_string());
        for (per_s, want) in [(100.0, "100/s"), (3.337, "3.33/s"), (0.05, "180/h"), (1.0 / 86_400.0, "1/d"), (1e6, "1000000/s")] {
            assert_eq!(about(per_s).as_deref(), Some(want));
        }
        for no_rate in [0.0, -1.0, 1e-9, 2e6, f64::NAN, f64::INFINITY] {
            assert_eq!(about(no_rate), None, "{no_rate}");
        }
    }

    #[test]
    fn interval_rounds_up_so_that_the_rate_is_never_exceeded() {
        let t = |s: &str| s.parse::<Rate>().unwrap().interval_us();
        assert_eq!(t("100/s"), 10_000);
        assert_eq!(t("3/s"), 333_334);
        assert_eq!(t("300/h"), 12_000_000);
        assert_eq!(t("0.5/min"), 120_000_000);
        assert_eq!(t("1000000/s"), 1);
        assert_eq!(t("0.000001/d"), 86_400_000_000 * 1_000_000);
    }

    #[test]
    fn what_is_not_a_rate() {
        for (text, why) in [
            ("", NotARate::Form),
            ("100", NotARate::Form),
            ("-1/s", NotARate::Form),
            ("1e3/s", NotARate::Form),
            ("./s", NotARate::Form),
            ("5/week", NotARate::Form),
            ("0/s", NotARate::Zero),
            ("0.0000001/s", NotARate::Zero),
            ("1000001/s", NotARate::TooFast),
            ("99999999999999999999/d", NotARate::TooFast),
        ] {
            assert_eq!(text.parse::<Rate>(), Err(why), "{text}");
        }
    }

    #[test]
    fn shown_as_written() {
        for text in ["100/s", "0.25/min", "300/h", "50000/d"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }
}
