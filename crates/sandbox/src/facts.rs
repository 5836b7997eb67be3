//! What the sandbox wants to know of a request: who it is for, who from, which message; nothing else is kept.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::answer::Api;

/// A recipient and where it stands in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipient<'a> {
    pub(crate) email: Cow<'a, str>,
    /// `to`, `cc` or `bcc`.
    pub(crate) list: &'static str,
    pub(crate) personalization: usize,
    pub(crate) index: usize,
}

impl Recipient<'_> {
    pub(crate) fn domain(&self) -> &str {
        self.email.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

/// Borrowed from the body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    pub(crate) id: Option<Cow<'a, str>>,
    pub(crate) class: Option<Cow<'a, str>>,
    pub(crate) from: Option<Cow<'a, str>>,
    pub(crate) recipients: Vec<Recipient<'a>>,
    pub(crate) subject: bool,
    pub(crate) content: bool,
    pub(crate) template: bool,
}

impl<'a> Facts<'a> {
    /// Reads a body. Of one that was cut (`whole` is false) it takes what stands before the cut; the rest counts as fine.
    ///
    /// # Errors
    /// It is no JSON.
    pub(crate) fn read(api: Api, body: &'a [u8], whole: bool) -> Result<Facts<'a>, serde_json::Error> {
        let mut facts = Facts::default();
        let mut reader = serde_json::Deserializer::from_slice(body);
        let read = Walk { facts: &mut facts, place: Place::Top(api) }.deserialize(&mut reader);
        match read.and_then(|()| reader.end()) {
            Err(error) if whole || !error.is_eof() => Err(error),
            Err(_) => {
                facts.subject = true;
                facts.content = true;
                Ok(facts)
            }
            Ok(()) => Ok(facts),
        }
    }

    /// Domain of the first recipient.
    pub(crate) fn domain(&self) -> &str {
        self.recipients.first().map_or("", Recipient::domain)
    }
}

/// Where in the document the walk is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Top(Api),
    Personalizations,
    Personalization(usize),
    List(&'static str, usize),
    To(&'static str, usize, usize),
    From,
    Args,
    Id,
    Class,
    Subject,
    Content,
    Template,
}

impl Place {
    fn child(self, key: &str) -> Option<Place> {
        let list = |n| match key {
            "to" => Some(Place::List("to", n)),
            "cc" => Some(Place::List("cc", n)),
            "bcc" => Some(Place::List("bcc", n)),
            _ => None,
        };
        match (self, key) {
            (Place::Top(Api::SendGrid), "personalizations") => Some(Place::Personalizations),
            (Place::Top(Api::SendGrid), "custom_args") | (Place::Top(Api::Http), "metadata") => Some(Place::Args),
            (Place::Top(Api::SendGrid), "content") | (Place::Top(Api::Http), "text" | "html") => Some(Place::Content),
            (Place::Top(Api::SendGrid), "template_id") | (Place::Top(Api::Http), "template") => Some(Place::Template),
            (Place::Top(_), "from") => Some(Place::From),
            (Place::Top(_) | Place::Personalization(_), "subject") => Some(Place::Subject),
            (Place::Top(Api::Http), "id") | (Place::Args, "paceline_id") => Some(Place::Id),
            (Place::Top(Api::Http) | Place::Args, "class") => Some(Place::Class),
            (Place::Personalization(_), "custom_args") => Some(Place::Args),
            (Place::Top(Api::Http), _) => list(0),
            (Place::Personalization(n), _) => list(n),
            (Place::From | Place::To(..), "email") => Some(self),
            _ => None,
        }
    }

    fn element(self, index: usize) -> Option<Place> {
        match self {
            Place::Personalizations => Some(Place::Personalization(index)),
            Place::List(list, n) => Some(Place::To(list, n, index)),
            Place::Content => Some(Place::Content),
            _ => None,
        }
    }
}

struct Walk<'f, 'a> {
    facts: &'f mut Facts<'a>,
    place: Place,
}

impl<'a> Walk<'_, 'a> {
    fn text(self, value: Cow<'a, str>) {
        let facts = self.facts;
        match self.place {
            Place::To(list, personalization, index) => {
                facts.recipients.push(Recipient { email: value, list, personalization, index });
            }
            Place::From => facts.from = Some(value),
            Place::Id => facts.id = Some(value),
            Place::Class => facts.class = Some(value),
            Place::Subject => facts.subject |= !value.is_empty(),
            Place::Content => facts.content |= !value.is_empty(),
            Place::Template => facts.template |= !value.is_empty(),
            _ => {}
        }
    }
}

impl<'a> DeserializeSeed<'a> for Walk<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Walk<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        if matches!(self.place, Place::Content) {
            self.facts.content = true;
        }
        if matches!(self.place, Place::Template) {
            self.facts.template = true;
        }
        while let Some(place) = map.next_key_seed(Key(self.place))? {
            match place {
                Some(place) => map.next_value_seed(Walk { facts: &mut *self.facts, place })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.place.element(index) {
                Some(place) => seq.next_element_seed(Walk { facts: &mut *self.facts, place })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_borrowed_str<E: Error>(self, v: &'a str) -> Result<(), E> {
        self.text(Cow::Borrowed(v));
        Ok(())
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        self.text(Cow::Owned(v.to_owned()));
        Ok(())
    }

    // Values of other types stand where they mean nothing: what is asked for there counts as missing.
    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key, read for where it leads.
struct Key(Place);

impl<'a> DeserializeSeed<'a> for Key {
    type Value = Option<Place>;

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Option<Place>, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<Place>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<Place>, E> {
        Ok(self.0.child(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDGRID: &str = r#"{"personalizations":[{"to":[{"email":"u@gmail.com","name":"U"},{"email":"\u0076@y.org"}],
        "bcc":[{"email":"w@z.org"}],"custom_args":{"x":1}}],"from":{"email":"s@b.org"},"custom_args":{"paceline_id":"m-1","class":"high"},
        "subject":"Hi","attachments":[{"content":[[{"email":7}]]}],"content":[{"type":"text/plain","value":"t"}]}"#;

    #[test]
    fn of_a_sendgrid_request() {
        let facts = Facts::read(Api::SendGrid, SENDGRID.as_bytes(), true).unwrap();
        let recipients: Vec<_> = facts.recipients.iter().map(|r| (&*r.email, r.list, r.personalization, r.index)).collect();
        assert_eq!(recipients, [("u@gmail.com", "to", 0, 0), ("v@y.org", "to", 0, 1), ("w@z.org", "bcc", 0, 0)]);
        assert_eq!(
            (facts.id.as_deref(), facts.class.as_deref(), facts.from.as_deref()),
            (Some("m-1"), Some("high"), Some("s@b.org"))
        );
        assert!(facts.subject && facts.content && !facts.template);
        assert_eq!(facts.domain(), "gmail.com");
    }

    #[test]
    fn of_an_http_request() {
        let body = r#"{"id":"m-1","class":"low","from":{"name":"S","email":"s@b.org"},"to":["u@gmail.com"],"cc":[{"email":"v@y.org"}],"template":{"id":"t"}}"#;
        let facts = Facts::read(Api::Http, body.as_bytes(), true).unwrap();
        assert_eq!(
            (facts.id.as_deref(), facts.class.as_deref(), facts.from.as_deref()),
            (Some("m-1"), Some("low"), Some("s@b.org"))
        );
        assert_eq!((facts.recipients.len(), facts.subject, facts.content, facts.template), (2, false, false, true));
    }

    #[test]
    fn what_stands_before_the_cut_is_known() {
        let cut = SENDGRID.find("attachments").unwrap() + 20;
        let facts = Facts::read(Api::SendGrid, &SENDGRID.as_bytes()[..cut], false).unwrap();
        assert_eq!((facts.id.as_deref(), facts.recipients.len(), facts.content), (Some("m-1"), 3, true));
        assert!(Facts::read(Api::SendGrid, &SENDGRID.as_bytes()[..cut], true).is_err());
    }

    #[test]
    fn hostile_bodies_are_refused_or_hold_nothing() {
        let deep = "[".repeat(100_000);
        for bad in ["", "nonsense", "{", "{\"a\":1}x", &deep, "\u{0}"] {
            assert!(Facts::read(Api::SendGrid, bad.as_bytes(), true).is_err(), "{}", &bad[..bad.len().min(20)]);
        }
        for odd in ["null", "7", "[]", "\"x\"", r#"{"personalizations":7,"from":[],"to":{"email":"a@b.c"}}"#] {
            assert_eq!(Facts::read(Api::SendGrid, odd.as_bytes(), true).unwrap(), Facts::default(), "{odd}");
        }
    }
}
