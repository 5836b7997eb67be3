//! The worker pipeline: takes, runs, settles.
