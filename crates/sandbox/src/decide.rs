//! What becomes of one request: pure but for the counts it keeps.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Duration,
};

use bytes::Bytes;
use hyper::StatusCode;

use crate::{
    answer::{Answer, Whose, error},
    api::{Api, NoCredential},
    bucket::Bucket,
    facts::Facts,
    scenario::{PerLimit, PerSequence, Rule, Scenario},
    stats::Stats,
    step::{Sequence, Step},
};

/// Most bytes of a request that are taken: SendGrid's limit.
pub(crate) const MAX_BODY_BYTES: usize = 30_000_000;
/// Most messages whose attempts are counted; beyond it the counts begin anew.
const MAX_COUNTED: usize = 4_000_000;

/// What the sandbox remembers from one request to the next.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) stats: Stats,
    hasher: RandomState,
    /// Attempts by message (or recipient) and rule.
    counts: HashMap<u64, u32>,
    buckets: HashMap<u64, Bucket>,
    /// `Idempotency-Key`s accepted.
    keys: HashMap<u64, Kept>,
    turns: HashMap<usize, u32>,
    random: u64,
}

impl State {
    /// Forgets what a scenario counted.
    pub(crate) fn restart(&mut self, scenario: &Scenario) {
        self.counts.clear();
        self.buckets.clear();
        self.turns.clear();
        self.random = scenario.seed;
    }

    /// Forgets an `Idempotency-Key` that was kept for the message of this number.
    pub(crate) fn forget(&mut self, account: &str, key: &str, seq: u64) {
        let key = self.hasher.hash_one((account, key));
        if self.keys.get(&key).is_some_and(|kept| kept.seq == seq) {
            self.keys.remove(&key);
        }
    }

    /// Counts one more of `what`.
    fn attempt(&mut self, rule: usize, what: &str) -> u32 {
        if self.counts.len() >= MAX_COUNTED {
            self.counts.clear();
        }
        let count = self.counts.entry(self.hasher.hash_one((rule, what))).or_default();
        *count += 1;
        *count
    }

    /// Whether it is this rule's turn.
    pub(crate) fn turn(&mut self, rule: usize, every: Option<u32>) -> bool {
        let Some(every) = every else { return true };
        let n = self.turns.entry(rule).or_default();
        *n = n.wrapping_add(1);
        n.is_multiple_of(every)
    }

    fn between(&mut self, (least, most): (Duration, Duration)) -> Duration {
        // SplitMix64: delays need spread and a seed, nothing more.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (z ^ (z >> 31)) as f64 / u64::MAX as f64;
        least + (most - least).mul_f64(share)
    }
}

/// What an `Idempotency-Key` was accepted with.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// The number of the first message.
    seq: u64,
    /// Stands for the body.
    body: u64,
}

/// A request as it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) api: Api,
    pub(crate) path: &'a str,
    /// The credential, and a name for it.
    pub(crate) key: Result<Option<&'a str>, NoCredential>,
    pub(crate) account: &'a str,
    pub(crate) idempotency_key: Option<&'a str>,
    pub(crate) body: &'a [u8],
    /// Of the body, of which not all may have been kept.
    pub(crate) bytes: usize,
    /// `None`: not in the API's form.
    pub(crate) facts: Option<&'a Facts<'a>>,
    /// Microseconds of the sandbox's own clock.
    pub(crate) now_us: u64,
}

/// What is done about it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) seq: u64,
    pub(crate) accepted: bool,
    pub(crate) duplicate: bool,
    pub(crate) delay: Duration,
    pub(crate) act: Act,
}

#[derive(Debug, Clone)]
pub(crate) enum Act {
    Answer(Answer),
    /// The answer's body takes so long.
    Slow(Answer, Duration),
    /// No answer, and the connection closed after so long.
    Hang(Option<Duration>),
    Drop,
}

impl Verdict {
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match &self.act {
            Act::Answer(answer) | Act::Slow(answer, _) => Some(answer.status),
            Act::Hang(_) | Act::Drop => None,
        }
    }

    pub(crate) fn result(&self) -> &'static str {
        match self.act {
            _ if self.duplicate => "duplicate",
            Act::Hang(_) => "hung",
            Act::Drop => "dropped",
            _ if self.accepted => "accepted",
            _ => "refused",
        }
    }
}

/// Decides and counts. In order: size, key, form, limits, the recipient's address, the first rule that fits, acceptance.
pub(crate) fn decide(scenario: &Scenario, state: &mut State, request: &Request<'_>) -> Verdict {
    state.stats.requests += 1;
    let seq = state.stats.requests;
    let mut verdict = match refusal(scenario, state, request) {
        Some(answer) => Verdict { seq, accepted: false, duplicate: false, delay: Duration::ZERO, act: Act::Answer(answer) },
        None => treat(scenario, state, request, seq),
    };
    if verdict.accepted {
        match kept(state, request, seq) {
            None => {}
            Some(Ok(first)) => {
                verdict.accepted = false;
                verdict.duplicate = true;
                if let Act::Answer(answer) | Act::Slow(answer, _) = &mut verdict.act {
                    *answer = Answer::accepted(request.api, first, recipients(request));
                }
            }
            Some(Err(refused)) => {
                verdict.accepted = false;
                verdict.act = Act::Answer(refused);
            }
        }
    }
    count(state, request, &verdict);
    verdict
}

fn recipients(request: &Request<'_>) -> usize {
    request.facts.map_or(0, |f| f.recipients.len())
}

/// The number under which a request with this key was accepted before; an error where that was another request. A key that
/// is new is kept.
fn kept(state: &mut State, request: &Request<'_>, seq: u64) -> Option<Result<u64, Answer>> {
    let key = request.idempotency_key.filter(|_| request.api.is_idempotent())?;
    let key = state.hasher.hash_one((request.account, key));
    // The generic form asks nothing of the body.
    let body = if request.api == Api::Resend { state.hasher.hash_one(request.body) } else { 0 };
    if state.keys.len() >= MAX_COUNTED {
        state.keys.clear();
    }
    let first = *state.keys.entry(key).or_insert(Kept { seq, body });
    if first.seq == seq {
        return None;
    }
    if first.body == body {
        return Some(Ok(first.seq));
    }
    let words = "Same idempotency key used with a different request payload.";
    Some(Err(error(request.api, 409, "invalid_idempotent_request", words)))
}

fn count(state: &mut State, request: &Request<'_>, verdict: &Verdict) {
    let stats = &mut state.stats;
    if verdict.accepted {
        let (recipients, domain) = request.facts.map_or((0, ""), |f| (f.recipients.len() as u64, f.domain()));
        stats.count_accepted(recipients, domain);
    }
    match verdict.result() {
        "duplicate" => stats.duplicates += 1,
        "refused" => stats.refused += 1,
        _ => {}
    }
    match verdict.act {
        Act::Hang(_) => stats.hung += 1,
        Act::Drop => stats.dropped += 1,
        Act::Answer(_) | Act::Slow(..) => {}
    }
    if let Some(status) = verdict.status() {
        *stats.by_status.entry(status.as_u16()).or_default() += 1;
    }
}

/// What any provider would refuse, and what is over a limit.
fn refusal(scenario: &Scenario, state: &mut State, request: &Request<'_>) -> Option<Answer> {
    let api = request.api;
    if request.bytes > MAX_BODY_BYTES {
        return Some(Answer::refused(api, 413, "Payload too large", None));
    }
    let let_in = match request.key {
        Err(NoCredential) => false,
        Ok(key) => scenario.api_keys.is_empty() || key.is_some_and(|key| scenario.api_keys.iter().any(|k| k == key)),
    };
    if !let_in {
        return Some(Answer::unauthorized(api));
    }
    let Some(facts) = request.facts else {
        let form = if api == Api::Mailgun { "form" } else { "JSON" };
        return Some(Answer::refused(api, 400, &format!("Bad Request: the body is no {form}"), None));
    };
    let missing = |words: &str, field| {
        let status = if matches!(api, Api::Postmark | Api::Resend) { 422 } else { 400 };
        Some(Answer::refused(api, status, words, Some(field)))
    };
    let no_address = |email: &str| !email.split_once('@').is_some_and(|(l, d)| !l.is_empty() && !d.is_empty());
    let (to, from, subject, content) = match api {
        Api::SendGrid => ("personalizations", "from.email", "subject", "content"),
        Api::Ses => ("Destination", "FromEmailAddress", "Content.Simple.Subject", "Content"),
        Api::Postmark => ("To", "From", "Subject", "TextBody"),
        Api::SparkPost => ("recipients", "content.from", "content.subject", "content.text"),
        Api::Mailgun | Api::Resend => ("to", "from", "subject", "text"),
        Api::Http => ("to", "from", "subject", "content"),
    };
    if !facts.recipients.iter().any(|r| r.list == "to") {
        return missing("The to array is required for all personalization objects, and must have at least one email object.", to);
    }
    if let Some(bad) = facts.recipients.iter().find(|r| no_address(&r.email)) {
        return Some(Answer::rejected(api, bad));
    }
    // SparkPost's templates bring their own.
    let from_elsewhere = api == Api::SparkPost && facts.template;
    if facts.from.as_deref().is_none_or(no_address) && !from_elsewhere {
        return missing("The from email does not contain a valid address.", from);
    }
    let wants_subject = matches!(api, Api::SendGrid | Api::Ses | Api::Resend | Api::SparkPost);
    if wants_subject && !facts.subject && !facts.template {
        return missing("The subject is required. You can get around this requirement with a template that has one.", subject);
    }
    if !facts.content && !facts.template {
        return missing("Unless a valid template is used, at least one content is required.", content);
    }
    over_limit(scenario, state, request, facts)
}

/// A request over one limit is refused as a whole; what it took from the others stays taken, as with providers.
fn over_limit(scenario: &Scenario, state: &mut State, request: &Request<'_>, facts: &Facts<'_>) -> Option<Answer> {
    for (i, limit) in scenario.limits.iter().enumerate() {
        let mut take = |name: &str, cost: usize| {
            let bucket = state.buckets.entry(state.hasher.hash_one((i, name))).or_default();
            bucket.take(u32::try_from(cost).unwrap_or(u32::MAX), limit.rate, limit.burst, request.now_us).is_ok()
        };
        let whose = match &limit.per {
            PerLimit::Account if !take(request.account, facts.recipients.len()) => Whose::Account,
            PerLimit::Account => continue,
            PerLimit::Domain(glob) => {
                let mut seen: Vec<String> = Vec::new();
                let mut over = false;
                for recipient in &facts.recipients {
                    let domain = recipient.domain().to_ascii_lowercase();
                    if glob.as_ref().is_none_or(|g| g.matches(&domain)) && !seen.contains(&domain) {
                        let same = |d: &str| d.eq_ignore_ascii_case(&domain);
                        over |= !take(&domain, facts.recipients.iter().filter(|r| same(r.domain())).count());
                        seen.push(domain);
                    }
                }
                if !over {
                    continue;
                }
                Whose::Destination
            }
        };
        return Some(Answer::throttled(request.api, whose, limit.retry_after));
    }
    None
}

/// By the recipient's address, then by the rules.
fn treat(scenario: &Scenario, state: &mut State, request: &Request<'_>, seq: u64) -> Verdict {
    let accept = |act, accepted| Verdict { seq, accepted, duplicate: false, delay: Duration::ZERO, act };
    let Some(facts) = request.facts else { return accept(Act::Drop, false) };
    for (at, recipient) in facts.recipients.iter().enumerate() {
        let id = facts.id.as_deref().unwrap_or(&recipient.email);
        match Sequence::of_address(&recipient.email) {
            None => {}
            Some(Ok(sequence)) => {
                let n = if sequence.counts() { state.attempt(usize::MAX, id) } else { 1 };
                return carry_out(sequence.at(n), None, at, request, facts, seq);
            }
            Some(Err(word)) => {
                let words = format!("sandbox: `{word}` in the address is no step; labels begin with `_`");
                return accept(Act::Answer(Answer::refused(request.api, 400, &words, None)), false);
            }
        }
    }
    if scenario.rules.is_empty() {
        return accept(Act::Answer(Answer::accepted(request.api, seq, facts.recipients.len())), true);
    }
    let id = facts.id.as_deref().unwrap_or_else(|| facts.recipients.first().map_or("", |r| &r.email));
    let attempt = if scenario.counts_attempts() { state.attempt(usize::MAX - 1, id) } else { 1 };
    for (i, rule) in scenario.rules.iter().enumerate() {
        let Some(at) = rule.is_for(request.api, request.path, facts) else { continue };
        let unread = rule.then.steps().any(|s| s == Step::DropUnread);
        if unread || rule.attempts.as_ref().is_some_and(|a| !a.contains(&attempt)) || !state.turn(i, rule.every) {
            continue;
        }
        let by = match rule.per {
            PerSequence::Message => id,
            PerSequence::Recipient => facts.recipients.get(at).map_or(id, |r| &r.email),
        };
        let n = if rule.then.counts() { state.attempt(i, by) } else { 1 };
        let mut verdict = carry_out(rule.then.at(n), Some(rule), at, request, facts, seq);
        if let Some(range) = rule.delay {
            verdict.delay += state.between(range);
        }
        return verdict;
    }
    accept(Act::Answer(Answer::accepted(request.api, seq, facts.recipients.len())), true)
}

fn carry_out(step: Step, rule: Option<&Rule>, at: usize, request: &Request<'_>, facts: &Facts<'_>, seq: u64) -> Verdict {
    let api = request.api;
    let n = facts.recipients.len();
    let accepted = || Answer::accepted(api, seq, n);
    // A request that was read and not answered may well have been carried out: the worst case is the default.
    let silent = rule.is_none_or(|r| r.accepted);
    let mut delay = Duration::ZERO;
    let act = match step {
        Step::Accept => Act::Answer(accepted()),
        Step::Status(status) => Act::Answer(Answer::of_status(api, status, seq, n)),
        Step::Throttle(wait) => Act::Answer(Answer::throttled(api, Whose::Destination, wait)),
        Step::Reject => Act::Answer(match facts.recipients.get(at) {
            Some(recipient) => Answer::rejected(api, recipient),
            None => Answer::of_status(api, 400, seq, n),
        }),
        Step::Hang(time) => Act::Hang(time),
        Step::Drop | Step::DropUnread => Act::Drop,
        Step::Delay(time) => {
            delay = time;
            Act::Answer(accepted())
        }
        Step::Slow(time) => {
            // Something must trickle: blanks, which every reader of JSON passes over.
            let body = [accepted().body.as_ref(), b"        ".as_slice()].concat();
            Act::Slow(Answer { body: Bytes::from(body), ..accepted() }, time)
        }
        Step::Answer => Act::Answer(match rule.and_then(|r| r.answer.as_ref()) {
            Some(own) => Answer {
                status: StatusCode::from_u16(own.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                headers: own.headers.clone(),
                body: own.body.clone(),
            },
            None => Answer::of_status(api, 400, seq, n),
        }),
    };
    let accepted = match &act {
        Act::Answer(answer) | Act::Slow(answer, _) => answer.status.is_success(),
        Act::Hang(_) | Act::Drop => silent,
    };
    Verdict { seq, accepted, duplicate: false, delay, act }
}
