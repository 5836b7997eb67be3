//! Reading what providers write: lenient in what is left out or of another kind, bounded in everything.

use std::{fmt, marker::PhantomData, ops::Deref, time::Duration};

use paceline_core::{
    EmailAddress, ProviderAnswer, Timestamp,
    feedback::{self, Event, Kind, Source},
};
use ring::digest::{SHA256, digest};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor as _},
};
use serde_json::value::RawValue;

use super::{MAX_EVENTS, Refusal};

/// Longest id kept as it is.
const MAX_ID: usize = 200;
/// How far the signed time may lie ahead of this clock.
const AHEAD: Duration = Duration::from_secs(300);

/// What one request holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub events: Vec<Event>,
    /// Events of kinds that nothing here acts on, such as opened.
    pub ignored: usize,
    /// Those that could not be read, though what signs them holds.
    pub unreadable: usize,
}

impl Batch {
    /// Adds an event, or counts it where its recipient is none.
    pub(super) fn add(&mut self, account: &str, now: Timestamp, draft: Draft<'_>) {
        let Some(recipient) = address(draft.recipient) else {
            self.unreadable += 1;
            return;
        };
        let (code, enhanced) = feedback::codes(draft.words);
        self.events.push(Event {
            event_id: bounded_id(&draft.id),
            account: account.to_owned(),
            kind: draft.kind,
            source: draft.source,
            recipient,
            message_id: draft.message_id.and_then(feedback::message_id),
            provider_id: draft.provider_id.filter(|id| id.len() <= MAX_ID).map(str::to_owned),
            answer: ProviderAnswer::new(&draft.code.chars().take(64).collect::<String>(), draft.status.or(code), draft.words),
            enhanced_status: draft.enhanced_status.and_then(feedback::enhanced_status).or(enhanced),
            // Nothing has happened yet in the future.
            at: draft.at.map_or(now, |at| at.min(now)),
        });
    }

    /// Reads each element of an array with `read`, which counts what it passes over.
    pub(super) fn each<T: for<'de> Deserialize<'de>>(body: &[u8], mut read: impl FnMut(&mut Batch, T)) -> Result<Batch, Refusal> {
        let elements: Vec<&RawValue> = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        if elements.len() > MAX_EVENTS {
            return Err(Refusal::TooLarge);
        }
        let mut batch = Batch::default();
        for element in elements {
            match serde_json::from_str(element.get()) {
                Ok(element) => read(&mut batch, element),
                Err(_) => batch.unreadable += 1,
            }
        }
        Ok(batch)
    }

    /// Reads a body that is one event.
    pub(super) fn one<'de, T: Deserialize<'de>>(body: &'de [u8], read: impl FnOnce(&mut Batch, T)) -> Result<Batch, Refusal> {
        let mut batch = Batch::default();
        match serde_json::from_slice(body) {
            Ok(event) => read(&mut batch, event),
            Err(e) if e.is_data() => batch.unreadable += 1,
            Err(_) => return Err(Refusal::Malformed),
        }
        Ok(batch)
    }
}

/// An event as its provider tells it. What is left out is found in `words` where it can be.
pub(super) struct Draft<'a> {
    /// Unique within the account.
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) source: Source,
    pub(super) recipient: &'a str,
    pub(super) message_id: Option<&'a str>,
    pub(super) provider_id: Option<&'a str>,
    /// The provider's word for it.
    pub(super) code: &'a str,
    pub(super) status: Option<u16>,
    pub(super) enhanced_status: Option<&'a str>,
    pub(super) words: &'a str,
    pub(super) at: Option<Timestamp>,
}

/// Whether a signed time is near enough to now.
pub(super) fn fresh(signed: Timestamp, now: Timestamp, tolerance: Duration) -> bool {
    signed + tolerance >= now && signed <= now + AHEAD
}

/// Seconds of the Unix epoch, ten digits and nothing else.
pub(super) fn epoch_seconds(text: &str) -> Option<Timestamp> {
    let digits = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok().map(Timestamp::from_secs)).flatten()
}

/// Seconds of the Unix epoch with any fraction, or RFC 3339.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..1e11).contains(&seconds) => Some(Timestamp::from_micros((seconds * 1e6) as i64)),
        Ok(_) => None,
        Err(_) => text.parse().ok(),
    }
}

/// `a@b` or `Name <a@b>`.
pub(super) fn address(text: &str) -> Option<EmailAddress> {
    let text = text.trim();
    let bare = text.strip_suffix('>').and_then(|t| t.rsplit_once('<')).map_or(text, |(_, address)| address);
    EmailAddress::parse(bare).ok()
}

/// Names one of several that belong to one event, without telling an address.
pub(super) fn id_of(event: &str, recipient: &str) -> String {
    format!("{event}/{}", &hex(digest(&SHA256, recipient.as_bytes()).as_ref())[..16])
}

fn bounded_id(id: &str) -> String {
    if id.len() <= MAX_ID && !id.chars().any(char::is_control) {
        return id.to_owned();
    }
    hex(digest(&SHA256, id.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of hexadecimal text in either case.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if let [a, b] = pair { Some(digit(*a)? << 4 | digit(*b)?) } else { None }).collect()
}

/// A text; numbers and truths count as their text, everything else as an empty one.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// The text, where there is any.
    pub(super) fn given(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|t| !t.is_empty())
    }

    pub(super) fn time(&self) -> Option<Timestamp> {
        time(&self.0)
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Text, D::Error> {
        struct AnyText;
        impl<'de> de::Visitor<'de> for AnyText {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, v: &str) -> Result<Text, E> {
                Ok(Text(v.to_owned()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::default())
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Text, A::Error> {
                drain(seq).map(|()| Text::default())
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                de::IgnoredAny.visit_map(map).map(|_| Text::default())
            }
        }
        d.deserialize_any(AnyText)
    }
}

fn drain<'de, A: de::SeqAccess<'de>>(seq: A) -> Result<(), A::Error> {
    de::IgnoredAny.visit_seq(seq).map(|_| ())
}

/// An object; anything else counts as one without fields.
#[derive(Debug, Default)]
pub(super) struct Object<T>(T);

impl<T> Deref for Object<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Object<T>, D::Error> {
        struct AnyObject<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> de::Visitor<'de> for AnyObject<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Object<T>, A::Error> {
                drain(seq).map(|()| Object::default())
            }
            fn visit_str<E>(self, _: &str) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
            fn visit_unit<E>(self) -> Result<Object<T>, E> {
                Ok(Object::default())
            }
        }
        d.deserialize_any(AnyObject(PhantomData))
    }
}

/// What a provider carries for us beside the message.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Carried {
    #[serde(default)]
    pub(super) paceline_id: Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_can_stand_anywhere() {
        #[derive(Deserialize)]
        struct Probe {
            #[serde(default)]
            text: Text,
            #[serde(default)]
            object: Object<Carried>,
        }
        for (value, want) in [
            ("\"a\"", "a"),
            ("5", "5"),
            ("-1", "-1"),
            ("1.5", "1.5"),
            ("true", "true"),
            ("null", ""),
            ("[1,[2]]", ""),
            ("{\"a\":{}}", ""),
        ] {
            let probe: Probe = serde_json::from_str(&format!("{{\"text\":{value},\"object\":{value},\"x\":{value}}}")).unwrap();
            assert_eq!((&*probe.text, &*probe.object.paceline_id), (want, ""), "{value}");
        }
        let probe: Probe = serde_json::from_str("{\"object\":{\"paceline_id\":7}}").unwrap();
        assert_eq!((probe.text.given(), probe.object.paceline_id.given()), (None, Some("7")));
    }

    #[test]
    fn times() {
        let at = Timestamp::from_secs(1_800_000_000);
        for text in ["1800000000", "1800000000.0", "2027-01-15T08:00:00Z", "2027-01-15T03:00:00.0000000-05:00"] {
            assert_eq!(time(text), Some(at), "{text}");
        }
        for text in ["", "NaN", "inf", "-1", "1e300", "soon"] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!(epoch_seconds("1800000000"), Some(at));
        for text in ["", "180000000", "18000000000", "1800000000 ", "+180000000", "1800000000.0"] {
            assert_eq!(epoch_seconds(text), None, "{text}");
        }
        let minute = Duration::from_secs(60);
        assert!(fresh(at, at, minute) && fresh(at, at + minute, minute) && fresh(at + AHEAD, at, minute));
        assert!(!fresh(at, at + minute + minute, minute) && !fresh(at + AHEAD + minute, at, minute));
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(from_hex("00fFa1"), Some(vec![0, 255, 161]));
        for bad in ["0", "zz", "+1", "é"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_with_and_without_names() {
        for text in ["jo@x.org", " jo@x.org ", "Jo <jo@x.org>", "\"<a>\" <jo@x.org>", "<jo@x.org>"] {
            assert_eq!(address(text).map(|a| a.to_string()).as_deref(), Some("jo@x.org"), "{text}");
        }
        assert_eq!(address("Jo <>"), None);
    }

    #[test]
    fn ids_are_bounded_and_tell_no_address() {
        assert_eq!(bounded_id("a-1"), "a-1");
        assert_eq!((bounded_id(&"x".repeat(1000)).len(), bounded_id("a\nb").len()), (64, 64));
        assert!(!id_of("e", "jo@x.org").contains("jo") && id_of("e", "a@x.org") != id_of("e", "b@x.org"));
    }
}
