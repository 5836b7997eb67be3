//! E-mail addresses and domains, normalised so that equal means equal.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A domain in its ASCII (IDNA) form, lower case, without a trailing dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// Why a text is not a domain or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    #[error("is empty")]
    Empty,
    #[error("has no `@`")]
    NoAt,
    #[error("contains CR, LF, NUL or another control character")]
    Control,
    #[error("has a local part that is empty, too long or malformed")]
    LocalPart,
    #[error("has a domain that is not valid")]
    Domain,
    #[error("is longer than 254 bytes")]
    TooLong,
}

impl Domain {
    /// Normalises case, IDNA and a trailing dot.
    pub fn parse(text: &str) -> Result<Domain, BadAddress> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(BadAddress::Domain);
        }
        // Nearly all domains are plain lower-case ASCII: skip the tables for them.
        let plain = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-')) && !text.contains("xn--");
        let ascii: Arc<str> =
            if plain { text.into() } else { idna::domain_to_ascii(text).map_err(|_| BadAddress::Domain)?.into() };
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if ascii.len() > 253 || !ascii.split('.').all(label) || ascii.split('.').count() < 2 {
            return Err(BadAddress::Domain);
        }
        Ok(Domain(ascii))
    }

    /// The ASCII form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A shared handle on the ASCII form.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An address, `local@domain`; the local part as given, the domain normalised.
///
/// `Debug` shows the domain only: addresses do not belong in logs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmailAddress {
    local: Box<str>,
    domain: Domain,
}

impl EmailAddress {
    /// Parses `local@domain`: a dot-atom or a quoted string, then a domain.
    pub fn parse(text: &str) -> Result<EmailAddress, BadAddress> {
        if text.is_empty() {
            return Err(BadAddress::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(BadAddress::Control);
        }
        if text.len() > 254 {
            return Err(BadAddress::TooLong);
        }
        let (local, domain) = text.rsplit_once('@').ok_or(BadAddress::NoAt)?;
        if local.is_empty() || local.len() > 64 || !(dot_atom(local) || quoted(local)) {
            return Err(BadAddress::LocalPart);
        }
        Ok(EmailAddress { local: local.into(), domain: Domain::parse(domain)? })
    }

    pub fn local(&self) -> &str {
        &self.local
    }

    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

fn dot_atom(local: &str) -> bool {
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_whitespace());
    local.split('.').all(|part| !part.is_empty() && part.chars().all(atom))
}

fn quoted(local: &str) -> bool {
    let Some(inner) = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) else { return false };
    let mut escaped = false;
    for c in inner.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return false,
            _ => {}
        }
    }
    local.len() >= 2 && !escaped
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "…@{}", self.domain)
    }
}

impl Serialize for EmailAddress {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EmailAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = EmailAddress;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an e-mail address such as \"user@example.com\"")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<EmailAddress, E> {
                EmailAddress::parse(v).map_err(|e| E::custom(format_args!("the address {e}")))
            }
        }
        d.deserialize_str(Text)
    }
}

/// An address with an optional display name: `"a@b"` or `{"email": "a@b", "name": "A"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    pub email: EmailAddress,
    pub name: Option<Box<str>>,
}

impl Serialize for Mailbox {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        match &self.name {
            None => self.email.serialize(s),
            Some(name) => {
                let mut out = s.serialize_struct("Mailbox", 2)?;
                out.serialize_field("email", &self.email)?;
                out.serialize_field("name", name)?;
                out.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Mailbox {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            email: EmailAddress,
            name: Option<Box<str>>,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Mailbox;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address: \"user@example.com\" or {\"email\": …, \"name\": …}")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Mailbox, E> {
                let email = EmailAddress::parse(v).map_err(|e| E::custom(format_args!("the address {e}")))?;
                Ok(Mailbox { email, name: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Mailbox, A::Error> {
                let f = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if f.name.as_deref().is_some_and(|n| n.chars().any(char::is_control)) {
                    return Err(de::Error::custom("the name contains CR, LF, NUL or another control character"));
                }
                Ok(Mailbox { email: f.email, name: f.name })
            }
        }
        d.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_normalised() {
        for (text, want) in [
            ("gmail.com", "gmail.com"),
            ("GMail.COM.", "gmail.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example.", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(Domain::parse(text).unwrap().as_str(), want, "{text}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a.com",
            "a-.com",
            "localhost",
            "a b.com",
            "exa mple.com",
            "xn--.com",
            "a.com..",
            "[127.0.0.1]",
        ] {
            assert!(Domain::parse(bad).is_err(), "{bad}");
        }
        assert!(Domain::parse(&format!("{}.com", "a".repeat(64))).is_err());
    }

    #[test]
    fn addresses() {
        let a = EmailAddress::parse("Jo.Do+tag@GMAIL.com").unwrap();
        assert_eq!((a.local(), a.domain().as_str()), ("Jo.Do+tag", "gmail.com"));
        assert_eq!(a.to_string(), "Jo.Do+tag@gmail.com");
        assert_eq!(format!("{a:?}"), "…@gmail.com", "no address in a log");
        for good in ["\"a b\"@x.org", "o'neil@x.org", "üser@x.org", "\"a\\\"b\"@x.org"] {
            assert!(EmailAddress::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "@x.org",
            "a@",
            "a b@x.org",
            "a@x",
            ".a@x.org",
            "a.@x.org",
            "a..b@x.org",
            "a@x.org\r\nBcc: b@y.org",
            "<a@x.org>",
            "A <a@x.org>",
            "a@b@x.org",
            "\"a\"b\"@x.org",
            "a\0@x.org",
        ] {
            assert!(EmailAddress::parse(bad).is_err(), "{bad:?}");
        }
    }
}
