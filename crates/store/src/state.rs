//! Where a dead letter stands: nobody has decided, a job is at it, or it is settled.

use std::{fmt, str::FromStr};

use paceline_core::{DeadLetter, Timestamp};
use serde::{Deserialize, Serialize};

use crate::StoredDeadLetter;

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has decided.
    Open,
    /// In a live replay job.
    Replaying,
    /// In a live discard job.
    Discarding,
    /// Published again; for good.
    Replayed,
    /// Given up; for good.
    Discarded,
}

impl State {
    pub const ALL: [State; 5] = [State::Open, State::Replaying, State::Discarding, State::Replayed, State::Discarded];

    pub const fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Replaying => "replaying",
            State::Discarding => "discarding",
            State::Replayed => "replayed",
            State::Discarded => "discarded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which states a selection is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateFilter {
    /// Open ones and those in live jobs.
    #[default]
    Unsettled,
    All,
    Only(State),
}

impl StateFilter {
    /// Whether an entry in this state is selected.
    pub fn holds(self, state: State) -> bool {
        match self {
            StateFilter::Unsettled => !matches!(state, State::Replayed | State::Discarded),
            StateFilter::All => true,
            StateFilter::Only(one) => one == state,
        }
    }
}

impl fmt::Display for StateFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StateFilter::Unsettled => "unsettled",
            StateFilter::All => "all",
            StateFilter::Only(state) => state.as_str(),
        })
    }
}

impl FromStr for StateFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<StateFilter, String> {
        let known = [StateFilter::Unsettled, StateFilter::All].into_iter().chain(State::ALL.map(StateFilter::Only));
        known.clone().find(|f| f.to_string() == text).ok_or_else(|| {
            let known: Vec<_> = known.map(|f| f.to_string()).collect();
            format!("no such state; known are {}", known.join(", "))
        })
    }
}

/// An entry's state, and what brought it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub state: State,
    /// The live job it is in, or the one that settled it.
    pub job: Option<String>,
    pub settled_at: Option<Timestamp>,
}

/// An entry in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub entry: DeadLetter,
    #[serde(flatten)]
    pub status: Status,
}

/// An entry whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub letter: StoredDeadLetter,
    pub status: Status,
}

impl Kept {
    /// Its place in [`page`](crate::DeadLetters::page).
    pub fn position(&self) -> Position {
        Position { died_at: self.letter.entry.died_at, id: self.letter.entry.id.clone() }
    }
}

/// A place between two entries, in the order of lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub died_at: Timestamp,
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_filters_are_read_as_written() {
        for text in ["unsettled", "all", "open", "replaying", "discarding", "replayed", "discarded"] {
            assert_eq!(text.parse::<StateFilter>().unwrap().to_string(), text);
        }
        assert!("Open".parse::<StateFilter>().unwrap_err().contains("replayed"));
        assert_eq!(State::ALL.map(|s| StateFilter::default().holds(s)), [true, true, true, false, false]);
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
