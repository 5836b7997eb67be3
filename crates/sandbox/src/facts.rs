//! What the sandbox wants to know of a request: who it is for, who from, which message; nothing else is kept.

mod address;
mod place;

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::{
    address::{address, addresses},
    place::Place,
};
use crate::{api::Api, form};

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
    /// Of personalizations with an id of their own.
    ids: Vec<(usize, Cow<'a, str>)>,
    /// Name of the tag being read.
    tag: Option<Cow<'a, str>>,
}

/// A body that cannot be read in its API's form.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl<'a> Facts<'a> {
    /// Reads a body. Of one that was cut (`whole` is false) it takes what stands before the cut; the rest counts as fine.
    /// `content_type` matters to forms only.
    ///
    /// # Errors
    /// It is no JSON, or no form where the API wants one.
    pub(crate) fn read(api: Api, content_type: &str, body: &'a [u8], whole: bool) -> Result<Facts<'a>, Unreadable> {
        let mut facts = Facts::default();
        if api == Api::Mailgun {
            let mut field = |name: &str, value: Cow<'a, str>| {
                if let Some(place) = Place::of_field(name) {
                    Walk { facts: &mut facts, place }.text(value);
                }
            };
            form::read(content_type, body, &mut field).ok_or(Unreadable)?;
        } else {
            let mut reader = serde_json::Deserializer::from_slice(body);
            let read = Walk { facts: &mut facts, place: Place::Top(api) }.deserialize(&mut reader);
            match read.and_then(|()| reader.end()) {
                Err(error) if whole || !error.is_eof() => return Err(Unreadable),
                Err(_) | Ok(()) => {}
            }
        }
        if !whole {
            facts.subject = true;
            facts.content = true;
        }
        Ok(facts)
    }

    /// Reads a body of many messages: a list of them, or the list under `Messages`.
    ///
    /// # Errors
    /// It is no such JSON, or was cut.
    pub(crate) fn read_batch(api: Api, body: &'a [u8], whole: bool) -> Result<Vec<Facts<'a>>, Unreadable> {
        let mut all = Vec::new();
        let mut reader = serde_json::Deserializer::from_slice(body);
        let read = Many { api, all: &mut all }.deserialize(&mut reader).and_then(|()| reader.end());
        if read.is_ok() && whole { Ok(all) } else { Err(Unreadable) }
    }

    /// The messages of a request whose personalizations are one each; `None` where the request is one message.
    pub(crate) fn split(&self) -> Option<Vec<Facts<'a>>> {
        let one = |(n, id): &(usize, Cow<'a, str>)| Facts {
            id: Some(id.clone()),
            class: self.class.clone(),
            from: self.from.clone(),
            recipients: self.recipients.iter().filter(|r| r.personalization == *n).cloned().collect(),
            ids: Vec::new(),
            tag: None,
            ..*self
        };
        (self.ids.len() > 1).then(|| self.ids.iter().map(one).collect())
    }

    /// Domain of the first recipient.
    pub(crate) fn domain(&self) -> &str {
        self.recipients.first().map_or("", Recipient::domain)
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
                facts.recipients.push(Recipient { email: address(value), list, personalization, index });
            }
            // Several in one text, separated by commas.
            Place::List(list, personalization) => {
                for email in addresses(&value) {
                    let index = facts.recipients.iter().filter(|r| r.list == list).count();
                    facts.recipients.push(Recipient { email: email.into(), list, personalization, index });
                }
            }
            Place::From => facts.from = Some(address(value)),
            Place::Id => facts.id = Some(value),
            Place::IdOf(n) => {
                facts.id = Some(value.clone());
                facts.ids.push((n, value));
            }
            Place::Class => facts.class = Some(value),
            Place::Subject => facts.subject |= !value.is_empty(),
            Place::Content => facts.content |= !value.is_empty(),
            Place::Raw => {
                facts.subject = true;
                facts.content |= !value.is_empty();
            }
            Place::Template => facts.template |= !value.is_empty(),
            Place::TagName => facts.tag = Some(value),
            Place::TagValue => match facts.tag.take().as_deref() {
                Some("paceline_id") => facts.id = Some(value),
                Some("class") => facts.class = Some(value),
                _ => {}
            },
            _ => {}
        }
    }
}

/// A list of messages.
struct Many<'f, 'a> {
    api: Api,
    all: &'f mut Vec<Facts<'a>>,
}

impl<'a> DeserializeSeed<'a> for Many<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Many<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of messages")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == "Messages" {
                map.next_value_seed(Many { api: self.api, all: &mut *self.all })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        loop {
            let mut facts = Facts::default();
            if seq.next_element_seed(Walk { facts: &mut facts, place: Place::Top(self.api) })?.is_none() {
                return Ok(());
            }
            self.all.push(facts);
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
        match self.place {
            Place::Content => self.facts.content = true,
            Place::Template => self.facts.template = true,
            Place::Raw => (self.facts.subject, self.facts.content) = (true, true),
            Place::Tag => self.facts.tag = None,
            _ => {}
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
        // Postmark's templates have numbers.
        self.facts.template |= matches!(self.place, Place::Template);
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
mod tests;
