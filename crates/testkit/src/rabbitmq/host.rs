//! Where a broker runs: on this machine as it is, or in a root directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::{Error, find};

const PACKAGE: &str = "rabbitmq-server";
/// Names a directory that holds a whole Debian with another RabbitMQ; the broker then runs in it by `chroot`.
const ROOT_VARIABLE: &str = "PACELINE_TEST_RABBITMQ_ROOT";

/// Where the broker runs: on this machine as it is, or in a root directory of its own.
#[derive(Debug)]
pub(super) struct Host {
    root: Option<PathBuf>,
    pub(super) server: PathBuf,
}

impl Host {
    pub(super) fn from_environment() -> Result<Host, Error> {
        // The server in Debian's `/usr/sbin` changes to the user `rabbitmq`; the one it wraps does not.
        let unwrapped = PathBuf::from("/usr/lib/rabbitmq/bin");
        match std::env::var_os(ROOT_VARIABLE).filter(|root| !root.is_empty()).map(PathBuf::from) {
            Some(root) => {
                let server = unwrapped.join("rabbitmq-server");
                if !root.join("usr/lib/rabbitmq/bin/rabbitmq-server").is_file() {
                    let program = root.join("usr/lib/rabbitmq/bin/rabbitmq-server").display().to_string();
                    return Err(Error::Missing { program, package: PACKAGE.into() });
                }
                Ok(Host { root: Some(root), server })
            }
            None => {
                let server = find::program("rabbitmq-server", PACKAGE, &[unwrapped])?;
                find::program("erl_call", "erlang-base", &[])?;
                Ok(Host { root: None, server })
            }
        }
    }

    /// Whether there is a whole Debian around it, or only the bare directory.
    pub(super) fn is_bare_root(&self) -> bool {
        self.root.is_some()
    }

    /// A directory the broker can reach; the path is as seen from outside.
    pub(super) fn tempdir(&self) -> Result<TempDir, Error> {
        let parent = self.root.as_ref().map_or_else(std::env::temp_dir, |root| root.join("tmp"));
        tempfile::Builder::new().prefix("paceline-rabbitmq-").tempdir_in(&parent).map_err(Error::io("no directory in", &parent))
    }

    /// A path as the broker sees it.
    pub(super) fn inside(&self, path: &Path) -> PathBuf {
        match self.root.as_ref().and_then(|root| path.strip_prefix(root).ok()) {
            Some(relative) => Path::new("/").join(relative),
            None => path.to_owned(),
        }
    }

    /// A command that runs where the broker does, with nothing of this process's environment but what is needed to
    /// find programs.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = match &self.root {
            Some(root) if geteuid().is_root() => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(program);
                command
            }
            // In a user namespace anyone may change root.
            Some(root) => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "chroot"]).arg(root).arg(program);
                command
            }
            None => Command::new(program),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin")).env("LANG", "C.UTF-8");
        command
    }
}
