//! Scenarios that come with the program: one for each claim that the design rests on.

/// A shipped scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// All of them, in order of name.
        pub const SHIPPED: &[Shipped] =
            &[$(Shipped { name: $name, text: include_str!(concat!("../scenarios/", $name, ".toml")) }),*];
    };
}

shipped![
    "backlog",
    "backlog-50-workers",
    "blocked-tail",
    "crash-storm",
    "critical-first",
    "greylisting",
    "hidden-rate",
    "large-costs",
    "one-per-second",
    "redis-away",
    "shares",
    "wide-fleet",
];

/// The one so named.
pub fn shipped(name: &str) -> Option<Shipped> {
    SHIPPED.iter().find(|s| s.name == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scenario;

    #[test]
    fn each_can_be_read_and_expects_something() {
        for s in SHIPPED {
            let scenario = Scenario::parse(s.name, s.text).unwrap_or_else(|e| panic!("{e}"));
            assert!(!scenario.expects.is_empty(), "{}", s.name);
        }
        assert!(SHIPPED.is_sorted_by_key(|s| s.name) && shipped("shares").is_some() && shipped("no").is_none());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let wrong = |text: &str| Scenario::parse("s.toml", text).unwrap_err().to_string();
        let unknown = wrong("about = \"x\"\nduration = \"5s\"\n[fleet]\nwrokers = 3\n");
        assert!(unknown.contains("line 4") && unknown.contains("wrokers") && unknown.starts_with("s.toml"), "{unknown}");
        let span = wrong("about = \"x\"\nduration = \"5 seconds\"\n");
        assert!(span.contains("line 2") && span.contains("ms, s, min, h, d"), "{span}");
        let sense = wrong("about = \"x\"\nduration = \"5s\"\n[[load]]\nname = \"l\"\nto = [\"x y\"]\n");
        assert!(
            sense.contains("[[account]]: at least one") && sense.contains("give a count or a rate") && sense.contains("x y"),
            "{sense}"
        );
    }
}
