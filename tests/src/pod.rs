//! One running `paceline worker` or `paceline control`.

use std::time::Duration;

use paceline_testkit::Process;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::until;

/// A process with health and metrics.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub process: Process,
    addr: String,
}

impl Pod {
    /// A pod that was started in whatever way; waits until it listens.
    pub async fn started(name: &str, mut process: Process) -> Pod {
        let line = process.wait_for_log(Duration::from_secs(60), |log| log["message"] == "listening").await;
        let addr = line["addr"].as_str().unwrap_or_else(|| panic!("no address in {line}")).to_owned();
        Pod { name: name.to_owned(), process, addr }
    }

    /// Where it listens: an IP address and a port.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Status and body of a GET; `None` where there is no answer.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let ask = async {
            let mut stream = TcpStream::connect(&self.addr).await.ok()?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.addr).as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        tokio::time::timeout(Duration::from_secs(5), ask).await.ok().flatten()
    }

    /// What `/readyz` says.
    pub async fn readiness(&self) -> Readiness {
        let Some((status, body)) = self.get("/readyz").await else { return Readiness { status: 0, checks: Value::Null } };
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("/readyz of {}: {e}: {body}", self.name));
        assert_eq!(answer["ready"], status == 200, "/readyz of {}", self.name);
        Readiness { status, checks: answer["checks"].clone() }
    }

    /// Waits until `/readyz` says 200.
    pub async fn ready(&self) {
        let what = format!("{} ready", self.name);
        until(&what, Duration::from_secs(90), async || self.readiness().await.status == 200).await;
    }

    /// Every sample of the metrics now.
    pub async fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").await.unwrap_or_else(|| panic!("no metrics from {}", self.name));
        assert_eq!(status, 200, "{text}");
        Metrics(text)
    }

    /// Asks the process to end and waits until it has, having drained.
    ///
    /// # Panics
    /// When it does not end in order.
    pub async fn drain(&mut self) {
        self.process.term();
        let status = self.process.wait(Duration::from_secs(60)).await;
        assert!(status.success(), "{} ended with {status}: {:?}", self.name, self.last_words());
        self.assert_sound();
    }

    /// That the process has written nothing that no healthy process writes.
    ///
    /// # Panics
    /// When it has.
    #[track_caller]
    pub fn assert_sound(&self) {
        // The AMQP library says "Connection error" of connections that are being closed: it has no say here.
        let error = |line: &String| line.contains("\"level\":\"ERROR\"") && !line.contains("\"target\":\"lapin");
        let bad = |line: &String| line.contains("panicked") || error(line);
        let complaints: Vec<_> = self.process.stderr_lines().into_iter().filter(bad).collect();
        assert!(complaints.is_empty(), "{}: {complaints:#?}; at last {:#?}", self.name, self.last_words());
    }

    fn last_words(&self) -> Vec<String> {
        let mut lines = self.process.stderr_lines();
        lines.split_off(lines.len().saturating_sub(30))
    }
}

/// An answer of `/readyz`.
#[derive(Debug, Clone, PartialEq)]
pub struct Readiness {
    /// 0 where there was no answer.
    pub status: u16,
    pub checks: Value,
}

impl Readiness {
    /// Names of the checks that fail.
    pub fn failing(&self) -> Vec<&str> {
        let checks = self.checks.as_object().into_iter().flatten();
        checks.filter(|(_, check)| check["ok"] == false).map(|(name, _)| name.as_str()).collect()
    }
}

/// A page of metrics.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric's samples whose labels (`{a="b",…}` as text) `wanted` accepts.
    pub fn sum(&self, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
        let sample = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            wanted(labels).then(|| value.split(' ').next()?.parse::<f64>().ok()).flatten()
        };
        self.0.lines().filter_map(sample).sum()
    }

    /// The sum over all labels.
    pub fn total(&self, name: &str) -> f64 {
        self.sum(name, |_| true)
    }
}
