//! A dead letter as it is published again. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use paceline_broker::{HeaderValue, Headers, Outgoing, Properties, Purpose, Route, is_broker_header};
use paceline_core::{DeadLetter, Domain, Journey, Mailbox, Message, Reason, Timestamp, journey::header};
use paceline_store::StoredDeadLetter;
use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Names one published copy: the job's id for the first entry of a message in the job, `<id>.2` for the second, and so
/// on. Each is a claim of its own, and the same each time it is published.
pub(crate) fn replay_id(job: &str, copy: u32) -> String {
    if copy == 0 { job.to_owned() } else { format!("{job}.{}", u64::from(copy) + 1) }
}

/// What is published for an entry: the original body and the producer's own headers, with a journey that starts anew.
///
/// An entry about one recipient of several goes to that recipient alone; every other body is the original's bytes.
///
/// # Errors
/// In words, where it must not be published: nobody but the named recipient may get it. They hold no address.
pub(crate) fn outgoing(replay: String, letter: &StoredDeadLetter, now: Timestamp) -> Result<Outgoing, &'static str> {
    let entry = &letter.entry;
    let body = match narrowed(letter)? {
        Some(body) => body,
        None => letter.body.clone(),
    };
    let known = digest(letter);
    let digest = if body == letter.body { known } else { known.or_else(|| Some(xxh3_64(&letter.body))) };
    let journey = Journey { replay: Some(replay), digest, ..Journey::starting(now) };
    let mut headers = producers_headers(letter);
    headers.extend(journey.to_headers().into_iter().map(|(name, value)| (name.to_owned(), HeaderValue::Text(value))));
    let domain = entry.domain.as_deref().and_then(|d| Domain::parse(d).ok());
    let (to, key) = match (entry.class, domain) {
        (Some(class), Some(domain)) => (Route::Producers, format!("{class}.{domain}")),
        // Only what could not be read lacks either: it is looked at anew.
        (class, _) => (Route::Intake, class.map(|c| c.to_string()).unwrap_or_default()),
    };
    let properties = Properties {
        message_id: letter.amqp_message_id.clone(),
        content_type: letter.content_type.clone(),
        timestamp: Some(now),
        headers,
    };
    Ok(Outgoing { to, key, body, properties, purpose: Purpose::Replay })
}

/// The body for one recipient alone; `None` where the entry is about the message as it is.
fn narrowed(letter: &StoredDeadLetter) -> Result<Option<Bytes>, &'static str> {
    let entry = &letter.entry;
    let Some(to) = entry.to.as_deref().filter(|_| is_about_one(entry)) else { return Ok(None) };
    let message = Message::parse(&letter.body, letter.amqp_message_id.as_deref(), usize::MAX);
    let mut message = message.map_err(|_| "the entry is for one recipient, and its message cannot be read any more")?;
    if message.recipient_count() == 1 && message.to[0].email.to_string() == to {
        return Ok(None);
    }
    let everyone = message.to.iter().chain(&message.cc).chain(&message.bcc);
    let named: Option<Mailbox> = everyone.into_iter().find(|m| m.email.to_string() == to).cloned();
    let named = named.ok_or("the entry is for one recipient, and its message does not name them")?;
    (message.to, message.cc, message.bcc) = (vec![named], vec![], vec![]);
    match serde_json::to_vec(&message) {
        Ok(body) => Ok(Some(body.into())),
        Err(_) => Err("the message cannot be written again for its one recipient"),
    }
}

/// Whether the entry is about one recipient of several, of whom the others have the message or may still get it: its id
/// tells. Who is refused or suppressed mostly is one of several, so there every id counts but the whole message's.
pub(crate) fn is_about_one(entry: &DeadLetter) -> bool {
    let (id, replay) = (entry.message_id.as_deref().unwrap_or_default(), entry.replay.as_deref().unwrap_or_default());
    let is_of = |whose: &str| entry.id == entry_id(id, replay, whose, 0);
    match entry.reason {
        Reason::RejectedRecipient | Reason::Suppressed => !is_of(""),
        _ => entry.to.as_deref().is_some_and(is_of),
    }
}

/// How workers name entries: by message, replay, recipient (empty for the whole message) and the digest of a body that
/// conflicts.
pub(crate) fn entry_id(message_id: &str, replay: &str, whose: &str, conflict: u64) -> String {
    format!("{:032x}", xxh3_128(format!("{message_id}\0{replay}\0{whose}\0{conflict:x}").as_bytes()))
}

/// The digest of the body as its producer published it, where the message had been through a change of recipients.
fn digest(letter: &StoredDeadLetter) -> Option<u64> {
    u64::from_str_radix(letter.headers.get(header::DIGEST)?.as_str()?, 16).ok()
}

/// Neither the journey's nor the broker's.
fn producers_headers(letter: &StoredDeadLetter) -> Headers {
    let own = |name: &str| name.starts_with("x-paceline-") || is_broker_header(name);
    let kept = letter.headers.iter().filter(|(name, _)| !own(name));
    kept.filter_map(|(name, value)| Some((name.clone(), header_value(value)?))).collect()
}

/// The inverse of what the writer makes of a header.
fn header_value(value: &Value) -> Option<HeaderValue> {
    Some(match value {
        Value::Bool(truth) => HeaderValue::Bool(*truth),
        Value::Number(number) => HeaderValue::Int(number.as_i64()?),
        Value::String(text) => HeaderValue::Text(text.clone()),
        Value::Object(map) => {
            let bytes = BASE64.decode(map.get("base64")?.as_str()?).ok()?;
            match String::from_utf8(bytes) {
                Ok(text) => HeaderValue::Text(text),
                Err(e) => HeaderValue::Bytes(e.into_bytes().into()),
            }
        }
        Value::Null | Value::Array(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use paceline_core::Class;
    use serde_json::json;

    use super::*;

    const BODY: &[u8] = br#"{ "id":"m1", "from":"a@example.com", "to":["b@gmail.com",{"email":"c@x.org","name":"C"}],
        "cc":["d@x.org"], "bcc":["e@x.org"], "text":"hi", "tags":["t"] }"#;

    fn now() -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    fn letter(reason: Reason, to: Option<&str>, id: &str) -> StoredDeadLetter {
        let old = Journey { attempts: 5, failures: 5, ..Journey::starting(now()) };
        let headers = json!({"x-trace": "abc", "x-n": -3, "x-b": true, "x-raw": {"base64": "/wA="}, "x-nul": {"base64": "YQBi"},
            "x-paceline-attempts": "5", "x-paceline-failures": "5", "x-paceline-replay": "r-old", "x-death-count": 4,
            "x-list": [1], "x-paceline-enqueued-at": "2020-01-01T00:00:00Z", "x-paceline-not-before": "2999-01-01T00:00:00Z"});
        let Value::Object(headers) = headers else { unreachable!() };
        StoredDeadLetter {
            entry: DeadLetter {
                message_id: Some("m1".into()),
                to: to.map(str::to_owned),
                class: Some(Class::High),
                domain: Some("gmail.com".into()),
                ..DeadLetter::new(id.to_owned(), reason, &old, now())
            },
            amqp_message_id: Some("amqp-1".into()),
            content_type: Some("application/json".into()),
            headers,
            body: Bytes::from_static(BODY),
        }
    }

    fn made(letter: &StoredDeadLetter) -> Outgoing {
        outgoing("r-1".into(), letter, now()).unwrap()
    }

    #[test]
    fn the_original_goes_out_byte_for_byte_on_a_new_journey() {
        for reason in Reason::ALL {
            let out = made(&letter(reason, None, "d"));
            assert_eq!((&*out.body, out.purpose, out.key.as_str()), (BODY, Purpose::Replay, "high.gmail.com"), "{reason}");
            assert_eq!(out.to, Route::Producers);
        }
        let out = made(&letter(Reason::RetryBudgetExhausted, Some("b@gmail.com"), "d"));
        assert_eq!(&*out.body, BODY);
        let properties = out.properties;
        assert_eq!((properties.message_id.as_deref(), properties.timestamp), (Some("amqp-1"), Some(now())));
        assert_eq!(properties.content_type.as_deref(), Some("application/json"));
        let text = |t: &str| HeaderValue::Text(t.to_owned());
        let want: Headers = [
            ("x-trace", text("abc")),
            ("x-n", HeaderValue::Int(-3)),
            ("x-b", HeaderValue::Bool(true)),
            ("x-raw", HeaderValue::Bytes(Bytes::from_static(b"\xff\0"))),
            ("x-nul", text("a\0b")),
            ("x-paceline-attempts", text("0")),
            ("x-paceline-failures", text("0")),
            ("x-paceline-enqueued-at", text("2027-01-15T08:00:00.000000Z")),
            ("x-paceline-replay", text("r-1")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        assert_eq!(properties.headers, want);
    }

    #[test]
    fn an_entry_for_one_recipient_goes_to_that_one_alone() {
        for (whose, name) in [("b@gmail.com", None), ("c@x.org", Some("C")), ("d@x.org", None), ("e@x.org", None)] {
            for reason in [Reason::RejectedRecipient, Reason::Suppressed, Reason::RetryBudgetExhausted] {
                let id = entry_id("m1", "", whose, 0);
                let out = made(&letter(reason, Some(whose), &id));
                let message = Message::parse(&out.body, None, 10_000).unwrap();
                assert_eq!(message.recipients().map(ToString::to_string).collect::<Vec<_>>(), [whose]);
                assert_eq!(message.to[0].name.as_deref(), name);
                assert_eq!((message.id.as_str(), message.tags.as_slice()), ("m1", ["t".to_owned()].as_slice()));
                let digest = HeaderValue::Text(format!("{:016x}", xxh3_64(BODY)));
                assert_eq!(out.properties.headers[header::DIGEST], digest);
            }
        }
    }

    #[test]
    fn a_message_whose_every_recipient_was_refused_goes_to_all_of_them() {
        let id = entry_id("m1", "", "", 0);
        assert_eq!(&*made(&letter(Reason::RejectedRecipient, Some("b@gmail.com"), &id)).body, BODY);
        let mut again = letter(Reason::RejectedRecipient, Some("b@gmail.com"), &entry_id("m1", "r-0", "", 0));
        again.entry.replay = Some("r-0".into());
        assert_eq!(&*made(&again).body, BODY);
    }

    #[test]
    fn an_only_recipients_body_stays_as_it_is() {
        let mut one = letter(Reason::RejectedRecipient, Some("b@gmail.com"), "d");
        one.body = Bytes::from_static(br#"{"id":"m1" ,"from":"a@example.com","to":["b@gmail.com"],"text":"hi"}"#);
        assert_eq!(made(&one).body, one.body);
    }

    #[test]
    fn nobody_but_the_named_recipient_ever_gets_it() {
        let stranger = letter(Reason::RejectedRecipient, Some("z@x.org"), "d");
        assert!(outgoing("r-1".into(), &stranger, now()).is_err_and(|why| why.contains("does not name them")));
        let mut broken = letter(Reason::Suppressed, Some("b@gmail.com"), "d");
        broken.body = Bytes::from_static(b"\xff");
        assert!(outgoing("r-1".into(), &broken, now()).is_err_and(|why| why.contains("cannot be read")));
    }

    #[test]
    fn a_digest_that_was_there_stays() {
        let mut shrunk = letter(Reason::RetryBudgetExhausted, None, "d");
        shrunk.headers.insert(header::DIGEST.to_owned(), json!("00000000000000ff"));
        assert_eq!(made(&shrunk).properties.headers[header::DIGEST], "00000000000000ff".into());
        let mut one = letter(Reason::RejectedRecipient, Some("d@x.org"), "d");
        one.headers.insert(header::DIGEST.to_owned(), json!("00000000000000ff"));
        assert_eq!(made(&one).properties.headers[header::DIGEST], "00000000000000ff".into());
    }

    #[test]
    fn what_could_not_be_read_goes_to_the_intake() {
        let mut raw = letter(Reason::InvalidMessage, None, "raw-1");
        raw.entry.domain = None;
        assert_eq!((made(&raw).to, made(&raw).key.as_str()), (Route::Intake, "high"));
        raw.entry.class = None;
        assert_eq!((made(&raw).to, made(&raw).key.as_str()), (Route::Intake, ""));
        raw.entry = DeadLetter { class: Some(Class::Low), domain: Some("not a domain".into()), ..raw.entry };
        assert_eq!(made(&raw).to, Route::Intake);
    }

    #[test]
    fn each_copy_has_a_name_of_its_own() {
        assert_eq!([0, 1, 2, u32::MAX].map(|n| replay_id("r-1", n)), ["r-1", "r-1.2", "r-1.3", "r-1.4294967296"]);
    }
}
