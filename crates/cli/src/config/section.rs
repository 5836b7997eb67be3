//! Reading a section: every key asked for once, every mistake noted where it stands, reading goes on.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use paceline_provider::Secret;

use super::{
    problem::{Origin, Problem, did_you_mean},
    tree::{Entry, Node, Table, Value},
};

/// What is collected while a configuration is read.
pub(super) struct Context {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    /// Every key asked for, without positions: `account.rate`.
    known: RefCell<BTreeSet<String>>,
    /// Where relative paths in `…_file` start.
    base: PathBuf,
}

impl Context {
    pub(super) fn new(base: PathBuf) -> Context {
        Context { problems: RefCell::default(), warnings: RefCell::default(), known: RefCell::default(), base }
    }

    pub(super) fn report(&self, origin: &Origin, key: &str, problem: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { origin: origin.clone(), key: key.into(), problem: problem.into() });
    }

    fn warn(&self, origin: &Origin, key: &str, problem: impl Into<String>) {
        self.warnings.borrow_mut().push(Problem { origin: origin.clone(), key: key.into(), problem: problem.into() });
    }

    /// Problems and warnings, each in order of place, and all keys that exist.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>, BTreeSet<String>) {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        problems.sort();
        warnings.sort();
        (problems, warnings, self.known.into_inner())
    }
}

/// One table, given or not.
pub(super) struct Section<'a> {
    pub(super) context: &'a Context,
    entries: Option<&'a Table>,
    origin: Origin,
    /// With positions, for people: `account[0]`.
    path: String,
    /// Without, for `known`.
    schema: String,
    asked: RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(context: &'a Context, entries: &'a Table) -> Section<'a> {
        Section {
            context,
            entries: Some(entries),
            origin: Origin::Nowhere,
            path: String::new(),
            schema: String::new(),
            asked: RefCell::default(),
        }
    }

    /// Whether the section is there at all.
    pub(super) fn given(&self) -> bool {
        self.entries.is_some()
    }

    fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.asked.borrow_mut().push(key.into());
        self.context.known.borrow_mut().insert(join(&self.schema, key));
        self.entries?.get(key)
    }

    /// Whether this key is given, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|t| t.contains_key(key))
    }

    /// A problem with this key, at its value; with the section where the key is not given.
    pub(super) fn report(&self, key: &str, problem: impl Into<String>) {
        let origin = self.entries.and_then(|t| t.get(key)).map_or(&self.origin, |e| &e.node.origin);
        self.context.report(origin, &self.key(key), problem);
    }

    /// A problem with an element of a list.
    pub(super) fn report_element(&self, key: &str, index: usize, problem: impl Into<String>) {
        let element = self.entries.and_then(|t| t.get(key)).and_then(|e| match &e.node.value {
            Value::List(items) => items.get(index),
            _ => None,
        });
        match element {
            Some(node) => self.context.report(&node.origin, &self.key(&format!("{key}[{index}]")), problem),
            None => self.report(key, problem),
        }
    }

    /// A problem with the section itself.
    pub(super) fn report_self(&self, problem: impl Into<String>) {
        self.context.report(&self.origin, &self.path, problem);
    }

    /// Something worth knowing about the section that is no mistake.
    pub(super) fn warn_self(&self, warning: &str) {
        self.context.warn(&self.origin, &self.path, warning);
    }

    /// The key is understood and checked, but nothing acts on it yet.
    pub(super) fn not_in_force(&self, key: &str) {
        if let Some(entry) = self.entries.and_then(|t| t.get(key)) {
            self.context.warn(&entry.origin, &self.key(key), NOT_IN_FORCE);
        }
    }

    /// The value; `None` where it is not given, or wrong and reported.
    pub(super) fn get<T>(&self, key: &str, read: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        let entry = self.entry(key)?;
        match read(&entry.node) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.context.report(&entry.node.origin, &self.key(key), problem);
                None
            }
        }
    }

    /// The value or its default.
    pub(super) fn or<T>(&self, key: &str, default: T, read: impl FnOnce(&Node) -> Result<T, String>) -> T {
        self.get(key, read).unwrap_or(default)
    }

    /// The value; not giving it is a mistake.
    pub(super) fn need<T>(&self, key: &str, read: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        self.require(key);
        self.get(key, read)
    }

    /// Reports the key where it is not given.
    pub(super) fn require(&self, key: &str) {
        if !self.has(key) {
            self.report(key, "is missing");
        }
    }

    /// Whether the key holds this text.
    pub(super) fn is(&self, key: &str, text: &str) -> bool {
        let entry = self.entries.and_then(|t| t.get(key));
        entry.is_some_and(|e| matches!(&e.node.value, Value::Text(t) | Value::Bare(t) if t == text))
    }

    /// Whether the key holds a table.
    pub(super) fn is_table(&self, key: &str) -> bool {
        let entry = self.entries.and_then(|t| t.get(key));
        entry.is_some_and(|e| matches!(&e.node.value, Value::Table(_)))
    }

    /// A list, each element checked; a single value counts as a list of one. Wrong elements are reported and left out.
    pub(super) fn list<T>(&self, key: &str, read: impl Fn(&Node) -> Result<T, String>) -> Option<Vec<T>> {
        let entry = self.entry(key)?;
        let one = |at: String, node: &Node| match read(node) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.context.report(&node.origin, &at, problem);
                None
            }
        };
        Some(match &entry.node.value {
            Value::List(items) => {
                let at = |i| self.key(&format!("{key}[{i}]"));
                items.iter().enumerate().filter_map(|(i, item)| one(at(i), item)).collect()
            }
            _ => one(self.key(key), &entry.node).into_iter().collect(),
        })
    }

    /// As [`Section::list`]; giving an empty one is a mistake.
    pub(super) fn filled_list<T>(&self, key: &str, read: impl Fn(&Node) -> Result<T, String>) -> Option<Vec<T>> {
        let empty = |e: &Entry| matches!(&e.node.value, Value::List(items) if items.is_empty());
        if self.entries.and_then(|t| t.get(key)).is_some_and(empty) {
            self.report(key, "is empty; give at least one");
        }
        self.list(key, read)
    }

    /// A text that may come from a file instead: `key`, or `key_file`.
    pub(super) fn text_or_file(&self, key: &str) -> Option<String> {
        let direct = self.get(key, super::values::text);
        self.file(key).or(direct)
    }

    /// What is in the file that `key_file` names, one trailing line break taken off.
    pub(super) fn file(&self, key: &str) -> Option<String> {
        let file_key = format!("{key}_file");
        let path = self.get(&file_key, super::values::text)?;
        if self.has(key) {
            self.report(&file_key, format!("`{key}` is given as well; give one of the two"));
            return None;
        }
        match std::fs::read_to_string(self.context.base.join(Path::new(&path))) {
            Ok(text) => {
                let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
                if text.is_empty() {
                    self.report(&file_key, format!("the file {path} is empty"));
                    return None;
                }
                Some(text.to_owned())
            }
            Err(e) => {
                self.report(&file_key, format!("the file {path} cannot be read: {e}"));
                None
            }
        }
    }

    /// Where a path leads that the configuration names: relative ones start at its own directory.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.context.base.join(path)
    }

    /// A secret, directly or from a file; never empty.
    pub(super) fn secret(&self, key: &str) -> Option<Secret> {
        let text = self.text_or_file(key)?;
        if text.is_empty() {
            if self.has(key) {
                self.report(key, "is empty");
            }
            return None;
        }
        if text.chars().any(char::is_control) {
            let at = if self.has(key) { key.to_owned() } else { format!("{key}_file") };
            self.report(&at, "contains a line break or another control character");
            return None;
        }
        Some(Secret::new(text))
    }

    /// Whether the secret is given in either form.
    pub(super) fn has_secret(&self, key: &str) -> bool {
        self.has(key) || self.has(&format!("{key}_file"))
    }

    /// A table within this one.
    pub(super) fn section(&self, key: &str) -> Section<'a> {
        let entry = self.entry(key);
        let entries = entry.and_then(|e| match &e.node.value {
            Value::Table(t) => Some(t),
            Value::List(_) => {
                self.context.report(&e.node.origin, &self.key(key), format!("is one section; write [{}]", self.key(key)));
                None
            }
            other => {
                self.context.report(&e.node.origin, &self.key(key), format!("must be a section, not {}", other.kind()));
                None
            }
        });
        Section {
            context: self.context,
            entries,
            origin: entry.map_or(Origin::Nowhere, |e| e.node.origin.clone()),
            path: self.key(key),
            schema: join(&self.schema, key),
            asked: RefCell::default(),
        }
    }

    /// The tables of a list such as `[[account]]`.
    pub(super) fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let Some(entry) = self.entry(key) else { return vec![] };
        let Value::List(items) = &entry.node.value else {
            self.context.report(&entry.node.origin, &self.key(key), format!("is a list; write [[{key}]]"));
            return vec![];
        };
        let mut out = vec![];
        for (i, item) in items.iter().enumerate() {
            let path = self.key(&format!("{key}[{i}]"));
            match &item.value {
                Value::Table(t) => out.push(Section {
                    context: self.context,
                    entries: Some(t),
                    origin: item.origin.clone(),
                    path,
                    schema: join(&self.schema, key),
                    asked: RefCell::default(),
                }),
                other => self.context.report(&item.origin, &path, format!("must be a section, not {}", other.kind())),
            }
        }
        out
    }

    /// Reports the keys nobody asked for.
    pub(super) fn finish(&self) {
        self.finish_but(&[]);
    }

    /// Likewise, passing over some that were reported otherwise.
    pub(super) fn finish_but(&self, accepted: &[&str]) {
        let asked = self.asked.borrow();
        for (key, entry) in self.entries.into_iter().flatten() {
            if asked.iter().any(|a| a == key) || accepted.contains(&key.as_str()) {
                continue;
            }
            let hint = match did_you_mean(key, asked.iter().map(String::as_str)) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => format!("; known here: {}", asked.join(", ")),
            };
            self.context.report(&entry.origin, &join(&self.path, key), format!("unknown key{hint}"));
        }
    }
}

const NOT_IN_FORCE: &str = "understood, but not in force yet: this version does not act on it";

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
