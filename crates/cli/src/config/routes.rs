//! `[[route]]`: which accounts send what, and in what order.

use paceline_classifier::{Accounts, Route, RouteConditions, RoutedAccount, Routes};

use super::{
    accounts::Account,
    section::Section,
    tree::{Node, Value},
    values,
};

/// The routes in order; wrong ones are reported and left out.
pub(super) fn routes(sections: Vec<Section<'_>>, accounts: &[Account]) -> Routes {
    let mut out = vec![];
    for s in sections {
        let when = RouteConditions {
            stream: s.get("stream", values::glob),
            tenant: s.get("tenant", values::glob),
            class: s.filled_list("class", values::class).unwrap_or_default(),
            destination: s.get("destination", values::glob),
            from: s.get("from", values::glob_ignoring_case),
        };
        if let Some(accounts) = through(&s, accounts) {
            out.push(Route { when, accounts });
        }
        s.finish();
    }
    let routed = accounts.iter().map(|a| RoutedAccount { name: a.name.as_str().into(), senders: a.senders.clone() });
    Routes::new(routed.collect(), out)
}

/// `accounts = ["a", "b"]` in order of preference, or `accounts = { a = 3, b = 1 }` by weight.
fn through(s: &Section<'_>, accounts: &[Account]) -> Option<Accounts> {
    let position = |name: &str| {
        let found = accounts.iter().position(|a| a.name == name);
        found.ok_or_else(|| format!("no account is called `{}`", name.escape_debug()))
    };
    s.require("accounts");
    if s.is_table("accounts") {
        return s.get("accounts", |node| weights(node, position)).map(Accounts::Weighted);
    }
    let list = s.filled_list("accounts", |node| position(&values::text(node)?))?;
    for (i, account) in list.iter().enumerate() {
        if list[..i].contains(account) {
            s.report_element("accounts", i, "is named twice");
        }
    }
    (!list.is_empty()).then_some(Accounts::Preferred(list))
}

fn weights(node: &Node, position: impl Fn(&str) -> Result<usize, String>) -> Result<Vec<(usize, u32)>, String> {
    let Value::Table(table) = &node.value else { return Err("must be a table of weights".into()) };
    if table.is_empty() {
        return Err("is empty; name at least one account".into());
    }
    let mut out = Vec::with_capacity(table.len());
    for (name, entry) in table {
        let weight = values::integer32(0, 1_000_000)(&entry.node).map_err(|e| format!("the weight of `{name}` {e}"))?;
        out.push((position(name)?, weight));
    }
    // In the order of the configuration: where weights are alike, it decides.
    out.sort_unstable();
    Ok(out)
}
