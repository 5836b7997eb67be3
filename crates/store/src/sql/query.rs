//! A statement and its values. Text from outside is always a value.

use std::fmt::Write as _;

use paceline_core::Timestamp;

/// One parameter; `None` is null.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(Option<String>),
    Int(Option<i64>),
    Time(Option<Timestamp>),
    Json(serde_json::Value),
    Bytes(bytes::Bytes),
    Texts(Vec<String>),
    Ints(Vec<i64>),
}

macro_rules! from {
    ($($type:ty => |$it:ident| $value:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($it: $type) -> Value {
                $value
            }
        }
    )*};
}

from! {
    &str => |it| Value::Text(Some(it.to_owned()));
    String => |it| Value::Text(Some(it));
    Option<&str> => |it| Value::Text(it.map(str::to_owned));
    Option<String> => |it| Value::Text(it);
    i64 => |it| Value::Int(Some(it));
    u32 => |it| Value::Int(Some(it.into()));
    u64 => |it| Value::Int(Some(i64::try_from(it).unwrap_or(i64::MAX)));
    Option<i64> => |it| Value::Int(it);
    Timestamp => |it| Value::Time(Some(it));
    Option<Timestamp> => |it| Value::Time(it);
    serde_json::Value => |it| Value::Json(it);
    bytes::Bytes => |it| Value::Bytes(it);
    Vec<String> => |it| Value::Texts(it);
    Vec<i64> => |it| Value::Ints(it);
}

/// A statement under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pub(crate) text: String,
    pub(crate) values: Vec<Value>,
}

impl Query {
    pub(crate) fn new(text: impl Into<String>) -> Query {
        Query { text: text.into(), values: Vec::new() }
    }

    /// A statement with `$1`, `$2` … in it, and their values.
    pub(crate) fn with<const N: usize>(text: impl Into<String>, values: [Value; N]) -> Query {
        Query { text: text.into(), values: values.into() }
    }

    pub(crate) fn push(&mut self, text: &str) -> &mut Query {
        self.text.push_str(text);
        self
    }

    /// Adds the value, and its place in the text.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> &mut Query {
        let n = self.value(value);
        // Writing to a string cannot fail.
        let _ = write!(self.text, "${n}");
        self
    }

    /// Adds the value alone; the answer is its number.
    pub(crate) fn value(&mut self, value: impl Into<Value>) -> usize {
        self.values.push(value.into());
        self.values.len()
    }
}
