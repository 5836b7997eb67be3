//! `[[reply_rule]]`: what replies mean, before the shipped rules.

use std::time::Duration;

use paceline_core::Scope;
use paceline_provider::{Action, Category, ReplyRule, ReplyRuleText, ReplyRules};

use super::{
    section::Section,
    tree::{Node, Value},
    values,
};

const CATEGORIES: &[(&str, Category)] = &[
    ("throttled", Category::Throttled),
    ("greylisted", Category::Greylisted),
    ("temporary", Category::Temporary),
    ("recipient_permanent", Category::RecipientPermanent),
    ("message_permanent", Category::MessagePermanent),
    ("reputation_block", Category::ReputationBlock),
    ("mailbox_full", Category::MailboxFull),
    ("auth_or_account", Category::AuthOrAccount),
    ("other", Category::Other),
];

const SCOPES: &[(&str, Scope)] = &[
    ("account", Scope::Account),
    ("destination", Scope::Destination),
    ("connection", Scope::Connection),
    ("recipient", Scope::Recipient),
    ("message", Scope::Message),
];

const ACTIONS: &[(&str, Action)] = &[
    ("slow_down", Action::SlowDown),
    ("fewer_connections", Action::FewerConnections),
    ("fewer_recipients", Action::FewerRecipients),
    ("retry", Action::Retry),
    ("suppress", Action::Suppress),
    ("suppress_after_repeats", Action::SuppressAfterRepeats),
    ("dead_letter", Action::DeadLetter),
    ("slow_down_hard", Action::SlowDownHard),
    ("pause_destination", Action::PauseDestination),
    ("stop_account", Action::StopAccount),
    ("fix_sender", Action::FixSender),
];

/// The rules in order; wrong ones are reported and left out.
pub(super) fn rules(sections: Vec<Section<'_>>) -> ReplyRules {
    let mut out = vec![];
    for s in sections {
        let text = ReplyRuleText {
            name: s.need("name", values::line).unwrap_or_default(),
            code: s.filled_list("code", code).unwrap_or_default(),
            enhanced: s.filled_list("enhanced", values::text).unwrap_or_default(),
            text: s.filled_list("text", values::text).unwrap_or_default(),
            also: s.filled_list("also", values::text).unwrap_or_default(),
            unless: s.filled_list("unless", values::text).unwrap_or_default(),
            category: s.need("category", values::one_of(CATEGORIES)),
            scope: s.get("scope", values::one_of(SCOPES)),
            wait: s.get("wait", values::duration(Duration::from_secs(1), Duration::from_secs(86_400))),
            action: s.get("action", values::one_of(ACTIONS)),
        };
        let conditions = ["code", "enhanced", "text", "also"].iter().any(|key| s.has(key));
        if !conditions {
            s.report_self("has no condition; give code, enhanced or text");
        }
        // What is missing or no value has been reported.
        if s.has("name") && text.category.is_some() {
            match ReplyRule::new(text) {
                Ok(rule) => out.push(rule),
                Err(bad) => s.report(bad.field, bad.problem),
            }
        }
        s.finish();
    }
    ReplyRules::new(out)
}

/// `"45x"`, or `421` without quotes.
fn code(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Integer(code) => Ok(code.to_string()),
        _ => values::text(node),
    }
}
