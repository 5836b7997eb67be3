//! A model of who receives the mail: rates, calls at a time, greylisting, reputation, outages. Pure: it takes the time and
//! chance as arguments, and answers in the words that operators use.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use crate::{
    chance::Chance,
    scenario::{Receiver as Spec, Scenario},
};

/// One call, as the receiving side sees it.
#[derive(Debug, Clone, Copy)]
pub struct Contact<'a> {
    /// Who sends: the domain of `from`.
    pub sender: &'a str,
    /// The domain of the first recipient.
    pub domain: &'a str,
    pub recipients: u32,
    /// The same at each call for the same message: who of its recipients exist does not change.
    pub mail: u64,
    /// Which of the message's recipients these are.
    pub who: u64,
}

/// What is answered, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub said: Said,
    pub after_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The mail is taken.
    Accepted,
    /// The mail is taken, and nobody will hear of it.
    AcceptedUnheard,
    /// None of these recipients exist, by position; nothing was taken.
    NoSuchRecipients(Vec<usize>),
    /// A reply line.
    Refused(Arc<str>),
}

/// Every operator of a scenario.
#[derive(Debug)]
pub struct Receivers {
    specs: Vec<Spec>,
    /// Which operator a domain is of.
    by_domain: HashMap<String, usize>,
    operators: Vec<Operator>,
    /// The operator of each spec that is one for all its domains.
    whole: HashMap<usize, usize>,
    /// Calls under way end by themselves, whatever became of the caller.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    start_us: u64,
}

#[derive(Debug, Default)]
struct Operator {
    spec: usize,
    full_at_us: f64,
    under_way: u32,
    /// When each sender was first heard of.
    met: HashMap<(String, String), u64>,
    /// Refusals for pushing, fading away.
    strain: f64,
    strained_us: u64,
    blocked: bool,
}

const OVER_RATE: &str =
    "421 4.7.28 Our system has detected an unusual rate of mail from you. Please slow down and try again later";
const OVER_CALLS: &str = "421 4.7.0 Too many concurrent connections from your host";
const BLOCKED: &str = "421 4.7.0 Mail from this host is temporarily deferred due to its poor reputation";
const AWAY: &str = "451 4.3.2 System not accepting messages right now";
/// Strain halves in this time.
const STRAIN_HALF_US: f64 = 30e6;
const QUICK_US: (u64, u64) = (20_000, 200_000);

impl Receivers {
    /// The receivers of a scenario that begins at `start_us`.
    pub fn new(scenario: &Scenario, start_us: u64) -> Receivers {
        let mut specs = scenario.receivers.clone();
        // Whoever is not spoken of takes everything.
        specs.push(Spec { domains: vec!["*".into()], ..Spec::default() });
        Receivers {
            specs,
            by_domain: HashMap::new(),
            operators: Vec::new(),
            whole: HashMap::new(),
            ends: BinaryHeap::new(),
            start_us,
        }
    }

    /// A call that begins at `now_us`.
    pub fn contact(&mut self, now_us: u64, contact: Contact<'_>, chance: &mut Chance) -> Answer {
        while let Some(Reverse((at, operator))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= now_us) {
            self.ends.pop();
            debug_assert!(at <= now_us);
            self.operators[operator].under_way -= 1;
        }
        let id = self.operator(contact.domain);
        let operator = &mut self.operators[id];
        let spec = &self.specs[operator.spec];
        let (least, most) = spec.latency.map_or(QUICK_US, |[a, b]| (a.micros(), b.micros()));
        let said = operator.says(spec, now_us, now_us - self.start_us, contact, chance);
        operator.under_way += 1;
        let after_us = chance.between(least, most);
        self.ends.push(Reverse((now_us + after_us, id)));
        Answer { said, after_us }
    }

    fn operator(&mut self, domain: &str) -> usize {
        if let Some(known) = self.by_domain.get(domain) {
            return *known;
        }
        // The last of them takes every domain.
        let spec = self.specs.iter().position(|s| s.domains.iter().any(|p| matches(p, domain))).unwrap_or(self.specs.len() - 1);
        let next = self.operators.len();
        let id = if self.specs[spec].each { next } else { *self.whole.entry(spec).or_insert(next) };
        if id == next {
            self.operators.push(Operator { spec, ..Operator::default() });
        }
        self.by_domain.insert(domain.to_owned(), id);
        id
    }
}

impl Operator {
    fn says(&mut self, spec: &Spec, now_us: u64, since_us: u64, contact: Contact<'_>, chance: &mut Chance) -> Said {
        if spec.outages.iter().any(|[from, to]| (from.micros()..to.micros()).contains(&since_us)) {
            return Said::Refused(AWAY.into());
        }
        if let Some(patience) = spec.reputation {
            self.strain *= (-((now_us - self.strained_us) as f64) / STRAIN_HALF_US).exp2();
            self.strained_us = now_us;
            // Trust comes back later than it went.
            self.blocked = self.strain >= f64::from(patience) * if self.blocked { 0.25 } else { 1.0 };
            if self.blocked {
                self.strain += 0.2;
                return Said::Refused(BLOCKED.into());
            }
        }
        if spec.concurrency.is_some_and(|most| self.under_way >= most) {
            self.strain += 1.0;
            return Said::Refused(OVER_CALLS.into());
        }
        if let Some(rate) = spec.rate {
            let rate = spec.then.iter().rev().find(|t| t.at.micros() <= since_us).map_or(rate, |t| t.rate);
            let interval = 1e6 / rate.as_per_second();
            let burst = f64::from(spec.burst.unwrap_or(rate.one_second()).max(contact.recipients));
            let full = self.full_at_us.max(now_us as f64) + interval * f64::from(contact.recipients);
            if full - now_us as f64 > interval * burst + 1.0 {
                self.strain += 1.0;
                return Said::Refused(spec.says.as_deref().unwrap_or(OVER_RATE).into());
            }
            self.full_at_us = full;
        }
        if let Some(wait) = spec.greylist {
            let pair = (contact.sender.to_owned(), contact.domain.to_owned());
            let met = *self.met.entry(pair).or_insert(now_us);
            if now_us < met + wait.micros() {
                let left = (met + wait.micros() - now_us).div_ceil(1_000_000);
                return Said::Refused(format!("451 4.7.1 Greylisted, please try again in {left} seconds").into());
            }
        }
        // Those of the message that are asked for, in order.
        let asked = (0..64).filter(|k| contact.who >> k & 1 == 1).take(contact.recipients as usize);
        let bad = asked.enumerate().filter(|(_, k)| Chance::of(contact.mail, *k).happens(spec.bad_recipients));
        let bad: Vec<usize> = bad.map(|(position, _)| position).collect();
        if !bad.is_empty() {
            return Said::NoSuchRecipients(bad);
        }
        if chance.happens(spec.lost_answers) { Said::AcceptedUnheard } else { Said::Accepted }
    }
}

/// Whether a pattern, in which each `*` stands for any text, matches.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|n| rest.is_char_boundary(n) && matches(after, &rest[n..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Then;
    use crate::span::Span;
    use paceline_provider::{Category, ReplyRules};

    const START: u64 = 1_760_000_000_000_000;

    fn receivers(spec: Spec) -> Receivers {
        Receivers {
            specs: vec![spec],
            by_domain: HashMap::new(),
            operators: Vec::new(),
            whole: HashMap::new(),
            ends: BinaryHeap::new(),
            start_us: START,
        }
    }

    fn at(r: &mut Receivers, ms: u64, sender: &str, domain: &str) -> Said {
        let contact = Contact { sender, domain, recipients: 1, mail: ms, who: 1 };
        r.contact(START + ms * 1000, contact, &mut Chance::new(ms)).said
    }

    fn any() -> Spec {
        Spec { domains: vec!["*".into()], ..Spec::default() }
    }

    #[test]
    fn a_rate_refuses_what_is_beyond_it_and_may_change() {
        let then = vec![Then { at: Span::secs(10), rate: "10/s".parse().unwrap() }];
        let mut r = receivers(Spec { rate: Some("1/s".parse().unwrap()), burst: Some(2), then, ..any() });
        let taken = |r: &mut Receivers, ms| at(r, ms, "s.example", "a.example") == Said::Accepted;
        assert_eq!([0, 1, 2, 999, 1000, 1500, 2000].map(|ms| taken(&mut r, ms)), [true, true, false, false, true, false, true]);
        let later: usize = (0..100).filter(|n| taken(&mut r, 10_000 + n * 10)).count();
        assert!((9..=12).contains(&later), "{later}");
    }

    #[test]
    fn calls_at_a_time_end_by_themselves() {
        let latency = Some([Span::millis(100), Span::millis(100)]);
        let mut r = receivers(Spec { concurrency: Some(1), latency, ..any() });
        let said = [0, 50, 101].map(|ms| at(&mut r, ms, "s.example", "a.example") == Said::Accepted);
        // A refusal is a call too: it ends 100 ms later, at 150.
        assert_eq!(said, [true, false, false]);
        assert_eq!(at(&mut r, 250, "s.example", "a.example"), Said::Accepted);
    }

    #[test]
    fn greylisting_is_by_sender_and_domain() {
        let mut r = receivers(Spec { greylist: Some(Span::secs(60)), ..any() });
        let refused = |said| matches!(said, Said::Refused(_));
        assert!(refused(at(&mut r, 0, "s.example", "a.example")));
        assert!(refused(at(&mut r, 59_000, "s.example", "a.example")));
        assert_eq!(at(&mut r, 60_000, "s.example", "a.example"), Said::Accepted);
        assert!(refused(at(&mut r, 60_000, "s.example", "b.example")));
        assert!(refused(at(&mut r, 60_000, "t.example", "a.example")));
    }

    #[test]
    fn who_pushes_loses_trust_and_who_waits_gets_it_back() {
        let mut r = receivers(Spec { rate: Some("1/s".parse().unwrap()), burst: Some(1), reputation: Some(20), ..any() });
        for n in 0..100 {
            at(&mut r, n * 10, "s.example", "a.example");
        }
        assert_eq!(at(&mut r, 5_000, "s.example", "a.example"), Said::Refused(BLOCKED.into()));
        assert_eq!(at(&mut r, 300_000, "s.example", "a.example"), Said::Accepted);
    }

    #[test]
    fn its_words_mean_what_they_are_meant_to() {
        let rules = ReplyRules::default();
        let category = |line: &str| rules.read(line).category;
        assert_eq!(category(OVER_RATE), Category::Throttled);
        assert_eq!(category(OVER_CALLS), Category::Throttled);
        assert_eq!(category(BLOCKED), Category::ReputationBlock);
        assert_eq!(category(AWAY), Category::Temporary);
        let greylisted = rules.read("451 4.7.1 Greylisted, please try again in 60 seconds");
        assert_eq!((greylisted.category, greylisted.retry_after.map(|d| d.as_secs())), (Category::Greylisted, Some(60)));
        assert_eq!(rules.read(OVER_RATE).scope, paceline_core::Scope::Destination);
    }

    #[test]
    fn patterns() {
        for (pattern, domain, want) in [
            ("*", "a.example", true),
            ("gmail.com", "gmail.com", true),
            ("*.example", "a.example", true),
            ("b*.example", "a.example", false),
            ("b*.exa*", "blocked1.example", true),
        ] {
            assert_eq!(matches(pattern, domain), want, "{pattern} {domain}");
        }
    }
}
