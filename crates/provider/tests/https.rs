//! Over TLS: a private authority is trusted where the settings name it, and nothing else is.
//!
//! `tls/` holds an authority and a certificate for `localhost`, both valid until 2126; the authority's key was thrown away.
#![expect(clippy::unwrap_used, reason = "a test")]

mod tls;

use std::path::PathBuf;

use paceline_core::{Message, Outcome};
use paceline_provider::{Attempt, HttpSettings, Secret, Settings, Url, build};
use tls::{acceptor, file};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Answers each request of one packet with 202.
async fn server() -> u16 {
    let (acceptor, listener) = (acceptor(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate leaves here.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = vec![0; 16 * 1024];
                let mut seen = String::new();
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                    if seen.ends_with("]}") {
                        seen.clear();
                        stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                    }
                }
            });
        }
    });
    port
}

async fn send(url: &str, ca_file: Option<PathBuf>) -> Option<Outcome> {
    let settings = Settings::SendGrid { api_key: Secret::new("SG.key"), base_url: Some(Url::parse(url).unwrap()) };
    // Fails only on a machine that has no authorities of its own and was given none.
    let provider = build(settings, &HttpSettings { ca_file, ..HttpSettings::default() }, "paceline/test").ok()?;
    let body = br#"{"id":"m-1","from":"s@b.org","to":["u@gmail.com"],"subject":"Hi","text":"t"}"#;
    let message = Message::parse(body, None, 1 << 20).unwrap();
    Some(provider.send(Attempt { message: &message, idempotency_key: "m-1" }).await)
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named() {
    let port = server().await;
    let url = format!("https://localhost:{port}");
    assert_eq!(send(&url, Some(file("ca.pem"))).await, Some(Outcome::accepted(None)));
    for (url, ca_file) in [(url, None), (format!("https://127.0.0.1:{port}"), Some(file("ca.pem")))] {
        let outcome = send(&url, ca_file).await;
        let refused = outcome.is_none_or(|o| o.label() == "temporary" && o.answer().unwrap().message.contains("certificate"));
        assert!(refused, "{url}: an authority nobody named, a name that is not in the certificate");
    }
}
