//! Tags and metadata as pairs of a name and a value, for providers that know nothing else (SES, Resend).

use paceline_core::{Message, Outcome};
use serde::Serialize;

use crate::answer::refuse;

/// The key under which the message's id goes to the provider and comes back in its events.
pub(crate) const ID_KEY: &str = "paceline_id";
/// The value of a tag, which has only a name.
const TAG_VALUE: &str = "true";
const MAX_CHARS: usize = 256;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pair<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

/// Each tag as `tag: true`, each metadata entry as it is, and the id where it is of these characters too.
///
/// # Errors
/// The outcome that names what cannot be carried: such pairs are 1 to 256 ASCII letters, digits, `_` and `-`.
pub(crate) fn pairs<'a>(message: &'a Message, provider: &str) -> Result<Vec<Pair<'a>>, Box<Outcome>> {
    let problem = format!("{provider} takes 1 to {MAX_CHARS} ASCII letters, digits, _ and - here");
    let mut out: Vec<Pair<'a>> = Vec::with_capacity(1 + message.tags.len() + message.metadata.len());
    if fits(&message.id) {
        out.push(Pair { name: ID_KEY, value: &message.id });
    }
    for (i, tag) in message.tags.iter().enumerate() {
        if !fits(tag) || tag == ID_KEY {
            return refuse(&format!("tags[{i}]"), &problem);
        }
        if !out.iter().any(|pair| pair.name == tag) {
            out.push(Pair { name: tag, value: TAG_VALUE });
        }
    }
    for (key, value) in &message.metadata {
        if key == ID_KEY {
            return refuse("metadata.paceline_id", "this key carries the message's id");
        }
        if !fits(key) || !fits(value) {
            return refuse(&format!("metadata.{key}"), &problem);
        }
        if out.iter().any(|pair| pair.name == key) {
            return refuse(&format!("metadata.{key}"), &format!("is a tag too, and {provider} has one list for both"));
        }
        out.push(Pair { name: key, value });
    }
    Ok(out)
}

fn fits(text: &str) -> bool {
    (1..=MAX_CHARS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(id: &str, tags: &[&str], metadata: serde_json::Value) -> Message {
        let body = json!({"id": id, "from": "s@b.org", "to": ["u@x.org"], "text": "t", "tags": tags, "metadata": metadata});
        Message::parse(body.to_string().as_bytes(), None, 1 << 20).unwrap()
    }

    #[test]
    fn id_tags_and_metadata_become_pairs() {
        let m = message("m-1", &["welcome", "welcome", "eu"], json!({"order": "7"}));
        let got: Vec<_> = pairs(&m, "X").unwrap().into_iter().map(|p| (p.name, p.value)).collect();
        assert_eq!(got, [("paceline_id", "m-1"), ("welcome", "true"), ("eu", "true"), ("order", "7")]);
        assert_eq!(pairs(&message("m:1.2", &[], json!({})), "X").unwrap(), [], "an id of other characters stays here");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        let long = "x".repeat(257);
        for (tags, metadata, field) in [
            (vec!["two words"], json!({}), "tags[0]:"),
            (vec!["ok", ""], json!({}), "tags[1]:"),
            (vec![long.as_str()], json!({}), "tags[0]:"),
            (vec!["paceline_id"], json!({}), "tags[0]:"),
            (vec![], json!({"k": "a b"}), "metadata.k:"),
            (vec![], json!({"k": ""}), "metadata.k:"),
            (vec![], json!({"k.x": "a"}), "metadata.k.x:"),
            (vec!["k"], json!({"k": "a"}), "metadata.k:"),
            (vec![], json!({"paceline_id": "a"}), "metadata.paceline_id:"),
        ] {
            let outcome = *pairs(&message("m", &tags, metadata), "X").unwrap_err();
            assert!(outcome.answer().unwrap().message.starts_with(field), "{field} {outcome:?}");
        }
    }
}
