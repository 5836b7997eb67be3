//! The Dockerfile, the compose file and what it mounts, as far as they can be held to their word without an engine:
//! the official schema, the configuration as the binary reads it, the services' settings as the services read them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use paceline_testkit::{Launch, Port, RabbitMq, Redis, find};
use paceline_tests::schema;
use serde_json::Value;

#[test]
fn the_compose_file_keeps_to_the_official_schema() {
    let schema: Value = serde_json::from_str(&read("ops/compose/compose-spec.json")).unwrap();
    let problems = schema::problems(&schema, &compose());
    assert!(problems.is_empty(), "{problems:#?}");

    // And that it says so when something does not.
    let mut wrong = compose();
    wrong["services"]["worker"]["restrat"] = "always".into();
    wrong["services"]["redis"]["healthcheck"]["retries"] = true.into();
    wrong["services"]["control"]["depends_on"]["redis"]["condition"] = "service_well".into();
    let problems = schema::problems(&schema, &wrong);
    for place in
        ["/services/worker/restrat", "/services/redis/healthcheck/retries", "/services/control/depends_on/redis/condition"]
    {
        assert!(problems.iter().any(|problem| problem.starts_with(place)), "{place}: {problems:#?}");
    }
}

#[test]
fn every_service_is_fit_to_run_unwatched() {
    let compose = compose();
    assert!(compose.get("version").is_none(), "`version` is obsolete");
    for (name, service) in object(&compose["services"]) {
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert!(service["stop_grace_period"].is_string() && service["logging"]["driver"] == "local", "{name}");
        assert_eq!(service["security_opt"][0], "no-new-privileges:true", "{name}");
        for limit in ["cpus", "memory"] {
            assert!(service["deploy"]["resources"]["limits"][limit].is_string(), "{name}: {limit}");
        }
        let test = service["healthcheck"]["test"].as_array().unwrap();
        assert!(test.len() > 1 && !test.contains(&"NONE".into()), "{name}: {test:?}");
        // Reached from this machine alone.
        for port in array(&service["ports"]) {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
        // Secrets come from files; what stands in the environment can be read by anybody who may list containers.
        for (variable, value) in object(&service["environment"]) {
            let secret = ["PASSWORD", "TOKEN", "KEY", "SECRET", "URL"].iter().any(|word| variable.contains(word));
            assert!(!secret || variable.ends_with("_FILE"), "{name}: {variable}={value}");
        }
        for (kind, mount) in [("configs", &service["configs"]), ("secrets", &service["secrets"])] {
            for one in array(mount) {
                let source = one["source"].as_str().or(one.as_str()).unwrap();
                let file = compose[kind][source]["file"].as_str().unwrap_or_else(|| panic!("{name}: no {kind} {source}"));
                assert!(root().join(file).is_file(), "{name}: {file}");
            }
        }
        for volume in array(&service["volumes"]) {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(compose["volumes"].get(source).is_some(), "{name}: {source} is not declared");
        }
    }
}

#[test]
fn the_services_are_those_that_paceline_asks_for() {
    let compose = compose();
    let services = &compose["services"];
    for (service, image) in [("rabbitmq", "rabbitmq:4"), ("redis", "redis:7"), ("postgres", "postgres:16")] {
        assert!(services[service]["image"].as_str().unwrap().starts_with(image), "{service}");
        assert!(!array(&services[service]["volumes"]).is_empty(), "{service} keeps nothing");
        for role in ["worker", "control"] {
            assert_eq!(services[role]["depends_on"][service]["condition"], "service_healthy", "{role}: {service}");
        }
    }
    assert_eq!(services["worker"]["deploy"]["replicas"], 2);
    // The name of the node is part of where RabbitMQ keeps its data.
    assert_eq!(services["rabbitmq"]["hostname"], "rabbitmq");
    for role in ["worker", "control", "sandbox"] {
        let role = &services[role];
        assert_eq!((&role["read_only"], &role["cap_drop"][0]), (&true.into(), &"ALL".into()));
        assert_eq!(role["healthcheck"]["test"][1], "/usr/bin/paceline");
    }
    // What .env switches on is what there is.
    assert_eq!(services["sandbox"]["profiles"][0], environment()["COMPOSE_PROFILES"].as_str());
}

#[test]
fn a_worker_may_drain_before_it_is_killed() {
    let grace = compose()["services"]["worker"]["stop_grace_period"].as_str().unwrap().to_owned();
    let grace: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
    let configuration = read("ops/compose/paceline.toml");
    let drain = configuration.lines().find_map(|line| line.strip_prefix("drain_grace = \"")).unwrap();
    let drain: u64 = drain.strip_suffix("s\"").unwrap().parse().unwrap();
    assert!(grace >= drain + 10, "stop_grace_period {grace} s, drain_grace {drain} s");
}

#[tokio::test]
async fn the_configuration_is_good_with_the_secrets_that_each_role_gets() {
    let compose = compose();
    for role in ["worker", "control"] {
        let dir = staged(&compose, role);
        let said =
            Launch::paceline().args(["check-config", "--output", "json", "--config"]).args([dir.path().join("paceline.toml")]);
        let said = said.run(Duration::from_secs(60)).await;
        assert!(said.status.success(), "{role}: {}{}", said.stdout, said.stderr);
        let report: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((&report["ok"], &report["warnings"]), (&true.into(), &Value::Array(vec![])), "{role}: {report}");
        assert_eq!(report["summary"]["accounts"], 1, "{role}");
    }
}

#[tokio::test]
async fn redis_keeps_everything_and_knows_its_users() {
    let compose = compose();
    let users = root().join(compose["secrets"]["redis-users"]["file"].as_str().unwrap());
    // Line by line as arguments, but for what names places in the container.
    let (settings, mut arguments) = (read("ops/compose/redis.conf"), vec![]);
    for line in settings.lines().filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap();
        match key {
            "dir" => continue,
            "aclfile" => assert_eq!(value, "/run/secrets/redis-users"),
            _ => arguments.extend([format!("--{key}"), value.trim_matches('"').to_owned()]),
        }
    }
    let redis = Redis::with_config(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (key, value) in [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("maxmemory", "402653184"), ("save", "")] {
        let said = redis_cli(&redis, &["config", "get", key]);
        assert_eq!((said.lines().next(), said.lines().nth(1).unwrap_or("")), (Some(key), value));
    }
    // The users of the secret: the address of the fleet gets in, the health check may ask and no more.
    // The last first: the user `default` is this test's own until it has a password.
    for line in std::fs::read_to_string(users).unwrap().lines().rev() {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[0], "user");
        let said = redis_cli(&redis, &[&["acl", "setuser"], &words[1..]].concat());
        assert_eq!(said, "OK", "{line}");
    }
    let url = secret(&compose, "limits-url");
    let password = url.strip_prefix("redis://default:").unwrap().split('@').next().unwrap();
    assert_eq!(redis_cli(&redis, &["--no-auth-warning", "--pass", password, "set", "a", "1"]), "OK");
    assert!(redis_cli(&redis, &["get", "a"]).contains("NOAUTH"));
    let test = compose["services"]["redis"]["healthcheck"]["test"][1].as_str().unwrap().to_owned();
    let check = test.replacen("redis-cli", &format!("redis-cli -p {}", redis.port()), 1);
    let passes = |check: &str| Command::new("sh").args(["-c", check]).status().unwrap().success();
    assert!(passes(&check), "{check}");
    assert!(!passes(&check.replace(" ping", " get a")), "the health check's user may read");
    redis.kill9().await;
    assert!(!passes(&check), "a lost Redis passes for a healthy one");
}

#[tokio::test]
async fn rabbitmq_lets_the_fleet_in_and_nobody_else() {
    let compose = compose();
    let user = secret(&compose, "rabbitmq-user");
    let settings = read("ops/compose/rabbitmq.conf");
    let lines: Vec<_> = settings.lines().chain(user.lines()).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let rabbitmq = RabbitMq::with_config(&lines).await;
    // With no more rights than docs/deploying.md asks for.
    let (own, write) = ("^paceline", "^(paceline|amq.default$)");
    assert!(read("docs/deploying.md").contains(&format!("configure and read on `{own}` (`broker.prefix`), write on `{write}`")));
    let rights = format!(
        "ok = rabbit_auth_backend_internal:set_permissions(\
         <<\"paceline\">>, <<\"/\">>, <<\"{own}\">>, <<\"{write}\">>, <<\"{own}\">>, <<\"test\">>), true"
    );
    rabbitmq.eval(&rights).await;
    let place = format!("127.0.0.1:{}", rabbitmq.port());
    let fleet = secret(&compose, "broker-url").replace("rabbitmq:5672", &place);
    let apply = async |url: &str| {
        let launch = Launch::paceline().args(["topology", "apply"]).env("PACELINE__BROKER__URL", url);
        launch.run(Duration::from_secs(120)).await
    };
    let said = apply(&fleet).await;
    assert!(said.status.success(), "{}{}", said.stdout, said.stderr);
    let send = Launch::paceline().args(["send", "-"]).env("PACELINE__BROKER__URL", &fleet);
    let said = send.stdin(read("ops/examples/messages.ndjson")).run(Duration::from_secs(120)).await;
    assert!(said.status.success(), "{}{}", said.stdout, said.stderr);
    let said = apply(&rabbitmq.url()).await;
    assert!(!said.status.success() && said.stderr.contains("ACCESS_REFUSED"), "guest: {}{}", said.stdout, said.stderr);
}

#[tokio::test]
async fn secrets_are_made_once_and_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("secrets");
    let make = || Command::new(root().join("ops/compose/secrets")).arg(&made).output().unwrap();
    let said = make();
    assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
    let compose = compose();
    for (name, trial) in object(&compose["secrets"]) {
        let trial = std::fs::read_to_string(root().join(trial["file"].as_str().unwrap())).unwrap();
        let fresh = std::fs::read_to_string(made.join(name)).unwrap();
        assert_ne!(fresh, trial, "{name}");
        // The same but for what is secret.
        let shape =
            |text: &str| text.lines().map(|line| line.split([':', ' ', '>']).next().unwrap().to_owned()).collect::<Vec<_>>();
        if name != "http-token" && name != "postgres-password" && name != "sendgrid-key" {
            assert_eq!(shape(&fresh), shape(&trial), "{name}");
        }
    }
    let fresh = |name: &str| std::fs::read_to_string(made.join(name)).unwrap().trim_end().to_owned();
    let password = |url: &str| url.split(['@', ':']).nth(2).unwrap().to_owned();
    assert!(fresh("rabbitmq-user").ends_with(&format!("default_pass = {}", password(&fresh("broker-url")))));
    assert!(fresh("redis-users").contains(&format!(">{} ", password(&fresh("limits-url")))));
    assert_eq!(fresh("postgres-password"), password(&fresh("store-url")));

    // A second run changes nothing: the services have taken the first passwords.
    let before = fresh("store-url");
    assert!(!make().status.success());
    assert_eq!(fresh("store-url"), before);
}

#[tokio::test]
async fn the_small_senders_page_works_as_it_is_written() {
    let page = read("docs/small-sender.md");
    let blocks = |kind: &str| -> Vec<String> {
        let (open, mut found) = (format!("```{kind}"), vec![]);
        let mut lines = page.lines();
        while let Some(line) = lines.find(|line| line.trim_start() == open) {
            let indent = line.len() - line.trim_start().len();
            let inside = lines.by_ref().take_while(|line| line.trim_start() != "```");
            found.push(inside.map(|line| line.get(indent..).unwrap_or("").to_owned() + "\n").collect());
        }
        found
    };
    // To try: everything, in an empty directory.
    let dir = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let try_it = blocks("sh").remove(0);
    let built = find::target_profile_dir().unwrap();
    assert!(built.join("paceline").is_file(), "the binary is not built: `cargo build --bins` first, or `ops/test`");
    let path = format!("PATH={}:{}", built.display(), std::env::var("PATH").unwrap());
    let listen = format!("PACELINE__HTTP__LISTEN=127.0.0.1:{}", port.number());
    let env = Launch::program(Path::new("/usr/bin/env")).args(["-i", "-C"]).args([dir.path()]).args([path, listen]);
    let said = env.args(["bash", "-e", "-o", "pipefail", "-c", &try_it]).run(Duration::from_secs(120)).await;
    let log = std::fs::read_to_string(dir.path().join("worker.log")).unwrap_or_default();
    assert!(said.status.success(), "{}{}\n{log}", said.stdout, said.stderr);
    assert!(said.stdout.contains("2 published") && said.stdout.contains("Subject: Welcome"), "{}", said.stdout);
    assert!(said.stdout.contains("0 dead letters") && log.contains("\"drained\""), "{}\n{log}", said.stdout);

    // For real: the configuration, and a unit that fits it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("smarthost-password"), "secret\n").unwrap();
    std::fs::write(dir.path().join("paceline.toml"), blocks("toml").remove(0)).unwrap();
    let launch = Launch::paceline().args(["check-config", "--embedded", "/nowhere", "--config"]);
    let said = launch.args([dir.path().join("paceline.toml")]).run(Duration::from_secs(60)).await;
    assert!(said.status.success() && said.stderr.is_empty(), "{}{}", said.stdout, said.stderr);
    let unit = read("ops/systemd/paceline.service");
    for setting in ["Environment=PACELINE_EMBEDDED=/var/lib/paceline", "StateDirectory=paceline", "KillSignal=SIGTERM"] {
        assert!(unit.lines().any(|line| line == setting), "{setting}");
    }
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    assert!(stop.strip_suffix('s').unwrap().parse::<u64>().unwrap() >= 40, "{stop}: the drain may take 30 s");
}

#[test]
fn the_image_holds_what_it_needs_and_runs_as_nobody() {
    let dockerfile = read("Dockerfile");
    let stages: Vec<&str> = dockerfile.split("\nFROM ").collect();
    let [_, build, image] = stages.as_slice() else { panic!("two stages, please") };
    let instruction = |name: &str| image.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap_or_default();
    let user: Vec<u32> = instruction("USER").split(':').map(|id| id.parse().unwrap()).collect();
    assert!(user.len() == 2 && user.iter().all(|id| *id >= 1000), "{user:?}");
    assert_eq!(instruction("ENTRYPOINT"), r#"["/usr/bin/paceline"]"#);
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    // No shell at run time.
    assert!(instruction("HEALTHCHECK").contains(r#"CMD ["/usr/bin/paceline", "healthcheck""#));
    assert!(instruction("CMD").starts_with('['));
    for label in ["title", "source", "licenses", "version"] {
        assert!(image.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
    let version = read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned)).unwrap();
    assert!(dockerfile.contains(&format!("ARG RUST_VERSION={}", version.trim_matches('"'))), "another Rust than {version}");
    assert!(build.contains("cargo build --release --locked"));
}

#[test]
fn the_build_sees_the_whole_workspace_and_what_it_includes() {
    let dir = tempfile::tempdir().unwrap();
    let copied = copied_into(dir.path());
    assert!(!dir.path().join("target").exists() && !dir.path().join("docs").exists());
    // Manifests and lock file are whole.
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(dir.path().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .exec()
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(metadata.packages.iter().any(|package| package.name.as_str() == "paceline-cli"));
    // So is what sources take in from elsewhere.
    let mut seen = 0;
    for source in copied.iter().filter(|path| path.extension().is_some_and(|e| e == "rs") && path.starts_with("crates")) {
        if source.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(dir.path().join(source)).unwrap();
        for after in text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1)) {
            let included = source.parent().unwrap().join(after.split('"').next().unwrap());
            assert!(dir.path().join(&included).is_file(), "{} includes {}", source.display(), included.display());
            seen += 1;
        }
    }
    assert!(seen > 2, "nothing is included: was that looked for rightly?");
}

/// Copies what the build stage copies from the context, what `.dockerignore` keeps out left out. Returns the files.
fn copied_into(dir: &Path) -> Vec<PathBuf> {
    let dockerfile = read("Dockerfile");
    let mut files = vec![];
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    for copy in copies {
        let mut words: Vec<_> = copy.split(' ').collect();
        let to = words.pop().unwrap();
        for from in &words {
            assert!(root().join(from).exists(), "COPY {copy}: there is no {from}");
            let found = walk(Path::new(from));
            let kept: Vec<_> = found.into_iter().filter(|path| !ignored(path)).collect();
            assert!(!kept.is_empty(), "COPY {copy}: .dockerignore keeps {from} out");
            // What goes elsewhere, such as licences, is no part of the build.
            for path in kept.into_iter().filter(|_| !to.starts_with('/')) {
                assert!(to == "./" || to == *from, "COPY {copy}: a place that this test does not know");
                std::fs::create_dir_all(dir.join(&path).parent().unwrap()).unwrap();
                std::fs::copy(root().join(&path), dir.join(&path)).unwrap();
                files.push(path);
            }
        }
    }
    files
}

/// What `.dockerignore` says: the last line that fits decides.
fn ignored(path: &Path) -> bool {
    let mut ignored = false;
    for line in read(".dockerignore").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (pattern, out) = line.strip_prefix('!').map_or((line, true), |pattern| (pattern, false));
        let fits = match pattern.strip_prefix("**/") {
            Some(name) => path.iter().any(|part| part == name),
            None => pattern == "*" || path.starts_with(pattern),
        };
        if fits {
            ignored = out;
        }
    }
    ignored
}

/// The files below a path of the repository, by their path in it.
fn walk(path: &Path) -> Vec<PathBuf> {
    let full = root().join(path);
    if !full.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(full).unwrap().map(|entry| path.join(entry.unwrap().file_name()));
    entries.flat_map(|path| walk(&path)).collect()
}

/// The configuration and the secrets of a role where its container has them, but below a directory.
fn staged(compose: &Value, role: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let configuration = root().join(compose["configs"]["paceline"]["file"].as_str().unwrap());
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let text = std::fs::read_to_string(configuration).unwrap();
    std::fs::write(dir.path().join("paceline.toml"), text.replace("/run/secrets/", "secrets/")).unwrap();
    for name in array(&compose["services"][role]["secrets"]) {
        let name = name.as_str().unwrap();
        let file = compose["secrets"][name]["file"].as_str().unwrap();
        std::fs::copy(root().join(file), secrets.join(name)).unwrap();
    }
    dir
}

fn secret(compose: &Value, name: &str) -> String {
    let file = compose["secrets"][name]["file"].as_str().unwrap();
    std::fs::read_to_string(root().join(file)).unwrap().trim_end().to_owned()
}

fn redis_cli(redis: &Redis, words: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &redis.port().to_string()]).args(words).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap().trim_end_matches('\n').to_owned()
}

/// The compose file as the program reads it with the repository's `.env`.
fn compose() -> Value {
    let (text, variables) = (read("docker-compose.yml"), environment());
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').unwrap();
        let (name, default) = variable.split_once(":-").unwrap_or_else(|| panic!("{variable} has no default"));
        filled.push_str(variables.get(name).map_or(default, String::as_str));
        filled.push_str(rest);
    }
    serde_saphyr::from_str(&filled).unwrap_or_else(|e| panic!("docker-compose.yml: {e}"))
}

fn environment() -> BTreeMap<String, String> {
    let text = read(".env");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
