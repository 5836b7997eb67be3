//! The shared limiter: the files of `script/`, one script, inside Redis (or Valkey), and the connection that the
//! ledger and fleet use too.
//!
//! Every call has a time-out of its own and fails promptly while the server is away; the same object works again
//! when it is back. All keys carry the hash tag `{prefix}`: a fleet lives on one node of a Cluster.

mod client;

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

pub use self::client::RedisClient;
pub(crate) use self::client::Script;
use crate::{
    Ask, BucketSpec, Limiter, LimiterError, Reply, Seed, Spent,
    wire::{decode_reply, encode_ask, encode_charges, encode_seed},
};

/// One script in parts that share their names.
const SCRIPT: &str = concat!(
    include_str!("script/windows.lua"),
    include_str!("script/load.lua"),
    include_str!("script/said.lua"),
    include_str!("script/lanes.lua"),
    include_str!("script/grant.lua"),
    include_str!("script/finish.lua"),
);

/// The limiter that a fleet shares.
pub struct RedisLimiter {
    client: RedisClient,
    script: Script,
    calls: AtomicU64,
}

impl RedisLimiter {
    /// A limiter over `client`; nothing is sent yet.
    pub fn new(client: RedisClient) -> Self {
        RedisLimiter { client, script: Script::new(SCRIPT), calls: AtomicU64::new(0) }
    }

    /// The same call at a time of the caller's choosing, for replaying traces.
    pub async fn ask_at(&self, ask: &Ask, now_us: u64) -> Result<Reply, LimiterError> {
        self.call(ask, Some(now_us)).await
    }

    /// [`Limiter::seed`] at a time of the caller's choosing.
    pub async fn seed_at(&self, past: &[Seed], complete: bool, now_us: u64) -> Result<(), LimiterError> {
        self.tell(past, complete, 0, Some(now_us)).await
    }

    /// [`Limiter::seed`] of some windows for the state of that epoch alone: another one does not take it.
    pub async fn seed_state(&self, past: &[Seed], epoch_us: u64) -> Result<(), LimiterError> {
        self.tell(past, false, epoch_us, None).await
    }

    async fn call(&self, ask: &Ask, now_us: Option<u64>) -> Result<Reply, LimiterError> {
        ask.check()?;
        let reply = self.run(&ask.buckets, &encode_ask(ask)?, now_us).await?;
        decode_reply(ask, &reply)
    }

    async fn tell(&self, past: &[Seed], complete: bool, meant_us: u64, now_us: Option<u64>) -> Result<(), LimiterError> {
        let ask = Ask { buckets: past.iter().map(|s| s.window.clone()).collect(), ..Ask::default() };
        ask.check()?;
        let reply = self.run(&ask.buckets, &encode_seed(&ask.buckets, past, complete, meant_us)?, now_us).await?;
        decode_reply(&ask, &reply).map(drop)
    }

    /// Charges buckets what was granted without this limiter. `known_epoch_us` as in an ask.
    pub async fn charge(&self, spent: &[(BucketSpec, Spent)], known_epoch_us: u64) -> Result<(), LimiterError> {
        self.charge_at(spent, known_epoch_us, None).await
    }

    /// The same at a time of the caller's choosing, where one is given.
    pub async fn charge_at(
        &self,
        spent: &[(BucketSpec, Spent)],
        known_epoch_us: u64,
        now_us: Option<u64>,
    ) -> Result<(), LimiterError> {
        let ask = Ask { buckets: spent.iter().map(|(bucket, _)| bucket.clone()).collect(), ..Ask::default() };
        ask.check()?;
        let spent: Vec<&Spent> = spent.iter().map(|(_, spent)| spent).collect();
        let reply = self.run(&ask.buckets, &encode_charges(&ask.buckets, &spent, known_epoch_us)?, now_us).await?;
        decode_reply(&ask, &reply).map(drop)
    }

    async fn run(&self, buckets: &[BucketSpec], request: &[u8], now_us: Option<u64>) -> Result<Vec<u8>, LimiterError> {
        let mut keys = Vec::with_capacity(buckets.len() + 2);
        keys.push(self.client.key("epoch", ""));
        keys.push(self.client.key("generation", ""));
        keys.extend(buckets.iter().map(|b| self.client.key("limit", &b.key)));
        let time = now_us.map(|t| t.to_string());
        let mut args = vec![request];
        args.extend(time.as_ref().map(|t| t.as_bytes()));
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.client.run(&self.script, &keys, &args).await
    }
}

#[async_trait]
impl Limiter for RedisLimiter {
    async fn ask(&self, ask: &Ask) -> Result<Reply, LimiterError> {
        self.call(ask, None).await
    }

    async fn seed(&self, past: &[Seed], complete: bool) -> Result<(), LimiterError> {
        self.tell(past, complete, 0, None).await
    }

    async fn now_us(&self) -> Result<u64, LimiterError> {
        self.client.now_us().await
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}
