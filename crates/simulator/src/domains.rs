//! Domains by the thousand: `d{1..3000}.example` means 3,000 of them.

use paceline_core::Domain;

/// More than any scenario can want.
const MOST: u64 = 100_000;

/// The domains that `pattern` names: itself, or one for each number of its range.
pub(crate) fn expand(pattern: &str) -> Result<Vec<Domain>, String> {
    let one = |text: &str| Domain::parse(text).map_err(|e| format!("\"{text}\" {e}"));
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![one(pattern)?]) };
    let range = rest.split_once('}').and_then(|(range, after)| {
        let (first, last) = range.split_once("..")?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, after))
    });
    match range {
        Some((first, last, after)) if first <= last && last - first < MOST => {
            (first..=last).map(|n| one(&format!("{before}{n}{after}"))).collect()
        }
        _ => Err(format!("\"{pattern}\" is no range of domains; write \"d{{1..3000}}.example\", at most {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn ranges() {
        let names = |p: &str| expand(p).unwrap().iter().map(|d| d.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names("gmail.com"), ["gmail.com"]);
        assert_eq!(names("d{9..11}.example"), ["d9.example", "d10.example", "d11.example"]);
        for bad in ["d{1..}.example", "d{2..1}.example", "d{1..100001}.example", "d{1..2.example", "no domain"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}
