//! Heartbeats and leases in Redis.

use std::time::Duration;

use async_trait::async_trait;

use super::Fleet;
use crate::{
    LimiterError,
    redis::{RedisClient, Script},
    wire::decode,
};

/// The fleet as its Redis sees it.
pub struct RedisFleet {
    client: RedisClient,
    script: Script,
}

impl RedisFleet {
    /// A view over `client`; nothing is sent yet.
    pub fn new(client: RedisClient) -> Self {
        RedisFleet { client, script: Script::new(include_str!("fleet.lua")) }
    }

    async fn run(&self, what: &str, key: String, worker_id: &str, ttl: Duration) -> Result<u64, LimiterError> {
        let ttl_ms = ttl.as_millis().clamp(1, 86_400_000).to_string();
        let args = [what.as_bytes(), worker_id.as_bytes(), ttl_ms.as_bytes()];
        decode(&self.client.run(&self.script, &[key], &args).await?)
    }
}

#[async_trait]
impl Fleet for RedisFleet {
    async fn heartbeat(&self, worker_id: &str, ttl: Duration) -> Result<u64, LimiterError> {
        self.run("beat", self.client.key("workers", ""), worker_id, ttl).await
    }

    async fn leave(&self, worker_id: &str) -> Result<(), LimiterError> {
        self.run("leave", self.client.key("workers", ""), worker_id, Duration::ZERO).await.map(drop)
    }

    async fn lease(&self, name: &str, worker_id: &str, ttl: Duration) -> Result<bool, LimiterError> {
        Ok(self.run("lease", self.client.key("lease", name), worker_id, ttl).await? == 1)
    }

    async fn release(&self, name: &str, worker_id: &str) -> Result<(), LimiterError> {
        self.run("free", self.client.key("lease", name), worker_id, Duration::ZERO).await.map(drop)
    }
}
