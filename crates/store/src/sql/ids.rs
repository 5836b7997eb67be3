//! Names of jobs and orders: people say them, commands and headers carry them.

use paceline_core::Timestamp;

/// Crockford's base 32, small: no i, l, o, u to mistake; its order is that of the bytes.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Such as `r-20261122-2g9k0m7f4`: the day, the millisecond of the day, and chance. 20 characters of `[a-z0-9-]`.
pub(super) fn new(kind: char, now: Timestamp, chance: u32) -> String {
    let day: String = now.to_string().chars().take(10).filter(char::is_ascii_digit).collect();
    let of_day_ms = now.as_micros().rem_euclid(86_400_000_000).unsigned_abs() / 1000;
    format!("{kind}-{day}-{}{}", base32(of_day_ms, 6), base32(chance.into(), 3))
}

fn base32(number: u64, digits: u32) -> String {
    let digit = |i: u32| char::from(ALPHABET[usize::try_from((number >> (5 * i)) & 31).unwrap_or(0)]);
    (0..digits).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_plain_and_in_order() {
        let times: Vec<Timestamp> =
            ["2026-11-22T00:00:00Z", "2026-11-22T00:00:00.001Z", "2026-11-22T23:59:59.999Z", "2026-11-23T00:00:00Z"]
                .iter()
                .map(|t| t.parse().unwrap())
                .collect();
        let names: Vec<String> = times.iter().map(|t| new('r', *t, u32::MAX)).collect();
        assert_eq!(names[0], "r-20261122-000000zzz");
        assert!(names.is_sorted(), "{names:?}");
        for name in names {
            assert!(name.len() <= 32 && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{name}");
        }
        assert_eq!(new('d', times[2], 0), "d-20261122-2jcpzz000");
    }
}
