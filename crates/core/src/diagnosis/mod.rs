//! What is wrong at a destination, from what came of calls there and elsewhere: plain throttling, warm-up, reputation,
//! authentication, greylisting, a receiver that is down, or nothing. With the evidence, what to do, and where to look.
//!
//! Counts are of calls, by what was said. A verdict needs some: with fewer than [`FEW`] the honest answer is that nobody
//! can tell, except where even one answer is plain (refused credentials, a block).

mod look;
mod tally;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use self::{
    look::{Look, where_to_look},
    tally::{NOW_S, Place, Tally},
};

/// Fewer calls than this tell nothing.
pub const FEW: u64 = 10;
/// A share of calls that is worth a word.
const SOME: f64 = 0.02;
/// A share of calls that is trouble.
const MUCH: f64 = 0.1;
/// A share of calls with which hardly anything else goes on.
const MOST: f64 = 0.5;
/// At less than this part of the configured rate, or below [`CRAWL_PER_S`], a sender is slow whatever it sends.
const SLOW: f64 = 0.05;
const CRAWL_PER_S: f64 = 0.1;

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    NothingWrong,
    NotEnoughEvidence,
    PlainThrottling,
    Greylisting,
    WarmUp,
    ReceiverDown,
    ReputationTrouble,
    Authentication,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::NothingWrong => "nothing_wrong",
            Verdict::NotEnoughEvidence => "not_enough_evidence",
            Verdict::PlainThrottling => "plain_throttling",
            Verdict::Greylisting => "greylisting",
            Verdict::WarmUp => "warm_up",
            Verdict::ReceiverDown => "receiver_down",
            Verdict::ReputationTrouble => "reputation_trouble",
            Verdict::Authentication => "authentication",
        }
    }

    /// For people, after the destination's name and a colon.
    const fn says(self) -> &'static str {
        match self {
            Verdict::NothingWrong => "nothing is wrong",
            Verdict::NotEnoughEvidence => "too few calls lately to tell",
            Verdict::PlainThrottling => "plain throttling: mail goes as fast as it is taken",
            Verdict::Greylisting => "greylisting: new senders are asked to come again, and then served",
            Verdict::WarmUp => "a new sender is being warmed up: less is taken at first",
            Verdict::ReceiverDown => "the receiving side, or the way to it, does not work",
            Verdict::ReputationTrouble => "the sender is distrusted there",
            Verdict::Authentication => "the sender is not accepted as who it says it is",
        }
    }

    fn advice(self) -> &'static [&'static str] {
        match self {
            Verdict::NothingWrong | Verdict::NotEnoughEvidence => &[],
            Verdict::PlainThrottling => &[
                "Nothing needs to be done: the rate follows what is accepted, and no retry budget is spent.",
                "If the backlog matters, ask for more (the provider's quota, more accounts) or spread the sending.",
            ],
            Verdict::Greylisting => {
                &["Nothing needs to be done: such mail goes out at its second try, spending no retry budget."]
            }
            Verdict::WarmUp => &[
                "Keep to the schedule; send first to recipients who open and answer.",
                "Do not add accounts or addresses to get around it: each begins anew.",
            ],
            Verdict::ReceiverDown => &[
                "Nothing needs to be done at first: mail waits and is tried again.",
                "If only this sender meets it, look at the provider's status page and the network.",
            ],
            Verdict::ReputationTrouble => &[
                "Stop campaigns to this destination now: `paceline pause class low`; more mail makes it worse.",
                "Look at complaints and bounces of the last days, and at which stream or tenant changed.",
                "Look at the sender's standing at the places named below, and ask for a review there when the cause is mended.",
            ],
            Verdict::Authentication => &[
                "Check the account's credentials, its standing with the provider, and whether the sender's domain is verified there.",
                "Check SPF, DKIM, DMARC and reverse DNS of the sending domain and addresses.",
                "Mail is kept meanwhile; nothing is lost.",
            ],
        }
    }
}

/// What was found out about a destination.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    pub destination: String,
    pub verdict: Verdict,
    /// One line.
    pub summary: String,
    /// What speaks for it, in sentences.
    pub evidence: Vec<String>,
    pub advice: Vec<&'static str>,
    pub look: Vec<Look>,
    /// What was counted there, by account.
    pub places: Vec<Place>,
}

/// What is wrong at `destination`, whose domains are `domains`. `places` is everything the fleet has counted, there and
/// elsewhere; several reports of one place count together.
pub fn diagnose(destination: &str, domains: &[String], places: &[Place]) -> Diagnosis {
    let all = tally::together(places);
    let (here, elsewhere): (Vec<Place>, Vec<Place>) = all.into_iter().partition(|p| p.destination == destination);
    let (verdict, evidence) = judge(&here, &elsewhere);
    let look = match verdict {
        Verdict::ReputationTrouble | Verdict::WarmUp | Verdict::Authentication => where_to_look(destination, domains),
        _ => Vec::new(),
    };
    Diagnosis {
        summary: format!("{destination}: {}", verdict.says()),
        destination: destination.to_owned(),
        verdict,
        evidence,
        advice: verdict.advice().to_vec(),
        look,
        places: here,
    }
}

fn judge(here: &[Place], elsewhere: &[Place]) -> (Verdict, Vec<String>) {
    let mut now = here.iter().fold(Tally::default(), |sum, p| sum + p.now);
    let mut before = here.iter().fold(Tally::default(), |sum, p| sum + p.before);
    let mut span = format!("{} minutes", NOW_S / 60);
    // Where nothing goes any more, what was said before it stopped still tells why.
    if now.calls() < FEW && before.calls() > 0 {
        now = now + std::mem::take(&mut before);
        span = "hour".to_owned();
    }
    let calls = now.calls();
    let mut said = vec![];
    if calls > 0 {
        said.push(format!("{calls} calls in the last {span}: {}", now.in_words()));
    }
    for place in here {
        said.extend(place.in_force());
    }

    // One refusal of credentials is plain, and holds all mail of the account.
    if now.rejected_account > 0 {
        let others: Vec<_> = elsewhere.iter().filter(|p| p.now.rejected_account > 0).map(|p| &*p.destination).collect();
        said.push(match others.is_empty() {
            true => "the account itself was refused, here alone".to_owned(),
            false => format!("the account itself was refused, at {} too", others.join(", ")),
        });
        return (Verdict::Authentication, said);
    }
    if now.identity > 0 && now.share(now.identity) >= SOME {
        said.push("answers name SPF, DKIM, DMARC, reverse DNS or the sender's identity".to_owned());
        return (Verdict::Authentication, said);
    }
    if now.reputation > 0 && now.share(now.reputation) >= SOME {
        said.push("answers say that the sender is blocked or distrusted".to_owned());
        said.extend(alone(here, elsewhere));
        return (Verdict::ReputationTrouble, said);
    }
    if calls < FEW {
        said.push(format!("a verdict needs {FEW} calls or more"));
        return (Verdict::NotEnoughEvidence, said);
    }
    if now.share(now.failed()) >= MOST {
        said.push("calls fail for reasons that have nothing to do with the sender".to_owned());
        let others: Vec<_> = elsewhere.iter().filter(|p| p.now.calls() >= FEW).collect();
        if !others.is_empty() && others.iter().all(|p| p.now.share(p.now.failed()) >= MOST) {
            said.push("so they do everywhere: it is the provider or the network".to_owned());
        }
        return (Verdict::ReceiverDown, said);
    }
    let throttled = now.share(now.slowed());
    if throttled >= SOME {
        return slowed(here, elsewhere, &now, &before, said);
    }
    if now.share(now.greylisted) >= MUCH {
        said.push("recipients there have not had mail from this sender lately".to_owned());
        return (Verdict::Greylisting, said);
    }
    if here.iter().any(|p| p.warming) {
        return (Verdict::WarmUp, said);
    }
    (Verdict::NothingWrong, said)
}

/// Refused for going too fast: by a limit, by a newcomer's limit, or by distrust that says no more than that.
fn slowed(here: &[Place], elsewhere: &[Place], now: &Tally, before: &Tally, mut said: Vec<String>) -> (Verdict, Vec<String>) {
    let percent = |x: f64| (x * 100.0).round();
    let of_account = now.share(now.throttled_account) >= SOME && now.throttled_account >= now.throttled;
    let clean: Vec<_> = elsewhere.iter().filter(|p| p.is_clean()).collect();
    if of_account && clean.is_empty() {
        said.push("answers speak of the account's own limit, not of the destination".to_owned());
        return (Verdict::PlainThrottling, said);
    }
    if here.iter().any(|p| p.warming) {
        said.push("the account is within its warm-up schedule".to_owned());
        return (Verdict::WarmUp, said);
    }
    let mut distrust = 0;
    let (rate_now, rate_before) = (rate(now, here, |p| p.now_s), rate(before, here, |p| p.before_s));
    let was_fine = before.calls() >= FEW && before.share(before.slowed()) < SOME;
    let trouble = now.share(now.slowed()) >= MUCH;
    if was_fine && trouble && rate_now <= rate_before * 1.1 {
        distrust += 1;
        said.push(format!(
            "the same volume was taken before: {} % are refused at {rate_now:.2} calls a second, {} % were at {rate_before:.2}",
            percent(now.share(now.slowed())),
            percent(before.share(before.slowed())),
        ));
    }
    let slow: Vec<_> = here.iter().filter_map(Place::crawls).collect();
    if trouble && !slow.is_empty() {
        distrust += 1;
        said.extend(slow.iter().map(|s| format!("refused though slow: {s}")));
    }
    // By itself this is what any one destination's limit looks like.
    let alone = alone(here, elsewhere);
    match (distrust, alone) {
        (0, alone) => {
            said.extend(alone);
            (Verdict::PlainThrottling, said)
        }
        // Two signs, or one that no other destination shares, or nothing else to compare with.
        (_, alone) => {
            said.extend(alone);
            (Verdict::ReputationTrouble, said)
        }
    }
}

/// Calls a second over the longest span that any of them has counted.
fn rate(tally: &Tally, of: &[Place], span_s: impl Fn(&Place) -> u64) -> f64 {
    let span = of.iter().map(span_s).max().unwrap_or(0);
    if span == 0 { 0.0 } else { tally.calls() as f64 / span as f64 }
}

/// That other destinations take the same accounts' mail, where they do.
fn alone(here: &[Place], elsewhere: &[Place]) -> Option<String> {
    let accounts: Vec<_> = here.iter().map(|p| &p.account).collect();
    let mut clean: Vec<_> =
        elsewhere.iter().filter(|p| accounts.contains(&&p.account) && p.is_clean()).map(|p| &*p.destination).collect();
    clean.sort_unstable();
    clean.dedup();
    (!clean.is_empty()).then(|| format!("the same accounts' mail is taken by {}", clean.join(", ")))
}
