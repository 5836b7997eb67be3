//! Many messages in one call.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use paceline_core::{Message, Outcome, ProviderAnswer, Rejected};

use crate::Attempt;

/// What one call for several messages came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Called {
    /// An outcome for each, in order.
    Each(Vec<Outcome>),
    /// Nobody was sent anything: the call was too large, or was refused on account of one message or another.
    Divide,
}

impl Called {
    /// Of an answer that speaks of the call as a whole: the same for every message, unless it blames messages.
    pub(crate) fn all(outcome: &Outcome, messages: usize) -> Called {
        match outcome {
            Outcome::Rejected { what: Rejected::Message | Rejected::Recipients(_), .. } if messages > 1 => Called::Divide,
            _ => Called::Each(vec![outcome.clone(); messages]),
        }
    }
}

/// Messages of a batch, as far as they can be carried.
pub(crate) struct Prepared<'a, B> {
    pub(crate) bodies: Vec<B>,
    /// The messages of `bodies`.
    pub(crate) messages: Vec<&'a Message>,
    /// One for each attempt: the outcome of those that cannot.
    refused: Vec<Option<Outcome>>,
}

impl<'a, B> Prepared<'a, B> {
    pub(crate) fn of(attempts: &[Attempt<'a>], body: impl Fn(&'a Message) -> Result<B, Box<Outcome>>) -> Prepared<'a, B> {
        let n = attempts.len();
        let mut out = Prepared { bodies: Vec::with_capacity(n), messages: Vec::with_capacity(n), refused: Vec::with_capacity(n) };
        for attempt in attempts {
            out.refused.push(match body(attempt.message) {
                Ok(body) => {
                    out.bodies.push(body);
                    out.messages.push(attempt.message);
                    None
                }
                Err(refused) => Some(*refused),
            });
        }
        out
    }

    /// What was said to the messages that were sent, among what is known of the others.
    pub(crate) fn merged(self, called: Called) -> Called {
        match called {
            Called::Divide => Called::Divide,
            Called::Each(sent) => {
                let mut sent = sent.into_iter();
                Called::Each(self.refused.into_iter().filter_map(|refused| refused.or_else(|| sent.next())).collect())
            }
        }
    }
}

/// An API that takes several messages at once.
#[async_trait]
pub(crate) trait Batches: Send + Sync {
    /// One call, which takes no longer than `within`. A single attempt is never to be divided.
    async fn call(&self, attempts: &[Attempt<'_>], within: Duration) -> Called;
}

/// Sends `attempts`, at most `max` a call, and in all within `time`.
///
/// Calls that were refused because of one message are halved until that message is alone. What is not sent when half of
/// the time is gone is left for another try.
pub(crate) async fn send(api: &dyn Batches, attempts: &[Attempt<'_>], max: usize, time: Duration) -> Vec<Outcome> {
    let begun = Instant::now();
    let mut out: Vec<Option<Outcome>> = vec![None; attempts.len()];
    // The last is done first: ranges are pushed so that they come in order.
    let mut left: Vec<_> =
        (0..attempts.len()).step_by(max.max(1)).map(|at| at..attempts.len().min(at + max.max(1))).rev().collect();
    let mut first = true;
    while let Some(range) = left.pop() {
        let remaining = time.saturating_sub(begun.elapsed());
        if !first && remaining < time / 2 {
            left.push(range);
            break;
        }
        first = false;
        match api.call(&attempts[range.clone()], remaining).await {
            Called::Each(outcomes) => {
                for (place, outcome) in out[range].iter_mut().zip(outcomes) {
                    *place = Some(outcome);
                }
            }
            // A single one is not divided; were it, it would be left for another try.
            Called::Divide if range.len() > 1 => {
                let middle = range.start + range.len() / 2;
                left.push(middle..range.end);
                left.push(range.start..middle);
            }
            Called::Divide => {}
        }
    }
    let later = || {
        let answer = ProviderAnswer::new("batch_divided", None, "not sent yet: the batch it was part of had to be divided");
        Outcome::Temporary { retry_after: None, answer }
    };
    out.into_iter().map(|outcome| outcome.unwrap_or_else(later)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::answer::{
        tests::{brief, message},
        unsupported,
    };

    pub(crate) fn briefs(called: &Called) -> Vec<String> {
        match called {
            Called::Each(each) => each.iter().map(brief).collect(),
            Called::Divide => vec!["divide".to_owned()],
        }
    }

    /// Refuses calls with a message whose id begins with `bad`, and notes the ids of each call.
    #[derive(Default)]
    struct Fake {
        calls: Mutex<Vec<String>>,
        lasts: Duration,
    }

    #[async_trait]
    impl Batches for Fake {
        async fn call(&self, attempts: &[Attempt<'_>], _: Duration) -> Called {
            let ids: Vec<_> = attempts.iter().map(|a| a.message.id.as_str()).collect();
            self.calls.lock().unwrap().push(ids.join(" "));
            tokio::time::sleep(self.lasts).await;
            match ids.iter().any(|id| id.starts_with("bad")) {
                true => Called::all(&unsupported("text", "bad"), ids.len()),
                false => Called::Each(ids.iter().map(|id| Outcome::accepted(Some((*id).to_owned()))).collect()),
            }
        }
    }

    async fn sent(fake: &Fake, ids: &[&str], max: usize, time: Duration) -> Vec<String> {
        let messages: Vec<_> = ids.iter().map(|id| message(serde_json::json!({"id": id}))).collect();
        let attempts: Vec<_> = messages.iter().map(|m| Attempt { message: m, idempotency_key: &m.id }).collect();
        let outcomes = send(fake, &attempts, max, time).await;
        let brief = |outcome: Outcome| match outcome {
            Outcome::Accepted { provider_id: Some(id), .. } => id,
            other => other.answer().map_or_else(String::new, |a| a.code.clone()),
        };
        outcomes.into_iter().map(brief).collect()
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn full_calls_and_a_rest() {
        let fake = Fake::default();
        assert_eq!(sent(&fake, &["a", "b", "c", "d", "e"], 2, LONG).await, ["a", "b", "c", "d", "e"]);
        assert_eq!(*fake.calls.lock().unwrap(), ["a b", "c d", "e"]);
        assert!(sent(&fake, &[], 2, LONG).await.is_empty());
    }

    #[tokio::test]
    async fn one_bad_message_does_not_take_the_others_with_it() {
        let fake = Fake::default();
        let got = sent(&fake, &["a", "b", "bad", "c", "d"], 500, LONG).await;
        assert_eq!(got, ["a", "b", "unsupported", "c", "d"]);
        assert_eq!(*fake.calls.lock().unwrap(), ["a b bad c d", "a b", "bad c d", "bad", "c d"]);
    }

    #[tokio::test]
    async fn what_is_not_reached_in_time_is_left_for_another_try() {
        let fake = Fake { lasts: Duration::from_millis(60), ..Fake::default() };
        let got = sent(&fake, &["bad", "a"], 500, Duration::from_millis(100)).await;
        assert_eq!(got, ["batch_divided", "batch_divided"]);
        assert_eq!(fake.calls.lock().unwrap().len(), 1);
    }
}
