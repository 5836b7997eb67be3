//! Settings from the environment: `PACELINE__BROKER__URL` sets `broker.url`, `PACELINE__ACCOUNT__0__RATE` the rate of
//! the first account, `PACELINE__ACCOUNT__SES_EU__RATE` that of the account named `ses-eu`.

use super::{
    problem::{Origin, Problem},
    tree::{self, Entry, Node, Table, Value},
};

/// What variables that are settings start with.
pub(super) const PREFIX: &str = "PACELINE__";

/// Sections that are lists of tables.
pub(super) const LISTS: [&str; 5] = ["account", "destination", "rule", "sender", "tenant"];

/// Puts the variables over the tree; those that fit nowhere come back as problems.
pub(super) fn overlay(root: &mut Table, variables: &[(String, String)]) -> Vec<Problem> {
    let mut sorted: Vec<_> = variables.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // By index in order, so that 0 exists before 1 is added.
    sorted.sort_by_key(|(name, _)| (name.len(), name.clone()));
    let mut problems = vec![];
    for (name, text) in sorted {
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let put = match value(name, text) {
            _ if path.contains(&"") => Err("has an empty part; write PACELINE__SECTION__KEY".into()),
            Ok(node) => put(root, &path, node, name),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = put {
            problems.push(Problem { origin: Origin::Environment(name.clone()), key: String::new(), problem });
        }
    }
    problems
}

fn value(name: &str, text: &str) -> Result<Node, String> {
    if text.starts_with(['[', '{']) {
        tree::parse_value(name, text)
    } else {
        Ok(Node { origin: Origin::Environment(name.into()), value: Value::Bare(text.into()) })
    }
}

fn put(table: &mut Table, path: &[&str], node: Node, name: &str) -> Result<(), String> {
    let origin = Origin::Environment(name.into());
    let Some((&first, rest)) = path.split_first() else { return Ok(()) };
    // Keys in the tree may be in any case (names of headers); the variable's are in none.
    let key = table.keys().find(|k| k.to_lowercase() == first).cloned().unwrap_or_else(|| first.to_owned());
    if rest.is_empty() {
        // The environment wins over either form of a secret.
        let other = key.strip_suffix("_file").map_or_else(|| format!("{key}_file"), str::to_owned);
        if table.get(&other).is_some_and(|e| !matches!(e.origin, Origin::Environment(_))) {
            table.remove(&other);
        }
        table.insert(key, Entry { origin, node });
        return Ok(());
    }
    let listed = LISTS.contains(&first);
    let empty = || if listed { Value::List(vec![]) } else { Value::Table(Table::new()) };
    let entry = table
        .entry(key)
        .or_insert_with(|| Entry { origin: origin.clone(), node: Node { origin: origin.clone(), value: empty() } });
    match &mut entry.node.value {
        Value::Table(inner) => put(inner, rest, node, name),
        Value::List(items) => put(element(items, first, rest[0], &origin)?, &rest[1..], node, name),
        _ => Err(format!("`{first}` is a value, not a section")),
    }
}

/// The table in a list that a part of a path names, by position or by its `name`.
fn element<'t>(items: &'t mut Vec<Node>, list: &str, part: &str, origin: &Origin) -> Result<&'t mut Table, String> {
    let at = match part.parse::<usize>() {
        Ok(index) => index,
        Err(_) => items
            .iter()
            .position(|item| named(item).is_some_and(|n| n.to_lowercase().replace(['-', '.', '@'], "_") == part))
            .ok_or_else(|| format!("no {list} is named so; add one by its number: {PREFIX}{}__0__…", list.to_uppercase()))?,
    };
    if at == items.len() {
        items.push(Node { origin: origin.clone(), value: Value::Table(Table::new()) });
    }
    match items.get_mut(at).map(|item| &mut item.value) {
        Some(Value::Table(inner)) => Ok(inner),
        Some(_) => Err(format!("`{list}` {at} is not a table")),
        None => Err(format!("there is no {list} before number {at}; numbers start at 0 and leave no gap")),
    }
}

fn named(item: &Node) -> Option<&str> {
    match &item.value {
        Value::Table(t) => match &t.get("name")?.node.value {
            Value::Text(name) | Value::Bare(name) => Some(name),
            _ => None,
        },
        _ => None,
    }
}
