//! A private greylisting policy server.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port, find};

/// A `postgrey` that defers whom it has not met for a while. It knows nobody beforehand and never learns to trust a client
/// as such: each sender and recipient is met anew.
#[derive(Debug)]
pub struct Postgrey {
    running: Running,
    port: Port,
    dir: TempDir,
}

impl Postgrey {
    /// Starts one that defers for so many seconds, in words of its own choosing unless `text` gives others (`%s` in it: the
    /// seconds left), and waits until it listens.
    ///
    /// # Panics
    /// When `postgrey` is missing or does not come up.
    pub async fn start(delay_s: u32, text: Option<&str>) -> Postgrey {
        let dir = tempfile::Builder::new().prefix("paceline-postgrey-").tempdir();
        let dir = must(dir.map_err(Error::io("no directory in", "TMPDIR")));
        let postgrey = Postgrey { running: Running::default(), port: Port::reserve(), dir };
        must(postgrey.try_start(delay_s, text).await);
        postgrey
    }

    /// What goes into Postfix's `smtpd_recipient_restrictions` to ask it.
    #[must_use]
    pub fn restriction(&self) -> String {
        format!("check_policy_service inet:127.0.0.1:{}", self.port.number())
    }

    /// Ends it in order.
    pub async fn stop(&self) {
        self.running.end(Signal::SIGTERM, Duration::from_secs(5)).await;
    }

    async fn try_start(&self, delay_s: u32, text: Option<&str>) -> Result<(), Error> {
        let program = find::program("postgrey", "postgrey", &[])?;
        let dir = self.dir.path();
        let (log_path, nobody) = (dir.join("log"), dir.join("nobody"));
        std::fs::write(&nobody, "").map_err(Error::io("cannot write", &nobody))?;
        let log = std::fs::File::create(&log_path).map_err(Error::io("cannot write", &log_path))?;
        let copy = log.try_clone().map_err(Error::io("cannot write", &log_path))?;
        let mut command = Command::new(program);
        command
            .arg(format!("--inet=127.0.0.1:{}", self.port.number()))
            .arg(format!("--delay={delay_s}"))
            .arg(format!("--dbdir={}", dir.display()))
            .arg(format!("--pidfile={}", dir.join("pid").display()))
            .arg(format!("--whitelist-clients={}", nobody.display()))
            .arg(format!("--whitelist-recipients={}", nobody.display()))
            .args(["--auto-whitelist-clients=0", "--user=root", "--group=root"])
            .args(text.map(|text| format!("--greylist-text={text}")))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy);
        let mut group = Group::spawn(command, Some(dir))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if TcpStream::connect(("127.0.0.1", self.port.number())).is_ok() {
                self.running.put(group);
                return Ok(());
            }
            if group.exited().is_some() || Instant::now() > deadline {
                let what = "did not come up".to_owned();
                return Err(Error::Service { service: "postgrey".into(), what, log: tail(&log_path) });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
