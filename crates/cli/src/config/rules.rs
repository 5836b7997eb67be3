//! `[[rule]]`: classification.

use std::time::Duration;

use paceline_classifier::{BadRule, Conditions, Effect, Glob, Rule};

use super::{
    section::Section,
    tree::{Node, Value},
    values,
};

/// A send spread over longer is several sends.
const SPREAD_MOST: Duration = Duration::from_secs(7 * 86_400);

/// The rules in order; wrong ones are reported and left out.
pub(super) fn rules(sections: Vec<Section<'_>>) -> Vec<Rule> {
    let mut out = vec![];
    for s in sections {
        let wanted = ["stream", "tag", "tenant", "from", "subject", "header"].iter().filter(|k| s.has(k)).count();
        let when = Conditions {
            stream: s.get("stream", values::glob),
            tag: s.get("tag", values::glob),
            tenant: s.get("tenant", values::glob),
            from: s.get("from", values::glob_ignoring_case),
            subject: s.get("subject", values::glob),
            headers: s.get("header", headers).unwrap_or_default(),
        };
        let name = s.get("name", values::line);
        let effect = Effect {
            class: s.get("class", values::class),
            max_class: s.get("max_class", values::class),
            spread: s.get("spread", values::duration(Duration::from_secs(1), SPREAD_MOST)),
        };
        let rule = Rule::new(name, when, effect);
        match rule {
            Ok(rule) => out.push(rule),
            Err(BadRule::Contradiction) => s.report("max_class", BadRule::Contradiction.to_string()),
            Err(BadRule::SpreadCritical) => s.report("spread", BadRule::SpreadCritical.to_string()),
            // Where the part is given but wrong, that has been said.
            Err(BadRule::NoCondition) if wanted > 0 => {}
            Err(BadRule::NoEffect) if ["class", "max_class", "spread"].iter().any(|k| s.has(k)) => {}
            Err(other) => s.report_self(other.to_string()),
        }
        s.finish();
    }
    out
}

/// `{ "X-Priority" = "1*" }`
fn headers(node: &Node) -> Result<Vec<(String, Glob)>, String> {
    let Value::Table(table) = &node.value else {
        return Err("must be a table of header names and patterns, such as { \"X-Priority\" = \"1*\" }".into());
    };
    if table.is_empty() {
        return Err("is empty; name at least one header".into());
    }
    let one = |(name, entry): (&String, &super::tree::Entry)| {
        if name.is_empty() || !name.bytes().all(|b| (33..=126).contains(&b) && b != b':') {
            return Err(format!("`{}` is not a header's name", name.escape_debug()));
        }
        let glob = values::glob(&entry.node).map_err(|e| format!("`{name}` {e}"))?;
        Ok((name.clone(), glob))
    };
    table.iter().map(one).collect()
}
