//! Priority classes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How urgent a message is. The order of the variants is the order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Password resets, one-time codes: strictly first.
    Critical,
    /// Receipts.
    High,
    /// Notifications.
    Normal,
    /// Digests, campaigns.
    Low,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Class; 4] = [Class::Critical, Class::High, Class::Normal, Class::Low];

    /// The name used in routing keys, queue names, configuration and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Critical => "critical",
            Class::High => "high",
            Class::Normal => "normal",
            Class::Low => "low",
        }
    }

    /// 0 for critical up to 3 for low.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether a message that may have been sent is sent again: an OTP twice is better than none, a digest is not.
    pub const fn resends_uncertain(self) -> bool {
        matches!(self, Class::Critical | Class::High)
    }

    /// The less urgent of the two: what a rule's `max_class` does to a message that asks for more.
    pub fn capped_at(self, most_urgent: Class) -> Class {
        self.max(most_urgent)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is not one of the four classes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a class; use critical, high, normal or low")]
pub struct UnknownClass(pub String);

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Class::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| UnknownClass(s.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_order_is_urgency() {
        for class in Class::ALL {
            assert_eq!(class.as_str().parse::<Class>(), Ok(class));
        }
        assert!(Class::Critical < Class::Low);
        assert!("Critical".parse::<Class>().is_err());
        assert_eq!(Class::Critical.capped_at(Class::Normal), Class::Normal);
        assert_eq!(Class::Low.capped_at(Class::Normal), Class::Low);
    }
}
