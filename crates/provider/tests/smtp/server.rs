//! A mail server of a few lines that does as its script says, and calls to it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use paceline_core::{Message, Outcome};
use paceline_provider::{Attempt, HttpSettings, Provider, Settings, SmtpSettings, Tls, build};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What the server does when a command comes.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Say(&'static [u8]),
    SayAndClose(&'static str),
    Close,
    /// Says nothing any more, and reads nothing.
    Hang,
    /// Says it without waiting for the mail that was promised, and reads nothing.
    SayAndHang(&'static str),
}
pub(crate) use Act::{Close, Hang, Say, SayAndClose, SayAndHang};

/// What one connection does otherwise than well, by the start of the command; `220` is the greeting and `.` the end of
/// a mail. A number in front counts: `2 MAIL` is the second `MAIL`.
pub(crate) type Script = &'static [(&'static str, Act)];

pub(crate) struct Server {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    pub(crate) most_at_once: Arc<AtomicUsize>,
    /// Every line of every connection, mails included, each connection's number in front.
    pub(crate) heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn heard(&self, start: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|line| line.split_once(' ').unwrap().1.starts_with(start)).count()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// The nth connection gets the nth script, the last one from then on.
pub(crate) async fn server(scripts: &'static [Script]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, most_at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (heard, now) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let out = Server {
        port,
        connections: Arc::clone(&connections),
        most_at_once: Arc::clone(&most_at_once),
        heard: Arc::clone(&heard),
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let n = connections.fetch_add(1, Ordering::SeqCst);
            let script = *scripts.get(n).or(scripts.last()).unwrap();
            let (heard, now, most) = (Arc::clone(&heard), Arc::clone(&now), Arc::clone(&most_at_once));
            tokio::spawn(async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // A client may go away at any moment.
                let _ = serve(n, stream, script, &heard).await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    out
}

const WELL: [(&str, &str); 9] = [
    ("220", "220 mx.test ESMTP\r\n"),
    ("EHLO", "250-mx.test\r\n250-PIPELINING\r\n250-AUTH LOGIN PLAIN\r\n250 SIZE 1000000\r\n"),
    ("MAIL", "250 2.1.0 Ok\r\n"),
    ("RCPT", "250 2.1.5 Ok\r\n"),
    ("DATA", "354 go on\r\n"),
    (".", "250 2.0.0 Ok: queued as Q1\r\n"),
    ("RSET", "250 2.0.0 Ok\r\n"),
    ("AUTH", "235 2.7.0 welcome\r\n"),
    ("QUIT", "221 2.0.0 Bye\r\n"),
];

async fn serve(n: usize, stream: TcpStream, script: Script, heard: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut counts = BTreeMap::new();
    let mut command = "220".to_owned();
    let mut in_mail = false;
    loop {
        let verb = command.split([' ', ':']).next().unwrap_or_default().to_owned();
        let count: &mut usize = counts.entry(verb.clone()).or_default();
        *count += 1;
        let odd = script.iter().find(|(start, _)| {
            let (nth, start) = start.split_once(' ').filter(|(nth, _)| nth.parse::<usize>().is_ok()).unwrap_or(("", start));
            command.starts_with(start) && (nth.is_empty() || nth == count.to_string())
        });
        let well = WELL.iter().find(|(start, _)| command.starts_with(start)).map_or("500 what?\r\n", |(_, say)| say);
        match odd.map_or(Say(well.as_bytes()), |(_, act)| *act) {
            Say(bytes) => stream.write_all(bytes).await?,
            SayAndClose(text) => return stream.write_all(text.as_bytes()).await,
            Close => return Ok(()),
            SayAndHang(text) => {
                stream.write_all(text.as_bytes()).await?;
                std::future::pending().await
            }
            Hang => std::future::pending().await,
        }
        in_mail = in_mail || verb == "DATA";
        if verb == "." {
            in_mail = false;
        }
        command.clear();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            heard.lock().unwrap().push(format!("{n} {}", line.trim_end()));
            if !in_mail || line == ".\r\n" {
                line.trim_end().clone_into(&mut command);
                break;
            }
        }
    }
}

pub(crate) fn smtp(server: &Server, change: impl FnOnce(&mut SmtpSettings)) -> Arc<dyn Provider> {
    let mut settings = SmtpSettings { port: server.port, ..SmtpSettings::new("127.0.0.1", Tls::None) };
    change(&mut settings);
    build(Settings::Smtp(settings), &HttpSettings::default(), "t").unwrap()
}

/// For servers that say nothing; only where silence is what is waited for.
pub(crate) fn impatient(server: &Server) -> Arc<dyn Provider> {
    let settings = SmtpSettings { port: server.port, ..SmtpSettings::new("127.0.0.1", Tls::None) };
    let http = HttpSettings { read_timeout: Duration::from_millis(400), ..HttpSettings::default() };
    build(Settings::Smtp(settings), &http, "t").unwrap()
}

pub(crate) fn message_to(to: &[&str]) -> Message {
    let body = serde_json::json!({"id": "m-1", "from": "s@b.org", "to": to, "subject": "Hi", "text": "one\n.two\n"});
    Message::parse(body.to_string().as_bytes(), None, 20 << 20).unwrap()
}

pub(crate) async fn send_to(provider: &Arc<dyn Provider>, to: &[&str]) -> Outcome {
    provider.send(Attempt { message: &message_to(to), idempotency_key: "m-1" }).await
}

pub(crate) async fn send(provider: &Arc<dyn Provider>) -> Outcome {
    send_to(provider, &["u@x.org"]).await
}

pub(crate) fn brief(outcome: &Outcome) -> String {
    format!("{} {}", outcome.label(), outcome.answer().map(|a| a.code.as_str()).unwrap_or_default()).trim_end().to_owned()
}

/// A fresh server with this script, one call.
pub(crate) async fn once(script: &'static [Script]) -> (String, Server) {
    let server = server(script).await;
    (brief(&send(&smtp(&server, |_| {})).await), server)
}
