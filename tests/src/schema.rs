//! JSON Schema, as much of it as the Compose Specification's own schema uses (draft 2020-12).
//!
//! A keyword or pattern that is not known here panics: a newer schema never passes by being looked at less closely.

use std::collections::BTreeSet;

use serde_json::Value;

/// What is wrong with `value`, each with its place; nothing if it is valid.
#[must_use]
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut check = Check { root: schema, problems: vec![] };
    check.value(schema, value, "");
    check.problems
}

struct Check<'s> {
    root: &'s Value,
    problems: Vec<String>,
}

impl<'s> Check<'s> {
    /// Returns the properties that the schema has something to say about.
    fn value(&mut self, schema: &'s Value, value: &Value, at: &str) -> BTreeSet<String> {
        let keywords = match schema {
            Value::Bool(true) => return BTreeSet::new(),
            Value::Bool(false) => {
                self.problem(at, "is not allowed");
                return BTreeSet::new();
            }
            schema => schema.as_object().unwrap_or_else(|| panic!("no schema: {schema}")),
        };
        let mut known = BTreeSet::new();
        for (keyword, wanted) in keywords {
            match keyword.as_str() {
                "$ref" => known.extend(self.value(self.definition(wanted), value, at)),
                "allOf" => wanted.as_array().unwrap().iter().for_each(|part| known.extend(self.value(part, value, at))),
                "oneOf" | "anyOf" => known.extend(self.one_of(keyword, wanted, value, at)),
                "type" if !is_of(wanted, value) => self.problem(at, &format!("is not of type {wanted}")),
                "enum" if !wanted.as_array().unwrap().contains(value) => self.problem(at, &format!("is none of {wanted}")),
                "pattern" if value.as_str().is_some_and(|text| !matches(wanted, text)) => {
                    self.problem(at, &format!("does not match {wanted}"));
                }
                "minimum" if value.as_f64().is_some_and(|n| n < wanted.as_f64().unwrap()) => self.problem(at, "is too small"),
                "maximum" if value.as_f64().is_some_and(|n| n > wanted.as_f64().unwrap()) => self.problem(at, "is too large"),
                "uniqueItems" if value.as_array().is_some_and(|items| repeated(items)) => self.problem(at, "repeats an item"),
                "required" => {
                    let names = wanted.as_array().unwrap().iter().filter_map(Value::as_str);
                    for name in names.filter(|name| value.is_object() && value.get(name).is_none()) {
                        self.problem(at, &format!("lacks {name}"));
                    }
                }
                "items" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.value(wanted, item, &format!("{at}/{i}"));
                    }
                }
                "type" | "enum" | "pattern" | "minimum" | "maximum" | "uniqueItems" => {}
                // Looked at below, all together.
                "properties" | "patternProperties" | "additionalProperties" | "unevaluatedProperties" => {}
                "$schema" | "$id" | "$defs" | "title" | "description" | "default" | "deprecated" => {}
                other => panic!("the keyword {other} of the schema is not known here"),
            }
        }
        for (name, inner) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            let mut named: Vec<_> = schema["properties"].get(name).into_iter().collect();
            let patterns = schema["patternProperties"].as_object().into_iter().flatten();
            named.extend(patterns.filter(|(pattern, _)| matches(&Value::from(pattern.as_str()), name)).map(|(_, inner)| inner));
            if named.is_empty() {
                named.extend(schema.get("additionalProperties"));
            }
            if named.is_empty() && !known.contains(name) {
                named.extend(schema.get("unevaluatedProperties"));
            }
            for part in &named {
                self.value(part, inner, &at);
            }
            if !named.is_empty() {
                known.insert(name.clone());
            }
        }
        known
    }

    fn one_of(&mut self, keyword: &str, branches: &'s Value, value: &Value, at: &str) -> BTreeSet<String> {
        let (mut fitting, mut known, mut closest) = (0, BTreeSet::new(), None::<Vec<String>>);
        for branch in branches.as_array().unwrap() {
            let mut inner = Check { root: self.root, problems: vec![] };
            let of_branch = inner.value(branch, value, at);
            if inner.problems.is_empty() {
                fitting += 1;
                known.extend(of_branch);
            // What is wrong deepest down was most likely meant.
            } else if closest.as_ref().is_none_or(|before| depth(before) < depth(&inner.problems)) {
                closest = Some(inner.problems);
            }
        }
        if fitting == 0 {
            self.problems.extend(closest.unwrap_or_default());
        } else if fitting > 1 && keyword == "oneOf" {
            self.problem(at, "is two things at once");
        }
        known
    }

    fn definition(&self, reference: &Value) -> &'s Value {
        let pointer = reference.as_str().and_then(|r| r.strip_prefix('#'));
        pointer.and_then(|p| self.root.pointer(p)).unwrap_or_else(|| panic!("the schema has no {reference}"))
    }

    fn problem(&mut self, at: &str, what: &str) {
        self.problems.push(format!("{}: {what}", if at.is_empty() { "/" } else { at }));
    }
}

fn depth(problems: &[String]) -> usize {
    problems.iter().map(|problem| problem.split(": ").next().unwrap_or("").matches('/').count()).max().unwrap_or(0)
}

fn is_of(wanted: &Value, value: &Value) -> bool {
    match wanted {
        Value::Array(any) => any.iter().any(|one| is_of(one, value)),
        one => match one.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "number" => value.is_number(),
            "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
            other => panic!("the type {other} of the schema is not known here"),
        },
    }
}

fn repeated(items: &[Value]) -> bool {
    items.iter().enumerate().any(|(i, item)| items[..i].contains(item))
}

/// The patterns of the schema, each by hand.
fn matches(pattern: &Value, text: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match pattern.as_str().unwrap() {
        "^x-" => text.starts_with("x-"),
        "^.+$" | ".+" => !text.is_empty(),
        "^[a-z]+$" => !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase()),
        "^[a-zA-Z0-9._-]+$" => !text.is_empty() && text.chars().all(name),
        // Not anchored.
        "[a-zA-Z0-9][a-zA-Z0-9_.-]+" => {
            let pairs = text.chars().zip(text.chars().skip(1));
            pairs.into_iter().any(|(first, second)| first.is_ascii_alphanumeric() && name(second))
        }
        "^(always|never|build|if_not_present|missing|refresh|daily|weekly|every_([0-9]+[wdhms])+)$" => {
            let words = ["always", "never", "build", "if_not_present", "missing", "refresh", "daily", "weekly"];
            words.contains(&text) || text.strip_prefix("every_").is_some_and(is_period)
        }
        other => panic!("the pattern {other} of the schema is not known here"),
    }
}

/// `([0-9]+[wdhms])+`
fn is_period(text: &str) -> bool {
    let mut parts = text.split_inclusive(|c: char| !c.is_ascii_digit()).peekable();
    let part = |p: &str| p.len() > 1 && p.ends_with(['w', 'd', 'h', 'm', 's']);
    parts.peek().is_some() && parts.all(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_fits_and_what_does_not() {
        let schema = json!({
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "mode": {"oneOf": [{"type": "number", "minimum": 0}, {"type": "string", "enum": ["fast"]}]},
                "list": {"type": "array", "items": {"$ref": "#/$defs/word"}, "uniqueItems": true},
            },
            "patternProperties": {"^x-": {}},
            "additionalProperties": false,
            "required": ["name"],
            "$defs": {"word": {"type": ["string", "null"]}},
        });
        for good in [
            json!({"name": "a"}),
            json!({"name": "a", "mode": 1.5, "x-anything": [], "list": ["a", null]}),
            json!({"name": "a", "mode": "fast"}),
        ] {
            assert!(problems(&schema, &good).is_empty(), "{good}: {:?}", problems(&schema, &good));
        }
        for (bad, want) in [
            (json!([]), "/: is not of type \"object\""),
            (json!({}), "/: lacks name"),
            (json!({"name": 1}), "/name: is not of type \"string\""),
            (json!({"name": "a", "mode": "slow"}), "/mode: is not of type \"number\""),
            (json!({"name": "a", "mode": -1}), "/mode: is too small"),
            (json!({"name": "a", "list": ["a", "a"]}), "/list: repeats an item"),
            (json!({"name": "a", "list": ["a", 1]}), "/list/1: is not of type [\"string\",\"null\"]"),
            (json!({"name": "a", "nmae": "a"}), "/nmae: is not allowed"),
        ] {
            let got = problems(&schema, &bad);
            assert!(got.iter().any(|problem| problem == want), "{bad}: {got:?}");
        }
    }

    #[test]
    fn what_no_part_speaks_of_is_refused() {
        let part = json!({"properties": {"a": {"type": "number"}}});
        let schema = json!({"allOf": [{"$ref": "#/$defs/part"}], "unevaluatedProperties": false, "$defs": {"part": part}});
        assert!(problems(&schema, &json!({"a": 1})).is_empty());
        assert_eq!(problems(&schema, &json!({"b": 1})), ["/b: is not allowed"]);
        assert_eq!(problems(&schema, &json!({"a": "1"})), ["/a: is not of type \"number\""]);
    }

    #[test]
    #[should_panic(expected = "minProperties")]
    fn an_unknown_keyword_is_no_secret() {
        let _ = problems(&json!({"minProperties": 1}), &json!({}));
    }
}
