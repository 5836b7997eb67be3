//! Dead letters: the writer into the store, and queries.
