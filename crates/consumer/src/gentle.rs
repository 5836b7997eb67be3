//! How many calls at a time this worker makes to a destination that has not taken as many yet.
//!
//! A receiver may take far less than anybody has configured, and it takes a round trip to hear of it: without this, a
//! worker has hundreds of calls refused before the first answer has come. So it begins with a few. Each call that was not
//! refused for its rate makes room for one more, so that the room doubles with every round trip while it is used; each
//! that was takes two away, so that it closes where a third or more are refused. What remains is the adaptive rate's.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use paceline_core::{Class, Outcome, Rejected, Scope, lane::TAIL};

use crate::{context::Context, item::Item};

/// Calls at a time to begin with.
const FIRST: usize = 5;
/// What a refused call takes away.
const LESS: usize = 2;

type Key = (usize, Arc<str>);

/// Room at each destination, by account.
#[derive(Debug, Default)]
pub(crate) struct Gentle {
    rooms: Mutex<HashMap<Key, Arc<Room>>>,
}

#[derive(Debug)]
struct Room {
    allowed: AtomicUsize,
    under_way: AtomicUsize,
}

/// A granted message that takes room until its call has ended or it is given back.
#[derive(Debug)]
pub(crate) struct Guest(Arc<Room>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an answer says of the receiver's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    More,
    Less,
    Nothing,
}

impl Gentle {
    fn room(&self, key: &Key) -> Arc<Room> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Room { allowed: AtomicUsize::new(FIRST), under_way: AtomicUsize::new(0) });
        rooms.entry(key.clone()).or_insert_with(new).clone()
    }
}

impl Room {
    /// How many more may go now. Slow calls of other classes cannot take all of it from critical mail.
    fn left(&self, class: Class) -> usize {
        let allowed = self.allowed.load(Ordering::Relaxed);
        let more = if class == Class::Critical { allowed / 4 + 1 } else { 0 };
        (allowed + more).saturating_sub(self.under_way.load(Ordering::Relaxed))
    }

    /// Takes note of an answer, while its call still counts as under way.
    fn answered(&self, says: Says) {
        let under_way = self.under_way.load(Ordering::Relaxed);
        let _ = self.allowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |allowed| match says {
            // What was never in use was never shown to be fine.
            Says::More if under_way * 2 >= allowed => Some(allowed + 1),
            Says::Less => Some(allowed.saturating_sub(LESS).max(1)),
            Says::More | Says::Nothing => None,
        });
    }
}

fn says(outcome: &Outcome) -> Says {
    // Of several recipients one suffices.
    let slower = |part: &Outcome| {
        matches!(part, Outcome::Throttled { scope: Scope::Account | Scope::Destination | Scope::Connection, .. })
    };
    if outcome.parts().any(slower) {
        return Says::Less;
    }
    match outcome.chief() {
        Outcome::Temporary { .. } | Outcome::Uncertain { .. } | Outcome::ReputationBlock { .. } | Outcome::Divided { .. } => {
            Says::Nothing
        }
        Outcome::Rejected { what: Rejected::Account, .. } => Says::Nothing,
        Outcome::Accepted { .. } | Outcome::Throttled { .. } | Outcome::Greylisted { .. } | Outcome::Rejected { .. } => {
            Says::More
        }
    }
}

impl Context {
    /// Where the message needs room. A tail domain has a small limit of its own; where rates are not to follow what is
    /// refused, neither is this.
    fn gently(&self, item: &Item) -> Option<Arc<Room>> {
        let destination = &item.lane.destination;
        let adaptive = **destination != *TAIL && self.current.borrow().accounts[item.account].adaptive;
        adaptive.then(|| self.gentle.room(&(item.account, destination.clone())))
    }

    /// Whether another such message may go now.
    pub(crate) fn has_room(&self, item: &Item) -> bool {
        self.gently(item).is_none_or(|room| room.left(item.lane.class) > 0)
    }

    /// The message has its grant.
    pub(crate) fn guest(&self, item: &Item) -> Option<Guest> {
        let room = self.gently(item)?;
        room.under_way.fetch_add(1, Ordering::Relaxed);
        Some(Guest(room))
    }

    /// Its call has ended.
    pub(crate) fn welcomed(&self, item: &Item, outcome: &Outcome) {
        if let Some(room) = self.gently(item) {
            room.answered(says(outcome));
        }
    }

    /// For one call to the limiter: of those that wait behind `item`, how many there is room for.
    pub(crate) fn rooms(&self) -> impl FnMut(&Item, usize) -> usize {
        let mut asked: HashMap<Key, usize> = HashMap::new();
        move |item, most| {
            let Some(room) = self.gently(item) else { return most };
            let asked = asked.entry((item.account, item.lane.destination.clone())).or_default();
            let take = most.min(room.left(item.lane.class).saturating_sub(*asked));
            *asked += take;
            take
        }
    }
}

#[cfg(test)]
mod tests {
    use paceline_core::ProviderAnswer;

    use super::*;
    use crate::slots::{Granted, Slots};

    /// Answers `says` to as many calls as there is room for, round after round; returns how many that were.
    fn rounds(room: &Arc<Room>, rounds: usize, answer: Says) -> Vec<usize> {
        let round = |_| {
            let guests: Vec<Guest> = (0..room.left(Class::Normal))
                .map(|_| {
                    room.under_way.fetch_add(1, Ordering::Relaxed);
                    Guest(room.clone())
                })
                .collect();
            guests.iter().for_each(|_| room.answered(answer));
            guests.len()
        };
        (0..rounds).map(round).collect()
    }

    #[test]
    fn opens_while_it_is_used_and_closes_when_refused() {
        let gentle = Gentle::default();
        let room = gentle.room(&(0, "google".into()));
        assert_eq!(rounds(&room, 5, Says::More), [5, 10, 20, 40, 80]);
        assert_eq!(rounds(&room, 2, Says::Nothing), [160, 160]);
        let closing = rounds(&room, 3, Says::Less);
        assert_eq!(closing, [160, 1, 1]);
        assert_eq!((room.left(Class::Normal), room.left(Class::Critical)), (1, 2));
        assert!(Arc::ptr_eq(&room, &gentle.room(&(0, "google".into()))));
        assert_eq!(gentle.room(&(1, "google".into())).left(Class::Normal), FIRST, "another account's is another");
    }

    #[test]
    fn room_that_is_not_used_does_not_grow() {
        let room = Gentle::default().room(&(0, "google".into()));
        for _ in 0..100 {
            room.under_way.fetch_add(1, Ordering::Relaxed);
            let guest = Guest(room.clone());
            room.answered(Says::More);
            drop(guest);
        }
        assert_eq!(room.left(Class::Normal), FIRST);
    }

    #[tokio::test]
    async fn messages_of_one_call_keep_their_room_until_it_has_ended() {
        let (room, slots) = (Gentle::default().room(&(0, "google".into())), Slots::new(4, [4].into_iter(), 1 << 20));
        let mut granted: Vec<_> = (0..FIRST)
            .map(|_| {
                room.under_way.fetch_add(1, Ordering::Relaxed);
                slots.granted(None, Some(Guest(room.clone())))
            })
            .collect();
        let first = granted.remove(0);
        let others = granted.into_iter().filter_map(Granted::joins).collect();
        let slot = slots.acquire(first, 0, Class::Normal, 10).await.with(others);
        assert_eq!((room.left(Class::Normal), slots.ended()), (0, FIRST as u64 - 1), "their other claims are free");
        drop(slot);
        assert_eq!(room.left(Class::Normal), FIRST);
    }

    #[test]
    fn what_answers_say_of_it() {
        let answer = || ProviderAnswer::new("code", None, "words");
        let throttled = |scope| Outcome::Throttled { scope, retry_after: None, answer: answer() };
        let rejected = |what| Outcome::Rejected { what, answer: answer() };
        for (outcome, want) in [
            (Outcome::accepted(None), Says::More),
            (rejected(Rejected::Message), Says::More),
            (throttled(Scope::Recipient), Says::More),
            (throttled(Scope::Destination), Says::Less),
            (throttled(Scope::Account), Says::Less),
            (throttled(Scope::Connection), Says::Less),
            (rejected(Rejected::Account), Says::Nothing),
            (Outcome::Uncertain { answer: answer() }, Says::Nothing),
            (Outcome::Temporary { retry_after: None, answer: answer() }, Says::Nothing),
        ] {
            assert_eq!(says(&outcome), want, "{outcome:?}");
        }
    }
}
