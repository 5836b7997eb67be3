//! Configuration: TOML and environment in, values that cannot be wrong out.
//!
//! Reading never stops at the first mistake: [`ConfigError`] lists every one with its place. A setting that is
//! understood but that this version does not act on is a warning, never silence. Keys are documented in
//! `ops/paceline.toml`; a test holds that file and this reader to each other.

mod accounts;
mod address;
mod env;
mod feedback;
mod policy;
mod problem;
mod providers;
mod replies;
mod reread;
mod routes;
mod rules;
mod runtime;
mod section;
mod services;
mod shaping;
#[cfg(test)]
mod tests;
mod tree;
mod values;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use paceline_classifier::{Classifier, Routes};
use paceline_core::{Policy, circuit::CircuitPolicy};
use paceline_provider::ReplyRules;

pub use accounts::{Account, Warmup};
pub use address::Address;
pub use policy::{DedupConfig, SuppressionConfig};
pub use problem::{ConfigError, Origin, Problem};
pub use reread::reread;
pub use runtime::{LogConfig, LogFormat, WorkerConfig};
use section::{Context, Section};
pub use services::{BrokerConfig, BrokerUrl, HttpConfig, LimitsConfig, LimitsUrl, StoreConfig, StoreUrl};
pub use shaping::{Destination, Limit, NamedLimit};
use tree::Table;
pub use values::{parse_duration, show_duration};

/// Everything that can be configured.
#[derive(Debug, Clone)]
pub struct Config {
    pub broker: BrokerConfig,
    pub limits: LimitsConfig,
    pub store: StoreConfig,
    pub http: HttpConfig,
    pub accounts: Vec<Account>,
    /// Configured ones first, then shipped presets.
    pub destinations: Vec<Destination>,
    /// Each domain that no destination names.
    pub tail: Limit,
    /// Rules and destinations, ready to use.
    pub classifier: Arc<Classifier>,
    /// Which accounts may send what.
    pub routes: Routes,
    /// What replies mean; every account goes by it.
    pub reply_rules: ReplyRules,
    pub retry: Policy,
    pub circuit: CircuitPolicy,
    pub dedup: DedupConfig,
    pub suppression: SuppressionConfig,
    pub worker: WorkerConfig,
    pub log: LogConfig,
    pub tenants: Vec<NamedLimit>,
    pub senders: Vec<NamedLimit>,
    /// Every one by itself.
    pub recipient: Option<NamedLimit>,
    /// Settings that are understood but not in force, and the like: to be shown, not to stop for.
    pub warnings: Vec<Problem>,
    /// The file it was read from.
    pub file: Option<PathBuf>,
}

/// The file read where none is named, if it is there.
pub const DEFAULT_FILE: &str = "paceline.toml";

impl Config {
    /// Reads `path`, else `./paceline.toml` where it is there, else nothing but defaults; then the environment.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let path = path.or_else(|| default.exists().then_some(default));
        let (variables, mut early) = variables();
        let (root, base) = match path.map(|path| (path, read(path))) {
            None => (Table::new(), PathBuf::new()),
            Some((path, Ok(root))) => (root, path.parent().map(Path::to_owned).unwrap_or_default()),
            Some((_, Err(problems))) => {
                early.extend(problems);
                return Err(ConfigError { problems: early, warnings: vec![] });
            }
        };
        let (result, _) = Config::from_tree(root, &variables, base, early);
        result.map(|config| Config { file: path.map(Path::to_owned), ..config })
    }

    /// Reads `text`, called `name` in what is said of it; the environment has no say.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
        let root = tree::parse(name, text).map_err(|problems| ConfigError { problems, warnings: vec![] })?;
        Config::from_tree(root, &[], PathBuf::new(), vec![]).0
    }

    /// The same settings on embedded parts, all of them in `dir`: nothing but that directory is needed.
    #[must_use]
    pub fn embedded(mut self, dir: &Path) -> Config {
        self.broker.url = BrokerUrl::Spool(dir.join("spool.db"));
        self.limits.url = LimitsUrl::Local { claims: Some(dir.join("claims.db")) };
        self.store.url = StoreUrl::Sqlite(dir.join("store.db"));
        self
    }

    /// What the parts that will use the addresses and credentials find wrong with them. Connects to nothing; needs a
    /// tokio runtime.
    pub fn check_services(&self) -> Vec<Problem> {
        let mut problems = vec![];
        let mut report = |key: String, problem: String| {
            problems.push(Problem { origin: Origin::Nowhere, key, problem });
        };
        if let LimitsUrl::Redis(urls) = &self.limits.url {
            let urls: Vec<&str> = urls.iter().map(|u| u.expose()).collect();
            if let Err(e) = paceline_limiter::redis::RedisClient::of(&urls, self.limits.ca_pem.clone(), &self.broker.prefix) {
                report("limits.url".into(), e.to_string());
            }
        }
        if let StoreUrl::Postgres(url) = &self.store.url
            && let Err(e) = paceline_store::PostgresStore::new(url.expose(), paceline_store::Options::default())
        {
            report("store.url".into(), e.in_full());
        }
        for (i, account) in self.accounts.iter().enumerate() {
            match paceline_provider::build(account.provider.clone(), &account.http, "paceline") {
                Ok(provider) if account.batch > provider.max_batch() => {
                    let most = match provider.max_batch() {
                        1 => "takes messages one by one only".to_owned(),
                        most => format!("takes at most {most} messages in one call"),
                    };
                    report(format!("account[{i}].batch"), format!("{}: {} {most}", account.name, account.provider.provider()));
                }
                Ok(_) => {}
                Err(e) => report(format!("account[{i}]"), format!("{}: {e}", account.name)),
            }
        }
        problems
    }

    /// The tree with the environment over it, and every key the reader knows in what it passed.
    fn from_tree(
        mut root: Table,
        variables: &[(String, String)],
        base: PathBuf,
        early: Vec<Problem>,
    ) -> (Result<Config, ConfigError>, BTreeSet<String>) {
        let mut problems = early;
        problems.extend(env::overlay(&mut root, variables));
        let context = Context::new(base);
        let config = sections(&Section::root(&context, &root));
        let (found, warnings, known) = context.finish();
        problems.extend(found);
        let result = match config {
            Some(config) if problems.is_empty() => Ok(Config { warnings, ..config }),
            _ => Err(ConfigError { problems, warnings }),
        };
        (result, known)
    }
}

/// Reads every section; `None` only where a problem has been reported.
fn sections(root: &Section<'_>) -> Option<Config> {
    /// Reads one section and reports what is left over in it.
    fn one<'a, T>(root: &Section<'a>, name: &str, read: impl FnOnce(&Section<'a>) -> T) -> T {
        let section = root.section(name);
        let value = read(&section);
        section.finish();
        value
    }
    let broker = one(root, "broker", services::broker);
    let limits = one(root, "limits", |s| services::limits(s, broker.as_ref().map(|b| &b.url)));
    let store = one(root, "store", services::store);
    let http = one(root, "http", services::http);
    let presets = one(root, "classify", |s| s.or("presets", true, values::boolean));
    let mut accounts = accounts::accounts(root.sections("account"));
    let reply_rules = replies::rules(root.sections("reply_rule"));
    for account in &mut accounts {
        account.http.reply_rules = reply_rules.clone();
    }
    let (destinations, by_domain) = shaping::destinations(root.sections("destination"), presets);
    let tail = one(root, "tail", shaping::tail);
    let rules = rules::rules(root.sections("rule"));
    let routes = routes::routes(root.sections("route"), &accounts);
    let retry = one(root, "retry", policy::retry);
    let circuit = one(root, "circuit", policy::circuit);
    let dedup = one(root, "dedup", policy::dedup);
    let suppression = one(root, "suppression", policy::suppression);
    let worker = one(root, "worker", runtime::worker);
    let log = one(root, "log", runtime::log);
    let tenants = shaping::named(root.sections("tenant"), false);
    let senders = shaping::named(root.sections("sender"), true);
    let recipient = one(root, "recipient", shaping::recipient);
    root.finish();
    Some(Config {
        broker: broker?,
        limits: limits?,
        store: store?,
        http: http?,
        accounts,
        destinations,
        tail,
        classifier: Arc::new(Classifier::new(rules, by_domain)),
        routes,
        reply_rules,
        retry,
        circuit,
        dedup,
        suppression,
        worker,
        log,
        tenants,
        senders,
        recipient,
        warnings: vec![],
        file: None,
    })
}

fn read(path: &Path) -> Result<Table, Vec<Problem>> {
    let name = path.display().to_string();
    let whole = |problem: String| {
        vec![Problem { origin: Origin::File { name: name.as_str().into(), line: 1, column: 1 }, key: String::new(), problem }]
    };
    let bytes = std::fs::read(path).map_err(|e| whole(format!("the configuration cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| whole("the configuration is not UTF-8".into()))?;
    tree::parse(&name, &text)
}

/// The environment's settings; those that are not UTF-8 are problems.
fn variables() -> (Vec<(String, String)>, Vec<Problem>) {
    let (mut good, mut bad) = (vec![], vec![]);
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|n| n.starts_with(env::PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => good.push((name.to_owned(), value)),
            Err(_) => bad.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                key: String::new(),
                problem: "is not UTF-8".into(),
            }),
        }
    }
    (good, bad)
}
