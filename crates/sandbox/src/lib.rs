//! A fake provider, scriptable, for tests of one's own.
