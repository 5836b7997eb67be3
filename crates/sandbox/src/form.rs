//! HTML forms, URL-encoded or in parts, as far as their fields go.

use std::borrow::Cow;

/// Gives each field to `field`; of a form in parts that was cut, those before the cut. Files are passed over, but for the
/// one named `message`: a whole mail. `None` where it is no form.
pub(crate) fn read<'a>(content_type: &str, body: &'a [u8], field: &mut impl FnMut(&str, Cow<'a, str>)) -> Option<()> {
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    match kind.trim().to_ascii_lowercase().as_str() {
        "application/x-www-form-urlencoded" => {
            form_urlencoded::parse(body).for_each(|(name, value)| field(&name, value));
            Some(())
        }
        "multipart/form-data" => {
            let boundary = parameters.split(';').find_map(|p| p.trim().strip_prefix("boundary="))?.trim_matches('"');
            parts(&format!("--{boundary}"), body, field)
        }
        _ => None,
    }
}

fn parts<'a>(delimiter: &str, body: &'a [u8], field: &mut impl FnMut(&str, Cow<'a, str>)) -> Option<()> {
    let mut rest = body.strip_prefix(delimiter.as_bytes())?;
    let end = format!("\r\n{delimiter}");
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        // Of one that was cut, the end is the end.
        let Some((head, content)) = split(part, b"\r\n\r\n") else { break };
        let (content, after) = split(content, end.as_bytes()).unwrap_or((content, b""));
        let head = String::from_utf8_lossy(head);
        let parameter = |name: &str| head.split_once(&format!(" {name}=\""))?.1.split_once('"').map(|(value, _)| value);
        if let Some(name) = parameter("name")
            && (parameter("filename").is_none() || name == "message")
        {
            field(name, String::from_utf8_lossy(content));
        }
        rest = after;
    }
    Some(())
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mut from = 0;
    loop {
        let found = from + bytes.get(from..)?.iter().position(|b| *b == at[0])?;
        if bytes[found..].starts_with(at) {
            return Some((&bytes[..found], &bytes[found + at.len()..]));
        }
        from = found + 1;
    }
}
