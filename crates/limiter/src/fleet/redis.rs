//! Heartbeats and leases in Redis.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Alive, FAR_US, Fleet, Turns};
use crate::{
    LimiterError,
    redis::{RedisClient, Script},
    wire::decode,
};

/// The fleet as its Redis sees it.
pub struct RedisFleet {
    client: RedisClient,
    script: Script,
    turns: Script,
}

impl RedisFleet {
    /// A view over `client`; nothing is sent yet.
    pub fn new(client: RedisClient) -> Self {
        let (script, turns) = (Script::new(include_str!("fleet.lua")), Script::new(include_str!("turns.lua")));
        RedisFleet { client, script, turns }
    }

    async fn run(&self, what: &str, keys: &[String], worker_id: &str, ttl: Duration) -> Result<u64, LimiterError> {
        decode(&self.call(what, keys, worker_id, ttl, &[]).await?)
    }

    async fn call(
        &self,
        what: &str,
        keys: &[String],
        worker: &str,
        ttl: Duration,
        more: &[&[u8]],
    ) -> Result<Vec<u8>, LimiterError> {
        let ttl_ms = ttl.as_millis().clamp(1, 86_400_000).to_string();
        let args = [&[what.as_bytes(), worker.as_bytes(), ttl_ms.as_bytes()], more].concat();
        self.client.run(&self.script, keys, &args).await
    }

    /// The live workers, what they are configured to, and the newest of that: the limiter reads the last.
    fn who(&self) -> [String; 3] {
        [self.client.key("workers", ""), self.client.key("configs", ""), self.client.key("generation", "")]
    }
}

#[async_trait]
impl Fleet for RedisFleet {
    async fn heartbeat(&self, worker_id: &str, config: &str, known_us: u64, ttl: Duration) -> Result<Alive, LimiterError> {
        let known = known_us.to_string();
        let more = [config.as_bytes(), known.as_bytes()];
        let (workers, generation_us) = decode(&self.call("beat", &self.who(), worker_id, ttl, &more).await?)?;
        Ok(Alive { workers, generation_us })
    }

    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.run("leave", &self.who(), worker_id, Duration::ZERO).await.map(drop)
    }

    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError> {
        Ok(self.run("lease", &[self.client.key("lease", name)], worker_id, ttl).await? == 1)
    }

    async fn note(&self, list: &str, used: &[Arc<str>]) -> Result<Vec<(Arc<str>, Duration)>, LimiterError> {
        let names: Vec<&[u8]> = used.iter().map(|name| name.as_bytes()).collect();
        let key = self.client.key("list", list);
        let noted: Vec<(String, u64)> = decode(&self.call("note", &[key], "", Duration::ZERO, &names).await?)?;
        Ok(noted.into_iter().map(|(name, ms)| (name.into(), Duration::from_millis(ms))).collect())
    }

    async fn strike(&self, list: &str, name: &str, idle: Duration) -> Result<(), LimiterError> {
        self.run("strike", &[self.client.key("list", list)], name, idle).await.map(drop)
    }

    async fn turns(&self, wanted: &[Turns]) -> Result<Vec<u64>, LimiterError> {
        let keys: Vec<String> = wanted.iter().map(|t| self.client.key("line", &t.line)).collect();
        let numbers = |t: &Turns| [t.from_us, t.takes_us.min(FAR_US), t.before_us].map(|n| n.to_string());
        let args: Vec<String> = wanted.iter().flat_map(numbers).collect();
        let args: Vec<&[u8]> = args.iter().map(|a| a.as_bytes()).collect();
        decode(&self.client.run(&self.turns, &keys, &args).await?)
    }

    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError> {
        self.run("free", &[self.client.key("lease", name)], worker_id, Duration::ZERO).await.map(drop)
    }
}
