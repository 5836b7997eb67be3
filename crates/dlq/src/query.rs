//! What `paceline dlq list|show|stats` and the API answer.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use paceline_core::DeadLetter;
use paceline_store::{BurstRule, DeadLetters, Error, Filter, Kept, Listed, StateFilter, Stats, Status};
use serde::Serialize;
use serde_json::{Map, Value};

/// How many entries a list shows unless told.
pub const DEFAULT_LIST_LIMIT: u32 = 100;

/// Entries of one message that [`show`] brings at most.
const SHOW_LIMIT: u32 = 100;

/// Entries that match, the latest first; [`DEFAULT_LIST_LIMIT`] unless the filter has a limit.
pub async fn list(store: &dyn DeadLetters, filter: &Filter) -> Result<Vec<Listed>, Error> {
    let limit = Some(filter.limit.unwrap_or(DEFAULT_LIST_LIMIT));
    store.list(&Filter { limit, ..filter.clone() }).await
}

/// The entry with this id, else every entry of the message with this id; with headers and body, whatever their state.
/// Empty when there is none.
pub async fn show(store: &dyn DeadLetters, id: &str) -> Result<Vec<Shown>, Error> {
    let filter = Filter { id: Some(id.to_owned()), state: StateFilter::All, ..Filter::default() };
    let found = store.page(&filter, None, SHOW_LIMIT).await?;
    let own = found.iter().position(|kept| kept.letter.entry.id == id);
    Ok(match own {
        Some(at) => found.into_iter().skip(at).take(1).map(Shown::from).collect(),
        None => found.into_iter().map(Shown::from).collect(),
    })
}

/// Counts by reason, destination and domain, and bursts.
pub async fn stats(store: &dyn DeadLetters, filter: &Filter, rule: &BurstRule) -> Result<Stats, Error> {
    store.stats(filter, rule).await
}

/// An entry with the message it is about.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    pub entry: DeadLetter,
    #[serde(flatten)]
    pub status: Status,
    pub amqp_message_id: Option<String>,
    pub content_type: Option<String>,
    /// A header that is not text, number or truth is `{"base64": …}`.
    pub headers: Map<String, Value>,
    pub body_bytes: usize,
    /// The original, where it is UTF-8.
    pub body: Option<String>,
    /// The original, where it is not.
    pub body_base64: Option<String>,
}

impl From<Kept> for Shown {
    fn from(Kept { letter, status }: Kept) -> Shown {
        let body = std::str::from_utf8(&letter.body).ok().map(str::to_owned);
        let body_base64 = body.is_none().then(|| BASE64.encode(&letter.body));
        Shown {
            entry: letter.entry,
            status,
            amqp_message_id: letter.amqp_message_id,
            content_type: letter.content_type,
            headers: letter.headers,
            body_bytes: letter.body.len(),
            body,
            body_base64,
        }
    }
}

/// The columns of a list for people, in the order of [`table_row`].
pub const TABLE_COLUMNS: [&str; 10] =
    ["ID", "DIED", "STATE", "REASON", "CLASS", "DESTINATION", "ACCOUNT", "TO", "ATTEMPTS", "LAST ERROR"];

/// One entry as cells. Control characters are gone: an entry's words come from outside and must not drive a terminal.
pub fn table_row(Listed { entry, status }: &Listed) -> [String; 10] {
    let or_dash = |text: Option<&str>| printable(text.unwrap_or("-"));
    let last = match (&entry.last_error, &entry.detail) {
        (Some(e), _) => match e.http_status {
            Some(status) => format!("{status} {}: {}", e.code, e.provider_message),
            None => format!("{}: {}", e.code, e.provider_message),
        },
        (None, Some(detail)) => match &entry.field {
            Some(field) => format!("{field}: {detail}"),
            None => detail.clone(),
        },
        (None, None) => "-".to_owned(),
    };
    [
        printable(&entry.id),
        entry.died_at.to_string(),
        status.state.to_string(),
        entry.reason.to_string(),
        or_dash(entry.class.map(|c| c.as_str())),
        or_dash(entry.destination.as_deref()),
        or_dash(entry.account.as_deref()),
        or_dash(entry.to.as_deref()),
        entry.attempts.to_string(),
        printable(&last),
    ]
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use paceline_core::{Class, Journey, Reason, Timestamp, dead_letter::DeadLetterError};
    use paceline_store::{State, StoredDeadLetter};

    use super::*;

    fn entry() -> DeadLetter {
        let at = Timestamp::from_secs(1_800_000_000);
        DeadLetter {
            message_id: Some("m".to_owned()),
            to: Some("user@example.com".to_owned()),
            class: Some(Class::High),
            destination: Some("google".to_owned()),
            domain: Some("gmail.com".to_owned()),
            account: Some("ses-eu".to_owned()),
            first_attempt_at: Some(at),
            last_attempt_at: Some(at),
            attempts: 5,
            last_error: Some(DeadLetterError {
                code: "rate_limited".to_owned(),
                http_status: Some(429),
                provider_message: "Account daily\u{1b}[31m quota exceeded".to_owned(),
            }),
            ..DeadLetter::new("d".to_owned(), Reason::RetryBudgetExhausted, &Journey::starting(at), at)
        }
    }

    fn status() -> Status {
        Status { state: State::Replayed, job: Some("r-1".to_owned()), settled_at: Some(Timestamp::from_secs(1_800_000_060)) }
    }

    fn row(entry: DeadLetter) -> [String; 10] {
        table_row(&Listed { entry, status: status() })
    }

    fn shown(body: &'static [u8]) -> Value {
        let letter = StoredDeadLetter {
            entry: entry(),
            amqp_message_id: None,
            content_type: None,
            headers: Map::new(),
            body: Bytes::from_static(body),
        };
        serde_json::to_value(Shown::from(Kept { letter, status: status() })).unwrap()
    }

    #[test]
    fn the_json_has_the_contracts_shape() {
        let json = shown(b"{}");
        for (field, want) in [
            ("message_id", "m"),
            ("to", "user@example.com"),
            ("class", "high"),
            ("destination", "google"),
            ("domain", "gmail.com"),
            ("account", "ses-eu"),
            ("reason", "retry_budget_exhausted"),
            ("first_attempt_at", "2027-01-15T08:00:00.000000Z"),
            ("last_attempt_at", "2027-01-15T08:00:00.000000Z"),
            ("state", "replayed"),
            ("job", "r-1"),
            ("settled_at", "2027-01-15T08:01:00.000000Z"),
        ] {
            assert_eq!(json[field], want, "{field}");
        }
        assert_eq!(json["attempts"], 5);
        assert_eq!(json["last_error"]["code"], "rate_limited");
        assert_eq!(json["last_error"]["http_status"], 429);
        assert!(json["last_error"]["provider_message"].is_string());
        assert_eq!((json["body"].as_str(), json["body_base64"].as_str()), (Some("{}"), None));
        let json = shown(b"\xff\0");
        assert_eq!(
            (json["body"].as_str(), json["body_base64"].as_str(), json["body_bytes"].as_u64()),
            (None, Some("/wA="), Some(2))
        );
    }

    #[test]
    fn cells_hold_no_control_characters() {
        let cells = row(entry());
        assert_eq!((&*cells[2], &*cells[9]), ("replayed", "429 rate_limited: Account daily [31m quota exceeded"));
        assert!(cells.iter().all(|cell| !cell.chars().any(char::is_control)));
        let invalid = DeadLetter {
            last_error: None,
            to: None,
            field: Some("to[0]".to_owned()),
            detail: Some("has no `@`".to_owned()),
            ..entry()
        };
        assert_eq!((&*row(invalid.clone())[7], &*row(invalid)[9]), ("-", "to[0]: has no `@`"));
    }
}
