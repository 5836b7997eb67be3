//! The rules that come with the program.

use std::time::Duration;

use paceline_core::Scope;
use serde::Deserialize;

use super::{Action, Category, ReplyRule, ReplyRuleText};

const FILE: &str = include_str!("../../rules/replies.toml");

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    #[error("rule {name}: {problem}")]
    Rule { name: String, problem: String },
    #[error("{{{0}}} is no word list")]
    NoSuchWords(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Alternatives by name, for `{name}` in patterns; a list may name those before it.
    words: Vec<Words>,
    pub(super) rule: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    name: String,
    any: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    code: Vec<String>,
    #[serde(default)]
    enhanced: Vec<String>,
    #[serde(default)]
    text: Vec<String>,
    #[serde(default)]
    also: Vec<String>,
    #[serde(default)]
    unless: Vec<String>,
    pub(super) category: Category,
    scope: Option<Scope>,
    /// Seconds.
    wait_s: Option<u64>,
    action: Option<Action>,
    /// Replies that this rule decides.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the tests"))]
    #[serde(default)]
    hits: Vec<String>,
    /// Replies that some other rule decides.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the tests"))]
    #[serde(default)]
    misses: Vec<String>,
}

#[cfg(test)]
impl Entry {
    pub(super) fn samples(&self) -> (&[String], &[String]) {
        (&self.hits, &self.misses)
    }
}

pub(super) fn file() -> Result<File, BadFile> {
    Ok(toml::from_str(FILE)?)
}

/// The rules in order.
pub(super) fn rules() -> Result<Vec<ReplyRule>, BadFile> {
    let file = file()?;
    let mut words: Vec<(String, String)> = Vec::new();
    for list in &file.words {
        let any = list.any.iter().map(|w| expand(w, &words)).collect::<Result<Vec<_>, _>>()?;
        words.push((list.name.clone(), format!("(?:{})", any.join("|"))));
    }
    file.rule.into_iter().map(|entry| rule(entry, &words)).collect()
}

fn rule(entry: Entry, words: &[(String, String)]) -> Result<ReplyRule, BadFile> {
    let all = |list: Vec<String>| list.iter().map(|p| expand(p, words)).collect::<Result<Vec<_>, _>>();
    let name = entry.name.clone();
    let text = ReplyRuleText {
        name: entry.name,
        code: entry.code,
        enhanced: entry.enhanced,
        text: all(entry.text)?,
        also: all(entry.also)?,
        unless: all(entry.unless)?,
        category: Some(entry.category),
        scope: entry.scope,
        wait: entry.wait_s.map(Duration::from_secs),
        action: entry.action,
    };
    ReplyRule::of_good_patterns(text).map_err(|e| BadFile::Rule { name, problem: format!("{}: {}", e.field, e.problem) })
}

/// `{name}` becomes the words of that name; `{2}` and `{1,3}` stay.
fn expand(pattern: &str, words: &[(String, String)]) -> Result<String, BadFile> {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = from.find('}').map_or(from.len(), |end| end + 1);
        let (braces, after) = from.split_at(end);
        let name = braces.trim_matches(['{', '}']);
        if name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let (_, any) = words.iter().find(|(n, _)| n == name).ok_or_else(|| BadFile::NoSuchWords(name.to_owned()))?;
            out.push_str(any);
        } else {
            out.push_str(braces);
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}
