//! One rule: conditions on codes and words, and what follows.

use std::{sync::Arc, time::Duration};

use paceline_core::Scope;
use regex::bytes::{Regex, RegexBuilder};

use super::{Action, Category, Verdict, line::Enhanced};

/// Waits where neither reply nor rule names one.
const GREYLISTED: Duration = Duration::from_secs(300);
const MAILBOX_FULL: Duration = Duration::from_secs(3600);
const BLOCKED: Duration = Duration::from_secs(900);

/// A rule as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyRuleText {
    /// Lower case, digits and `_`; the answer's code in events and dead letters.
    pub name: String,
    /// Basic codes, any of: `421`, `45x`, `5xx`, `450-452`. None: any.
    pub code: Vec<String>,
    /// Enhanced codes, any of: `4.7.1`, `x.7.x`, `5.7.20-27`. None: any.
    pub enhanced: Vec<String>,
    /// Regular expressions over the words in lower case, any of; they begin and end with words. None: any.
    pub text: Vec<String>,
    /// Likewise, any of which must match as well.
    pub also: Vec<String>,
    /// Likewise, none of which may match.
    pub unless: Vec<String>,
    pub category: Option<Category>,
    /// Default: the category's usual one.
    pub scope: Option<Scope>,
    pub wait: Option<Duration>,
    /// Default: by category, scope and code.
    pub action: Option<Action>,
}

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct BadReplyRule {
    /// The part at fault, as it is called in configuration.
    pub field: &'static str,
    pub problem: String,
}

/// A rule, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyRule {
    name: Arc<str>,
    codes: Vec<Code>,
    enhanced: Vec<[Part; 3]>,
    text: Option<Pattern>,
    also: Option<Pattern>,
    unless: Option<Pattern>,
    category: Category,
    scope: Scope,
    wait: Option<Duration>,
    action: Option<Action>,
}

/// What is known of a reply beside its words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) code: Option<u16>,
    pub(super) enhanced: Option<Enhanced>,
}

/// Any of several patterns.
#[derive(Debug, Clone)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Code {
    from: u16,
    to: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    from: u16,
    to: u16,
}

impl ReplyRule {
    /// Checks a rule.
    ///
    /// # Errors
    /// The first part that is wrong.
    pub fn new(text: ReplyRuleText) -> Result<ReplyRule, BadReplyRule> {
        // One by one, since `a)(b` would be well-formed among others.
        for (field, list) in [("text", &text.text), ("also", &text.also), ("unless", &text.unless)] {
            for one in list {
                if one.is_empty() {
                    return Err(BadReplyRule { field, problem: "is empty, which would match everything".to_owned() });
                }
                build(one, 1 << 20).map_err(|problem| BadReplyRule { field, problem })?;
            }
        }
        ReplyRule::of_good_patterns(text)
    }

    /// As [`ReplyRule::new`], for patterns that are known to be well-formed by themselves.
    pub(super) fn of_good_patterns(text: ReplyRuleText) -> Result<ReplyRule, BadReplyRule> {
        let bad = |field: &'static str| move |problem: String| BadReplyRule { field, problem };
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if text.name.is_empty() || text.name.len() > 60 || !text.name.bytes().all(named) {
            return Err(bad("name")("must be 1 to 60 of a-z 0-9 _".to_owned()));
        }
        let Some(category) = text.category else {
            return Err(bad("category")("is missing".to_owned()));
        };
        let codes = text.code.iter().map(|c| code(c)).collect::<Result<_, _>>().map_err(bad("code"))?;
        let enhanced = text.enhanced.iter().map(|e| enhanced_parts(e)).collect::<Result<_, _>>().map_err(bad("enhanced"))?;
        let pattern = |field: &'static str, list: &[String]| pattern(list).map_err(bad(field));
        Ok(ReplyRule {
            name: text.name.into(),
            codes,
            enhanced,
            text: pattern("text", &text.text)?,
            also: pattern("also", &text.also)?,
            unless: pattern("unless", &text.unless)?,
            category,
            scope: text.scope.unwrap_or(usual_scope(category)),
            wait: text.wait,
            action: text.action,
        })
    }

    /// Whether it asks for anything at all.
    pub fn has_condition(&self) -> bool {
        !(self.codes.is_empty() && self.enhanced.is_empty() && self.text.is_none() && self.also.is_none())
    }

    pub(super) fn applies(&self, facts: Facts, words: &str) -> bool {
        let fits = |e: Enhanced| {
            let parts = [e.0.into(), e.1, e.2];
            self.enhanced.iter().any(|want| want.iter().zip(parts).all(|(want, is)| (want.from..=want.to).contains(&is)))
        };
        let says = |pattern: &Pattern| pattern.0.is_match(words.as_bytes());
        (self.codes.is_empty() || facts.code.is_some_and(|c| self.codes.iter().any(|want| (want.from..=want.to).contains(&c))))
            && (self.enhanced.is_empty() || facts.enhanced.is_some_and(fits))
            && self.text.as_ref().is_none_or(says)
            && self.also.as_ref().is_none_or(says)
            && !self.unless.as_ref().is_some_and(says)
    }

    pub(super) fn verdict(&self, facts: Facts, named: Option<Duration>) -> Verdict {
        let for_good = match (facts.code, facts.enhanced) {
            (Some(code), _) => code >= 500,
            (None, Some(Enhanced(class, ..))) => class == 5,
            (None, None) => true,
        };
        // A permanent refusal is not waited for, whatever number its text holds.
        let waits = !matches!(self.category, Category::RecipientPermanent | Category::MessagePermanent);
        let named = named.filter(|_| waits).map(|named| match self.category {
            // Nobody empties a mailbox within minutes.
            Category::MailboxFull => named.max(MAILBOX_FULL),
            _ => named,
        });
        let usual = match self.category {
            Category::Greylisted => Some(GREYLISTED),
            Category::MailboxFull => Some(MAILBOX_FULL),
            Category::ReputationBlock => Some(BLOCKED),
            _ => None,
        };
        Verdict {
            category: self.category,
            scope: self.scope,
            retry_after: named.or(self.wait).or(usual),
            wait_is_asked: named.or(self.wait).is_some(),
            action: self.action.unwrap_or_else(|| usual_action(self.category, self.scope, for_good)),
            by_words: self.text.is_some(),
            rule: self.name.clone(),
        }
    }
}

fn usual_scope(category: Category) -> Scope {
    match category {
        Category::Throttled | Category::Temporary | Category::ReputationBlock => Scope::Destination,
        Category::Greylisted | Category::RecipientPermanent | Category::MailboxFull => Scope::Recipient,
        Category::MessagePermanent | Category::Other => Scope::Message,
        Category::AuthOrAccount => Scope::Account,
    }
}

fn usual_action(category: Category, scope: Scope, for_good: bool) -> Action {
    match category {
        Category::Throttled => match scope {
            Scope::Connection => Action::FewerConnections,
            Scope::Message => Action::FewerRecipients,
            _ => Action::SlowDown,
        },
        Category::Greylisted | Category::Temporary | Category::MailboxFull => Action::Retry,
        Category::RecipientPermanent if for_good => Action::Suppress,
        Category::RecipientPermanent => Action::SuppressAfterRepeats,
        Category::MessagePermanent => Action::DeadLetter,
        Category::ReputationBlock => Action::SlowDownHard,
        Category::AuthOrAccount if scope == Scope::Account => Action::StopAccount,
        Category::AuthOrAccount if scope == Scope::Destination => Action::FixSender,
        Category::AuthOrAccount | Category::Other if for_good => Action::DeadLetter,
        Category::AuthOrAccount | Category::Other => Action::Retry,
    }
}

/// Any of `list`; `None` for an empty list.
fn pattern(list: &[String]) -> Result<Option<Pattern>, String> {
    if list.is_empty() { Ok(None) } else { Ok(Some(Pattern(build(&list.join("|"), 16 << 20)?))) }
}

/// As whole words. No Unicode tables: the words are in lower case already, and nothing else would need them.
fn build(any: &str, size_limit: usize) -> Result<Regex, String> {
    RegexBuilder::new(&format!(r"(?-u:\b|^|\s)(?:{any})(?-u:\b|$|\s)"))
        .unicode(false)
        .case_insensitive(true)
        .size_limit(size_limit)
        .dfa_size_limit(1 << 20)
        .nest_limit(32)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => "is too large once its repetitions are written out".to_owned(),
            // The last line says what is wrong; those before draw our own wrapping.
            other => format!("is not a regular expression: {}", other.to_string().lines().last().unwrap_or_default().trim()),
        })
}

/// `421`, `45x`, `5xx`, `450-452`.
fn code(text: &str) -> Result<Code, String> {
    let form = || format!("`{text}` is not a code; write 421, 45x, 5xx or 450-452");
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let edge = |edge: &str, with: &str| {
        let full = edge.len() == 3 && edge.bytes().enumerate().all(|(i, b)| b.is_ascii_digit() || i > 0 && b == b'x');
        full.then(|| edge.replace('x', with).parse::<u16>().ok()).flatten().ok_or_else(form)
    };
    let code = Code { from: edge(from, "0")?, to: edge(to, "9")? };
    if !(200..600).contains(&code.from) || code.to < code.from { Err(form()) } else { Ok(code) }
}

/// `4.7.1`, `x.7.x`, `5.7.20-27`.
fn enhanced_parts(text: &str) -> Result<[Part; 3], String> {
    let form = || format!("`{text}` is not an enhanced code; write 4.7.1, x.7.1, 5.7.x or 5.7.20-27");
    let part = |part: &str| {
        if part == "x" {
            return Ok(Part { from: 0, to: 999 });
        }
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.parse::<u16>().ok().filter(|n| *n <= 999).ok_or_else(form);
        let part = Part { from: number(from)?, to: number(to)? };
        if part.to < part.from { Err(form()) } else { Ok(part) }
    };
    let parts: Vec<Part> = text.split('.').map(part).collect::<Result<_, _>>()?;
    <[Part; 3]>::try_from(parts).map_err(|_| form())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_ranges() {
        for (text, want) in [
            ("421", Some((421, 421))),
            ("45x", Some((450, 459))),
            ("5xx", Some((500, 599))),
            ("450-452", Some((450, 452))),
            ("4xx-5xx", Some((400, 599))),
            ("xxx", None),
            ("4x1x", None),
            ("1xx", None),
            ("600", None),
            ("452-450", None),
            ("", None),
            ("42", None),
        ] {
            assert_eq!(code(text).ok().map(|c| (c.from, c.to)), want, "{text}");
        }
        for (text, good) in [
            ("4.7.1", true),
            ("x.7.x", true),
            ("5.7.20-27", true),
            ("4-5.7.1", true),
            ("5.7", false),
            ("5.7.1.1", false),
            ("5.7.y", false),
            ("5.7.1000", false),
            ("5.7.9-1", false),
        ] {
            assert_eq!(enhanced_parts(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn bad_rules_say_which_part() {
        let good = ReplyRuleText {
            name: "mine".into(),
            text: vec!["blah (foo|bar)".into()],
            category: Some(Category::Temporary),
            ..ReplyRuleText::default()
        };
        assert!(ReplyRule::new(good.clone()).is_ok_and(|r| r.has_condition()));
        for (field, rule, problem) in [
            ("name", ReplyRuleText { name: "My rule".into(), ..good.clone() }, "a-z 0-9 _"),
            ("category", ReplyRuleText { category: None, ..good.clone() }, "is missing"),
            ("code", ReplyRuleText { code: vec!["4".into()], ..good.clone() }, "`4` is not a code"),
            ("enhanced", ReplyRuleText { enhanced: vec!["4".into()], ..good.clone() }, "`4` is not an enhanced code"),
            ("text", ReplyRuleText { text: vec!["a(".into()], ..good.clone() }, "unclosed group"),
            ("text", ReplyRuleText { text: vec!["(?=a)".into()], ..good.clone() }, "not a regular expression"),
            ("also", ReplyRuleText { also: vec![String::new()], ..good.clone() }, "empty"),
            ("unless", ReplyRuleText { unless: vec!["((a{99}){99}){99}".into()], ..good }, "too large"),
        ] {
            let e = ReplyRule::new(rule).unwrap_err();
            assert_eq!(e.field, field);
            assert!(e.problem.contains(problem), "{e}");
        }
    }
}
