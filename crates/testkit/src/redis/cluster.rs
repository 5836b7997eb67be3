//! A private Redis Cluster.

use std::time::{Duration, Instant};

use super::Redis;
use crate::error::must;
use crate::group::POLL;
use crate::{Error, Port};

const SLOTS: usize = 16_384;
/// A primary that is silent for so long is replaced by its replica.
const NODE_TIMEOUT_MS: &str = "1000";

/// Three primaries that share the slots evenly, and replicas that a test adds.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    redis: Redis,
    /// Where the nodes talk to each other.
    bus: Port,
}

impl RedisCluster {
    /// Starts one and waits until all of it serves.
    ///
    /// # Panics
    /// When `redis-server` is missing or older than 7, or does not come up.
    pub async fn start() -> RedisCluster {
        let mut cluster = RedisCluster { nodes: vec![] };
        for n in 0..3 {
            let node = Node::start().await;
            expect(&node.redis, &format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
            let (first, last) = (SLOTS * n / 3, SLOTS * (n + 1) / 3 - 1);
            expect(&node.redis, &format!("CLUSTER ADDSLOTSRANGE {first} {last}"));
            cluster.join(node);
        }
        cluster.settle().await;
        cluster
    }

    /// `redis://127.0.0.1:<port>` of every node, in the order they were started.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.redis.url()).collect()
    }

    /// One node, for looking at it or ending it.
    #[must_use]
    pub fn node(&self, index: usize) -> &Redis {
        &self.nodes[index].redis
    }

    /// Which of the nodes in `among` is the primary that has `key`, as the first of them sees it.
    ///
    /// # Panics
    /// When none of them is.
    #[must_use]
    pub fn owner(&self, key: &str, among: &[usize]) -> usize {
        let slot: usize = self.slot(key, among[0]);
        let slots = self.node(among[0]).command("CLUSTER SLOTS");
        let lines: Vec<&str> = slots.lines().collect();
        let id = |node: &usize| self.node(*node).command("CLUSTER MYID");
        let owns = |node: &usize| {
            // First slot, last slot, then the primary's address, port and id.
            let id = id(node);
            lines.windows(5).any(|w| {
                let number = |at: usize| w[at].parse::<usize>();
                w[4] == id && matches!((number(0), number(1)), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            })
        };
        among.iter().copied().find(owns).unwrap_or_else(|| panic!("nobody has slot {slot}:\n{slots}"))
    }

    /// Moves the slot of `key` with all that is in it, as resharding does.
    ///
    /// # Panics
    /// When a node refuses.
    pub fn move_slot(&self, key: &str, to: usize) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let (slot, from) = (self.slot(key, 0), self.owner(key, &all));
        let (source, target) = (self.node(from), self.node(to));
        let (source_id, target_id) = (source.command("CLUSTER MYID"), target.command("CLUSTER MYID"));
        expect(target, &format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"));
        expect(source, &format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"));
        let keys = source.command(&format!("CLUSTER GETKEYSINSLOT {slot} 100000"));
        if !keys.is_empty() {
            let keys = keys.lines().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(" ");
            expect(source, &format!("MIGRATE 127.0.0.1 {} \"\" 0 5000 KEYS {keys}", target.port()));
        }
        for node in [target, source] {
            expect(node, &format!("CLUSTER SETSLOT {slot} NODE {target_id}"));
        }
    }

    /// Starts a replica of a primary and waits until it has everything.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn replicate(&mut self, primary: usize) -> usize {
        let id = self.node(primary).command("CLUSTER MYID");
        self.join(Node::start().await);
        self.settle().await;
        let replica = self.nodes.len() - 1;
        expect(self.node(replica), &format!("CLUSTER REPLICATE {id}"));
        self.settle().await;
        self.caught_up(primary, replica).await;
        replica
    }

    /// Waits until `replica` has all that its primary has.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn caught_up(&self, primary: usize, replica: usize) {
        let offset = |node: usize, field: &str| {
            let info = self.node(node).command("INFO replication");
            info.lines().find_map(|l| l.strip_prefix(field)?.trim().parse::<u64>().ok())
        };
        until("the replica has not caught up", || {
            let up = self.node(replica).command("INFO replication").contains("master_link_status:up");
            up && offset(primary, "master_repl_offset:") == offset(replica, "slave_repl_offset:")
        })
        .await;
    }

    /// Waits until `replica` has taken its dead primary's place.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn promoted(&self, replica: usize) {
        until("the replica has not taken over", || {
            let node = self.node(replica);
            node.command("INFO replication").contains("role:master") && node.command("CLUSTER INFO").contains("cluster_state:ok")
        })
        .await;
    }

    fn slot(&self, key: &str, node: usize) -> usize {
        self.node(node).command(&format!("CLUSTER KEYSLOT {key}")).parse().unwrap_or_else(|e| panic!("no slot of {key}: {e}"))
    }

    fn join(&mut self, node: Node) {
        if let Some(first) = self.nodes.first() {
            expect(&node.redis, &format!("CLUSTER MEET 127.0.0.1 {} {}", first.redis.port(), first.bus.number()));
        }
        self.nodes.push(node);
    }

    /// Everybody knows everybody, and all slots are served.
    async fn settle(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        until("the Cluster does not come together", || {
            self.nodes.iter().all(|node| {
                let info = node.redis.command("CLUSTER INFO");
                info.contains("cluster_state:ok\r") && info.contains(&known)
            })
        })
        .await;
    }
}

impl Node {
    async fn start() -> Node {
        let bus = Port::reserve();
        let bus_port = bus.number().to_string();
        let redis = Redis::with_config(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus_port,
            "--cluster-node-timeout",
            NODE_TIMEOUT_MS,
            // A replica stands for election whatever it has missed.
            "--cluster-replica-validity-factor",
            "0",
            "--repl-diskless-sync-delay",
            "0",
        ])
        .await;
        Node { redis, bus }
    }
}

/// A command that is answered with OK.
fn expect(redis: &Redis, words: &str) {
    let answer = redis.command(words);
    assert!(answer == "OK", "{words}: {answer}");
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        if Instant::now() > deadline {
            must::<()>(Err(Error::Service { service: "redis-server".into(), what: what.to_owned(), log: String::new() }));
        }
        tokio::time::sleep(POLL).await;
    }
}
