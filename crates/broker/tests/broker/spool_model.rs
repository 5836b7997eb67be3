//! Random walks through one lane, against a model of what it must hold and hand out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use paceline_broker::{Broker, Consumer, Settle, spool::Spool};

use crate::{
    spool::{applied, open},
    stage::{next, number, submit},
};

const LANE: &str = "paceline.lane.normal.yahoo";
const SEEDS: u64 = 30;
const STEPS: usize = 80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_holds_what_the_model_says() {
    for seed in 0..SEEDS {
        let (_dir, path, spool) = applied().await;
        let mut walk = Walk {
            path,
            spool: Some(spool),
            consumer: None,
            prefetch: 0,
            held: BTreeMap::new(),
            ready: BTreeSet::new(),
            seen: BTreeSet::new(),
            published: 0,
            seed,
            random: seed,
            step: 0,
        };
        for step in 0..STEPS {
            walk.step = step;
            walk.go().await;
        }
    }
}

struct Walk {
    path: PathBuf,
    spool: Option<Spool>,
    consumer: Option<Consumer>,
    prefetch: usize,
    held: BTreeMap<u32, Settle>,
    ready: BTreeSet<u32>,
    /// Delivered at least once.
    seen: BTreeSet<u32>,
    published: u32,
    seed: u64,
    random: u64,
    step: usize,
}

impl Walk {
    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below.max(1)
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    async fn go(&mut self) {
        match self.random(12) {
            0..=3 => {
                for _ in 0..=self.random(8) {
                    submit(self.spool(), "normal.yahoo.com", self.published.to_string()).await;
                    self.ready.insert(self.published);
                    self.published += 1;
                }
            }
            4..=7 => self.settle().await,
            8 => self.stop(true).await,
            9 => self.stop(false).await,
            10 => {
                self.stop(false).await;
                self.spool = None;
                self.spool = Some(open(&self.path));
            }
            _ => {
                if self.consumer.is_none() {
                    self.prefetch = 1 + self.random(12);
                    self.consumer = Some(self.spool().consume(LANE, self.prefetch as u16).await.unwrap());
                }
            }
        }
        self.take().await;
        let depth = self.spool().depth(LANE).await.unwrap();
        assert_eq!(depth, self.ready.len() as u64, "seed {}, step {}", self.seed, self.step);
    }

    /// Whatever there is room for comes, the first first.
    async fn take(&mut self) {
        let Some(consumer) = &mut self.consumer else { return };
        while self.held.len() < self.prefetch
            && let Some(first) = self.ready.pop_first()
        {
            let got = next(consumer).await;
            let want = (first, !self.seen.insert(first));
            assert_eq!((number(&got), got.redelivered), want, "seed {}, step {}", self.seed, self.step);
            self.held.insert(first, got.settle);
        }
    }

    /// Acks some, or gives one back; what takes its place comes before the next.
    async fn settle(&mut self) {
        for _ in 0..=self.random(4) {
            let which = self.random(self.held.len());
            let Some(n) = self.held.keys().copied().nth(which) else { return };
            let settle = self.held.remove(&n).unwrap();
            if self.random(4) == 0 {
                settle.release();
                self.ready.insert(n);
            } else {
                settle.ack();
            }
            self.take().await;
        }
    }

    /// Everything held goes back, in order or by being dropped.
    async fn stop(&mut self, released: bool) {
        let Some(mut consumer) = self.consumer.take() else { return };
        consumer.cancel().await;
        self.ready.extend(self.held.keys());
        let held = std::mem::take(&mut self.held);
        held.into_values().for_each(|settle| if released { settle.release() } else { drop(settle) });
    }
}
