//! Request bodies in JSON.

use paceline_core::{Message, Outcome};
use serde::Serialize;

use crate::answer::refuse;

/// `body` as JSON, in a vector made large enough for `message` at once.
///
/// # Errors
/// None in practice: a vector takes any bytes, and all keys are strings.
pub(crate) fn body(body: &impl Serialize, message: &Message) -> Result<Vec<u8>, Box<Outcome>> {
    write(body, expected_len(message))
}

/// Likewise, in a vector of `capacity` to begin with.
pub(crate) fn write(body: &impl Serialize, capacity: usize) -> Result<Vec<u8>, Box<Outcome>> {
    let mut bytes = Vec::with_capacity(capacity);
    match serde_json::to_writer(&mut bytes, body) {
        Ok(()) => Ok(bytes),
        Err(_) => refuse("body", "cannot be written as JSON"),
    }
}

/// About how long a message is in any form.
pub(crate) fn expected_len(message: &Message) -> usize {
    let large: usize = message.attachments.iter().map(|a| a.content.len() + 128).sum();
    let text = message.text.as_ref().map_or(0, String::len) + message.html.as_ref().map_or(0, String::len);
    1024 + large + text + text / 8
}
