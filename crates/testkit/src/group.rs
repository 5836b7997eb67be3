//! Processes that cannot outlive the test.
//!
//! A started program leads a process group of its own. Dropping the [`Group`] kills it and all its descendants.
//! If the test process dies first, by a crash or by `SIGKILL`, a watchdog does it: a small shell that waits for the
//! end of a pipe only the test process holds, kills the group and removes the instance's directory. (The kernel's
//! parent-death signal would not do: it fires when the *thread* that started the child ends, and reaches only the
//! child itself.)

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::Error;

/// How often a state is looked at while waiting for it to change.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// A running program, its descendants, and the watchdog over them.
#[derive(Debug)]
pub struct Group {
    leader: Child,
    watchdog: Child,
    ended: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` as the leader of a new process group. `dir` is removed if this process dies untimely.
    ///
    /// # Errors
    /// When the program or the watchdog cannot be started.
    pub fn spawn(mut command: Command, dir: Option<&Path>) -> Result<Group, Error> {
        let mut leader = command.process_group(0).spawn().map_err(Error::io("cannot start", command.get_program()))?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"; sleep 0.2; [ -z \"$2\" ] || rm -rf -- \"$2\"", "watchdog"])
            .arg(leader.id().to_string())
            .arg(dir.unwrap_or_else(|| Path::new("")))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Group { leader, watchdog, ended: None }),
            Err(source) => {
                // The leader is this function's own child and not yet waited for: its id cannot have been reused.
                let _ = leader.kill();
                let _ = leader.wait();
                Err(Error::Io { what: "cannot start", path: "/bin/sh".into(), source })
            }
        }
    }

    /// The leader's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.leader.id()
    }

    /// The leader, to take its pipes from.
    pub fn leader(&mut self) -> &mut Child {
        &mut self.leader
    }

    /// How the leader ended, if it has; what it left behind in its group is then killed.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let look_only = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::Pid(pid(self.leader.id())), look_only) {
                Ok(WaitStatus::StillAlive) => {}
                _ => self.bury(),
            }
        }
        self.ended
    }

    /// Reaps a leader that has ended or is about to. The group is killed while the leader's entry still holds its
    /// number: after that, the number may become another's.
    fn bury(&mut self) {
        let _ = killpg(pid(self.leader.id()), Signal::SIGKILL);
        self.ended = self.leader.wait().ok();
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }

    /// Sends a signal to the leader only. A leader that has ended is left alone.
    pub fn signal_leader(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let _ = kill(pid(self.leader.id()), signal);
        }
    }

    /// Sends a signal to the leader, its group and all its descendants, those in groups of their own included.
    pub fn signal_all(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let descendants = descendants(self.leader.id());
            let _ = killpg(pid(self.leader.id()), signal);
            for descendant in descendants {
                let _ = kill(pid(descendant), signal);
            }
        }
    }

    /// Waits for the leader's end.
    pub async fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            let status = self.exited();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.signal_all(Signal::SIGKILL);
            self.bury();
        }
    }
}

/// A service's process, absent while it is stopped. Shared by reference, so that one task may stop the service
/// while others use it.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Option<Group>>);

impl Running {
    pub(crate) fn put(&self, group: Group) {
        *self.lock() = Some(group);
    }

    pub(crate) fn take(&self) -> Option<Group> {
        self.lock().take()
    }

    pub(crate) fn signal_all(&self, signal: Signal) {
        if let Some(group) = self.lock().as_mut() {
            group.signal_all(signal);
        }
    }

    /// Asks with `signal`, waits up to `patience`, then kills what is still there.
    pub(crate) async fn end(&self, signal: Signal, patience: Duration) {
        if let Some(mut group) = self.take() {
            group.signal_leader(signal);
            group.wait(patience).await;
        }
    }

    /// Kills everything at once, as a lost machine would.
    pub(crate) async fn kill9(&self) {
        if let Some(mut group) = self.take() {
            group.signal_all(Signal::SIGKILL);
            group.wait(Duration::from_secs(10)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every descendant of `root`, by walking `/proc`.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|process| Some((process, parent_of(process)?)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, its_parent)| *its_parent == parent).map(|(process, _)| *process));
        next += 1;
    }
    found.split_off(1)
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything, a parenthesis included: the fields start after the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn pid(process: u32) -> Pid {
    // Linux process ids are at most 2^22.
    Pid::from_raw(i32::try_from(process).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(process: u32) -> bool {
        // A zombie is dead: only its parent has not looked yet.
        std::fs::read_to_string(format!("/proc/{process}/stat"))
            .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited 20 s in vain");
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn dropping_a_group_kills_descendants_in_groups_of_their_own() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "setsid sleep 600 & wait"]);
        let group = Group::spawn(command, None).unwrap();
        let leader = group.pid();
        until(|| descendants(leader).len() == 1).await;
        let child = descendants(leader)[0];
        drop(group);
        until(|| !alive(leader) && !alive(child)).await;
    }

    #[tokio::test]
    async fn the_watchdog_kills_the_group_and_removes_the_directory_when_the_owner_dies() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 600 & wait"]);
        let mut group = Group::spawn(command, Some(dir.path())).unwrap();
        // Closing the pipe is what the kernel does to a dead owner's.
        drop(group.watchdog.stdin.take());
        until(|| !dir.path().exists()).await;
        assert!(group.exited().is_some());
    }
}
