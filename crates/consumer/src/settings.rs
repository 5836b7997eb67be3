//! What a worker is told: accounts, limits, sizes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use paceline_classifier::Routes;
use paceline_core::{Policy, Rate, circuit::CircuitPolicy, warmup::Warmup};
use paceline_provider::Provider;

/// One credentialed provider account.
#[derive(Clone)]
pub struct Account {
    pub name: Arc<str>,
    pub provider: Arc<dyn Provider>,
    /// `None`: the account itself is not limited.
    pub limit: Option<Limit>,
    /// Never faster, whatever is learnt; `None`: the limit's own rate.
    pub max_rate: Option<Rate>,
    /// Whether rates and calls at a time follow what is refused, here and at its destinations.
    pub adaptive: bool,
    pub warmup: Option<Warmup>,
    /// Windows never exceeded, each of its rate's unit of time.
    pub quota: Vec<Rate>,
    /// Calls at a time from this worker.
    pub concurrency: usize,
    /// Calls at a time from all workers together.
    pub fleet_concurrency: Option<u32>,
    /// The longest one call can take, connecting included.
    pub total_timeout: Duration,
    /// Most messages of one call, as far as its provider takes several.
    pub batch: usize,
    /// How long a granted message may wait for others to travel with.
    pub batch_wait: Duration,
}

impl Account {
    /// Most messages of one call.
    pub(crate) fn most_together(&self) -> usize {
        self.batch.min(self.provider.max_batch())
    }

    /// Whether a repeated call of a message is told from a new one: it is made alone each time, and its key is honoured.
    pub(crate) fn knows_repeats(&self) -> bool {
        self.provider.idempotent() && self.most_together() < 2
    }
}

/// A rate with its burst, in recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub rate: Rate,
    pub burst: u32,
}

/// Limits of one named destination.
#[derive(Debug, Clone)]
pub struct Destination {
    pub name: Arc<str>,
    /// Per account.
    pub limit: Option<Limit>,
    /// Never faster, whatever is learnt, per account; `None`: the limit's own rate.
    pub max_rate: Option<Rate>,
    /// Where it begins for an account that warms up; from then on as the account.
    pub warmup_start: Option<Rate>,
    /// Over all accounts together.
    pub fleet: Option<Limit>,
    /// Windows never exceeded, per account.
    pub quota: Vec<Rate>,
    /// Calls at a time from all workers together, per account.
    pub concurrency: Option<u32>,
}

/// The limits of a tenant, a sender, or any one recipient.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The tenant's name, the sender's domain or address.
    pub name: Arc<str>,
    pub limit: Option<Limit>,
    pub quota: Vec<Rate>,
}

/// All that shapes a worker, beside the services it talks to.
#[derive(Clone)]
pub struct Settings {
    /// Unique in the fleet; owner of claims and leases.
    pub worker_id: Arc<str>,
    /// Prefix of every name at the broker.
    pub prefix: Arc<str>,
    pub accounts: Vec<Account>,
    pub destinations: Vec<Destination>,
    /// Which of the accounts, by their positions, may send what.
    pub routes: Routes,
    /// Each domain that no destination names, per account.
    pub tail: Limit,
    pub tenants: Vec<Named>,
    pub senders: Vec<Named>,
    /// Each recipient's address; its name does not matter.
    pub recipient: Option<Named>,
    /// Part of every burst kept for critical mail, 0 to 1.
    pub reserve: f64,
    /// Part of every quota window kept for critical mail, 0 to 1.
    pub quota_reserve: f64,
    pub policy: Policy,
    pub circuit: CircuitPolicy,
    /// Posts in flight, over all accounts. Critical mail has a quarter more to itself.
    pub concurrency: usize,
    /// Bytes of message bodies this worker may hold while they wait.
    pub held_bytes: u64,
    pub max_message_bytes: usize,
    pub flows: FlowSettings,
    /// How long calls under way may take to finish on shutdown.
    pub drain_grace: Duration,
}

impl Settings {
    /// Whether any account takes several messages in one call.
    pub(crate) fn sends_together(&self) -> bool {
        self.accounts.iter().any(|account| account.most_together() > 1)
    }
}

/// What shapes the queues made for single tenants and pinned accounts.
#[derive(Debug, Clone)]
pub struct FlowSettings {
    /// One that nobody has used for so long is removed.
    pub idle: Duration,
    /// What a tenant's turn is worth, by its name in small letters; 1 unless said.
    pub weights: HashMap<String, u32>,
}

impl Default for FlowSettings {
    fn default() -> FlowSettings {
        FlowSettings { idle: Duration::from_secs(30 * 60), weights: HashMap::new() }
    }
}
