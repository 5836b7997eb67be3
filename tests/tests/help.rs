//! Every command's `--help` shows examples, and every example works as it is written: each is run by a shell in a
//! directory that holds what examples name, against services of the test's own.
//!
//! An example that needs something new fails here until it gets it: a file in [`Stage::new`], a stand-in for an
//! address or a name in [`STAND_INS`], a mark as a command that runs until it is told to end in [`runs_on`].
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests; what was run is shown")]

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use paceline_testkit::{Finished, Launch, find};
use paceline_tests::{Fleet, Plan, Pod, until};
use serde_json::Value;
use tempfile::TempDir;

/// What examples say, and what stands for it here: places that are the machine's own. The first that fits counts.
const STAND_INS: &[(&str, &str)] = &[
    // The usual port may be taken.
    ("--listen 127.0.0.1:8026", "--listen 127.0.0.1:0"),
    ("http://127.0.0.1:8026/", "http://@SANDBOX@/"),
    ("/var/lib/paceline", "@DIR@/var"),
    ("postgres://paceline@127.0.0.1/mail", "@STORE@"),
    // An unfinished job that nobody runs, or a finished one.
    ("--resume r-20260131-2g9k0m7f4c", "--resume @OPEN replay@"),
    ("--cancel r-20260131-2g9k0m7f4c", "--cancel @OPEN replay@"),
    ("--resume d-20260131-2g9k0m7f4c", "--resume @OPEN discard@"),
    ("--cancel d-20260131-2g9k0m7f4c", "--cancel @OPEN discard@"),
    ("r-20260131-2g9k0m7f4c", "@DONE replay@"),
    ("d-20260131-2g9k0m7f4c", "@DONE discard@"),
    ("c-20260131-2g9k0m7f4c", "@ORDER@"),
];

/// Dead letters, each with this at the beginning of its message's id, that examples with jobs take one by one.
const SPARE: &str = "spare-";
const SPARES: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_runs_as_it_is_written() {
    let helps = helps(&[]).await;
    assert!(helps.len() > 8, "the walk found only {:?}", helps.iter().map(|h| &h.command).collect::<Vec<_>>());
    let bare: Vec<_> = helps.iter().filter(|help| help.examples.is_empty()).map(|help| &help.command).collect();
    assert!(bare.is_empty(), "no examples: {bare:?}");

    let stage = Stage::new().await;
    let mut seen = BTreeSet::new();
    let all = helps.iter().flat_map(|help| help.examples.iter().map(move |example| (help, example)));
    let examples: Vec<_> = all.filter(|(_, example)| seen.insert(*example)).collect();
    // Demos take their half minute, touch nothing of the others', and so run beside them, all at once.
    let (demos, others): (Vec<_>, Vec<_>) = examples.iter().partition(|(_, example)| example.contains("paceline demo"));
    let demos = join_all(demos.into_iter().map(|(help, example)| stage.tries(help, example)));
    let others = async {
        let mut failures = vec![];
        for (help, example) in others {
            failures.push(stage.tries(help, example).await);
        }
        failures
    };
    let (demos, others) = tokio::join!(demos, others);
    let failures: Vec<String> = demos.into_iter().chain(others).flatten().collect();
    assert!(failures.is_empty(), "{} examples do not work:\n\n{}", failures.len(), failures.join("\n"));
    let text = examples.iter().map(|(_, example)| example.as_str()).collect::<Vec<_>>().join("\n");
    let idle: Vec<_> = STAND_INS.iter().filter(|(words, _)| !text.contains(words)).collect();
    assert!(idle.is_empty(), "no example needs these stand-ins any more: {idle:?}");
}

/// Whether a command ends only when told to.
fn runs_on(command: &str, example: &str) -> bool {
    ["paceline worker", "paceline control", "paceline sandbox"].contains(&command)
        || example.contains(" --serve")
        || (command == "paceline lanes" && example.contains(" --watch"))
}

/// What is wrong with how an example ended.
fn judge(example: &str, said: &Finished) -> Result<(), String> {
    let whole = format!("{}\n{}{}", said.status, said.stdout, said.stderr);
    if !said.status.success() {
        return Err(whole);
    }
    let is_result = !example.contains(['|', '>']);
    if is_result && example.contains("--output json") {
        serde_json::from_str::<Value>(&said.stdout).map_err(|e| format!("not one JSON document: {e}\n{whole}"))?;
    }
    if said.stderr.contains("panicked") { Err(whole) } else { Ok(()) }
}

/// One command's help.
struct Help {
    /// Such as `paceline dlq list`.
    command: String,
    examples: Vec<String>,
}

/// The help of a command and of all below it.
async fn helps(command: &[String]) -> Vec<Help> {
    let launch = Launch::paceline().args(command).args(["--help"]);
    let said = launch.run(Duration::from_secs(60)).await;
    let name = [&["paceline".to_owned()], command].concat().join(" ");
    assert!(said.status.success() && said.stderr.is_empty(), "{name} --help: {said:?}");
    let inner: Vec<_> = section(&said.stdout, "Commands:")
        .iter()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    let examples = section(&said.stdout, "Examples:");
    let mut found = vec![Help { command: name, examples }];
    for inner in inner {
        found.append(&mut Box::pin(helps(&[command, &[inner]].concat())).await);
    }
    found
}

/// The lines below a heading up to the next empty one, less their indent of two; broken with `\` they are put together.
fn section(help: &str, heading: &str) -> Vec<String> {
    let below = help.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.trim().is_empty());
    let mut lines: Vec<String> = vec![];
    for line in below {
        // What is longer than a line of help is broken, and what is broken cannot be copied.
        let line = line.strip_prefix("  ").unwrap_or_else(|| panic!("too long below {heading} …{line}"));
        match lines.last_mut().filter(|before| before.ends_with('\\')) {
            Some(before) => {
                before.pop();
                before.push_str(line.trim_start());
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

/// A directory to stand in, services, one worker, and some mail that has died already.
struct Stage {
    fleet: Fleet,
    worker: Pod,
    dir: TempDir,
    /// How many spare dead letters are taken.
    spare: AtomicUsize,
}

impl Stage {
    async fn new() -> Stage {
        let plan = Plan { sandbox: "[[rule]]\nto = \"nobody@*\"\nthen = \"reject\"\n", ..Plan::default() };
        let fleet = Fleet::start(plan).await;
        let dir = tempfile::Builder::new().prefix("paceline-help-").tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops");
        let of_ops = |name: &str| std::fs::read_to_string(ops.join(name)).unwrap();
        put("messages.ndjson", &of_ops("examples/messages.ndjson"));
        put("bounces.txt", "550 5.1.1 No such user here\n452 4.2.2 Mailbox full\n421 4.7.0 Try again later\n");
        put("failures.toml", &of_ops("examples/sandbox.toml"));
        put("ops/paceline.toml", &of_ops("paceline.toml"));
        put("ops/examples/messages.ndjson", &of_ops("examples/messages.ndjson"));
        put(
            "paceline.toml",
            &format!(
                "[[account]]\nname = \"main\"\nprovider = \"sendgrid\"\napi_key = \"SG.example\"\n\
                 base_url = \"http://{}/examples\"\n",
                fleet.sandbox.addr()
            ),
        );
        put("bounces.txt", "gone1@example.net\ngone2@example.net\n");
        put("suppressions.ndjson", "{\"address\":\"gone3@example.net\",\"kind\":\"soft\",\"reason\":\"mailbox_full\"}\n");
        put("bin/generate-mail", "#!/bin/sh\ncat messages.ndjson\n");
        std::fs::set_permissions(dir.path().join("bin/generate-mail"), PermissionsExt::from_mode(0o755)).unwrap();
        symlink(find::target_profile_dir().unwrap().join("paceline"), dir.path().join("bin/paceline")).unwrap();
        // What the shells of a user make by themselves.
        std::fs::create_dir_all(dir.path().join(".config/fish/completions")).unwrap();

        let died = |id: &str, domain: &str| {
            format!(
                "{{\"id\":\"{id}\",\"class\":\"high\",\"from\":\"shop@example.com\",\"to\":[\"nobody@{domain}\"],\
                 \"subject\":\"An order\",\"text\":\"Thank you.\"}}\n"
            )
        };
        // Of a destination that no example names.
        let spares: Vec<_> = (0..SPARES).map(|n| died(&format!("{SPARE}{n}"), "yandex.com")).collect();
        put("dead.ndjson", &(died("order-4711", "gmail.com") + &spares.concat()));
        let worker = fleet.worker("worker").await;
        let stage = Stage { fleet, worker, dir, spare: AtomicUsize::new(0) };
        let said = stage.run("paceline send dead.ndjson").await;
        assert!(said.status.success(), "{said:?}");
        // Only while mail dies: jobs of examples wait for the example.
        let mut control = stage.fleet.control().await;
        let count = async || stage.fleet.dead_letters().await.len();
        until("the dead letters", Duration::from_secs(120), async || count().await == SPARES + 1).await;
        control.drain().await;
        stage
    }

    /// Why an example does not work, if it does not.
    async fn tries(&self, help: &Help, example: &str) -> Option<String> {
        if !example.contains(&help.command) {
            return Some(format!("{example}\n  shows another command than {}", help.command));
        }
        let line = self.stood_in(example).await;
        println!("{example}{}", if line == example { String::new() } else { format!("    (as: {line})") });
        if runs_on(&help.command, example) {
            self.run_on(&line).await;
            return None;
        }
        let why = judge(example, &self.run(&line).await).err()?;
        Some(format!("{example}\n  run as: {line}\n{why}"))
    }

    /// The example with what stands in for the machine's own.
    async fn stood_in(&self, example: &str) -> String {
        // Without a word about where, the usual port.
        let mut line = if example == "paceline sandbox" { format!("{example} --listen 127.0.0.1:0") } else { example.to_owned() };
        for (words, here) in STAND_INS {
            line = line.replace(words, here);
        }
        for (mark, here) in [
            ("@DIR@", self.dir.path().display().to_string()),
            ("@SANDBOX@", self.fleet.sandbox.addr().to_string()),
            ("@STORE@", self.fleet.postgres.url()),
        ] {
            line = line.replace(mark, &here);
        }
        for (mark, order) in [
            ("@OPEN replay@", "dlq replay --yes --detach"),
            ("@DONE replay@", "dlq replay --yes"),
            ("@OPEN discard@", "dlq discard --yes --detach"),
            ("@DONE discard@", "dlq discard --yes"),
            ("@ORDER@", "cancel"),
        ] {
            if line.contains(mark) {
                line = line.replace(mark, &self.ordered(order).await);
            }
        }
        line
    }

    /// The id of a new order about one spare dead letter.
    async fn ordered(&self, order: &str) -> String {
        let n = self.spare.fetch_add(1, Ordering::Relaxed);
        assert!(n < SPARES, "there are more examples with orders than spare dead letters");
        let line = format!("paceline {order} --id {SPARE}{n} --output json");
        let said = self.run(&line).await;
        let order: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{line}: {e}: {said:?}"));
        order["id"].as_str().unwrap_or_else(|| panic!("{line}: {said:?}")).to_owned()
    }

    /// Runs a line to its end.
    async fn run(&self, line: &str) -> Finished {
        self.shell(line, self.worker.addr()).run(Duration::from_secs(240)).await
    }

    /// Starts a line, waits until it is of use, and ends it in order.
    async fn run_on(&self, line: &str) {
        let mut process = self.shell(line, "127.0.0.1:0").spawn();
        let long = Duration::from_secs(240);
        if line.contains(" --serve") {
            process.wait_for_line(long, |line| line.contains("Ctrl-C")).await;
        } else if line.contains("paceline lanes") && line.contains(" --watch") {
            process.wait_for_line(long, |line| line.starts_with("LANE") || line.starts_with("Nothing waits")).await;
        } else if line.contains("paceline sandbox") {
            process.wait_for_log(long, |log| log["message"] == "listening").await;
        } else {
            let mut pod = Pod::started(line, process).await;
            pod.ready().await;
            return pod.drain().await;
        }
        // The shell has become the one program of its line.
        process.term();
        let said = process.finish(long).await;
        assert!(said.status.success(), "{line}: {said:?}");
    }

    /// A shell as a user has it, with the settings that lead to the services here and no others.
    fn shell(&self, line: &str, listen: &str) -> Launch {
        let dir = self.dir.path();
        let path = std::env::var("PATH").unwrap();
        let settings = [
            ("HOME", dir.display().to_string()),
            ("USER", "somebody".to_owned()),
            ("PATH", format!("{}:{path}", dir.join("bin").display())),
            ("PACELINE__BROKER__URL", self.fleet.broker_url.clone()),
            ("PACELINE__LIMITS__URL", self.fleet.redis.url()),
            ("PACELINE__STORE__URL", self.fleet.postgres.url()),
            ("PACELINE__HTTP__LISTEN", listen.to_owned()),
        ];
        let env = Launch::program(Path::new("/usr/bin/env")).args(["-i", "-C"]).args([dir]);
        let env = env.args(settings.map(|(name, value)| format!("{name}={value}")));
        env.args(["bash", "-o", "pipefail", "-c", line])
    }
}

#[test]
fn sections_are_read_as_they_are_printed() {
    let help = "Usage: x\n\nCommands:\n  a     Does a\n        and more\n  help  Print\n\nOptions:\n  -h\n\nExamples:\n  x a \\\n    --b\n  x c\n";
    let names: BTreeSet<_> = section(help, "Commands:").into_iter().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(section(help, "Examples:"), ["x a --b", "x c"]);
    assert!(section(help, "Elsewhere:").is_empty());
}

#[test]
fn an_example_that_fails_is_noticed() {
    let ended = |code: &str, stdout: &str| {
        let status = std::process::Command::new("sh").args(["-c", code]).status().unwrap();
        Finished { status, stdout: stdout.to_owned(), stderr: String::new() }
    };
    assert!(judge("paceline x", &ended("exit 0", "")).is_ok());
    assert!(judge("paceline x", &ended("exit 1", "")).is_err());
    assert!(judge("paceline x --output json", &ended("exit 0", "no json")).is_err());
    assert!(judge("paceline x --output json", &ended("exit 0", "{}\n")).is_ok());
    assert!(judge("paceline x --output json | jq .", &ended("exit 0", "1\n2\n")).is_ok());
}
