//! The HTTP server: HTTP/1.1 with every bound a public port needs.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::StatusCode,
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// A connection is closed after this, between two answers if possible.
    pub connection_lifetime: Duration,
    /// For the head of a request, and between two requests.
    pub head_timeout: Duration,
    pub head_bytes: usize,
    pub body_bytes: usize,
    /// From the head to the answer, reading the body included.
    pub request_timeout: Duration,
    /// For answers under way when the process ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 512,
            connection_lifetime: Duration::from_secs(120),
            head_timeout: Duration::from_secs(10),
            head_bytes: 16 << 10,
            body_bytes: 16 << 20,
            request_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves until `shutdown`, then ends what is under way. Logs `listening` with the address taken.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    serve_with(listener, router, shutdown, Limits::default()).await
}

/// [`serve`] with other limits.
pub async fn serve_with(listener: TcpListener, router: Router, shutdown: CancellationToken, limits: Limits) -> io::Result<()> {
    info!(addr = %listener.local_addr()?, "listening");
    let router = bounded(router, limits);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection = connection(stream, router.clone(), shutdown.clone(), limits);
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(e) => {
                // Of one client that is gone already, or out of file descriptors: neither is a reason to stop.
                warn!(error = %e, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Option<tokio::sync::OwnedSemaphorePermit>)> {
    // The semaphore is never closed.
    let slot = slots.clone().acquire_owned().await.ok();
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken, limits: Limits) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = sleep(limits.connection_lifetime) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            // Whoever has not read the answer by then does not get it.
            timeout(limits.drain, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(e) = ended {
        debug!(error = %e, "a connection ended early");
    }
}

fn bounded(router: Router, limits: Limits) -> Router {
    router.layer(DefaultBodyLimit::max(limits.body_bytes)).layer(from_fn(move |request: Request, next: Next| async move {
        match timeout(limits.request_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
        }
    }))
}
