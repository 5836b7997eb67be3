//! What only a file goes through.

use std::{
    collections::HashSet,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use paceline_store::{DeadLetters as _, Error, Filter, Options, Ping as _, SqliteStore, Store, Suppressions as _, Written};
use sqlx::{Connection as _, Row as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::stage::{Stage, all, at, bare, conformance, entry, stored};

struct File {
    dir: TempDir,
    count: AtomicU32,
    last: Mutex<PathBuf>,
}

#[async_trait]
impl Stage for File {
    async fn empty(&self) -> Arc<dyn Store> {
        let path = self.dir.path().join(format!("case-{}.db", self.count.fetch_add(1, Ordering::Relaxed)));
        *self.last.lock().unwrap() = path;
        self.another().await
    }

    async fn another(&self) -> Arc<dyn Store> {
        let path = self.last.lock().unwrap().clone();
        Arc::new(SqliteStore::at(path, Options::default()))
    }

    async fn sql(&self, text: &str) -> String {
        let path = self.last.lock().unwrap().clone();
        sql(&path, text).await
    }
}

async fn sql(path: &Path, text: &str) -> String {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned())).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let first = |row: &sqlx::sqlite::SqliteRow| row.try_get_unchecked::<String, _>(0).unwrap();
    rows.iter().map(first).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&File { last: Mutex::new(dir.path().join("none.db")), dir, count: AtomicU32::new(0) }).await;
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::at(path, Options::default())
}

async fn misconfigured(path: &Path) -> String {
    match open(path).ping().await.unwrap_err() {
        error @ Error::Misconfigured(_) => error.in_full(),
        error => panic!("{}", error.in_full()),
    }
}

#[tokio::test]
async fn a_file_is_made_where_there_is_none_and_stays_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let url = format!("sqlite://{}", file("store.db").display());
    let store = SqliteStore::new(&url, Options::default()).unwrap();
    assert!(!file("store.db").exists(), "nothing before the first call");
    store.ping().await.unwrap();
    store.insert(&[stored(entry("a", at(0)), b"1")]).await.unwrap();
    store.close().await;
    assert_eq!(open(&file("store.db")).list(&all()).await.unwrap().len(), 1);
    assert_eq!(sql(&file("store.db"), "pragma journal_mode").await, "wal");
    let mode = std::fs::metadata(file("store.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else reads what was to be sent");

    let missing = misconfigured(&file("no/such/store.db")).await;
    assert!(missing.contains("no directory") && missing.contains("no/such"), "{missing}");
    std::fs::write(file("text.db"), "not a database, but long enough to be looked at as if it were one\n".repeat(100)).unwrap();
    let text = misconfigured(&file("text.db")).await;
    assert!(text.contains("text.db") && text.contains("not a database"), "{text}");
    sql(&file("foreign.db"), "create table t (a)").await;
    let foreign = misconfigured(&file("foreign.db")).await;
    assert!(foreign.contains("foreign.db is not a database of the store"), "{foreign}");
    std::fs::create_dir(file("directory.db")).unwrap();
    assert!(misconfigured(&file("directory.db")).await.contains("directory.db"));
    sql(&file("store.db"), "pragma user_version = 99").await;
    assert!(misconfigured(&file("store.db")).await.contains("newer version"));
}

#[tokio::test]
async fn a_file_of_the_first_version_is_upgraded_with_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path);
    store.insert(&[stored(entry("old", at(0)), b"1")]).await.unwrap();
    store.close().await;
    // Back to what the first migration alone had made.
    sql(
        &path,
        "drop table suppressions; drop table learnt; drop table quotas; drop index dead_letters_refused; delete from directive_versions; \
          alter table directives drop column rate",
    )
    .await;
    sql(&path, "pragma user_version = 1").await;
    let store = open(&path);
    let nobody = paceline_core::EmailAddress::parse("nobody@example.com").unwrap();
    assert_eq!(store.suppression(&nobody).await.unwrap(), None);
    assert_eq!(store.list(&all()).await.unwrap().len(), 1);
    assert_eq!(sql(&path, "select cast(user_version as text) from pragma_user_version").await, "5");
}

#[tokio::test]
async fn a_reader_does_not_wait_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let short = Options { acquire_timeout: Duration::from_millis(200), ..Options::default() };
    let store = SqliteStore::at(&path, short);
    store.insert(&[stored(entry("a", at(0)), b"1")]).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut hog = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("begin immediate").execute(&mut hog).await.unwrap();
    assert_eq!(store.list(&all()).await.unwrap().len(), 1);
    store.ping().await.unwrap();
    let letter = [stored(entry("b", at(0)), b"2")];
    let busy = store.insert(&letter).await.unwrap_err();
    assert!(matches!(busy, Error::Unavailable(_)), "{}", busy.in_full());
    hog.close().await.unwrap();
    assert_eq!(store.insert(&letter).await.unwrap(), [Written::New]);
}

/// Runs [`another_process`] over this file, with a shell's word before it.
fn child(path: &Path, before: &str) -> tokio::process::Child {
    let script = format!("{before} exec \"$0\" --exact sqlite::another_process --include-ignored --nocapture");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(std::env::current_exe().unwrap()).env(FILE, path);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

const FILE: &str = "PACELINE_TEST_SQLITE_FILE";

/// The other side of the two tests below: inserts, saying what is stored, until it fails.
#[tokio::test]
#[ignore = "run by other tests, as a process of its own"]
async fn another_process() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let store = open(Path::new(&path));
    for i in 0.. {
        let letters: Vec<_> = (0..5).map(|n| stored(bare(&format!("{i}-{n}"), at(i)), &[b'x'; 3_000])).collect();
        match store.insert(&letters).await {
            Ok(_) => letters.iter().for_each(|l| println!("stored {}", l.entry.id)),
            Err(Error::Unavailable(why)) => return println!("unavailable {why}"),
            Err(other) => panic!("{}", other.in_full()),
        }
    }
}

async fn lines(child: &mut tokio::process::Child, max: usize) -> Vec<String> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut read = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        read.push(line);
        if read.len() == max {
            break;
        }
    }
    read
}

fn stored_ids(lines: &[String]) -> HashSet<String> {
    lines.iter().filter_map(|line| line.strip_prefix("stored ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_was_stored_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut told = HashSet::new();
    for round in 0..8 {
        sql(&path, "select 1").await;
        if round > 0 {
            // Ids are new every round.
            sql(&path, &format!("update dead_letters set id = 'r{round}-' || id where id not like 'r%'")).await;
            told = told.into_iter().map(|id: String| if id.starts_with('r') { id } else { format!("r{round}-{id}") }).collect();
        }
        let mut child = child(&path, "");
        let lines = lines(&mut child, 20 + 37 * round).await;
        child.kill().await.unwrap();
        told.extend(stored_ids(&lines));
        assert_eq!(sql(&path, "pragma integrity_check").await, "ok");
        let there: HashSet<String> = open(&path).list(&all()).await.unwrap().into_iter().map(|l| l.entry.id).collect();
        assert!(told.is_subset(&there), "{:?} are lost", told.difference(&there).collect::<Vec<_>>());
    }
    assert!(told.len() > 500);
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    open(&path).ping().await.unwrap();
    // Files of this process may be 1 MiB large, which is an end like that of a disk.
    let mut child = child(&path, "trap '' XFSZ; ulimit -f 1024;");
    let lines = lines(&mut child, usize::MAX).await;
    assert!(lines.iter().any(|line| line.starts_with("unavailable")), "{lines:?}");
    let told = stored_ids(&lines);
    assert!(told.len() > 50, "{}", told.len());
    let store = open(&path);
    let there: HashSet<String> = store.list(&Filter::default()).await.unwrap().into_iter().map(|l| l.entry.id).collect();
    assert_eq!(there, told);
    assert_eq!(store.insert(&[stored(bare("after", at(0)), b"")]).await.unwrap(), [Written::New]);
    assert_eq!(sql(&path, "pragma integrity_check").await, "ok");
}
