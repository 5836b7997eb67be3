//! A connection that is kept up.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use lapin::{Connection, ConnectionProperties, Event};
use paceline_core::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{Address, REPLY_LIMIT, convert::reason};
use crate::{BrokerError, State};

/// How long one attempt to connect may take, handshake included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// How soon a lost connection is noticed at the latest, where lapin does not say so.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// A connection that lasted this long was a good one: the next loss starts again with short waits.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// A connection and what is known of it.
pub(super) struct Live {
    pub(super) connection: Connection,
    /// Counts the connections of a link.
    pub(super) generation: u64,
    /// Becomes the reason once it is gone.
    lost: watch::Sender<Option<String>>,
}

impl Live {
    pub(super) fn lost(&self) -> watch::Receiver<Option<String>> {
        self.lost.subscribe()
    }

    pub(super) async fn channel(&self) -> Result<lapin::Channel, BrokerError> {
        bounded(self.connection.create_channel()).await
    }
}

#[derive(Clone)]
enum Slot {
    Up(Arc<Live>),
    /// The reason given when the broker takes no publishes.
    Blocked(Arc<Live>, Timestamp, String),
    Down(Timestamp, String),
}

/// A connection by one name, made again whenever it is lost.
pub(super) struct Link {
    slot: watch::Sender<Slot>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    pub(super) fn start(addresses: Vec<Address>, name: String) -> Arc<Link> {
        let slot = watch::Sender::new(Slot::Down(now(), "not connected yet".to_owned()));
        let keeper = tokio::spawn(keep(addresses, name, slot.clone()));
        Arc::new(Link { slot, keeper: Mutex::new(Some(keeper)) })
    }

    /// The connection, waiting up to `limit` for it.
    pub(super) async fn live(&self, limit: Duration) -> Result<Arc<Live>, String> {
        if let Slot::Up(live) | Slot::Blocked(live, ..) = &*self.slot.borrow() {
            return Ok(live.clone());
        }
        let mut slot = self.slot.subscribe();
        let up = timeout(limit, slot.wait_for(|slot| !matches!(slot, Slot::Down(..)))).await;
        if let Ok(Ok(found)) = up
            && let Slot::Up(live) | Slot::Blocked(live, ..) = &*found
        {
            return Ok(live.clone());
        }
        match &*self.slot.borrow() {
            Slot::Down(_, why) => Err(why.clone()),
            Slot::Up(live) | Slot::Blocked(live, ..) => Ok(live.clone()),
        }
    }

    /// Waits up to `limit` while the broker takes no publishes; the reason if it still does not.
    pub(super) async fn unblocked(&self, limit: Duration) -> Result<(), String> {
        if !matches!(&*self.slot.borrow(), Slot::Blocked(..)) {
            return Ok(());
        }
        let mut slot = self.slot.subscribe();
        // Both ways out are read from the slot itself.
        let _ = timeout(limit, slot.wait_for(|slot| !matches!(slot, Slot::Blocked(..)))).await;
        match &*self.slot.borrow() {
            Slot::Blocked(_, _, why) => Err(why.clone()),
            Slot::Up(_) | Slot::Down(..) => Ok(()),
        }
    }

    /// Disconnects for good.
    pub(super) async fn close(&self) {
        let keeper = self.keeper.lock().await.take();
        let Some(keeper) = keeper else { return };
        keeper.abort();
        let _ = keeper.await;
        let last = self.slot.send_replace(Slot::Down(now(), "closed".to_owned()));
        if let Slot::Up(live) | Slot::Blocked(live, ..) = last {
            // Politeness only: the broker notices either way.
            let _ = timeout(Duration::from_secs(2), live.connection.close(200, "closing".into())).await;
            live.lost.send_replace(Some("closed".to_owned()));
        }
    }

    fn state(slot: &Slot) -> State {
        match slot {
            Slot::Up(_) => State::Up,
            Slot::Blocked(_, since, why) => State::Blocked { since: *since, why: why.clone() },
            Slot::Down(since, why) => State::Down { since: *since, why: why.clone() },
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get_mut().take() {
            keeper.abort();
        }
    }
}

/// The worse of two links' states, followed until one is dropped.
pub(super) fn combined_state(a: &Link, b: &Link) -> watch::Receiver<State> {
    let (mut a, mut b) = (a.slot.subscribe(), b.slot.subscribe());
    let worse = |a: &watch::Receiver<Slot>, b: &watch::Receiver<Slot>| {
        let (a, b) = (Link::state(&a.borrow()), Link::state(&b.borrow()));
        match (&a, &b) {
            (State::Down { .. }, _) => a,
            (_, State::Down { .. }) | (State::Up, _) => b,
            (State::Blocked { .. }, _) => a,
        }
    };
    let (state, receiver) = watch::channel(worse(&a, &b));
    tokio::spawn(async move {
        loop {
            let more = tokio::select! {
                more = a.changed() => more,
                more = b.changed() => more,
            };
            let now = worse(&a, &b);
            state.send_if_modified(|state| {
                // Another reason for the same trouble is not news, but what is read by whoever looks.
                let news = std::mem::discriminant(state) != std::mem::discriminant(&now);
                *state = now;
                news
            });
            if more.is_err() || state.is_closed() {
                return;
            }
        }
    });
    receiver
}

async fn keep(addresses: Vec<Address>, name: String, slot: watch::Sender<Slot>) {
    let mut waits = backoff();
    // Spreads a fleet over the nodes.
    let mut turn = usize::try_from(RandomState::new().hash_one(&name) % addresses.len() as u64).unwrap_or(0);
    let mut suspect = vec![false; addresses.len()];
    let mut generation = 0;
    let mut failures = 0;
    loop {
        turn = (turn + 1) % addresses.len();
        let address = &addresses[turn];
        match attempt(address, &name, suspect[turn]).await {
            Ok(connection) => {
                suspect[turn] = false;
                failures = 0;
                generation += 1;
                info!(connection = %name, broker = %address, "connected");
                let since = Instant::now();
                let why = watch_over(connection, generation, &slot).await;
                warn!(connection = %name, broker = %address, why, "connection lost");
                if since.elapsed() > GOOD_AFTER {
                    waits = backoff();
                }
                slot.send_replace(Slot::Down(now(), why));
            }
            Err(Failure { why, timed_out }) => {
                suspect[turn] = timed_out;
                failures += 1;
                warn!(connection = %name, broker = %address, why, "cannot connect");
                slot.send_if_modified(|slot| match slot {
                    Slot::Down(_, reason) if *reason != why => {
                        *reason = why;
                        true
                    }
                    _ => false,
                });
                if failures % addresses.len() != 0 {
                    continue;
                }
            }
        }
        sleep(waits.next().unwrap_or(Duration::from_secs(3))).await;
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

/// Keeps the slot true until the connection is gone; returns why.
async fn watch_over(connection: Connection, generation: u64, slot: &watch::Sender<Slot>) -> String {
    let mut events = pin!(connection.events_listener());
    let live = Arc::new(Live { connection, generation, lost: watch::Sender::new(None) });
    slot.send_replace(Slot::Up(live.clone()));
    let mut last_error = None;
    while live.connection.status().connected() {
        // Channels' errors arrive here too, so only the status says whether it is over.
        match timeout(WATCH_EVERY, events.next()).await {
            Ok(Some(Event::Error(error))) => last_error = Some(reason(&error)),
            Ok(Some(Event::ConnectionBlocked(why))) => {
                warn!(why, "the broker takes no messages for now");
                slot.send_replace(Slot::Blocked(live.clone(), now(), why));
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                info!("the broker takes messages again");
                slot.send_replace(Slot::Up(live.clone()));
            }
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => break,
        }
    }
    let why = last_error.unwrap_or_else(|| "the connection was closed".to_owned());
    live.lost.send_replace(Some(why.clone()));
    why
}

struct Failure {
    why: String,
    timed_out: bool,
}

/// Connects, in bounded time.
async fn attempt(address: &Address, name: &str, suspect: bool) -> Result<Connection, Failure> {
    if suspect {
        // An attempt that is given up leaves lapin's thread waiting for the peer: ask first whether it answers.
        probe(address).await.map_err(|e| Failure { why: e.to_string(), timed_out: true })?;
    }
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "paceline".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    match timeout(ATTEMPT_LIMIT, Connection::connect_uri(address.uri.clone(), properties)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Failure { why: reason(&error), timed_out: false }),
        Err(_) => Err(Failure { why: "the broker does not answer".to_owned(), timed_out: true }),
    }
}

/// Whether something there begins an AMQP handshake.
async fn probe(address: &Address) -> io::Result<()> {
    let answers = async {
        let mut stream = TcpStream::connect(address.socket()).await?;
        if !address.is_tls() {
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            stream.read_u8().await?;
        }
        Ok(())
    };
    timeout(ATTEMPT_LIMIT, answers).await.unwrap_or_else(|_| Err(io::Error::other("the broker does not answer")))
}

/// One round trip, in bounded time.
pub(super) async fn bounded<T>(call: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match timeout(REPLY_LIMIT, call).await {
        Ok(result) => result.map_err(|error| super::convert::broker_error(&error)),
        Err(_) => Err(BrokerError::Unreachable("the broker does not answer".to_owned())),
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
