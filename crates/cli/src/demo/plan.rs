//! The mail of the demo: who gets what, when, and what will go wrong with it. Pure; the same seed gives the same mail.

use std::time::Duration;

use paceline_core::{Class, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;

use super::stage::{Figures, PLACES, Place};

/// Fewer messages tell no story.
pub(crate) const LEAST: usize = 200;
pub(crate) const MOST: usize = 50_000;

/// Password resets a second while nothing else is under way.
const IDLE_RATE: f64 = 20.0;
/// Limits start empty, and from the first message on they fill: one goes ahead of all others by this much.
const WARM_UP: Duration = Duration::from_millis(800);
/// Between the last password reset of the idle phase and the campaign.
const PAUSE: Duration = Duration::from_millis(500);
/// When a destination asks to slow down, of the time in which receipts come: not while the burst passes.
const SLOW_DOWN: [f64; 4] = [0.05, 0.25, 0.8, 0.95];
/// How long an offer holds whose time runs out in the backlog.
const OFFER: Duration = Duration::from_millis(800);

/// Which password resets are compared with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Group {
    /// Nothing else is under way.
    Idle,
    /// One now and then, throughout the campaign.
    UnderLoad,
    /// Many at once, in the middle of it.
    Burst,
}

/// What is particular about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Plain,
    /// Refused twice for now, then taken.
    Flaky,
    /// Told once to slow down.
    Throttled,
    /// There is no such recipient.
    Nobody,
    /// Refused for now, for ever.
    Down,
    /// Taken, but the answer is lost.
    AnswerLost,
    /// Its time runs out while it waits.
    Expiring,
    /// Its producer publishes it twice.
    Twice,
    /// Not a message at all.
    Garbage,
}

impl Fate {
    /// What the recipient's name begins with; the sandbox goes by it.
    const fn word(self) -> &'static str {
        match self {
            Fate::Flaky => "flaky",
            Fate::Throttled => "busy",
            Fate::Nobody => "nobody",
            Fate::Down => "down",
            Fate::AnswerLost => "lost",
            Fate::Plain | Fate::Expiring | Fate::Twice | Fate::Garbage => "reader",
        }
    }
}

/// One message to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    /// From the beginning of the plan.
    pub(crate) at: Duration,
    pub(crate) id: String,
    pub(crate) class: Class,
    /// Position in [`PLACES`].
    pub(crate) place: usize,
    pub(crate) domain: &'static str,
    pub(crate) fate: Fate,
    pub(crate) group: Option<Group>,
}

/// All of it, in order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) mail: Vec<Mail>,
    /// When the campaign begins.
    pub(crate) campaign_at: Duration,
    /// When the burst of password resets comes.
    pub(crate) burst_at: Duration,
    /// When the limits alone would let the last message go, about.
    pub(crate) expected: Duration,
}

impl Plan {
    /// `messages` between [`LEAST`] and [`MOST`].
    pub(crate) fn new(messages: usize, seed: u64) -> Plan {
        let part = |per_mille: usize, least: usize| (messages * per_mille / 1000).max(least);
        let idle = part(20, 10).min(200);
        let (trickle, burst) = (part(50, 10), part(50, 10));
        let (receipts, notes) = (part(110, 20), part(210, 40));
        let digests = messages - 1 - idle - trickle - burst - receipts - notes;

        let account = Figures::of(messages).account();
        let campaign_at = WARM_UP + Duration::from_secs_f64(idle as f64 / IDLE_RATE.max(account / 7.0)) + PAUSE;
        let load = Duration::from_secs_f64((messages - idle) as f64 / account);
        let burst_at = campaign_at + load.mul_f64(0.35);
        let mut writer = Writer { rng: StdRng::seed_from_u64(seed), mail: Vec::with_capacity(messages) };

        writer.batch(Class::Normal, "hello", 1, Duration::ZERO, Duration::ZERO, &[]);
        writer.resets(idle, "reset-idle", Group::Idle, WARM_UP, campaign_at - WARM_UP - PAUSE);
        writer.resets(trickle, "reset-load", Group::UnderLoad, campaign_at + load.mul_f64(0.03), load.mul_f64(0.85));
        writer.resets(burst, "reset-burst", Group::Burst, burst_at, Duration::ZERO);
        // Digests come all at once; receipts and notifications over most of the time.
        let fates = |per_mille, least| part(per_mille, least);
        let span = load.mul_f64(0.6);
        let special = [(Fate::Flaky, fates(5, 2)), (Fate::Throttled, SLOW_DOWN.len()), (Fate::Twice, fates(2, 2))];
        writer.batch(Class::High, "receipt", receipts, campaign_at, span, &special);
        let special = [
            (Fate::Flaky, fates(15, 4)),
            (Fate::Nobody, fates(10, 3)),
            (Fate::Down, fates(2, 2)),
            (Fate::AnswerLost, fates(2, 2)),
            (Fate::Garbage, 3),
        ];
        writer.batch(Class::Normal, "note", notes, campaign_at, span, &special);
        let special =
            [(Fate::Flaky, fates(8, 3)), (Fate::Nobody, fates(4, 2)), (Fate::Twice, fates(2, 2)), (Fate::Expiring, fates(3, 3))];
        writer.batch(Class::Low, "digest", digests, campaign_at, Duration::ZERO, &special);

        let mut mail = writer.mail;
        mail.sort_by_key(|m| m.at);
        Plan { mail, campaign_at, burst_at, expected: campaign_at + load }
    }
}

struct Writer {
    rng: StdRng,
    mail: Vec<Mail>,
}

impl Writer {
    /// Password resets, evenly over `span`.
    fn resets(&mut self, count: usize, name: &str, group: Group, from: Duration, span: Duration) {
        for (n, ticket) in self.tickets(count).into_iter().enumerate() {
            let (place, domain) = self.place(1, ticket);
            let at = from + span.mul_f64(n as f64 / count as f64);
            let id = format!("{name}-{n:04}");
            self.mail.push(Mail { at, id, class: Class::Critical, place, domain, fate: Fate::Plain, group: Some(group) });
        }
    }

    /// Mail of one class over `span`, `special` of it with a fate of its own.
    fn batch(&mut self, class: Class, name: &str, count: usize, from: Duration, span: Duration, special: &[(Fate, usize)]) {
        let mut fates: Vec<Fate> = special.iter().flat_map(|(fate, n)| std::iter::repeat_n(*fate, *n)).take(count).collect();
        fates.resize(count, Fate::Plain);
        fates.shuffle(&mut self.rng);
        let first = self.mail.len();
        let mut moments = SLOW_DOWN.iter().cycle();
        let tickets = self.tickets(count);
        for (n, (fate, ticket)) in fates.into_iter().zip(tickets).enumerate() {
            let (mut place, mut domain) = self.place(0, ticket);
            let mut part = n as f64 / count as f64;
            match fate {
                // One destination says "slow down", now and then.
                Fate::Throttled => {
                    (place, domain) = (2, PLACES[2].domains[0]);
                    part = moments.next().copied().unwrap_or(part);
                }
                // What fails for long must begin early and in short lanes, or the demo waits for it.
                Fate::Down => {
                    (place, domain) = (1, PLACES[1].domains[1]);
                    part *= 0.15;
                }
                // Behind everything else in the longest lane.
                Fate::Expiring => (place, domain) = (0, PLACES[0].domains[0]),
                _ => {}
            }
            let id = format!("{name}-{n:06}");
            self.mail.push(Mail { at: from + span.mul_f64(part), id, class, place, domain, fate, group: None });
        }
        // The sort by time to come is stable: within one moment this order holds.
        self.mail[first..].sort_by_key(|m| m.fate == Fate::Expiring);
    }

    /// Numbers below 100, evenly spread, in no order: shares come out as they are meant to.
    fn tickets(&mut self, count: usize) -> Vec<u32> {
        let mut tickets: Vec<u32> = (0..count).map(|n| ((2 * n + 1) * 50 / count) as u32).collect();
        tickets.shuffle(&mut self.rng);
        tickets
    }

    fn place(&mut self, share: usize, mut ticket: u32) -> (usize, &'static str) {
        let place = PLACES.iter().position(|p: &Place| {
            let hit = ticket < p.share[share];
            ticket = ticket.saturating_sub(p.share[share]);
            hit
        });
        let place = place.unwrap_or(0);
        let domains = PLACES[place].domains;
        // Most of a named operator's users are at its first domain; the tail's domains are alike.
        let first = place + 1 < PLACES.len() && self.rng.random_bool(0.8);
        (place, if first { domains[0] } else { domains[self.rng.random_range(0..domains.len())] })
    }
}

impl Mail {
    /// The document a producer publishes.
    pub(crate) fn body(&self, now: Timestamp) -> Vec<u8> {
        let (stream, subject) = match self.class {
            Class::Critical => ("password-reset", "Your code"),
            Class::High => ("receipt", "Your receipt"),
            Class::Normal => ("notification", "Something happened"),
            Class::Low => ("digest", "This week"),
        };
        if self.fate == Fate::Garbage {
            return format!("subject = {subject}\n").into_bytes();
        }
        let recipient = format!("{}-{}@{}", self.fate.word(), self.id, self.domain);
        let mut document = json!({
            "id": self.id,
            "stream": stream,
            "from": {"email": "hello@paceline.example", "name": "Paceline demo"},
            "to": [recipient],
            "subject": subject,
            "text": format!("{subject}.\n\n{}", "Sent by the demo, to nobody. ".repeat(12)),
            "tags": ["demo"],
        });
        // Resets get their class by the rule, the others say it themselves.
        if self.class != Class::Critical {
            document["class"] = self.class.as_str().into();
        }
        if self.fate == Fate::Expiring {
            document["expires_at"] = (now + OFFER).to_string().into();
        }
        document.to_string().into_bytes()
    }

    /// How often it is published.
    pub(crate) fn copies(&self) -> u32 {
        if self.fate == Fate::Twice { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use paceline_core::Message;

    use super::*;

    fn count(plan: &Plan, wanted: impl Fn(&Mail) -> bool) -> usize {
        plan.mail.iter().filter(|m| wanted(m)).count()
    }

    #[test]
    fn as_many_as_asked_for_each_with_its_own_id_in_order_of_time() {
        for messages in [LEAST, 777, 4000, 10_000] {
            let plan = Plan::new(messages, 1);
            assert_eq!(plan.mail.len(), messages);
            assert_eq!(plan.mail.iter().map(|m| m.id.as_str()).collect::<HashSet<_>>().len(), messages);
            assert!(plan.mail.is_sorted_by_key(|m| m.at));
            assert!(plan.expected < Duration::from_secs(40), "{:?}", plan.expected);
        }
    }

    #[test]
    fn a_seed_makes_a_plan() {
        assert_eq!(Plan::new(400, 1), Plan::new(400, 1));
        assert_ne!(Plan::new(400, 1), Plan::new(400, 2));
    }

    #[test]
    fn everything_that_can_happen_does() {
        for messages in [LEAST, 4000] {
            let plan = Plan::new(messages, 3);
            use Fate::{AnswerLost, Down, Expiring, Flaky, Garbage, Nobody, Throttled, Twice};
            for fate in [Flaky, Throttled, Nobody, Down, AnswerLost, Expiring, Twice, Garbage] {
                assert!(count(&plan, |m| m.fate == fate) >= 2, "{fate:?}");
            }
            for group in [Group::Idle, Group::UnderLoad, Group::Burst] {
                assert!(count(&plan, |m| m.group == Some(group)) >= 10, "{group:?}");
            }
            for class in Class::ALL {
                for place in 0..PLACES.len() {
                    assert!(count(&plan, |m| m.class == class && m.place == place) > 0, "{class} {place}");
                }
            }
        }
        assert_eq!(count(&Plan::new(4000, 3), |m| m.group == Some(Group::Burst)), 200);
    }

    #[test]
    fn the_slow_destination_has_more_than_it_can_send_in_time() {
        let plan = Plan::new(4000, 5);
        let google = count(&plan, |m| m.place == 0) as f64 / Figures::of(4000).destination(&PLACES[0]);
        assert!((26.0..40.0).contains(&google), "{google}");
    }

    #[test]
    fn every_document_is_a_message_but_the_garbage() {
        let plan = Plan::new(400, 1);
        for mail in &plan.mail {
            let parsed = Message::parse(&mail.body(Timestamp::from_secs(1_800_000_000)), None, 1 << 20);
            assert_eq!(parsed.is_err(), mail.fate == Fate::Garbage, "{parsed:?}");
            if let Ok(message) = parsed {
                assert_eq!((message.id, message.to[0].email.domain().as_str()), (mail.id.clone(), mail.domain));
            }
        }
    }
}
