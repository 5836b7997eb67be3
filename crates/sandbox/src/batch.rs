//! What becomes of many messages in one request.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, error},
    api::Api,
    decide::{self, Act, Request, State, Verdict},
    facts::Facts,
    scenario::Scenario,
};

/// Decides and counts each message as if it had come by itself; the verdict on the request as a whole comes first.
///
/// - What refuses callers rather than messages (401, 403, 420, 429, 5xx), to any of them, refuses the batch, and so does any
///   refusal by SendGrid's API, and by Resend's unless it was asked to be `permissive`: then nobody is sent anything.
/// - A message to be hung up on, dropped, delayed or slowed takes the batch with it.
pub(crate) fn decide(
    scenario: &Scenario,
    state: &mut State,
    request: &Request<'_>,
    batch: &[Facts<'_>],
    permissive: bool,
) -> (Verdict, Vec<Verdict>) {
    let api = request.api;
    if batch.is_empty() || batch.len() > api.max_batch() {
        let answer = match api {
            Api::Postmark => error(api, 422, "410", "Too many batch messages, or none"),
            _ => error(api, 422, "validation_error", "A batch has 1 to 100 messages."),
        };
        state.stats.requests += 1;
        state.stats.refused += 1;
        *state.stats.by_status.entry(422).or_default() += 1;
        return (whole(state.stats.requests, Act::Answer(answer)), Vec::new());
    }
    let before = state.stats.clone();
    let mut each: Vec<Verdict> = Vec::with_capacity(batch.len());
    for (i, facts) in batch.iter().enumerate() {
        let key = key_of(request, i);
        let one = Request { facts: Some(facts), idempotency_key: key.as_deref(), ..*request };
        each.push(decide::decide(scenario, state, &one));
    }
    let refuses_all = |v: &&Verdict| {
        v.status().is_some_and(|status| match status.as_u16() {
            401 | 403 | 409 | 420 | 429 | 500.. => true,
            400.. => api == Api::SendGrid || (api == Api::Resend && !permissive),
            _ => false,
        })
    };
    if let Some(refusing) = each.iter().find(refuses_all) {
        let act = refusing.act.clone();
        let (seq, status) = (refusing.seq, refusing.status());
        for (i, verdict) in each.iter().enumerate() {
            if let Some(key) = key_of(request, i) {
                state.forget(request.account, &key, verdict.seq);
            }
        }
        state.stats = before;
        let n = each.len() as u64;
        state.stats.requests += n;
        state.stats.refused += n;
        *state.stats.by_status.entry(status.map_or(0, |s| s.as_u16())).or_default() += n;
        for verdict in &mut each {
            *verdict = Verdict { act: act.clone(), ..whole(verdict.seq, Act::Drop) };
        }
        return (whole(seq, act), each);
    }
    let delay = each.iter().map(|v| v.delay).max().unwrap_or_default();
    let slow = each.iter().find_map(|v| if let Act::Slow(_, time) = v.act { Some(time) } else { None });
    let silent = each.iter().find(|v| matches!(v.act, Act::Hang(_) | Act::Drop)).map(|v| v.act.clone());
    let act = silent.unwrap_or_else(|| {
        let answer = together(api, &each);
        match slow {
            Some(time) => Act::Slow(answer, time),
            None => Act::Answer(answer),
        }
    });
    (Verdict { delay, ..whole(each[0].seq, act) }, each)
}

/// The key is the batch's: each message in its turn gets one of its own.
fn key_of(request: &Request<'_>, index: usize) -> Option<String> {
    request.idempotency_key.map(|key| format!("{key}\n{index}"))
}

fn whole(seq: u64, act: Act) -> Verdict {
    Verdict { seq, accepted: false, duplicate: false, delay: Duration::ZERO, act }
}

/// One answer of many.
fn together(api: Api, each: &[Verdict]) -> Answer {
    let answers = each.iter().filter_map(|v| match &v.act {
        Act::Answer(answer) | Act::Slow(answer, _) => Some(answer),
        Act::Hang(_) | Act::Drop => None,
    });
    if api == Api::SendGrid {
        // One id for all, and no word about their number.
        return Answer::accepted(api, each.first().map_or(0, |v| v.seq), 0);
    }
    if api == Api::Postmark {
        let bodies: Vec<&[u8]> = answers.map(|a| a.body.trim_ascii()).collect();
        return Answer::json(200, Bytes::from([b"[".as_slice(), &bodies.join(b",".as_slice()), b"]"].concat()));
    }
    let (mut data, mut errors) = (Vec::new(), Vec::new());
    for (index, answer) in answers.enumerate() {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status.is_success() {
            data.push(json!({"id": body["id"]}));
        } else {
            errors.push(json!({"index": index, "message": body["message"]}));
        }
    }
    let mut body = json!({"data": data});
    if !errors.is_empty() {
        body["errors"] = errors.into();
    }
    Answer::json(200, body.to_string())
}
