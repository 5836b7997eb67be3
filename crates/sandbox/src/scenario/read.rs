//! TOML → [`Scenario`], with every mistake and its place.

use std::{ops::Range, str::FromStr, time::Duration};

use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING};
use paceline_core::Rate;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Custom, Limit, PerLimit, PerSequence, Rule, Scenario, ScenarioError};
use crate::{
    api::Api,
    duration,
    glob::Glob,
    step::{Sequence, Step},
};

type Errors = Vec<(Range<usize>, String)>;

pub(super) fn scenario(text: &str) -> Result<Scenario, Vec<ScenarioError>> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut errors: Errors = syntax.iter().map(|e| (e.span().unwrap_or(0..0), e.message().to_owned())).collect();
    let mut scenario = Scenario::default();
    // After a syntax error what was read is guesswork: complaining about it would mislead.
    if errors.is_empty() {
        let mut top = Fields::new(document.get_ref(), document.span(), String::new(), &mut errors);
        scenario.api_keys = top.strings("api_key").unwrap_or_default();
        scenario.seed = top.integer("seed", 0, i64::MAX).unwrap_or(0).unsigned_abs();
        let (limits, rules) = (top.tables("limit"), top.tables("rule"));
        top.finish();
        for (i, (table, span)) in limits.into_iter().enumerate() {
            scenario.limits.extend(limit(Fields::new(table, span, format!("limit {}: ", i + 1), &mut errors)));
        }
        for (i, (table, span)) in rules.into_iter().enumerate() {
            scenario.rules.extend(rule(Fields::new(table, span, format!("rule {}: ", i + 1), &mut errors)));
        }
    }
    if errors.is_empty() {
        return Ok(scenario);
    }
    errors.sort_by_key(|(span, _)| span.start);
    let place = |(span, problem): (Range<usize>, String)| {
        let before = text.get(..span.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        ScenarioError { line, column: before[line_start..].chars().count() + 1, problem }
    };
    Err(errors.into_iter().map(place).collect())
}

fn limit(mut f: Fields<'_, '_>) -> Option<Limit> {
    let domain = f.glob("domain");
    let per = match f.word("per", &["account", "domain"]) {
        Some("account") if domain.is_some() => f.error("per", "a limit per account has no domain"),
        Some("account") => Some(PerLimit::Account),
        Some(_) => Some(PerLimit::Domain(domain)),
        None => f.missing("per", "\"account\" or \"domain\""),
    };
    let rate = match f.parsed::<Rate>("rate") {
        None => f.missing("rate", "such as \"100/s\""),
        some => some,
    };
    let burst = f.integer("burst", 1, 1_000_000).and_then(|n| u32::try_from(n).ok());
    let retry_after = f.duration("retry_after");
    f.finish();
    let (per, rate) = (per?, rate?);
    Some(Limit { per, rate, burst: burst.unwrap_or_else(|| rate.one_second()), retry_after })
}

fn rule(mut f: Fields<'_, '_>) -> Option<Rule> {
    let api = match f.word("api", &Api::NAMES) {
        Some(name) => Api::of_name(name),
        None => None,
    };
    let answer = f.answer("answer");
    let mut then = f.sequence("then");
    let whole = f.span.clone();
    if then.is_none() && !f.has("then") {
        let step = if f.has("answer") { Some(Step::Answer) } else { f.has("delay").then_some(Step::Accept) };
        then = step.map(Sequence::always).or_else(|| f.missing("then", "what to do, such as \"503\" or [\"503x2\", \"accept\"]"));
    }
    if let Some(n) = f.integer("fail_times", 1, 1_000_000)
        && let Some(sequence) = &then
    {
        then = match sequence.times(u32::try_from(n).unwrap_or(u32::MAX)) {
            Some(counted) => Some(counted),
            None => f.error("fail_times", "goes with a single step without a count; this `then` counts for itself"),
        };
    }
    let attempts = f.integers("attempt");
    let rule = Rule {
        to: f.glob("to"),
        domain: f.glob("domain"),
        from: f.glob("from"),
        class: f.glob("class"),
        api,
        path: f.glob("path"),
        attempts,
        every: f.integer("every", 1, 1_000_000_000).and_then(|n| u32::try_from(n).ok()),
        per: match f.word("per", &["message", "recipient"]) {
            Some("recipient") => PerSequence::Recipient,
            _ => PerSequence::Message,
        },
        delay: f.delay("delay"),
        accepted: f.boolean("accepted").unwrap_or(true),
        answer,
        then: then.unwrap_or_else(|| Sequence::always(Step::Accept)),
    };
    let uses = |step: Step| rule.then.steps().any(|s| s == step);
    if uses(Step::Answer) && rule.answer.is_none() && !f.has("answer") {
        f.errors.push((whole.clone(), format!("{}the step \"answer\" needs an `answer`", f.name)));
    }
    if uses(Step::DropUnread) {
        let by_body = [&rule.to, &rule.domain, &rule.from, &rule.class].iter().any(|g| g.is_some());
        if by_body || rule.attempts.is_some() || rule.then.counts() || rule.delay.is_some() {
            let problem = "\"drop-unread\" stands alone, with no condition but api, path and every: the body is not read";
            f.errors.push((whole, format!("{}{problem}", f.name)));
        }
    }
    f.finish();
    Some(rule)
}

/// A table being read: what is asked for is known, what is left at the end is a mistake.
struct Fields<'a, 'e> {
    table: &'a DeTable<'a>,
    span: Range<usize>,
    name: String,
    known: Vec<&'static str>,
    errors: &'e mut Errors,
}

impl<'a, 'e> Fields<'a, 'e> {
    fn new(table: &'a DeTable<'a>, span: Range<usize>, name: String, errors: &'e mut Errors) -> Self {
        Fields { table, span, name, known: Vec::new(), errors }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn error<T>(&mut self, key: &str, problem: &str) -> Option<T> {
        let span = self.table.get(key).map_or_else(|| self.span.clone(), Spanned::span);
        self.errors.push((span, format!("{}{key}: {problem}", self.name)));
        None
    }

    /// For a key that must be there; one that is there and wrong has been reported already.
    fn missing<T>(&mut self, key: &str, what: &str) -> Option<T> {
        if self.has(key) { None } else { self.error(key, &format!("is missing; give {what}")) }
    }

    fn finish(self) {
        for (key, _) in self.table.iter() {
            if !self.known.contains(&key.get_ref().as_ref()) {
                let known = self.known.join(", ");
                let problem = format!("{}`{}` is not known here; known are {known}", self.name, key.get_ref());
                self.errors.push((key.span(), problem));
            }
        }
    }

    fn string(&mut self, key: &'static str) -> Option<&'a str> {
        match self.get(key)?.get_ref() {
            DeValue::String(s) => Some(s),
            _ => self.error(key, "must be a string"),
        }
    }

    fn boolean(&mut self, key: &'static str) -> Option<bool> {
        match self.get(key)?.get_ref() {
            DeValue::Boolean(b) => Some(*b),
            _ => self.error(key, "must be true or false"),
        }
    }

    fn integer(&mut self, key: &'static str, min: i64, max: i64) -> Option<i64> {
        match whole(self.get(key)?.get_ref()) {
            Some(n) if (min..=max).contains(&n) => Some(n),
            _ => self.error(key, &format!("must be a whole number from {min} to {max}")),
        }
    }

    fn integers(&mut self, key: &'static str) -> Option<Vec<u32>> {
        let value = self.get(key)?.get_ref();
        let one = |v: &DeValue<'_>| whole(v).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let list = match value {
            DeValue::Array(list) => list.iter().map(|v| one(v.get_ref())).collect(),
            single => one(single).map(|n| vec![n]),
        };
        match list {
            Some(list) if !list.is_empty() => Some(list),
            _ => self.error(key, "must be a whole number from 1, or a list of such"),
        }
    }

    fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        let list = match self.get(key)?.get_ref() {
            DeValue::String(s) => Some(vec![s.to_string()]),
            DeValue::Array(list) => list.iter().map(|v| v.get_ref().as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        match list {
            Some(list) if !list.is_empty() && list.iter().all(|s| !s.is_empty()) => Some(list),
            _ => self.error(key, "must be a string or a list of strings, none empty"),
        }
    }

    fn tables(&mut self, key: &'static str) -> Vec<(&'a DeTable<'a>, Range<usize>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let tables = value
            .get_ref()
            .as_array()
            .and_then(|list| list.iter().map(|v| v.get_ref().as_table().map(|t| (t, v.span()))).collect::<Option<Vec<_>>>());
        tables.or_else(|| self.error(key, &format!("write it as [[{key}]]"))).unwrap_or_default()
    }

    fn word(&mut self, key: &'static str, words: &[&str]) -> Option<&'a str> {
        let word = self.string(key)?;
        if words.contains(&word) { Some(word) } else { self.error(key, &format!("must be one of {}", words.join(", "))) }
    }

    fn glob(&mut self, key: &'static str) -> Option<Glob> {
        self.string(key).map(Glob::new)
    }

    fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, key: &'static str) -> Option<T> {
        match self.string(key)?.parse() {
            Ok(value) => Some(value),
            Err(error) => self.error(key, &format!("{error}")),
        }
    }

    fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let text = self.string(key)?;
        duration::parse(text).or_else(|| self.error(key, "must be a time such as \"250ms\", \"2s\" or \"1min\", at most an hour"))
    }

    fn delay(&mut self, key: &'static str) -> Option<(Duration, Duration)> {
        let range = match self.get(key)?.get_ref() {
            DeValue::String(text) => duration::parse(text).map(|d| (d, d)),
            DeValue::Array(list) => {
                let times: Option<Vec<_>> = list.iter().map(|v| v.get_ref().as_str().and_then(duration::parse)).collect();
                match times.as_deref() {
                    Some([least, most]) if least <= most => Some((*least, *most)),
                    _ => None,
                }
            }
            _ => None,
        };
        range.or_else(|| self.error(key, "must be a time such as \"250ms\", or two, the lesser first: [\"10ms\", \"2s\"]"))
    }

    fn sequence(&mut self, key: &'static str) -> Option<Sequence> {
        let words = self.strings(key)?;
        match Sequence::parse(words.iter().map(String::as_str)) {
            Ok(sequence) => Some(sequence),
            Err(word) => {
                let known = "accept, 200 to 599, unavailable, throttle, throttle-5s, reject, hang, hang-2s, drop, drop-unread, \
                             delay-250ms, slow-2s, answer, each also as 503x2 for twice";
                self.error(key, &format!("`{word}` is no step; steps are {known}"))
            }
        }
    }

    fn answer(&mut self, key: &'static str) -> Option<Custom> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            return self.error(key, "must be a table such as { status = 429, headers = { Retry-After = \"7\" }, body = \"…\" }");
        };
        let mut f = Fields::new(table, value.span(), format!("{}answer: ", self.name), self.errors);
        let status = match f.integer("status", 200, 599) {
            None => f.missing("status", "a number from 200 to 599"),
            some => some.and_then(|n| u16::try_from(n).ok()),
        };
        let body = f.string("body").unwrap_or_default().as_bytes().to_vec().into();
        let headers = f.headers("headers");
        f.finish();
        Some(Custom { status: status?, headers, body })
    }

    fn headers(&mut self, key: &'static str) -> Vec<(HeaderName, HeaderValue)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            return self.error(key, "must be a table of strings").unwrap_or_default();
        };
        let mut out = Vec::new();
        for (name, value) in table.iter() {
            let parsed_name =
                HeaderName::from_str(name.get_ref()).ok().filter(|n| *n != CONTENT_LENGTH && *n != TRANSFER_ENCODING);
            let parsed_value = value.get_ref().as_str().and_then(|v| HeaderValue::from_str(v).ok());
            match (parsed_name, parsed_value) {
                (Some(name), Some(value)) => out.push((name, value)),
                _ => self.errors.push((value.span(), format!("{}{key}: not a header that can be sent", self.name))),
            }
        }
        if !out.iter().any(|(name, _)| name == CONTENT_TYPE) {
            out.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        out
    }
}

fn whole(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}
