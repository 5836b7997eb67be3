//! One attempt at one provider API, read for what its answer means.
