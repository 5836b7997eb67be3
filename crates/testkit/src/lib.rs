//! Private service instances, a fault proxy and load tools for tests. Development only.
