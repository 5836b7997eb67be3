//! Dead letters: the writer that brings them from the broker into the store, and what operators ask of them.
//!
//! Promises of the [`Writer`]: an entry is acked only after the store has committed it; an entry that cannot be read is
//! stored all the same, its bytes untouched; one bad entry holds up no other; while the store is away everything waits
//! in the broker. Any number of writers may share one queue.
//!
//! [`jobs`] send dead letters again, or put them away, when an operator orders it.

mod decode;
pub mod jobs;
mod query;
mod suppress;
mod writer;

pub use jobs::Runner;
pub use query::{DEFAULT_LIST_LIMIT, Shown, TABLE_COLUMNS, list, show, stats, table_row};
pub use suppress::AutoSuppress;
pub use writer::{Options, Writer, WriterState};
