//! Commands that need no services: words in, output and exit status out.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use support::{Said, ops, paceline_in};

fn paceline(arguments: &[&str]) -> Said {
    paceline_in(&ops(), arguments, &[], "")
}

#[test]
fn usage() {
    let said = paceline(&["--version"]);
    assert_eq!((said.status, said.stdout.as_str()), (0, concat!("paceline ", env!("CARGO_PKG_VERSION"), "\n")));
    for (arguments, status, wanted) in [
        (&["--help"][..], 0, "check-config"),
        (&["dlq", "list", "--help"], 0, "paceline dlq list --reason retry_budget_exhausted"),
        (&["topology", "apply", "--help"], 0, "Examples:"),
        (&[], 2, "Usage:"),
        (&["clasify"], 2, "'classify'"),
        (&["classify"], 2, "<FILE>"),
        (&["classify", "-", "--output", "xml"], 2, "possible values: table, json"),
        (&["dlq", "list", "--reason", "bored"], 2, "no such reason; known are retry_budget_exhausted"),
        (&["dlq", "list", "--class", "urgent"], 2, "use critical, high, normal or low"),
        (&["dlq", "list", "--since", "yesterday"], 2, "or how long ago, such as 24h"),
        (&["send", "--rate", "fast", "-"], 2, "such as \"100/s\""),
    ] {
        let said = paceline(arguments);
        assert_eq!(said.status, status, "{arguments:?}: {said:?}");
        let text = if status == 0 { &said.stdout } else { &said.stderr };
        assert!(text.contains(wanted), "{arguments:?}: {said:?}");
        assert!(status == 0 || said.stdout.is_empty(), "{said:?}");
    }
}

#[test]
fn check_config() {
    let said = paceline(&["check-config"]);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""), "{said:?}");
    assert!(said.stdout.contains("1 accounts, 12 destinations and the tail in 52 lanes, 2 rules"), "{said:?}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "[broker]\nurll = 1\n[tail]\nrate = \"often\"\n[broker.max_depth]\nlow = 9\n").unwrap();
    let arguments = ["check-config", "--config", "p.toml"];
    let said = paceline_in(dir.path(), &arguments, &[("PACELINE__TAIL__BURST", "0")], "");
    assert_eq!((said.status, said.stdout.as_str()), (2, ""));
    for wanted in [
        "p.toml:2:1: broker.urll: unknown key; did you mean `url`?",
        "p.toml:4:8: tail.rate: not a rate",
        "environment PACELINE__TAIL__BURST: tail.burst: must be an integer",
        "the configuration has 3 mistakes",
        "broker.max_depth: understood, but not in force yet",
    ] {
        assert!(said.stderr.contains(wanted), "{wanted}\n{}", said.stderr);
    }
    // The same for programs, the option before the command.
    let said = paceline_in(dir.path(), &["--output", "json", "check-config", "--config", "p.toml"], &[], "");
    let report = said.json();
    assert_eq!((said.status, &report["ok"]), (2, &false.into()));
    let problem = &report["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["key"].as_str()), (Some(2), Some("broker.urll")));
    assert_eq!(report["problems"].as_array().unwrap().len(), 2);
    assert_eq!(report["warnings"][0]["key"], "broker.max_depth");
}

#[test]
fn where_the_configuration_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let key = |prefix: &str| format!("[broker]\nprefix = \"{prefix} bad\"\n");
    std::fs::write(dir.path().join("paceline.toml"), key("default")).unwrap();
    std::fs::write(dir.path().join("other.toml"), key("other")).unwrap();
    let run = |arguments: &[&str], environment: &[(&str, &str)]| paceline_in(dir.path(), arguments, environment, "").stderr;
    assert!(run(&["check-config"], &[]).contains("paceline.toml:2:10"));
    assert!(run(&["check-config"], &[("PACELINE_CONFIG", "other.toml")]).contains("other.toml:2:10"));
    assert!(
        run(&["check-config", "--config", "paceline.toml"], &[("PACELINE_CONFIG", "other.toml")]).contains("paceline.toml:2:10")
    );
    let said = paceline_in(dir.path(), &["classify", "--config", "none.toml", "-"], &[], "");
    assert!(said.status == 2 && said.stderr.contains("none.toml:1:1: the configuration cannot be read"), "{said:?}");
    // Credentials that no header can carry are found without a call to anybody.
    let account = "[[account]]\nname = \"a\"\nprovider = \"sendgrid\"\nrate = \"1/s\"\napi_key = \"two words\"\n";
    std::fs::write(dir.path().join("other.toml"), account).unwrap();
    let said = paceline_in(dir.path(), &["check-config", "--config", "other.toml"], &[], "");
    assert!(said.status == 2 && said.stderr.contains("account[0]: a: api_key"), "{said:?}");
    assert!(!said.stderr.contains("two words"));
}

#[test]
fn reply() {
    let said = paceline_in(
        &ops(),
        // One object a line, whatever format is asked for.
        &["reply", "-", "--output", "json"],
        &[],
        "450 4.2.0 Greylisted, try again in 90 seconds\r\n\n550 5.1.1 User unknown\n\u{e9}\u{1b}[2J",
    );
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(
        lines[0],
        r#"{"category":"greylisted","scope":"recipient","retry_after_s":90,"action":"retry","rule":"greylisted"}"#
    );
    assert!(lines[1].contains(r#""category":"other""#) && lines[1].contains(r#""rule":"unclear""#), "{said:?}");
    assert!(lines[2].contains(r#""retry_after_s":null,"action":"suppress","rule":"recipient_unknown""#), "{said:?}");
    assert_eq!(lines.len(), 4);

    // One's own rules come first, from a file too; its last line has no line break.
    let dir = tempfile::tempdir().unwrap();
    let rule =
        "[[reply_rule]]\nname = \"mine\"\ncode = [550]\ntext = \"user unknown\"\ncategory = \"temporary\"\nwait = \"2min\"\n";
    std::fs::write(dir.path().join("paceline.toml"), rule).unwrap();
    std::fs::write(dir.path().join("replies.txt"), b"550 User unknown\n551 User unknown \xff").unwrap();
    let said = paceline_in(dir.path(), &["reply", "replies.txt"], &[], "");
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines[0], r#"{"category":"temporary","scope":"destination","retry_after_s":120,"action":"retry","rule":"mine"}"#);
    assert!(lines[1].contains("recipient_permanent") && lines.len() == 2, "{said:?}");
    assert_eq!(paceline_in(dir.path(), &["reply", "none.txt"], &[], "").status, 1);
    assert_eq!(paceline_in(dir.path(), &["reply", "-"], &[], "").stdout, "");
}

#[test]
fn classify() {
    let said = paceline(&["classify", "examples/messages.ndjson"]);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let lines: Vec<serde_json::Value> = said.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(
        said.stdout.lines().next(),
        Some(r##"{"id":"reset-1","class":"critical","rule":"#1","destination":"google","lane":"critical.google"}"##)
    );
    // What producers say with the routing key counts where nothing else speaks.
    let said = paceline_in(
        &ops(),
        &["classify", "--key", "high.example.org", "-"],
        &[],
        r#"{"id":"1","from":"a@example.com","to":["b@example.org"],"text":"x"}"#,
    );
    assert!(said.stdout.contains(r#""lane":"high.tail""#), "{said:?}");

    let said = paceline(&["classify", "examples/messages.ndjson", "--output", "table"]);
    assert!(said.stdout.starts_with("ID          CLASS     RULE"), "{}", said.stdout);
    assert_eq!(paceline(&["classify", "examples/messages.ndjson", "--output", "json"]).json().as_array().unwrap().len(), 10);
    assert_eq!(paceline_in(&ops(), &["classify", "-", "--output", "json"], &[], "\n\n").json(), serde_json::json!([]));
}

#[test]
fn classify_says_what_is_wrong_with_a_line_and_goes_on() {
    let refused = std::fs::read_to_string(ops().join("examples/refused.ndjson")).unwrap();
    let good = r#"{"id":"ok","from":"a@example.com","to":["b@example.org"],"text":"x"}"#;
    let said = paceline_in(&ops(), &["classify", "-"], &[], &format!("{refused}\n{good}\n"));
    assert_eq!((said.status, said.stderr.as_str()), (1, "paceline: 10 lines are no messages\n"));
    let fields: Vec<(u64, String)> = said
        .stdout
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|v| v.get("error").is_some())
        .map(|v| (v["line"].as_u64().unwrap(), v["field"].as_str().unwrap().to_owned()))
        .collect();
    let want = ["body", "from", "to", "text", "id", "colour", "class", "to[1]", "subject", "attachments[0].content"];
    assert_eq!(fields, (1..).zip(want.map(str::to_owned)).collect::<Vec<_>>());
    assert!(said.stdout.ends_with("\"lane\":\"normal.tail\"}\n"));
    let said = paceline(&["classify", "examples/none.ndjson"]);
    assert!(said.status == 1 && said.stderr.contains("examples/none.ndjson cannot be read"), "{said:?}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let line = r#"{"id":"ok","from":"a@example.com","to":["b@example.org"],"text":"x"}"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("many.ndjson");
    std::fs::write(&file, format!("{line}\n").repeat(20_000)).unwrap();
    let paceline = env!("CARGO_BIN_EXE_paceline");
    let script = format!("set -o pipefail; {paceline} classify {} | head -1", file.display());
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_worker_without_an_account_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let said = paceline_in(dir.path(), &["worker"], &[], "");
    assert!(said.status == 2 && said.stderr.contains("no [[account]] is configured"), "{said:?}");
}
