//! Recipients that must not be mailed: what an entry says, and the filter that every worker asks before it sends.
//!
//! The filter holds no address: 64 bits of a keyed hash each. With five million entries, the chance that an address that
//! is not listed shares the hash of one that is, is below 3 in 10¹³.

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Class, EmailAddress, Message, Timestamp};

/// How much an entry weighs. The order is that of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Mail did not get through lately, such as a mailbox that stays full: critical mail may be let through.
    Soft,
    /// Never: there is no such mailbox, or its owner has complained.
    Hard,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Soft => "soft",
            Kind::Hard => "hard",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Kind, Self::Err> {
        match s {
            "hard" => Ok(Kind::Hard),
            "soft" => Ok(Kind::Soft),
            _ => Err("is not a kind; use hard or soft"),
        }
    }
}

/// The form under which an address is listed: all of it in lower case. `User@Example.COM` is `user@example.com`; a part
/// after `+` counts.
pub fn listed_form(address: &EmailAddress) -> String {
    let (local, domain) = (address.local(), address.domain().as_str());
    let mut form = String::with_capacity(local.len() + domain.len() + 1);
    if local.is_ascii() {
        form.push_str(local);
        form.make_ascii_lowercase();
    } else {
        form.push_str(&local.to_lowercase());
    }
    form.push('@');
    form.push_str(domain);
    form
}

/// One change of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As [`listed_form`] gives it.
    pub address: String,
    /// `None`: no longer listed.
    pub entry: Option<Entry>,
}

/// What the filter knows of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Not in force from this time on; `None`: for ever.
    pub until: Option<Timestamp>,
}

/// An [`Entry`] in 32 bits: kind, and the second it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(u32);

impl Mark {
    const HARD: u32 = 1 << 31;
    /// Also what ends after 2088, which is as good.
    const FOR_EVER: u32 = Mark::HARD - 1;
    const GONE: Mark = Mark(0);
    /// 2020-01-01T00:00:00Z, in seconds: no entry ends earlier.
    const EPOCH_S: i64 = 1_577_836_800;

    fn of(entry: Option<Entry>) -> Mark {
        let Some(Entry { kind, until }) = entry else { return Mark::GONE };
        let ends = until.map_or(Mark::FOR_EVER, |at| {
            // Rounded up: an entry may hold a second longer, never end early.
            let second = at.as_micros().saturating_add(999_999).div_euclid(1_000_000) - Mark::EPOCH_S;
            u32::try_from(second.clamp(1, i64::from(Mark::FOR_EVER))).unwrap_or(Mark::FOR_EVER)
        });
        Mark(if kind == Kind::Hard { ends | Mark::HARD } else { ends })
    }

    fn kind_at(self, now: Timestamp) -> Option<Kind> {
        let ends = self.0 & Mark::FOR_EVER;
        let past = || now.as_micros().div_euclid(1_000_000) - Mark::EPOCH_S >= i64::from(ends);
        if ends == 0 || ends != Mark::FOR_EVER && past() {
            return None;
        }
        Some(if self.0 & Mark::HARD != 0 { Kind::Hard } else { Kind::Soft })
    }
}

/// The whole list, ready to be asked for each message. Cheap to clone; about 13 bytes an entry.
#[derive(Clone)]
pub struct SuppressionSet {
    seed: u64,
    critical_through_soft: bool,
    listed: Arc<Listed>,
    /// What changed since `listed` was made.
    changed: HashMap<u64, Mark>,
}

/// Hashes in order, found by their first bits.
#[derive(Default)]
struct Listed {
    hashes: Vec<u64>,
    marks: Vec<Mark>,
    /// Where the hashes that begin with these `bits` begin, and one more for the end.
    starts: Vec<u32>,
    bits: u32,
}

/// Hashes with the same first bits, about.
const BUCKET: usize = 8;
/// Changes kept apart before they are merged in, at least; and as a part of the list.
const APART: usize = 1024;
const APART_PART: usize = 32;

impl SuppressionSet {
    /// Nobody is listed. `seed` is by chance and stays in the process: without it nobody can make an address that
    /// shares another's hash.
    pub fn new(seed: u64, critical_through_soft: bool) -> SuppressionSet {
        SuppressionSet { seed, critical_through_soft, listed: Arc::default(), changed: HashMap::new() }
    }

    /// How many addresses are listed, ended entries included until the next merge.
    pub fn len(&self) -> usize {
        let gone = |(hash, mark): (&u64, &Mark)| *mark == Mark::GONE && self.listed.get(*hash).is_some();
        let new = |(hash, mark): (&u64, &Mark)| *mark != Mark::GONE && self.listed.get(*hash).is_none();
        self.listed.hashes.len() + self.changed.iter().filter(|c| new(*c)).count()
            - self.changed.iter().filter(|c| gone(*c)).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The list after these changes, the later of two to one address counting. `now` is for leaving out what has ended.
    #[must_use]
    pub fn after(&self, changes: impl IntoIterator<Item = Change>, now: Timestamp) -> SuppressionSet {
        let mut set = self.clone();
        let changes = changes.into_iter().map(|c| (hash(self.seed, c.address.as_bytes()), Mark::of(c.entry)));
        set.changed.extend(changes);
        if set.changed.len() > APART.max(set.listed.hashes.len() / APART_PART) {
            set.listed = Arc::new(set.listed.merged(std::mem::take(&mut set.changed), now));
        }
        set
    }

    /// How this address is listed at `now`.
    pub fn kind(&self, address: &EmailAddress, now: Timestamp) -> Option<Kind> {
        if self.listed.hashes.is_empty() && self.changed.is_empty() {
            return None;
        }
        let hash = hash_of(self.seed, address);
        let mark = if self.changed.is_empty() { None } else { self.changed.get(&hash).copied() };
        mark.or_else(|| self.listed.get(hash))?.kind_at(now)
    }

    /// Whether mail of this class to this address is kept back, and for which kind of entry.
    pub fn holds_back(&self, address: &EmailAddress, class: Class, now: Timestamp) -> Option<Kind> {
        let passes = |kind: &Kind| *kind == Kind::Soft && class == Class::Critical && self.critical_through_soft;
        self.kind(address, now).filter(|kind| !passes(kind))
    }

    /// Whether every recipient's mail is kept back.
    pub fn holds_back_all(&self, message: &Message, class: Class, now: Timestamp) -> bool {
        message.recipients().all(|to| self.holds_back(to, class, now).is_some())
    }

    /// Positions among [`Message::recipients`] whose mail is kept back.
    pub fn held_back(&self, message: &Message, class: Class, now: Timestamp) -> Vec<(usize, Kind)> {
        // Allocates nothing in the usual case.
        let kinds = message.recipients().enumerate().map(|(i, to)| (i, self.holds_back(to, class, now)));
        kinds.filter_map(|(i, kind)| Some((i, kind?))).collect()
    }
}

impl fmt::Debug for SuppressionSet {
    /// Not the seed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuppressionSet").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Listed {
    /// With the changes, without what has ended.
    fn merged(&self, changed: HashMap<u64, Mark>, now: Timestamp) -> Listed {
        let mut changed: Vec<(u64, Mark)> = changed.into_iter().collect();
        changed.sort_unstable_by_key(|(hash, _)| *hash);
        let most = self.hashes.len() + changed.len();
        let (mut hashes, mut marks) = (Vec::with_capacity(most), Vec::with_capacity(most));
        let mut put = |hash: u64, mark: Mark| {
            if mark.kind_at(now).is_some() {
                hashes.push(hash);
                marks.push(mark);
            }
        };
        let mut old = self.hashes.iter().copied().zip(self.marks.iter().copied()).peekable();
        for (hash, mark) in changed {
            while let Some((before, kept)) = old.next_if(|(old, _)| *old < hash) {
                put(before, kept);
            }
            old.next_if(|(old, _)| *old == hash);
            put(hash, mark);
        }
        old.for_each(|(hash, mark)| put(hash, mark));
        Listed::new(hashes, marks)
    }

    /// Of hashes in order, each once.
    fn new(hashes: Vec<u64>, marks: Vec<Mark>) -> Listed {
        let bits = (hashes.len() / BUCKET).max(1).ilog2().min(28);
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        for (at, hash) in hashes.iter().enumerate() {
            // More than four thousand million entries would not fit in memory either.
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            starts.resize(starts.len().max(prefix(*hash, bits) + 1), at);
        }
        starts.resize((1 << bits) + 1, u32::try_from(hashes.len()).unwrap_or(u32::MAX));
        Listed { hashes, marks, starts, bits }
    }

    fn get(&self, hash: u64) -> Option<Mark> {
        let at = prefix(hash, self.bits);
        let (from, to) = (*self.starts.get(at)?, *self.starts.get(at + 1)?);
        let (from, to) = (from as usize, to as usize);
        let found = self.hashes.get(from..to)?.iter().position(|h| *h == hash)?;
        self.marks.get(from + found).copied()
    }
}

/// The first `bits` bits.
fn prefix(hash: u64, bits: u32) -> usize {
    // 64 − 0 is one too many to shift by.
    if bits == 0 { 0 } else { (hash >> (64 - bits)) as usize }
}

fn hash(seed: u64, listed_form: &[u8]) -> u64 {
    xxh3_64_with_seed(listed_form, seed)
}

/// The hash of an address's listed form, made on the stack for all but odd ones.
fn hash_of(seed: u64, address: &EmailAddress) -> u64 {
    let (local, domain) = (address.local().as_bytes(), address.domain().as_str().as_bytes());
    let mut form = [0u8; 320];
    let length = local.len() + 1 + domain.len();
    if !local.is_ascii() || length > form.len() {
        return hash(seed, listed_form(address).as_bytes());
    }
    form[..local.len()].copy_from_slice(local);
    form[..local.len()].make_ascii_lowercase();
    form[local.len()] = b'@';
    form[local.len() + 1..length].copy_from_slice(domain);
    hash(seed, &form[..length])
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn address(text: &str) -> EmailAddress {
        EmailAddress::parse(text).unwrap()
    }

    fn entry(kind: Kind, in_s: Option<u64>) -> Option<Entry> {
        Some(Entry { kind, until: in_s.map(|s| NOW + Duration::from_secs(s)) })
    }

    fn change(text: &str, entry: Option<Entry>) -> Change {
        Change { address: listed_form(&address(text)), entry }
    }

    fn set(changes: Vec<Change>) -> SuppressionSet {
        SuppressionSet::new(7, false).after(changes, NOW)
    }

    #[test]
    fn one_address_however_it_is_written() {
        for (text, form) in [
            ("User.Name+Tag@Example.COM.", "user.name+tag@example.com"),
            ("ÉCOLE@bücher.example", "école@xn--bcher-kva.example"),
            ("\"A B\"@x.org", "\"a b\"@x.org"),
        ] {
            assert_eq!(listed_form(&address(text)), form);
        }
        let set = set(vec![change("ÉCOLE@X.org", entry(Kind::Hard, None)), change("User@x.org", entry(Kind::Soft, None))]);
        for (text, kind) in [
            ("école@x.ORG", Some(Kind::Hard)),
            ("uSER@x.org", Some(Kind::Soft)),
            ("user+tag@x.org", None),
            ("user@y.org", None),
            ("user@x.org.uk", None),
        ] {
            assert_eq!(set.kind(&address(text), NOW), kind, "{text}");
        }
    }

    #[test]
    fn an_entry_ends_by_itself_and_never_early() {
        let set = set(vec![change("a@x.org", entry(Kind::Hard, Some(10))), change("b@x.org", entry(Kind::Hard, None))]);
        let far = Timestamp::from_secs(40_000_000_000);
        for (text, at, listed) in [
            ("a@x.org", NOW + Duration::from_micros(9_999_999), true),
            ("a@x.org", NOW + Duration::from_secs(11), false),
            ("b@x.org", far, true),
        ] {
            assert_eq!(set.kind(&address(text), at).is_some(), listed, "{text} {at}");
        }
        // Outside what 31 bits of seconds hold.
        for (until, at, listed) in [(Timestamp::from_secs(1), NOW, false), (far, NOW, true)] {
            let mark = Mark::of(Some(Entry { kind: Kind::Soft, until: Some(until) }));
            assert_eq!(mark.kind_at(at).is_some(), listed, "{until}");
        }
    }

    #[test]
    fn critical_passes_soft_entries_where_told_so() {
        let changes = || vec![change("s@x.org", entry(Kind::Soft, None)), change("h@x.org", entry(Kind::Hard, None))];
        for (through, class, text, kept) in [
            (false, Class::Critical, "s@x.org", true),
            (true, Class::Critical, "s@x.org", false),
            (true, Class::High, "s@x.org", true),
            (true, Class::Critical, "h@x.org", true),
        ] {
            let set = SuppressionSet::new(7, through).after(changes(), NOW);
            assert_eq!(set.holds_back(&address(text), class, NOW).is_some(), kept, "{through} {class} {text}");
        }
    }

    #[test]
    fn recipients_are_told_by_their_positions() {
        let json = br#"{"id":"m","from":"a@x.org","to":["u@x.org","S@x.org"],"cc":["s@x.org"],"bcc":["h@x.org"],"text":"x"}"#;
        let message = Message::parse(json, None, 10_000).unwrap();
        let set = set(vec![change("s@x.org", entry(Kind::Soft, None)), change("h@x.org", entry(Kind::Hard, None))]);
        assert_eq!(set.held_back(&message, Class::High, NOW), [(1, Kind::Soft), (2, Kind::Soft), (3, Kind::Hard)]);
        assert!(!set.holds_back_all(&message, Class::High, NOW));
        let set = set.after([change("u@x.org", entry(Kind::Hard, None))], NOW);
        assert!(set.holds_back_all(&message, Class::High, NOW));
        assert!(!SuppressionSet::new(1, false).holds_back_all(&message, Class::High, NOW));
    }

    #[test]
    fn a_hundred_thousand_are_each_found_and_nobody_else() {
        let named = |i: u32| format!("user{i}@example{}.com", i % 97);
        let changes = (0..100_000).map(|i| change(&named(i), entry(if i % 2 == 0 { Kind::Hard } else { Kind::Soft }, None)));
        let set = set(changes.collect());
        assert_eq!((set.len(), set.changed.len()), (100_000, 0));
        for i in 0..200_000 {
            let want = (i < 100_000).then_some(if i % 2 == 0 { Kind::Hard } else { Kind::Soft });
            assert_eq!(set.kind(&address(&named(i)), NOW), want, "{i}");
        }
        let text = format!("{set:?}");
        assert!(text.contains("100000") && !text.contains('7'), "{text}");
    }

    proptest! {
        /// Whatever is said in whatever portions, the last word about an address counts.
        #[test]
        fn as_a_map_would(
            portions in prop::collection::vec(prop::collection::vec((0u16..3000, 0u8..4), 0..900), 0..12),
        ) {
            let mut set = SuppressionSet::new(99, false);
            let mut model = BTreeMap::new();
            for portion in portions {
                let changes = portion.into_iter().map(|(who, what)| {
                    let entry = match what {
                        0 => None,
                        1 => entry(Kind::Soft, None),
                        2 => entry(Kind::Hard, Some(5)),
                        _ => entry(Kind::Hard, None),
                    };
                    model.insert(who, entry);
                    change(&format!("u{who}@x.org"), entry)
                });
                set = set.after(changes.collect::<Vec<_>>(), NOW);
                let listed = model.values().filter(|e| e.is_some()).count();
                prop_assert_eq!(set.len(), listed);
            }
            for (who, entry) in model {
                let who = address(&format!("U{who}@x.org"));
                prop_assert_eq!(set.kind(&who, NOW), entry.map(|e| e.kind));
                let later = entry.filter(|e| e.until.is_none()).map(|e| e.kind);
                prop_assert_eq!(set.kind(&who, NOW + Duration::from_secs(9)), later);
            }
        }
    }
}
