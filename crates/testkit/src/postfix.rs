//! A private Postfix that takes mail for anybody and keeps it.

use std::fmt::Write as _;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Group as UserGroup, User, geteuid};
use tempfile::TempDir;

use crate::error::{must, tail};
use crate::group::{Group, POLL, Running};
use crate::{Error, Port, find};

/// A Postfix with STARTTLS on one port and TLS from the first byte on another. It accepts any sender and recipient
/// from this machine, changes nothing in the mail, and delivers into a Maildir.
#[derive(Debug)]
pub struct Postfix {
    running: Running,
    port: Port,
    tls_port: Port,
    dir: TempDir,
}

/// A mail as it was delivered to one recipient.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub sender: String,
    pub recipient: String,
    /// As it was sent, without the trace headers that servers put before it, and with LF for CRLF.
    pub mail: Vec<u8>,
}

impl Postfix {
    /// Starts one with this certificate and key (PEM files) and waits until it answers.
    ///
    /// # Panics
    /// When Postfix is missing, when this is not root (Postfix runs as several users), or when it does not come up.
    pub async fn start(certificate: &Path, key: &Path) -> Postfix {
        Postfix::with_settings(certificate, key, &[]).await
    }

    /// Starts one with further lines for `main.cf`, e.g. `("smtpd_client_message_rate_limit", "10")`; they win over
    /// the defaults.
    ///
    /// # Panics
    /// As [`start`](Postfix::start).
    pub async fn with_settings(certificate: &Path, key: &Path, settings: &[(&str, &str)]) -> Postfix {
        let dir = tempfile::Builder::new().prefix("paceline-postfix-").tempdir();
        let dir = must(dir.map_err(Error::io("no directory in", "TMPDIR")));
        let postfix = Postfix { running: Running::default(), port: Port::reserve(), tls_port: Port::reserve(), dir };
        must(postfix.prepare(certificate, key, settings));
        postfix.start_again().await;
        postfix
    }

    /// The port on 127.0.0.1 where STARTTLS is offered.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The port on 127.0.0.1 where TLS begins at once.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls_port.number()
    }

    /// Everything delivered so far.
    ///
    /// # Panics
    /// When a delivered mail cannot be read.
    #[must_use]
    pub fn delivered(&self) -> Vec<Delivered> {
        let entries = std::fs::read_dir(self.dir.path().join("mail/box/new"));
        entries.into_iter().flatten().flatten().map(|entry| must(read(&entry.path()))).collect()
    }

    /// Waits until so many mails are delivered, and returns them.
    ///
    /// # Panics
    /// When they are not there in time.
    pub async fn wait_for(&self, count: usize, at_most: Duration) -> Vec<Delivered> {
        let deadline = Instant::now() + at_most;
        loop {
            let there = std::fs::read_dir(self.dir.path().join("mail/box/new")).into_iter().flatten().count();
            if there >= count {
                return self.delivered();
            }
            assert!(Instant::now() < deadline, "{there} of {count} mails delivered; the log ends with:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of its mail log.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.dir.path().join("log"))
    }

    /// Shuts down in order; queue and mail stay for [`start_again`](Postfix::start_again).
    pub async fn stop(&self) {
        self.running.end(Signal::SIGTERM, Duration::from_secs(10)).await;
    }

    /// Kills it, as a lost machine would.
    pub async fn kill9(&self) {
        self.running.kill9().await;
    }

    /// Starts it on the same ports with what it had.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&self) {
        must(self.try_start().await);
    }

    async fn try_start(&self) -> Result<(), Error> {
        let master = find::program("master", "postfix", &[daemons()])?;
        let log_path = self.dir.path().join("master.log");
        let log = std::fs::File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(Error::io("cannot write", &log_path))?;
        let copy = log.try_clone().map_err(Error::io("cannot write", &log_path))?;
        let mut command = Command::new(master);
        // -d keeps it in this process group, where it ends with the test.
        command.arg("-c").arg(self.dir.path().join("etc")).arg("-d").stdin(Stdio::null()).stdout(log).stderr(copy);
        let mut group = Group::spawn(command, Some(self.dir.path()))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if greets(self.port()) && TcpStream::connect(("127.0.0.1", self.tls_port())).is_ok() {
                self.running.put(group);
                return Ok(());
            }
            if group.exited().is_some() || Instant::now() > deadline {
                let log = format!("{}\n{}", tail(&log_path), self.log());
                return Err(Error::Service { service: "Postfix".into(), what: "did not come up".into(), log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Directories with the owners Postfix insists on, and its two files of settings.
    fn prepare(&self, certificate: &Path, key: &Path, settings: &[(&str, &str)]) -> Result<(), Error> {
        let dir = self.dir.path();
        find::program("master", "postfix", &[daemons()])?;
        assert!(geteuid().is_root(), "Postfix runs as several users and so starts as root only: run this test as root");
        let missing = || Error::Missing { program: "user postfix".into(), package: "postfix".into() };
        let user = User::from_name("postfix").ok().flatten().ok_or_else(missing)?.uid.as_raw();
        let drop_group = UserGroup::from_name("postdrop").ok().flatten().ok_or_else(missing)?.gid.as_raw();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).map_err(Error::io("cannot open up", dir))?;
        let make = |name: &str, owner: Option<u32>, group: Option<u32>| {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).map_err(Error::io("cannot create", &path))?;
            chown(&path, owner, group).map_err(Error::io("cannot give away", &path))
        };
        for name in ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"]
        {
            make(&format!("queue/{name}"), Some(user), None)?;
        }
        make("queue/pid", None, None)?;
        make("queue/maildrop", Some(user), Some(drop_group))?;
        make("queue/public", Some(user), Some(drop_group))?;
        make("data", Some(user), None)?;
        make("mail", Some(NOBODY), None)?;
        make("etc", None, None)?;
        for (name, from) in [("certificate.pem", certificate), ("key.pem", key)] {
            std::fs::copy(from, dir.join("etc").join(name)).map_err(Error::io("cannot copy", from))?;
        }
        let mut main = MAIN.replace("DIR", &dir.display().to_string()).replace("DAEMONS", &daemons().display().to_string());
        for (name, value) in settings {
            // The last one wins.
            let _ = writeln!(main, "{name} = {value}");
        }
        let master = MASTER.replace("PORT_TLS", &self.tls_port().to_string()).replace("PORT", &self.port().to_string());
        for (name, text) in [("main.cf", main), ("master.cf", master)] {
            let path = dir.join("etc").join(name);
            std::fs::write(&path, text).map_err(Error::io("cannot write", &path))?;
        }
        Ok(())
    }
}

const NOBODY: u32 = 65_534;

const MAIN: &str = "compatibility_level = 3.6
queue_directory = DIR/queue
data_directory = DIR/data
daemon_directory = DAEMONS
mail_owner = postfix
setgid_group = postdrop
maillog_file = DIR/log
maillog_file_prefixes = DIR
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
myhostname = mx.paceline.test
mydestination =
alias_maps =
local_recipient_maps =
local_header_rewrite_clients =
virtual_mailbox_domains = static:all
virtual_mailbox_maps = static:box/
virtual_mailbox_base = DIR/mail
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_minimum_uid = 1
message_size_limit = 51200000
smtpd_recipient_restrictions = permit_mynetworks
smtpd_tls_cert_file = DIR/etc/certificate.pem
smtpd_tls_key_file = DIR/etc/key.pem
smtpd_tls_security_level = may
";

const MASTER: &str = "127.0.0.1:PORT inet n - n - - smtpd
127.0.0.1:PORT_TLS inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";

fn daemons() -> PathBuf {
    let places = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/lib/postfix"].map(PathBuf::from);
    places.iter().find(|dir| dir.join("master").is_file()).unwrap_or(&places[0]).clone()
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut greeting = [0; 3];
    let patience = stream.set_read_timeout(Some(Duration::from_secs(5)));
    patience.is_ok() && stream.read_exact(&mut greeting).is_ok() && &greeting == b"220"
}

/// Takes off `Return-Path`, `X-Original-To`, `Delivered-To` and `Received` with its continuation lines.
fn read(path: &Path) -> Result<Delivered, Error> {
    let bytes = std::fs::read(path).map_err(Error::io("cannot read", path))?;
    let mut rest: &[u8] = &bytes;
    let (mut sender, mut recipient) = (String::new(), String::new());
    let mut in_trace = false;
    while let Some(end) = rest.iter().position(|&b| b == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]);
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        match name {
            "Return-Path" => value.trim_matches(['<', '>']).clone_into(&mut sender),
            "X-Original-To" => value.clone_into(&mut recipient),
            "Delivered-To" | "Received" => {}
            _ if in_trace && line.starts_with(['\t', ' ']) => {}
            _ => break,
        }
        in_trace = true;
        rest = &rest[end + 1..];
    }
    Ok(Delivered { sender, recipient, mail: rest.to_vec() })
}
