//! Built binaries under test: started, listened to, signalled, measured.

mod lines;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::error::must;
use crate::group::Group;
use crate::{Error, find};
use lines::Lines;

/// What to run and how; then [`spawn`](Launch::spawn) or [`run`](Launch::run) it.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Option<Vec<u8>>,
}

impl Launch {
    /// The workspace's own `paceline`, from the directory the running test was built into.
    ///
    /// # Panics
    /// When it has not been built.
    #[must_use]
    pub fn paceline() -> Launch {
        Launch::built("paceline")
    }

    /// Any binary of the workspace, by name.
    ///
    /// # Panics
    /// When it has not been built.
    #[must_use]
    pub fn built(name: &str) -> Launch {
        let from_cargo = std::env::var_os(format!("CARGO_BIN_EXE_{name}")).map(PathBuf::from);
        let beside = find::target_profile_dir().map(|dir| dir.join(name));
        match from_cargo.into_iter().chain(beside).find(|path| path.is_file()) {
            Some(program) => Launch::program(&program),
            None => panic!("the binary `{name}` is not built: run `cargo build --workspace --bins` first, or `ops/test`"),
        }
    }

    /// Any program.
    #[must_use]
    pub fn program(path: &Path) -> Launch {
        Launch { program: path.to_owned(), arguments: Vec::new(), environment: Vec::new(), input: None }
    }

    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Launch {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Launch {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What the program reads from its standard input; nothing unless told.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Launch {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(self) -> Process {
        must(Process::start(self))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or is still running after `at_most`.
    pub async fn run(self, at_most: Duration) -> Finished {
        self.spawn().finish(at_most).await
    }
}

/// A program that has ended, and all it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    group: Group,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// The lines written to standard output so far.
    #[must_use]
    pub fn stdout_lines(&self) -> Vec<String> {
        self.stdout.so_far()
    }

    /// The lines written to standard error so far.
    #[must_use]
    pub fn stderr_lines(&self) -> Vec<String> {
        self.stderr.so_far()
    }

    /// The first JSON line on either stream, from the start, that `wanted` accepts; waits for it.
    ///
    /// # Panics
    /// When there is none within `at_most`, or the program ends without it: with what it said last.
    pub async fn wait_for_log(&mut self, at_most: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let json = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|value| wanted(value));
        self.wait_for(at_most, json).await
    }

    /// The first line on either stream, from the start, that `wanted` accepts; waits for it.
    ///
    /// # Panics
    /// As [`wait_for_log`](Process::wait_for_log).
    pub async fn wait_for_line(&mut self, at_most: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for(at_most, |line| wanted(line).then(|| line.to_owned())).await
    }

    /// Sends a signal to the program alone.
    pub fn signal(&mut self, signal: Signal) {
        self.group.signal_leader(signal);
    }

    /// Asks it to end.
    pub fn term(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Tells it to read its configuration anew.
    pub fn hangup(&mut self) {
        self.signal(Signal::SIGHUP);
    }

    /// Kills it; it is gone on return.
    pub async fn kill9(&mut self) {
        self.group.signal_all(Signal::SIGKILL);
        self.group.wait(Duration::from_secs(10)).await;
    }

    /// Stops its clock.
    pub fn freeze(&mut self) {
        self.group.signal_all(Signal::SIGSTOP);
    }

    /// Ends a [`freeze`](Process::freeze).
    pub fn thaw(&mut self) {
        self.group.signal_all(Signal::SIGCONT);
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.group.exited()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it is still running after `at_most`: with what it said last.
    pub async fn wait(&mut self, at_most: Duration) -> ExitStatus {
        match self.group.wait(at_most).await {
            Some(status) => status,
            None => panic!("{} still runs after {at_most:?}; {}", self.name, self.last_words()),
        }
    }

    /// Waits for its end and takes all it said.
    ///
    /// # Panics
    /// As [`wait`](Process::wait).
    pub async fn finish(mut self, at_most: Duration) -> Finished {
        let status = self.wait(at_most).await;
        self.stdout.closed().await;
        self.stderr.closed().await;
        let text = |lines: &Lines| lines.so_far().into_iter().map(|line| line + "\n").collect();
        Finished { status, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }

    /// Resident memory now, in KiB; 0 once it has ended.
    #[must_use]
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory it ever had, in KiB; 0 once it has ended.
    #[must_use]
    pub fn peak_rss_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Processor time used so far by all its threads, user and system, in µs, to 10 ms; 0 once it has ended.
    #[must_use]
    pub fn cpu_micros(&self) -> u64 {
        // Linux reports this in hundredths of a second on every architecture it runs these tests on.
        const MICROS_PER_TICK: u64 = 10_000;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // Fields 14 and 15 of the line; the text after the name starts with field 3.
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        ticks.sum::<u64>() * MICROS_PER_TICK
    }

    fn start(launch: Launch) -> Result<Process, Error> {
        let mut command = Command::new(&launch.program);
        command.args(&launch.arguments).envs(launch.environment);
        command.stdin(if launch.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::spawn(command, None)?;
        let (stdin, stdout, stderr) = {
            let leader = group.leader();
            (leader.stdin.take(), leader.stdout.take(), leader.stderr.take())
        };
        if let (Some(mut stdin), Some(input)) = (stdin, launch.input) {
            // On a thread: a program that answers before it has read everything would otherwise wait for us for
            // ever. One that ends without reading is not this function's concern.
            std::thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let first = launch.arguments.first().map(|argument| argument.to_string_lossy().into_owned());
        let name = [launch.program.display().to_string(), first.unwrap_or_default()].join(" ");
        Ok(Process { name, group, stdout: Lines::of(stdout), stderr: Lines::of(stderr) })
    }

    async fn wait_for<T>(&mut self, at_most: Duration, wanted: impl Fn(&str) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + at_most;
        let (mut seen_out, mut seen_err) = (0, 0);
        loop {
            // Looked at before the search: what ends after it is seen in the next turn.
            let (out_over, err_over) = (self.stdout.is_closed(), self.stderr.is_closed());
            if let Some(found) = self.stdout.search(&mut seen_out, &wanted).or_else(|| self.stderr.search(&mut seen_err, &wanted))
            {
                return found;
            }
            assert!(!(out_over && err_over), "{} ended without the line waited for; {}", self.name, self.last_words());
            tokio::select! {
                () = self.stdout.grown(seen_out, out_over) => {}
                () = self.stderr.grown(seen_err, err_over) => {}
                () = tokio::time::sleep_until(deadline) => {
                    panic!("{} has not written the line waited for within {at_most:?}; {}", self.name, self.last_words())
                }
            }
        }
    }

    fn last_words(&self) -> String {
        let end = |lines: Vec<String>| lines[lines.len().saturating_sub(20)..].join("\n");
        format!("stdout ends with:\n{}\nstderr ends with:\n{}", end(self.stdout_lines()), end(self.stderr_lines()))
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    }
}
