//! A provider that does as the message says.

use super::*;

/// Answers by what the message's stream says; keeps every call.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) calls: Mutex<Vec<(String, Vec<String>)>>,
    pub(crate) keys: Mutex<Vec<String>>,
    /// The ids of each call for several.
    pub(crate) batches: Mutex<Vec<Vec<String>>>,
    pub(crate) hang: tokio::sync::Notify,
    /// Every call is refused because of the account.
    pub(crate) refusing: AtomicBool,
}

impl Script {
    pub(crate) fn calls_of(&self, id: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|(i, _)| i == id).count()
    }

    pub(crate) fn total(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

pub(crate) fn words(code: &str, status: u16) -> ProviderAnswer {
    ProviderAnswer::new(code, Some(status), "as scripted")
}

#[async_trait]
impl Provider for Script {
    async fn send(&self, attempt: Attempt<'_>) -> Outcome {
        let m = attempt.message;
        let to = m.recipients().map(ToString::to_string).collect();
        self.keys.lock().unwrap().push(attempt.idempotency_key.to_owned());
        let nth = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((m.id.clone(), to));
            calls.iter().filter(|(i, _)| *i == m.id).count()
        };
        if self.refusing.load(Ordering::Relaxed) {
            // Calls take a moment: others are under way meanwhile.
            sleep(Duration::from_millis(20)).await;
            return Outcome::Rejected { what: Rejected::Account, answer: words("unauthorized", 401) };
        }
        match m.stream.as_deref() {
            Some("blocked") => {
                let hours = Some(Duration::from_secs(4 * 3600));
                Outcome::ReputationBlock { retry_after: hours, answer: words("on_block_list", 554) }
            }
            Some("fail-twice") if nth <= 2 => Outcome::Temporary { retry_after: None, answer: words("unavailable", 503) },
            Some("fail") => Outcome::Temporary { retry_after: None, answer: words("unavailable", 503) },
            Some("throttled-once") if nth == 1 => Outcome::Throttled {
                scope: Scope::Destination,
                retry_after: Some(Duration::from_millis(20)),
                answer: words("rate_limited", 429),
            },
            Some("turned-away") => {
                Outcome::Throttled { scope: Scope::Connection, retry_after: None, answer: words("too_many_connections", 421) }
            }
            Some("reject") => Outcome::Rejected { what: Rejected::Message, answer: words("bad_request", 400) },
            Some("reject-second") if m.recipient_count() > 1 => {
                Outcome::Rejected { what: Rejected::Recipients(vec![m.to[1].email.clone()]), answer: words("bad_recipient", 400) }
            }
            Some("divided") => divided::by_name(m, nth),
            Some("divided-hang") => {
                if nth == 1 {
                    self.hang.notified().await;
                }
                divided::by_name(m, nth)
            }
            Some("lost-once") if nth > 1 => Outcome::accepted(None),
            Some("lost" | "lost-once") => Outcome::Uncertain { answer: ProviderAnswer::new("timeout", None, "") },
            Some("hang") => {
                self.hang.notified().await;
                Outcome::accepted(None)
            }
            _ => Outcome::accepted(Some("p-1".into())),
        }
    }

    fn idempotent(&self) -> bool {
        false
    }

    fn max_batch(&self) -> usize {
        500
    }

    fn batch_key(&self, _: &Message) -> Option<u64> {
        Some(0)
    }

    async fn send_batch(&self, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
        self.batches.lock().unwrap().push(attempts.iter().map(|a| a.message.id.clone()).collect());
        let mut outcomes = Vec::new();
        for attempt in attempts {
            outcomes.push(self.send(*attempt).await);
        }
        if attempts.iter().any(|a| a.message.stream.as_deref() == Some("cut-short")) {
            outcomes.truncate(1);
        }
        outcomes
    }
}
