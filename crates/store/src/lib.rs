//! What outlives a process: traits by concern, PostgreSQL adapter.
