//! The configuration as a tree of values that know where they came from.

use std::{collections::BTreeMap, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Origin, Problem};

pub(super) type Table = BTreeMap<String, Entry>;

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Where the key stands.
    pub(super) origin: Origin,
    pub(super) node: Node,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// From the environment: what it is depends on what is wanted.
    Bare(String),
    /// A date, or an integer beyond 64 bits: nothing here wants one.
    Other(&'static str),
}

impl Value {
    /// What it is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) | Value::Bare(_) => "a text",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

/// Reads a document; on bad syntax, every place where it is bad.
pub(super) fn parse(name: &str, text: &str) -> Result<Table, Vec<Problem>> {
    let lines = Lines::new(name, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |e: toml::de::Error| Problem {
            origin: lines.origin(e.span().unwrap_or_default().start),
            key: String::new(),
            problem: format!("not valid TOML: {}", e.message()),
        };
        return Err(errors.into_iter().map(problem).collect());
    }
    Ok(table(root.get_ref(), &|at| lines.origin(at)))
}

/// Reads one value, such as `["a", "b"]`, that an environment variable holds.
pub(super) fn parse_value(variable: &str, text: &str) -> Result<Node, String> {
    let value = DeValue::parse(text).map_err(|e| format!("not a valid TOML value: {}", e.message()))?;
    Ok(node(&value, &|_| Origin::Environment(variable.into())))
}

fn table(from: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    let entry = |(key, value): (&Spanned<_>, _)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        (key.get_ref().to_string(), Entry { origin: origin(key.span().start), node: node(value, origin) })
    };
    from.iter().map(entry).collect()
}

fn node(from: &Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> Origin) -> Node {
    let value = match from.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(i) => {
            i64::from_str_radix(i.as_str(), i.radix()).map_or(Value::Other("an integer beyond 64 bits"), Value::Integer)
        }
        DeValue::Float(f) => f.as_str().parse().map_or(Value::Other("a number that cannot be read"), Value::Float),
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, origin)).collect()),
        DeValue::Table(t) => Value::Table(table(t, origin)),
    };
    Node { origin: origin(from.span().start), value }
}

/// Byte offset to line and column, both from 1; columns count characters.
struct Lines<'a> {
    name: Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(name: &str, text: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { name: name.into(), text, starts }
    }

    fn origin(&self, at: usize) -> Origin {
        let line = self.starts.partition_point(|&start| start <= at);
        let start = self.starts[line - 1];
        let column = self.text.get(start..at).map_or(1, |before| before.chars().count() + 1);
        Origin::File { name: self.name.clone(), line, column }
    }
}
