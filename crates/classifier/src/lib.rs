//! Message to class and destination, and to the accounts that may send it.
//!
//! Pure: no I/O, no clock. Everything is compiled when the configuration is read; classifying a message then costs
//! well under a microsecond, in time linear in what the rules look at, whatever a producer puts there.

mod destinations;
mod glob;
pub mod presets;
mod routes;
mod rules;

pub use destinations::{BadDestinations, DestinationProblem, DestinationSpec, Destinations};
pub use glob::{BadGlob, Glob};
pub use presets::Preset;
pub use routes::{Accounts, Route, RouteConditions, RoutedAccount, Routes};
pub use rules::{BadRule, Conditions, Effect, Rule};

use std::{sync::Arc, time::Duration};

use paceline_core::{Class, Domain, Lane, Message};

/// What configuration says about class and destination, ready to use.
#[derive(Debug, Clone)]
pub struct Classifier {
    rules: Vec<Rule>,
    destinations: Destinations,
}

/// Where a message belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    pub class: Class,
    /// The rule that matched: its name, or `#3` for the third one.
    pub rule: Option<Arc<str>>,
    pub destination: Arc<str>,
    /// The lane of `class` and `destination`.
    pub lane: Lane,
    /// Its first attempt is anywhere within so long of its arrival; critical mail never waits so.
    pub spread: Option<Duration>,
}

impl Classifier {
    /// `rules` in order of precedence.
    pub fn new(mut rules: Vec<Rule>, destinations: Destinations) -> Classifier {
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.number(i + 1);
        }
        Classifier { rules, destinations }
    }

    /// The class is the first matching rule's, else the message's own, else the first word of `routing_key`, else
    /// normal; the matching rule's `max_class` then caps it. The destination is that of the first `to`.
    pub fn classify(&self, message: &Message, routing_key: &str) -> Classified {
        let rule = self.rules.iter().find(|rule| rule.matches(message));
        let asked = rule.and_then(Rule::class).or(message.class).or_else(|| class_of_key(routing_key)).unwrap_or(Class::Normal);
        let class = match rule.and_then(Rule::max_class) {
            Some(most_urgent) => asked.capped_at(most_urgent),
            None => asked,
        };
        let destination = match message.to.first() {
            Some(first) => self.destinations.lookup(first.email.domain()),
            None => self.destinations.tail(),
        };
        Classified {
            class,
            rule: rule.map(|r| r.label().clone()),
            destination: destination.clone(),
            lane: Lane::new(class, destination),
            spread: rule.and_then(Rule::spread).filter(|_| class != Class::Critical),
        }
    }

    /// The destination of a recipient's domain.
    pub fn destination(&self, domain: &Domain) -> Arc<str> {
        self.destinations.lookup(domain)
    }

    /// Whether both judge by the same rules.
    pub fn same_rules(&self, other: &Classifier) -> bool {
        self.rules == other.rules
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    pub fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// The routing key producers use for a message of this class to this domain: `<class>.<domain>`.
    pub fn producer_key(class: Class, domain: &Domain) -> String {
        format!("{class}.{domain}")
    }
}

/// The class that a routing key such as `critical.gmail.com` names.
pub fn class_of_key(routing_key: &str) -> Option<Class> {
    let first = routing_key.split('.').next()?;
    Class::ALL.into_iter().find(|c| c.as_str() == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extra: &str) -> Message {
        let body = format!(r#"{{"id":"a","from":"news@Shop.example","to":["u@gmail.com","v@x.org"],"text":"x"{extra}}}"#);
        Message::parse(body.as_bytes(), None, 1 << 20).unwrap()
    }

    fn glob(pattern: &str) -> Option<Glob> {
        Some(Glob::new(pattern).unwrap())
    }

    fn says(class: Option<Class>, max_class: Option<Class>) -> Effect {
        Effect { class, max_class, spread: None }
    }

    fn classifier(rules: Vec<Rule>) -> Classifier {
        let google = DestinationSpec { name: "google".into(), domains: vec![Domain::parse("gmail.com").unwrap()] };
        Classifier::new(rules, Destinations::new(vec![google]).unwrap())
    }

    #[test]
    fn the_class_row_of_the_contract() {
        let stream = |pattern| Conditions { stream: glob(pattern), ..Conditions::default() };
        let c = classifier(vec![
            Rule::new(Some("otp".into()), stream("password-*"), says(Some(Class::Critical), None)).unwrap(),
            Rule::new(None, stream("campaign-*"), says(None, Some(Class::Low))).unwrap(),
            Rule::new(None, stream("receipt"), says(Some(Class::High), Some(Class::High))).unwrap(),
            Rule::new(Some("never reached".into()), stream("password-reset"), says(Some(Class::Low), None)).unwrap(),
        ]);
        for (extra, key, class, rule) in [
            // Nothing said, the key, the message, the rule: each stronger than the one before.
            ("", "", Class::Normal, None),
            ("", "high.gmail.com", Class::High, None),
            ("", "high", Class::High, None),
            ("", "urgent.gmail.com", Class::Normal, None),
            ("", "High.gmail.com", Class::Normal, None),
            (r#","class":"low""#, "high.gmail.com", Class::Low, None),
            (r#","class":"low","stream":"password-reset""#, "high.gmail.com", Class::Critical, Some("otp")),
            // A rule with only max_class caps whatever else says, and leaves what is below alone.
            (r#","class":"critical","stream":"campaign-9""#, "", Class::Low, Some("#2")),
            (r#","stream":"campaign-9""#, "critical.gmail.com", Class::Low, Some("#2")),
            (r#","stream":"receipt""#, "", Class::High, Some("#3")),
            (r#","stream":"receipts""#, "", Class::Normal, None),
        ] {
            let got = c.classify(&message(extra), key);
            assert_eq!((got.class, got.rule.as_deref()), (class, rule), "{extra} {key}");
            assert_eq!(got.lane.to_string(), format!("{class}.google"));
        }
    }

    #[test]
    fn every_condition_and_all_of_them() {
        let all = r#","stream":"s","tenant":"acme","subject":"Your code","tags":["x","otp"],"headers":{"x-priority":"1 (high)"}"#;
        let any = Conditions::default;
        for (when, yes, no) in [
            (Conditions { tag: glob("otp"), ..any() }, all, r#","tags":["otps"]"#),
            (Conditions { tenant: glob("ac?e"), ..any() }, all, ""),
            (Conditions { subject: glob("*code"), ..any() }, all, r#","subject":"Your CODE""#),
            (
                Conditions { headers: vec![("X-Priority".into(), Glob::new("1*").unwrap())], ..any() },
                all,
                r#","headers":{"x-priority":"2"}"#,
            ),
            (Conditions { stream: glob("s"), tenant: glob("acme"), ..any() }, all, r#","stream":"s","tenant":"other""#),
            (Conditions { stream: glob("s"), tenant: glob("acme"), ..any() }, all, r#","stream":"s""#),
        ] {
            let c = classifier(vec![Rule::new(None, when, says(Some(Class::High), None)).unwrap()]);
            assert_eq!(c.classify(&message(yes), "").class, Class::High, "{c:?}");
            assert_eq!(c.classify(&message(no), "").class, Class::Normal, "{c:?}");
        }
        for (pattern, want) in
            [("NEWS@shop.example", true), ("*@SHOP.EXAMPLE", true), ("news@shop.exampl", false), ("*@x.org", false)]
        {
            let when = Conditions { from: Some(Glob::ignoring_case(pattern).unwrap()), ..any() };
            let c = classifier(vec![Rule::new(None, when, says(Some(Class::High), None)).unwrap()]);
            assert_eq!(c.classify(&message(""), "").class == Class::High, want, "{pattern}");
        }
    }

    #[test]
    fn the_first_to_decides_the_destination() {
        let c = classifier(vec![]);
        for (to, want) in [
            (r#"["u@GMAIL.com.","v@x.org"]"#, "google"),
            (r#"["v@x.org","u@gmail.com"]"#, "tail"),
            (r#"["v@mail.gmail.com"]"#, "tail"),
        ] {
            let body = format!(r#"{{"id":"a","from":"a@b.org","to":{to},"text":"x"}}"#);
            let m = Message::parse(body.as_bytes(), None, 1 << 20).unwrap();
            assert_eq!(&*c.classify(&m, "low.gmail.com").lane.destination, want, "{to}");
        }
    }
}
