//! May this send go now? Shared through Redis or local, with one arithmetic.
