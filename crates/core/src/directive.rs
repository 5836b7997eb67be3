//! What operators have ordered to stand: pauses, and limits in place of the configured ones.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use crate::{Class, Rate, Timestamp, lane::TAIL};

/// What a pause holds back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum PauseScope {
    /// All calls through the account.
    Account(String),
    /// All mail to the destination, through whichever account; `tail`: to every domain that no destination names.
    Destination(String),
    Class(Class),
}

impl PauseScope {
    /// `account`, `destination` or `class`.
    pub const fn kind(&self) -> &'static str {
        match self {
            PauseScope::Account(_) => "account",
            PauseScope::Destination(_) => "destination",
            PauseScope::Class(_) => "class",
        }
    }

    pub fn name(&self) -> &str {
        match self {
            PauseScope::Account(name) | PauseScope::Destination(name) => name,
            PauseScope::Class(class) => class.as_str(),
        }
    }

    /// The inverse of [`PauseScope::kind`] and [`PauseScope::name`].
    pub fn new(kind: &str, name: String) -> Option<PauseScope> {
        Some(match kind {
            "account" => PauseScope::Account(name),
            "destination" => PauseScope::Destination(name),
            "class" => PauseScope::Class(name.parse().ok()?),
            _ => return None,
        })
    }
}

impl fmt::Display for PauseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// One pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    #[serde(flatten)]
    pub scope: PauseScope,
    /// When it was ordered.
    pub since: Timestamp,
    /// Over from this time on; `None`: when somebody resumes.
    pub until: Option<Timestamp>,
}

/// The name of a rate that an operator may set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitName {
    /// `account:NAME`
    Account(String),
    /// `destination:NAME`: the destination's rate of every account.
    Destination(String),
    /// `account:NAME/destination:NAME`: of one account.
    Pair { account: String, destination: String },
    /// `fleet:NAME`: the destination's rate over all accounts.
    Fleet(String),
    /// `tail`: each domain that no destination names, of every account.
    Tail,
    /// `tenant:NAME`
    Tenant(String),
    /// `sender:DOMAIN` or `sender:ADDRESS`
    Sender(String),
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitName::Account(name) => write!(f, "account:{name}"),
            LimitName::Destination(name) => write!(f, "destination:{name}"),
            LimitName::Pair { account, destination } => write!(f, "account:{account}/destination:{destination}"),
            LimitName::Fleet(name) => write!(f, "fleet:{name}"),
            LimitName::Tail => f.write_str(TAIL),
            LimitName::Tenant(name) => write!(f, "tenant:{name}"),
            LimitName::Sender(name) => write!(f, "sender:{name}"),
        }
    }
}

/// The text names no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of a limit: use account:NAME, destination:NAME, account:NAME/destination:NAME, fleet:DESTINATION, tail, \
     tenant:NAME or sender:NAME"
)]
pub struct NotALimit;

impl FromStr for LimitName {
    type Err = NotALimit;

    fn from_str(text: &str) -> Result<LimitName, NotALimit> {
        if text == TAIL {
            return Ok(LimitName::Tail);
        }
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or(NotALimit)?;
        // As mail is matched: in whatever letters.
        let lower = || name.to_lowercase();
        Ok(match kind {
            "account" => match name.split_once("/destination:") {
                Some((account, destination)) if !account.is_empty() && !destination.is_empty() => {
                    LimitName::Pair { account: account.to_owned(), destination: destination.to_owned() }
                }
                Some(_) => return Err(NotALimit),
                None => LimitName::Account(name.to_owned()),
            },
            "destination" if name == TAIL => LimitName::Tail,
            "destination" => LimitName::Destination(name.to_owned()),
            "fleet" => LimitName::Fleet(name.to_owned()),
            "tenant" => LimitName::Tenant(lower()),
            "sender" => LimitName::Sender(lower()),
            _ => return Err(NotALimit),
        })
    }
}

impl Serialize for LimitName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A rate that an operator has set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LimitOrder {
    pub name: LimitName,
    pub rate: Rate,
    /// When it was ordered.
    pub since: Timestamp,
    /// Over from this time on; `None`: when somebody takes it back.
    pub until: Option<Timestamp>,
}

/// Everything ordered, ready to be asked what is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives {
    pauses: Vec<Pause>,
    limits: Vec<LimitOrder>,
}

impl Directives {
    /// Of several orders about one thing the last given counts.
    pub fn new(pauses: impl IntoIterator<Item = Pause>, limits: impl IntoIterator<Item = LimitOrder>) -> Directives {
        let (mut pauses, mut limits): (Vec<_>, Vec<_>) = (pauses.into_iter().collect(), limits.into_iter().collect());
        pauses.sort_by(|a, b| a.scope.cmp(&b.scope).then(b.since.cmp(&a.since)));
        pauses.dedup_by(|later, first| later.scope == first.scope);
        limits.sort_by(|a, b| a.name.cmp(&b.name).then(b.since.cmp(&a.since)));
        limits.dedup_by(|later, first| later.name == first.name);
        Directives { pauses, limits }
    }

    /// The pauses in force at `now`.
    pub fn pauses_at(&self, now: Timestamp) -> impl Iterator<Item = &Pause> {
        self.pauses.iter().filter(move |pause| holds(pause.until, now))
    }

    /// The limits in force at `now`.
    pub fn limits_at(&self, now: Timestamp) -> impl Iterator<Item = &LimitOrder> {
        self.limits.iter().filter(move |order| holds(order.until, now))
    }

    /// When the next of those in force at `now` ends by itself.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.pauses_at(now).map(|p| p.until).chain(self.limits_at(now).map(|l| l.until));
        ends.flatten().min()
    }
}

fn holds(until: Option<Timestamp>, now: Timestamp) -> bool {
    until.is_none_or(|until| now < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + s)
    }

    #[test]
    fn names_of_limits_both_ways() {
        let names = [
            "account:ses-eu",
            "destination:google",
            "account:ses-eu/destination:google",
            "fleet:google",
            "tail",
            "tenant:acme:eu",
            "sender:news@shop.example",
        ];
        for text in names {
            assert_eq!(text.parse::<LimitName>().unwrap().to_string(), text);
        }
        assert_eq!("destination:tail".parse(), Ok(LimitName::Tail));
        assert_eq!("tenant:ACME".parse(), Ok(LimitName::Tenant("acme".into())));
        let none = ["", "google", "account:", "account:/destination:g", "account:a/destination:", "rate:x", "Tail"];
        for text in none {
            assert_eq!(text.parse::<LimitName>(), Err(NotALimit), "{text}");
        }
    }

    #[test]
    fn scopes_of_pauses_both_ways() {
        for (kind, name) in [("account", "main"), ("destination", "tail"), ("class", "critical")] {
            let scope = PauseScope::new(kind, name.to_owned()).unwrap();
            assert_eq!((scope.kind(), scope.name(), scope.to_string()), (kind, name, format!("{kind} {name}")));
        }
        assert_eq!((PauseScope::new("class", "urgent".into()), PauseScope::new("lane", "x".into())), (None, None));
    }

    #[test]
    fn each_order_ends_by_itself_and_the_last_one_counts() {
        let pause = |name: &str, since, until: Option<i64>| Pause {
            scope: PauseScope::Account(name.into()),
            since: at(since),
            until: until.map(at),
        };
        let limit = |rate: &str, since, until: Option<i64>| LimitOrder {
            name: LimitName::Tail,
            rate: rate.parse().unwrap(),
            since: at(since),
            until: until.map(at),
        };
        let pauses = [pause("a", 1, None), pause("b", 1, Some(20)), pause("a", 2, Some(10))];
        let orders = Directives::new(pauses, [limit("1/s", 5, Some(50)), limit("9/s", 3, None)]);
        let paused = |s| orders.pauses_at(at(s)).map(|p| p.scope.name().to_owned()).collect::<Vec<_>>();
        assert_eq!((paused(9), paused(10), paused(20)), (vec!["a".into(), "b".to_owned()], vec!["b".to_owned()], vec![]));
        let rates = |s| orders.limits_at(at(s)).map(|l| l.rate.to_string()).collect::<Vec<_>>();
        assert_eq!((rates(49), rates(50)), (vec!["1/s".to_owned()], vec![]));
        assert_eq!([9, 10, 20, 50].map(|s| orders.next_end(at(s))), [Some(at(10)), Some(at(20)), Some(at(50)), None]);
    }
}
