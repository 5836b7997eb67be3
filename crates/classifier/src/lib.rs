//! Message to class and destination: rules and destination groups. Pure.
