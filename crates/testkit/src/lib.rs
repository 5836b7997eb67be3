//! Private service instances, a fault proxy and load tools for tests. Development only.
//!
//! Every instance here is the test's own: on free ports, in a temporary directory, with nothing shared with the
//! machine's services, so a test may kill, freeze and restart it at will. All of it is gone when the value is
//! dropped, and also when the test process dies without dropping anything (see [`group`]).
//!
//! A service that is not installed fails the test with the name of the Debian package to install; it never skips.
//! Functions that set the stage panic, with the service's own log in the message: in a test there is nobody to
//! hand an error to.
//!
//! ```no_run
//! # async fn example() {
//! use paceline_testkit::{Postgres, RabbitMq, Redis};
//!
//! let (redis, postgres, rabbitmq) = tokio::join!(Redis::start(), Postgres::start(), RabbitMq::start());
//! let url = rabbitmq.vhost().await; // isolated, so one broker serves many cases
//! redis.kill9().await;
//! redis.start_again().await;
//! # let _ = (url, postgres.url());
//! # }
//! ```
//!
//! RabbitMQ takes some five seconds to start. Group cases that can share one into a single test, each on its own
//! [`RabbitMq::vhost`]; where the runner keeps a binary's tests in one process, [`RabbitMq::shared`] does too.

mod error;
pub mod find;
pub mod group;
pub mod port;
mod postfix;
mod postgres;
mod postgrey;
mod process;
mod proxy;
mod rabbitmq;
mod redis;

pub use error::Error;
pub use nix::sys::signal::Signal;
pub use port::Port;
pub use postfix::{Delivered, Postfix};
pub use postgres::Postgres;
pub use postgrey::Postgrey;
pub use process::{Finished, Launch, Process};
pub use proxy::Proxy;
pub use rabbitmq::{QueueState, RabbitMq};
pub use redis::{Redis, RedisCluster};
