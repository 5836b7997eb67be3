//! Settling: the only place where order lives.
//!
//! What must survive is published onward and confirmed, or recorded, *before* the delivery is acknowledged; events,
//! metrics and log lines come after. A crash anywhere in between repeats a step that repeating does not hurt.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_broker::{
    Broker, HeaderValue, Headers, Outgoing, Properties, PublishError, Purpose, Route, Settle, is_broker_header,
};
use paceline_core::{DeadLetter, Journey, Timestamp, dead_letter, lane::rung_s};

use crate::metrics::Metrics;

pub(crate) struct Settler {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) metrics: Metrics,
}

/// Back to a lane: at once, or by the ladder where it must not be tried before some time.
pub(crate) struct Onward<'a> {
    /// The lane's, or the flow's.
    pub(crate) key: String,
    pub(crate) body: &'a Bytes,
    pub(crate) properties: &'a Properties,
    pub(crate) journey: &'a Journey,
    /// When its time is over.
    pub(crate) end: Timestamp,
    pub(crate) purpose: Purpose,
}

impl Settler {
    /// Publishes onward, then acknowledges.
    pub(crate) async fn onward(&self, onward: Onward<'_>, now: Timestamp, settle: Settle) {
        let Onward { key, body, properties, journey, end, purpose } = onward;
        let to = rung_s(ladder(journey, end, now)).map_or(Route::Lanes, |rung_s| Route::Delay { rung_s });
        let properties = Properties { headers: travelling(&properties.headers, journey), ..properties.clone() };
        if self.publish(Outgoing { to, key, body: body.clone(), properties, purpose }).await {
            settle.ack();
        }
    }

    /// Publishes a dead letter with the original bytes; the caller acknowledges if it is there.
    #[must_use]
    pub(crate) async fn bury(&self, letter: &DeadLetter, body: &Bytes, properties: &Properties) -> bool {
        let mut properties = properties.clone();
        let entry = serde_json::to_string(letter).unwrap_or_default();
        properties.headers.retain(|name, _| !is_broker_header(name));
        properties.headers.insert(dead_letter::HEADER.to_owned(), HeaderValue::Text(entry));
        let key = letter.reason.to_string();
        let outgoing = Outgoing { to: Route::Dead, key, body: body.clone(), properties, purpose: Purpose::Dead };
        let buried = self.publish(outgoing).await;
        if buried {
            self.metrics.dead(letter.reason);
        }
        buried
    }

    /// Until confirmed: nothing else may happen to the message before it is. False where it never can be; the delivery
    /// then stays unacknowledged, so that it is not lost.
    async fn publish(&self, outgoing: Outgoing) -> bool {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.broker.publish(outgoing.clone()).await {
                Ok(()) => return true,
                Err(error @ PublishError::Invalid(_)) => {
                    tracing::error!(%error, purpose = outgoing.purpose.as_str(), "a message cannot be passed on and stays in its queue");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, purpose = outgoing.purpose.as_str(), "publish not confirmed; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }
}

/// How long it stays on the ladder: until it is due, but no longer than until its time is over, when it is given up on.
/// What is over already waits for a claim that somebody else holds.
fn ladder(journey: &Journey, end: Timestamp, now: Timestamp) -> Duration {
    let due = journey.not_before.map(|at| if end > now { at.min(end) } else { at });
    due.map_or(Duration::ZERO, |at| at.since(now))
}

/// The producer's own headers and the journey's; nothing the broker added.
fn travelling(headers: &Headers, journey: &Journey) -> Headers {
    let mut out: Headers = headers
        .iter()
        .filter(|(name, _)| !name.starts_with("x-paceline-") && !is_broker_header(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    out.extend(journey.to_headers().into_iter().map(|(name, value)| (name.to_owned(), HeaderValue::Text(value))));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_on_the_ladder_past_its_end() {
        let at = |s: i64| Timestamp::from_secs(1_000 + s);
        for (due, end, wait_s) in [(None, 9, 0), (Some(5), 9, 5), (Some(50), 9, 9), (Some(5), 0, 5), (Some(-1), 9, 0)] {
            let journey = Journey { not_before: due.map(at), ..Journey::starting(at(0)) };
            assert_eq!(ladder(&journey, at(end), at(0)), Duration::from_secs(wait_s), "{due:?} {end}");
        }
    }

    #[test]
    fn the_producers_headers_travel_and_traces_do_not() {
        let text = |t: &str| HeaderValue::Text(t.to_owned());
        let headers: Headers = [("x-trace", "1"), ("x-death", "2"), ("x-paceline-attempts", "99"), ("x-first-death-queue", "q")]
            .map(|(k, v)| (k.to_owned(), text(v)))
            .into();
        let out = travelling(&headers, &Journey::starting(Timestamp::from_secs(1)));
        let names: Vec<_> = out.keys().map(String::as_str).collect();
        assert_eq!(names, ["x-paceline-attempts", "x-paceline-enqueued-at", "x-paceline-failures", "x-trace"]);
        assert_eq!(out["x-paceline-attempts"], text("0"));
    }
}
