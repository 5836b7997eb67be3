//! Vocabulary and decisions of Paceline.
//!
//! Everything here is pure: no I/O, no clock, no randomness. Callers pass `now` and jitter, so the same
//! arguments always give the same decision, and a test never sleeps.

pub mod adaptive;
pub mod address;
pub mod cancel;
pub mod circuit;
pub mod class;
pub mod dead_letter;
pub mod decide;
pub mod diagnosis;
pub mod directive;
pub mod event;
pub mod evidence;
pub mod feedback;
pub mod journey;
pub mod lane;
pub mod lanes;
pub mod message;
pub mod outcome;
pub mod rate;
pub mod retry;
pub mod scope;
pub mod suppression;
pub mod time;
pub mod warmup;

pub use address::{Domain, EmailAddress, Mailbox};
pub use cancel::{Cancel, CancelSet, Selector};
pub use class::Class;
pub use dead_letter::{DeadLetter, Reason};
pub use decide::{Disposition, GivenUp, decide};
pub use directive::{Directives, LimitName, LimitOrder, Pause, PauseScope};
pub use journey::{Journey, LastError};
pub use lane::Lane;
pub use message::{InvalidMessage, Message};
pub use outcome::{Outcome, ProviderAnswer, Rejected, Scope, Suppress};
pub use rate::Rate;
pub use retry::{Policy, RetryPolicy};
pub use suppression::SuppressionSet;
pub use time::Timestamp;
