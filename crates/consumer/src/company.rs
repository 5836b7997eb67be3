//! Whether a lane's mail is one owner's alone: then none of it moves to a flow, since nobody would gain by it.
//!
//! Who waits behind a backlog is not known before the backlog has been looked through, and looking is moving. So a lane
//! where others were seen within the hour is shared; any other is looked through to its end, and where all of it was one
//! owner's, that owner's mail stays. The next look comes a minute later at the earliest, and after each that found nobody
//! twice as late, up to an hour: an owner that is alone pays next to nothing, and a newcomer is seen.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

/// Others count as there for so long after they were seen.
const REMEMBERED: Duration = Duration::from_secs(3600);
const PAUSE_FIRST: Duration = Duration::from_secs(60);
const PAUSE_MOST: Duration = Duration::from_secs(3600);

/// Whose mail one worker has seen in one lane.
#[derive(Debug)]
pub(crate) struct Company {
    /// The label of the last message's tenant; within, `None` where it had none.
    last: Option<Option<Arc<str>>>,
    shared_until: Option<Instant>,
    look_at: Option<Instant>,
    pause: Duration,
}

impl Default for Company {
    fn default() -> Company {
        Company { last: None, shared_until: None, look_at: None, pause: PAUSE_FIRST }
    }
}

impl Company {
    /// A message under this label has come.
    pub(crate) fn arrived(&mut self, owner: Option<&Arc<str>>) {
        if self.last.as_ref().is_some_and(|last| last.as_ref() == owner) {
            return;
        }
        if self.last.replace(owner.cloned()).is_some() {
            self.shared_until = Some(Instant::now() + REMEMBERED);
            self.look_at = None;
            self.pause = PAUSE_FIRST;
        }
    }

    /// Whether mail is to make room: for others, or to see whether there are any.
    pub(crate) fn makes_room(&self, now: Instant) -> bool {
        self.is_shared(now) || self.look_at.is_none_or(|at| at <= now)
    }

    /// The lane was seen to its end, and some of its mail had moved for that.
    pub(crate) fn looked_through(&mut self, now: Instant) {
        if !self.is_shared(now) {
            self.look_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MOST);
        }
    }

    fn is_shared(&self, now: Instant) -> bool {
        self.shared_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_alone_is_looked_at_ever_more_rarely() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut company = Company::default();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        company.arrived(Some(&a));
        company.arrived(Some(&a));
        assert!(company.makes_room(at(1)), "nobody knows yet who is behind it");
        company.looked_through(at(1));
        assert!(!company.makes_room(at(60)) && company.makes_room(at(61)));
        company.looked_through(at(70));
        assert!(!company.makes_room(at(189)) && company.makes_room(at(190)), "twice as late");
        (0..10).for_each(|_| company.looked_through(at(200)));
        assert!(!company.makes_room(at(3799)) && company.makes_room(at(3800)), "but within the hour");
        company.arrived(Some(&b));
        assert!(company.makes_room(at(0)));
        company.looked_through(at(3599));
        assert!(company.makes_room(at(3599)), "others are not forgotten for a look that found none");
        company.looked_through(at(3600));
        assert!(!company.makes_room(at(3659)) && company.makes_room(at(3660)));
    }

    #[tokio::test(start_paused = true)]
    async fn mail_without_a_tenant_is_somebodys_too() {
        let a: Arc<str> = "a".into();
        let mut company = Company::default();
        company.arrived(Some(&a));
        company.looked_through(Instant::now());
        assert!(!company.makes_room(Instant::now()));
        company.arrived(None);
        assert!(company.makes_room(Instant::now()));
    }
}
