//! `suppress list|add|remove|import|export` on the embedded store.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use support::{Said, ops, paceline_in};

fn paceline(dir: &Path, words: &[&str], input: &str) -> Said {
    paceline_in(dir, &[words, &["--embedded", "."]].concat(), &[("USER", "ann")], input)
}

fn json_of(dir: &Path, words: &[&str]) -> Value {
    let said = paceline(dir, &[words, &["--output", "json"]].concat(), "");
    assert_eq!(said.status, 0, "{words:?}: {said:?}");
    said.json()
}

fn addresses(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|e| e["address"].as_str().unwrap()).collect()
}

#[test]
fn an_operator_lists_looks_and_takes_off() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(json_of(dir, &["suppress", "list"]), json!([]));
    let add =
        ["suppress", "add", "User@Example.com", "b@example.org", "--kind", "soft", "--reason", "mailbox_full", "--until", "30d"];
    let added = json_of(dir, &[&add[..], &["--note", "TICKET-17", "--source", "ses-eu"]].concat());
    assert_eq!(
        added,
        json!([{"address": "user@example.com", "result": "added"}, {"address": "b@example.org", "result": "added"}])
    );
    let said = paceline(dir, &["suppress", "add", "user@example.com", "--reason", "complaint", "--by", "bob"], "");
    assert!(said.status == 0 && said.stdout.contains("is hard now"), "{said:?}");

    let one = json_of(dir, &["suppress", "list", "--address", "USER@example.com"]);
    assert_eq!((&one[0]["kind"], &one[0]["reason"], &one[0]["by"]), (&json!("hard"), &json!("complaint"), &json!("bob")));
    assert!(one[0]["until"].is_null(), "{one}");
    let two = json_of(dir, &["suppress", "list", "--kind", "soft"]);
    assert_eq!((&two[0]["note"], &two[0]["source"]), (&json!("TICKET-17"), &json!("ses-eu")));
    assert!(two[0]["by"].as_str().unwrap().starts_with("ann@") && two[0]["until"].is_string(), "{two}");
    for (filter, want) in [
        (&["--domain", "example.org"][..], vec!["b@example.org"]),
        (&["--reason", "complaint"], vec!["user@example.com"]),
        (&["--source", "ses-eu"], vec!["b@example.org"]),
        (&["--since", "1h", "--limit", "1"], vec!["user@example.com"]),
        (&["--until", "1h"], vec![]),
    ] {
        assert_eq!(addresses(&json_of(dir, &[&["suppress", "list"], filter].concat())), want, "{filter:?}");
    }
    let table = paceline(dir, &["suppress", "list"], "").stdout;
    assert!(table.starts_with("ADDRESS ") && table.contains("mailbox_full"), "{table}");

    let said = paceline(dir, &["suppress", "remove", "USER@example.com", "nobody@example.com", "--note", "asked"], "");
    assert_eq!(said.status, 1, "one of them was not listed: {said:?}");
    assert!(said.stdout.contains("may be mailed again") && said.stdout.contains("was not listed"), "{said:?}");
    assert_eq!(addresses(&json_of(dir, &["suppress", "list"])), ["b@example.org"]);
    let trail = json_of(dir, &["dlq", "audit", "--subject", "user@example.com"]);
    let actions: Vec<_> = trail.as_array().unwrap().iter().map(|e| (&e["action"], &e["note"])).collect();
    assert_eq!(
        actions,
        [(&json!("suppression.removed"), &json!("asked")), (&json!("suppression.added"), &Value::Null)],
        "several at once stand under `suppressions`"
    );

    for (words, problem) in [
        (&["suppress", "add", "no-address"][..], "has no `@`"),
        (&["suppress", "add"], "required"),
        (&["suppress", "add", "a@example.com", "--reason", "No Word"], "1 to 64 of a-z"),
        (&["suppress", "add", "a@example.com", "--kind", "firm"], "use hard or soft"),
        (&["suppress", "add", "a@example.com", "--until", "2020-01-01T00:00:00Z"], "that time has passed"),
        (&["suppress", "list", "--domain", "localhost"], "not valid"),
    ] {
        let said = paceline_in(&ops(), words, &[], "");
        assert!(said.status == 2 && said.stderr.contains(problem), "{words:?}: {said:?}");
    }
}

#[test]
fn files_come_in_line_by_line_and_go_out_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut lines: Vec<String> = (0..4500).map(|i| format!("user{i}@example.com")).collect();
    lines[0] = format!("\u{feff}{}", lines[0]);
    lines[7] = "no address at all, but secret".to_owned();
    lines[8] =
        r#"{"address":"Soft@example.org","kind":"soft","reason":"mailbox_full","until":"2999-01-01T00:00:00Z"}"#.to_owned();
    lines[9] = r#"{"address":"secret@example.org","color":"red"}"#.to_owned();
    lines[10] = r#"{"address":"secret@","kind":"hard"}"#.to_owned();
    lines[11] = r#"{"address":"secret@example.org","until":"2020-01-01T00:00:00Z"}"#.to_owned();
    lines[12] =
        r#"{"address":"old@example.org","created_at":"2024-05-06T07:08:09.000000Z","by":"previous","note":"n"}"#.to_owned();
    lines[13] = "USER14@example.com".to_owned();
    lines[15] = r#"{"address":"secret@example.org","kind":"secret"}"#.to_owned();
    lines[16] = "x".repeat(20_000);
    std::fs::write(dir.join("list.txt"), lines.join("\n") + "\n\n").unwrap();

    let import = ["suppress", "import", "list.txt", "--reason", "bounce", "--note", "moved", "--output", "json"];
    let said = paceline(dir, &import, "");
    assert_eq!(said.status, 1, "{said:?}");
    let summary = said.json();
    let refused: Vec<_> = summary["refused"].as_array().unwrap().iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(refused, [8, 10, 11, 12, 16, 17], "{summary}");
    assert!(!said.stdout.contains("secret") && !said.stderr.contains("secret"), "{said:?}");
    assert_eq!((&summary["added"], &summary["known"], &summary["refused_count"]), (&json!(4493), &json!(1), &json!(6)));
    let again = paceline(dir, &import, "").json();
    assert_eq!((&again["added"], &again["known"]), (&json!(0), &json!(4494)));
    let trail = json_of(dir, &["dlq", "audit", "--subject", "suppressions"]);
    assert_eq!(trail.as_array().unwrap().len(), 2, "one entry an import: {trail}");
    assert_eq!((&trail[0]["action"], &trail[0]["detail"]["known"]), (&json!("suppression.imported"), &json!(4494)));

    let old = json_of(dir, &["suppress", "list", "--address", "old@example.org"]);
    assert_eq!(
        (&old[0]["created_at"], &old[0]["by"], &old[0]["source"], &old[0]["reason"]),
        (&json!("2024-05-06T07:08:09.000000Z"), &json!("previous"), &json!("list.txt"), &json!("bounce"))
    );
    let said = paceline(dir, &["suppress", "import", "-"], "one@example.net\nuser1@example.com\n");
    assert!(
        said.status == 0 && said.stdout.starts_with("1 listed, 0 made hard, 0 extended, 1 known already, 0 refused"),
        "{said:?}"
    );

    let said = paceline(dir, &["suppress", "export", "--to", "out.ndjson", "--output", "json"], "");
    assert_eq!((said.status, &said.json()["exported"]), (0, &json!(4494)), "{said:?}");
    let mode = std::fs::metadata(dir.join("out.ndjson")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = tempfile::tempdir().unwrap();
    let out = std::fs::read_to_string(dir.join("out.ndjson")).unwrap();
    let said = paceline(other.path(), &["suppress", "import", "-", "--output", "json"], &out);
    assert_eq!((said.status, &said.json()["added"]), (0, &json!(4494)));
    let sorted = |dir: &Path| {
        let mut lines: Vec<String> = paceline(dir, &["suppress", "export"], "").stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(dir), sorted(other.path()), "an export brings everything over");
    let said = paceline(dir, &["suppress", "export", "--format", "addresses", "--kind", "soft"], "");
    assert_eq!(said.stdout, "soft@example.org\n");
    let said = paceline(dir, &["suppress", "import", "nowhere.txt"], "");
    assert!(said.status == 1 && said.stderr.contains("nowhere.txt cannot be read"), "{said:?}");
}
