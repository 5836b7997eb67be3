//! What quotas have granted, kept in the store.

use std::sync::Arc;

use async_trait::async_trait;
use paceline_limiter::{
    BucketSpec, Kind,
    degraded::{Kept, Memory},
};
use paceline_store::{QuotaRow, Store};
use serde::{Deserialize, Serialize};

/// Keeps in `store`.
pub(crate) fn memory(store: Arc<dyn Store>) -> Arc<dyn Memory> {
    Arc::new(InStore(store))
}

struct InStore(Arc<dyn Store>);

/// A [`Kept`] but for its names and times.
#[derive(Serialize, Deserialize)]
struct Body {
    length_us: u64,
    limit: u64,
    reserve: u64,
    narrow: bool,
    rate: Option<(u64, u64)>,
    slots: Vec<(u64, u64)>,
    since_us: u64,
}

#[async_trait]
impl Memory for InStore {
    async fn load(&self) -> Result<Vec<Kept>, String> {
        let rows = self.0.quotas().await.map_err(|e| e.in_full())?;
        // What another version wrote and this one cannot read is not known.
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn save(&self, kept: &[Kept]) -> Result<(), String> {
        let rows: Vec<QuotaRow> = kept.iter().filter_map(row).collect();
        self.0.keep_quotas(&rows).await.map_err(|e| e.in_full())
    }
}

fn read(row: QuotaRow) -> Option<Kept> {
    let Body { length_us, limit, reserve, narrow, rate, slots, since_us } = serde_json::from_value(row.kept).ok()?;
    let kind = Kind::Window { length_us, limit, reserve };
    let window = BucketSpec { key: row.quota.into(), kind, narrow };
    Some(Kept { window, rate, by: row.by.map(Into::into), slots, at_us: row.at_us, since_us })
}

fn row(kept: &Kept) -> Option<QuotaRow> {
    let Kind::Window { length_us, limit, reserve } = kept.window.kind else { return None };
    let slots = kept.slots.clone();
    let body = Body { length_us, limit, reserve, narrow: kept.window.narrow, rate: kept.rate, slots, since_us: kept.since_us };
    Some(QuotaRow {
        quota: kept.window.key.to_string(),
        by: kept.by.as_deref().map(str::to_owned),
        kept: serde_json::to_value(body).ok()?,
        at_us: kept.at_us,
        // The oldest slot counts whole.
        until_us: kept.at_us.saturating_add(length_us + length_us / 50),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paceline_core::Class;
    use paceline_limiter::{
        Ask, LaneAsk, Limiter, Spent, Why,
        degraded::{Guarded, Mode},
        redis::{RedisClient, RedisLimiter},
    };
    use paceline_store::{Options, SqliteStore};
    use paceline_testkit::Redis;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ask(seq: u64) -> Ask {
        let rate = BucketSpec::new("account:a", "1000/s".parse().unwrap(), 1000, 0.0);
        let quota = BucketSpec::window("account:a:quota:100000/d", "100000/d".parse().unwrap(), 0.0);
        let lane = LaneAsk {
            class: Class::Normal,
            destination: "google".into(),
            weight: 1,
            buckets: vec![0, 1],
            costs: vec![1.into()],
            since_us: 0,
            id: "w.1".into(),
            seq,
        };
        Ask { buckets: vec![rate, quota], lanes: vec![lane], ..Ask::default() }
    }

    async fn granted(limiter: &Guarded) {
        limiter.mode().wait_for(|mode| *mode == Mode::Shared).await.unwrap();
        for seq in 1.. {
            if limiter.ask(&ask(seq)).await.is_ok_and(|reply| !reply.lanes[0].dates_us.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Redis loses all it had, and every worker that saw it has ended: the store still knows what the day's quota had granted.
    #[tokio::test]
    async fn a_quota_outlives_redis_and_every_worker() {
        let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::at(dir.path().join("store.db"), Options::default()));
        let client = || RedisClient::new(&redis.url(), "p").unwrap();
        let charge = async |cost| {
            let quota = ask(0).buckets.remove(1);
            RedisLimiter::new(client()).charge(&[(quota, Spent::Now(cost))], 0).await.unwrap();
        };

        let before = Guarded::start(client(), "w1", MINUTE, Some(memory(store.clone())));
        granted(&before).await;
        charge(70_000).await;
        let kept = async || {
            let spent = |row: QuotaRow| read(row).unwrap().slots.iter().map(|(_, cost)| cost).sum::<u64>();
            store.quotas().await.unwrap().into_iter().map(spent).sum::<u64>()
        };
        while kept().await != 70_001 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(before);
        redis.kill9().await;
        redis.start_again_empty().await;

        // Of the 29,999 that are left, up to 16,000 may have been granted after it was last kept.
        let after = Guarded::start(client(), "w2", MINUTE, Some(memory(store.clone())));
        granted(&after).await;
        charge(12_000).await;
        granted(&after).await;
        charge(18_000).await;
        let denied = after.ask(&ask(9)).await.unwrap().lanes[0].denied.unwrap();
        assert_eq!((denied.why, denied.bucket), (Why::Quota, 1));
    }

    /// Nobody can say whether an empty Redis is a new one before the store has been read.
    #[tokio::test]
    async fn a_quota_of_a_young_redis_stays_closed_until_the_store_is_read() {
        let (redis, dir) = (Redis::start().await, tempfile::tempdir().unwrap());
        // A file of something else: the store cannot be opened.
        let path = dir.path().join("store.db");
        std::fs::write(&path, "not a database, and long enough to be seen as none").unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::at(&path, Options::default()));
        let client = RedisClient::new(&redis.url(), "p").unwrap();
        let limiter = Guarded::start(client, "w1", MINUTE, Some(memory(store)));
        limiter.mode().wait_for(|mode| *mode == Mode::Shared).await.unwrap();
        let free = Ask { buckets: vec![ask(0).buckets.remove(0)], ..ask(0) };
        let free = |seq| {
            let lane = LaneAsk { buckets: vec![0], id: "w.2".into(), seq, ..free.lanes[0].clone() };
            Ask { lanes: vec![lane], ..free.clone() }
        };
        let mut seq = 1;
        while limiter.ask(&free(seq)).await.unwrap().lanes[0].dates_us.is_empty() {
            assert_eq!(limiter.ask(&ask(seq)).await.unwrap().lanes[0].dates_us, [0; 0]);
            tokio::time::sleep(Duration::from_millis(50)).await;
            seq += 1;
        }
        assert_eq!(limiter.ask(&ask(seq)).await.unwrap().lanes[0].dates_us, [0; 0], "without a quota mail flows");
        std::fs::remove_file(&path).unwrap();
        granted(&limiter).await;
    }
}
