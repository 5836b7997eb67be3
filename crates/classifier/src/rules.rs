//! Classification rules.

use std::{sync::Arc, time::Duration};

use paceline_core::{Class, EmailAddress, Message};

use crate::Glob;

/// What a message must be like; all given conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    pub stream: Option<Glob>,
    /// Any of the tags.
    pub tag: Option<Glob>,
    pub tenant: Option<Glob>,
    /// The sender's address without its name; build it with [`Glob::ignoring_case`].
    pub from: Option<Glob>,
    pub subject: Option<Glob>,
    /// Name, in any case, and pattern of its value.
    pub headers: Vec<(String, Glob)>,
}

/// One rule: conditions, and the class of what meets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    label: Arc<str>,
    named: bool,
    when: Conditions,
    class: Option<Class>,
    max_class: Option<Class>,
    spread: Option<Duration>,
}

/// What a rule says of the messages that meet it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    pub class: Option<Class>,
    /// No more urgent than this, whatever else says so.
    pub max_class: Option<Class>,
    /// Their first attempts are spread over so long from their arrival on.
    pub spread: Option<Duration>,
}

/// Why these parts make no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    #[error("has no condition; give at least one of stream, tag, tenant, from, subject, header")]
    NoCondition,
    #[error("says nothing; give at least one of class, max_class, spread")]
    NoEffect,
    #[error("has a class more urgent than its own max_class")]
    Contradiction,
    #[error("spreads critical mail, which must not wait")]
    SpreadCritical,
}

impl Rule {
    pub fn new(name: Option<String>, when: Conditions, effect: Effect) -> Result<Rule, BadRule> {
        let Effect { class, max_class, spread } = effect;
        if when == Conditions::default() {
            return Err(BadRule::NoCondition);
        }
        match (class, max_class) {
            _ if effect == Effect::default() => return Err(BadRule::NoEffect),
            (Some(class), Some(cap)) if class < cap => return Err(BadRule::Contradiction),
            (Some(Class::Critical), _) if spread.is_some() => return Err(BadRule::SpreadCritical),
            _ => {}
        }
        Ok(Rule { named: name.is_some(), label: name.unwrap_or_default().into(), when, class, max_class, spread })
    }

    /// Gives a rule without a name the label `#n`.
    pub(crate) fn number(&mut self, n: usize) {
        if !self.named {
            self.label = format!("#{n}").into();
        }
    }

    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    pub fn class(&self) -> Option<Class> {
        self.class
    }

    pub fn max_class(&self) -> Option<Class> {
        self.max_class
    }

    pub fn spread(&self) -> Option<Duration> {
        self.spread
    }

    pub fn matches(&self, message: &Message) -> bool {
        let Conditions { stream, tag, tenant, from, subject, headers } = &self.when;
        let text = |glob: &Option<Glob>, value: &Option<String>| match (glob, value) {
            (None, _) => true,
            (Some(glob), Some(value)) => glob.matches(value),
            (Some(_), None) => false,
        };
        text(stream, &message.stream)
            && text(tenant, &message.tenant)
            && from.as_ref().is_none_or(|glob| glob.matches_chars(address(&message.from.email)))
            && text(subject, &message.subject)
            && tag.as_ref().is_none_or(|glob| message.tags.iter().any(|tag| glob.matches(tag)))
            && headers
                .iter()
                .all(|(name, glob)| message.headers.iter().any(|(n, value)| n.eq_ignore_ascii_case(name) && glob.matches(value)))
    }
}

pub(crate) fn address(email: &EmailAddress) -> impl Iterator<Item = char> {
    email.local().chars().chain(['@']).chain(email.domain().as_str().chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_rule() {
        let some = || Conditions { tag: Some(Glob::new("x").unwrap()), ..Conditions::default() };
        let says = |class, max_class| Effect { class, max_class, spread: None };
        let spread = Some(Duration::from_secs(9));
        for (when, effect, why) in [
            (Conditions::default(), says(Some(Class::Low), None), BadRule::NoCondition),
            (some(), Effect::default(), BadRule::NoEffect),
            (some(), says(Some(Class::Critical), Some(Class::High)), BadRule::Contradiction),
            (some(), Effect { spread, ..says(Some(Class::Critical), None) }, BadRule::SpreadCritical),
        ] {
            assert_eq!(Rule::new(None, when, effect), Err(why));
        }
        assert_eq!(Rule::new(None, some(), Effect { spread, ..Effect::default() }).unwrap().spread(), spread);
    }
}
