//! Dead letters: the writer that brings them from the broker into the store, and what operators ask of them.
//!
//! Promises of the [`Writer`]: an entry is acked only after the store has committed it; an entry that cannot be read is
//! stored all the same, its bytes untouched; one bad entry holds up no other; while the store is away everything waits
//! in the broker. Any number of writers may share one queue.

mod decode;
mod query;
mod writer;

pub use query::{DEFAULT_LIST_LIMIT, Shown, TABLE_COLUMNS, list, show, stats, table_row};
pub use writer::{Options, Writer, WriterState};
