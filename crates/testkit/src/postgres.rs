//! A private PostgreSQL.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port, find};

const PACKAGE: &str = "postgresql";

/// A PostgreSQL server. It survives the death of its processes, not the machine's: `fsync` is off unless
/// [`with_config`](Postgres::with_config) turns it on.
///
/// Under root it runs as `postgres` or `nobody`, as PostgreSQL refuses to run as root.
#[derive(Debug)]
pub struct Postgres {
    running: Running,
    port: Port,
    dir: TempDir,
    bin: PathBuf,
    settings: Vec<String>,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts one and waits until it accepts connections.
    ///
    /// # Panics
    /// When PostgreSQL is missing or does not come up.
    pub async fn start() -> Postgres {
        Postgres::with_config(&[]).await
    }

    /// Starts one with further settings, e.g. `&["fsync=on"]`; they win over the defaults.
    ///
    /// # Panics
    /// As [`start`](Postgres::start).
    pub async fn with_config(settings: &[&str]) -> Postgres {
        must(Postgres::try_new(settings).await)
    }

    /// The database `paceline`, empty at first: `postgres://postgres@127.0.0.1:<port>/paceline`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("paceline")
    }

    /// A new empty database's URL, so that one server serves many cases.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn database(&self) -> String {
        let name = format!("case_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        must(self.create_database(&name).await);
        self.url_of(&name)
    }

    /// Runs SQL in the database `url` names; the rows come back as lines, columns separated by `|`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn sql(&self, url: &str, sql: &str) -> String {
        must(self.try_sql(url, sql).await)
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Stops it in order, ending open sessions; the data stays for [`start_again`](Postgres::start_again).
    pub async fn stop(&self) {
        self.running.end(Signal::SIGINT, Duration::from_secs(20)).await;
    }

    /// Kills all its processes, as a lost machine would.
    pub async fn kill9(&self) {
        self.running.kill9().await;
    }

    /// Starts it on the same port with the data it had.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&self) {
        must(self.try_start().await);
    }

    /// Stops its clock: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.running.signal_all(Signal::SIGSTOP);
    }

    /// Ends a [`freeze`](Postgres::freeze).
    pub fn thaw(&self) {
        self.running.signal_all(Signal::SIGCONT);
    }

    async fn try_new(settings: &[&str]) -> Result<Postgres, Error> {
        let server = find::program("postgres", PACKAGE, &find::postgres_bins())?;
        // `/usr/local/bin/postgres` may be a link into the versioned directory, where its siblings are.
        let server = server.canonicalize().map_err(Error::io("cannot resolve", &server))?;
        let bin = server.parent().map(Path::to_owned).unwrap_or_default();
        let dir = tempfile::Builder::new()
            .prefix("paceline-postgres-")
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir()
            .map_err(Error::io("no directory in", "TMPDIR"))?;
        let template = template(&bin).await?;
        // `cp -a` keeps owner and mode, which PostgreSQL checks.
        run(Command::new("cp").arg("-a").arg(&template).arg(dir.path().join("data"))).await?;
        let postgres = Postgres {
            running: Running::default(),
            port: Port::reserve(),
            dir,
            bin,
            settings: settings.iter().map(ToString::to_string).collect(),
            databases: AtomicU32::new(0),
        };
        postgres.try_start().await?;
        postgres.create_database("paceline").await?;
        Ok(postgres)
    }

    async fn try_start(&self) -> Result<(), Error> {
        let data = self.dir.path().join("data");
        let log_path = self.dir.path().join("postgres.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(Error::io("cannot open", &log_path))?;
        // After a kill, the old processes may take a moment to leave the shared memory: then the server refuses.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let out = log.try_clone().map_err(Error::io("cannot share", &log_path))?;
            let err = log.try_clone().map_err(Error::io("cannot share", &log_path))?;
            let mut command = Command::new(self.bin.join("postgres"));
            command.arg("-D").arg(&data).args(["-p", &self.port.number().to_string()]);
            let defaults = [
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "fsync=off",
                "shared_buffers=32MB",
                "max_connections=200",
            ];
            for setting in defaults.into_iter().chain(self.settings.iter().map(String::as_str)) {
                command.args(["-c", setting]);
            }
            command.stdin(Stdio::null()).stdout(out).stderr(err).current_dir("/");
            lower_privileges(&mut command);
            let mut group = Group::spawn(command, Some(self.dir.path()))?;
            while group.exited().is_none() && Instant::now() < deadline {
                if ready(&data, group.pid()) {
                    self.running.put(group);
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
            let log = tail(&log_path);
            if Instant::now() >= deadline || !log.contains("shared memory block") {
                return Err(Error::Service { service: "postgres".into(), what: "did not come up".into(), log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn create_database(&self, name: &str) -> Result<(), Error> {
        self.try_sql(&self.url_of("postgres"), &format!("CREATE DATABASE {name}")).await.map(drop)
    }

    async fn try_sql(&self, url: &str, sql: &str) -> Result<String, Error> {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
        run(&mut command).await
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port.number())
    }
}

/// The server says so itself, in the last line of its lock file.
fn ready(data: &Path, pid: u32) -> bool {
    let lock = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = lock.lines().map(str::trim);
    lines.next() == Some(&pid.to_string()) && lines.next_back() == Some("ready")
}

/// An initialised data directory to copy from. Made once for each PostgreSQL under Cargo's target directory: making
/// one takes a second or two, copying a tenth of one.
async fn template(bin: &Path) -> Result<PathBuf, Error> {
    let version = run(Command::new(bin.join("postgres")).arg("--version")).await?;
    let version: String = version.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let cache = find::cache_dir()?;
    let template = cache.join(format!("template-{version}-{}", server_user().map_or_else(geteuid, |user| user.uid)));
    if template.is_dir() {
        return Ok(template);
    }
    // Made in a directory the server's user may reach, then moved into place in one step: another test that was
    // faster makes the move fail, and its template serves as well.
    let workshop = tempfile::Builder::new()
        .prefix("paceline-initdb-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir()
        .map_err(Error::io("no directory in", "TMPDIR"))?;
    let data = workshop.path().join("data");
    std::fs::create_dir(&data).map_err(Error::io("cannot create", &data))?;
    if let Some(user) = server_user() {
        chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(Error::io("cannot chown", &data))?;
    }
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.arg("-D").arg(&data).args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
        "--wal-segsize=1",
    ]);
    initdb.current_dir("/");
    lower_privileges(&mut initdb);
    run(&mut initdb).await?;
    let staged = tempfile::Builder::new().prefix("staged-").tempdir_in(&cache).map_err(Error::io("no directory in", &cache))?;
    run(Command::new("cp").arg("-a").arg(&data).arg(staged.path().join("data"))).await?;
    match std::fs::rename(staged.path().join("data"), &template) {
        Err(_) if template.is_dir() => Ok(template),
        moved => moved.map(|()| template.clone()).map_err(Error::io("cannot create", &template)),
    }
}

/// The user to run the server as, when this process is root's.
fn server_user() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten())
}

fn lower_privileges(command: &mut Command) {
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
}

async fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut command: tokio::process::Command = std::mem::replace(command, Command::new("true")).into();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(Error::io("cannot run", &program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Program { program, output: String::from_utf8_lossy(&said).into_owned() })
}
