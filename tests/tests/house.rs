//! The rules of the house: who may depend on whom, and what every file keeps to. `docs/ARCHITECTURE.md` says why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Which members a member may build on. A new crate takes its place here first.
const MAY_USE: &[(&str, &[&str])] = &[
    ("paceline-core", &[]),
    // Under the embedded adapters.
    ("paceline-sqlite", &[]),
    // The edges: each owns a port and its adapters, and never sees a sibling.
    ("paceline-broker", &["paceline-core", "paceline-sqlite"]),
    ("paceline-classifier", &["paceline-core"]),
    ("paceline-limiter", &["paceline-core", "paceline-sqlite"]),
    ("paceline-provider", &["paceline-core"]),
    ("paceline-sandbox", &["paceline-core"]),
    ("paceline-store", &["paceline-core"]),
    ("paceline-dlq", &["paceline-core", "paceline-broker", "paceline-store"]),
    (
        "paceline-consumer",
        &[
            "paceline-core",
            "paceline-broker",
            "paceline-classifier",
            "paceline-limiter",
            "paceline-provider",
            "paceline-store",
            "paceline-dlq",
        ],
    ),
    (
        "paceline-control",
        &[
            "paceline-core",
            "paceline-broker",
            "paceline-classifier",
            "paceline-limiter",
            "paceline-provider",
            "paceline-store",
            "paceline-dlq",
        ],
    ),
    // Whole fleets under virtual time: the real workers on stand-ins for everything outside.
    (
        "paceline-simulator",
        &[
            "paceline-core",
            "paceline-broker",
            "paceline-classifier",
            "paceline-consumer",
            "paceline-limiter",
            "paceline-provider",
        ],
    ),
    // The only composition root.
    (
        "paceline-cli",
        &[
            "paceline-core",
            "paceline-broker",
            "paceline-classifier",
            "paceline-limiter",
            "paceline-provider",
            "paceline-sandbox",
            "paceline-store",
            "paceline-dlq",
            "paceline-consumer",
            "paceline-control",
            "paceline-simulator",
        ],
    ),
    ("paceline-testkit", &["paceline-core"]),
];

/// Members that exist to look at the others from outside, and may use anything.
const OUTSIDE: &[&str] = &["paceline-tests", "paceline-bench"];

/// Only for development, wherever it is named.
const TESTKIT: &str = "paceline-testkit";

/// Client libraries that one member alone may name, so that no other speaks to that service behind its port.
const OWNED: &[(&str, &str)] = &[
    ("lapin", "paceline-broker"),
    ("redis", "paceline-limiter"),
    ("reqwest", "paceline-provider"),
    ("lettre", "paceline-provider"),
    ("aws-sigv4", "paceline-provider"),
    ("sqlx", "paceline-store"),
    ("rusqlite", "paceline-sqlite"),
];

/// Lines of a source file before its test module.
const MAX_LINES: usize = 600;

#[test]
fn members_depend_only_on_what_the_house_allows() {
    assert_none(dependency_violations(&members()));
}

#[test]
fn every_member_inherits_the_workspace_lints() {
    assert_none(members().iter().filter_map(lint_violation).collect());
}

#[test]
fn the_top_level_tests_are_a_member() {
    // In a virtual workspace a `tests/` that is no member is silently never compiled.
    assert!(members().iter().any(|member| member.manifest == root().join("tests/Cargo.toml")));
}

#[test]
fn source_files_are_short() {
    assert_none(files(&root(), &["rs"]).iter().filter_map(|(path, text)| length_violation(path, text)).collect());
}

#[test]
fn no_file_leads_out_of_the_repository() {
    let files = files(&root(), &["rs", "toml", "md", "lua", "sql", "sh", "yml", "yaml", ""]);
    assert!(files.keys().any(|path| path.ends_with("Cargo.toml")), "the walk found nothing");
    assert_none(files.iter().filter_map(|(path, text)| outside_violation(path, text)).collect());
}

/// A member of the workspace, as far as the rules look at it.
struct Member {
    name: String,
    manifest: PathBuf,
    manifest_text: String,
    /// Package names, whatever they are renamed to, and whether they are for development only.
    dependencies: Vec<(String, bool)>,
}

fn dependency_violations(members: &[Member]) -> Vec<String> {
    members.iter().filter(|member| !OUTSIDE.contains(&member.name.as_str())).flat_map(violations_of).collect()
}

fn violations_of(member: &Member) -> Vec<String> {
    let name = member.name.as_str();
    let Some((_, may_use)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name} has no place in the house yet: give it one in tests/tests/house.rs")];
    };
    let mut violations = Vec::new();
    for (dependency, development) in &member.dependencies {
        let dependency = dependency.as_str();
        let is_member = MAY_USE.iter().any(|(known, _)| *known == dependency) || OUTSIDE.contains(&dependency);
        if dependency == TESTKIT {
            if !development {
                violations.push(format!("{name} uses {TESTKIT} outside of its tests"));
            }
        } else if is_member && !may_use.contains(&dependency) {
            violations.push(format!("{name} may not depend on {dependency}"));
        }
        if let Some((_, owner)) = OWNED.iter().find(|(library, owner)| *library == dependency && *owner != name) {
            violations.push(format!("{name} names {dependency}, which only {owner} may"));
        }
    }
    violations
}

fn lint_violation(member: &Member) -> Option<String> {
    let mut lines = member.manifest_text.lines().map(str::trim);
    let inherits = lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true");
    (!inherits).then(|| format!("{} does not inherit the workspace lints", member.name))
}

fn length_violation(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    (lines > MAX_LINES).then(|| format!("{} has {lines} lines before its tests, more than {MAX_LINES}", path.display()))
}

fn outside_violation(path: &Path, text: &str) -> Option<String> {
    // Put together here, or this file would be the first to break the rule.
    let outside = ["..", "shared"].join("/");
    text.contains(&outside).then(|| format!("{} names {outside}, which no checkout has", path.display()))
}

fn members() -> Vec<Member> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .exec();
    let packages = match metadata {
        Ok(metadata) => metadata.packages,
        Err(error) => panic!("cargo metadata: {error}"),
    };
    let member = |package: cargo_metadata::Package| Member {
        name: package.name.to_string(),
        manifest_text: read(package.manifest_path.as_std_path()).unwrap_or_default(),
        manifest: package.manifest_path.into_std_path_buf(),
        dependencies: package
            .dependencies
            .into_iter()
            .map(|dependency| (dependency.name, dependency.kind == DependencyKind::Development))
            .collect(),
    };
    packages.into_iter().map(member).collect()
}

/// The text files below `dir` with one of these extensions, by path; what Cargo and git keep for themselves apart.
fn files(dir: &Path, extensions: &[&str]) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if path.is_dir() && !is_link && !path.ends_with("target") && !path.ends_with(".git") {
            found.append(&mut files(&path, extensions));
        } else if path.is_file() && extensions.contains(&path.extension().and_then(|it| it.to_str()).unwrap_or("")) {
            found.extend(read(&path).map(|text| (path, text)));
        }
    }
    found
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Each rule can fail: a checker that lets everything through would pass all of the above.
mod the_checker {
    use super::*;

    fn member(name: &str, dependencies: &[&str], for_development: &[&str]) -> Member {
        let normal = dependencies.iter().map(|name| ((*name).to_owned(), false));
        let development = for_development.iter().map(|name| ((*name).to_owned(), true));
        Member {
            name: name.to_owned(),
            manifest: PathBuf::new(),
            manifest_text: String::new(),
            dependencies: normal.chain(development).collect(),
        }
    }

    fn complaints(member: Member) -> String {
        dependency_violations(&[member]).join("; ")
    }

    #[test]
    fn accepts_what_the_house_allows() {
        assert_eq!(complaints(member("paceline-broker", &["paceline-core", "lapin"], &["paceline-testkit"])), "");
        assert_eq!(complaints(member("paceline-cli", &["paceline-consumer", "paceline-control", "tokio"], &[])), "");
        assert_eq!(complaints(member("paceline-tests", &[], &["paceline-testkit", "paceline-cli", "lapin"])), "");
    }

    #[test]
    fn refuses_a_core_that_looks_up() {
        assert!(complaints(member("paceline-core", &["paceline-broker"], &[])).contains("may not depend"));
    }

    #[test]
    fn refuses_siblings_that_see_each_other() {
        assert!(complaints(member("paceline-limiter", &["paceline-broker"], &[])).contains("may not depend"));
        assert!(complaints(member("paceline-limiter", &[], &["paceline-store"])).contains("may not depend"));
    }

    #[test]
    fn refuses_a_client_library_behind_its_owners_back() {
        for (library, owner) in OWNED {
            let stranger = if *owner == "paceline-cli" { "paceline-core" } else { "paceline-cli" };
            assert!(complaints(member(stranger, &[library], &[])).contains(owner), "{library}");
            assert_eq!(complaints(member(owner, &[library], &[])), "");
        }
    }

    #[test]
    fn refuses_the_testkit_outside_of_tests() {
        assert!(complaints(member("paceline-cli", &["paceline-testkit"], &[])).contains("outside of its tests"));
    }

    #[test]
    fn refuses_a_member_it_does_not_know() {
        assert!(complaints(member("paceline-misc", &[], &[])).contains("no place"));
    }

    #[test]
    fn refuses_a_member_with_lints_of_its_own() {
        let mut member = member("paceline-core", &[], &[]);
        assert!(lint_violation(&member).is_some());
        member.manifest_text = "[lints]\nworkspace = true\n".to_owned();
        assert!(lint_violation(&member).is_none());
    }

    #[test]
    fn refuses_a_long_file_but_not_long_tests() {
        let long = "line\n".repeat(MAX_LINES + 1);
        assert!(length_violation(Path::new("a.rs"), &long).is_some());
        let long_tests = format!("line\n#[cfg(test)]\n{long}");
        assert!(length_violation(Path::new("a.rs"), &long_tests).is_none());
    }

    #[test]
    fn refuses_a_path_out_of_the_repository() {
        let text = format!("include_str!(\"{}/x\")", ["..", "shared"].join("/"));
        assert!(outside_violation(Path::new("a.rs"), &text).is_some());
        assert!(outside_violation(Path::new("a.rs"), "include_str!(\"x\")").is_none());
    }
}
