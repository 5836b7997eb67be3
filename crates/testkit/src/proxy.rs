//! A network that fails on command.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::must;
use crate::{Error, Port};

/// A TCP proxy between a client and a service. It belongs to the runtime it was made on and ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    upstream: SocketAddr,
    mode: watch::Sender<Mode>,
    acceptor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    open: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Bytes pass.
    Open,
    /// Connections are accepted and kept; nothing passes.
    Blackhole,
    /// Connections are closed and refused.
    Cut,
}

impl Proxy {
    /// A proxy to `upstream`, passing everything. The upstream need not be up yet.
    ///
    /// # Panics
    /// When `upstream` is no address, or no port is free.
    pub async fn to(upstream: impl ToSocketAddrs) -> Proxy {
        let resolved = lookup_host(upstream).await.map(|mut found| found.next()).ok().flatten();
        let Some(upstream) = resolved else { panic!("the proxy's upstream does not resolve") };
        let proxy = Proxy {
            port: Port::reserve(),
            upstream,
            mode: watch::Sender::new(Mode::Open),
            acceptor: tokio::sync::Mutex::default(),
            open: Arc::default(),
        };
        proxy.heal().await;
        proxy
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()))
    }

    /// A service's URL with its `host:port` replaced by the proxy's.
    #[must_use]
    pub fn url(&self, direct: &str) -> String {
        direct.replace(&format!("127.0.0.1:{}", self.upstream.port()), &self.addr().to_string())
    }

    /// Closes every connection and refuses new ones.
    pub async fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
        let mut acceptor = self.acceptor.lock().await;
        if let Some(task) = acceptor.take() {
            task.abort();
            // Its end is what closes the listening socket.
            drop(task.await);
        }
    }

    /// Keeps connections and accepts new ones, and passes nothing: a partition. What was sent meanwhile passes
    /// after [`heal`](Proxy::heal), as it would by retransmission.
    pub async fn blackhole(&self) {
        self.set_accepting(Mode::Blackhole).await;
    }

    /// Passes everything again.
    pub async fn heal(&self) {
        self.set_accepting(Mode::Open).await;
    }

    /// How many connections are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    async fn set_accepting(&self, mode: Mode) {
        let mut acceptor = self.acceptor.lock().await;
        if acceptor.is_none() {
            let listener =
                must(TcpListener::bind(self.addr()).await.map_err(Error::io("cannot listen on", self.addr().to_string())));
            *acceptor = Some(tokio::spawn(accept(listener, self.upstream, self.mode.subscribe(), Arc::clone(&self.open))));
        }
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Cut);
        if let Some(task) = self.acceptor.get_mut().take() {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, mode: watch::Receiver<Mode>, open: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connection(client, upstream, mode.clone(), Arc::clone(&open)));
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, mode: watch::Receiver<Mode>, open: Arc<AtomicUsize>) {
    open.fetch_add(1, Ordering::Relaxed);
    let mut cut = mode.clone();
    tokio::select! {
        // An error means that the proxy is gone, which is a cut as well.
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
        _ = relay(client, upstream, mode) => {}
    }
    open.fetch_sub(1, Ordering::Relaxed);
}

async fn relay(client: TcpStream, upstream: SocketAddr, mut mode: watch::Receiver<Mode>) -> std::io::Result<()> {
    passing(&mut mode).await?;
    let server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Half-closed connections stay so; an error in either direction closes both.
    tokio::try_join!(pump(from_client, to_server, mode.clone()), pump(from_server, to_client, mode))?;
    Ok(())
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        passing(&mut mode).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

async fn passing(mode: &mut watch::Receiver<Mode>) -> std::io::Result<()> {
    mode.wait_for(|mode| *mode == Mode::Open).await.map(drop).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, word: &[u8; 4]) -> bool {
        stream.write_all(word).await.unwrap();
        hears(stream, word).await
    }

    async fn hears(stream: &mut TcpStream, word: &[u8; 4]) -> bool {
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.is_ok() && &back == word
    }

    #[tokio::test]
    async fn cut_closes_and_refuses_until_healed() {
        let proxy = Proxy::to(echo().await).await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(says(&mut stream, b"ping").await);
        proxy.cut().await;
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap_or(0), 0, "the connection ends");
        assert!(TcpStream::connect(proxy.addr()).await.is_err());
        proxy.heal().await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(says(&mut stream, b"pong").await);
    }

    #[tokio::test]
    async fn a_blackhole_accepts_holds_and_delivers_after_healing() {
        let proxy = Proxy::to(echo().await).await;
        let mut old = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(says(&mut old, b"ping").await);
        proxy.blackhole().await;
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        old.write_all(b"late").await.unwrap();
        new.write_all(b"also").await.unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(200), hears(&mut old, b"late")).await;
        assert!(heard.is_err(), "nothing passes");
        proxy.heal().await;
        let mut tail = [0; 4];
        new.read_exact(&mut tail).await.unwrap();
        assert_eq!(&tail, b"also");
        old.read_exact(&mut tail).await.unwrap();
        assert_eq!(&tail, b"late");
    }
}
