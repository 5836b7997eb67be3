//! A GET over TLS: what is read, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test")]

mod tls;

use paceline_provider::{FetchError, Fetcher, HttpSettings};
use tls::{acceptor, file};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Answers by path.
async fn server() -> u16 {
    let (acceptor, listener) = (acceptor(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate leaves here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let answer = match head.split(' ').nth(1).unwrap() {
                "/page" => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage".to_owned(),
                "/away" => "HTTP/1.1 302 Found\r\nLocation: /page\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
                "/chunks" => {
                    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
                    format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{}0\r\n\r\n",
                        chunk.repeat(100)
                    )
                }
                _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            };
            // A client that has enough closes before the end.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn only_whole_short_answers_over_tls_count() {
    let port = server().await;
    let fetcher = Fetcher::new(&HttpSettings { ca_file: Some(file("ca.pem")), ..HttpSettings::default() }).unwrap();
    let get = async |path: &str, max_bytes| fetcher.get(&format!("https://localhost:{port}{path}"), max_bytes).await;
    assert_eq!(get("/page", 4).await.unwrap(), "page");
    assert!(matches!(get("/page", 3).await, Err(FetchError::TooLong(3))));
    assert!(matches!(get("/chunks", 50_000).await, Err(FetchError::TooLong(50_000))));
    assert_eq!(get("/chunks", 100_000).await.unwrap().len(), 100_000);
    assert!(matches!(get("/away", 100).await, Err(FetchError::Status(302))), "redirects are not followed");
    assert!(matches!(get("/none", 100).await, Err(FetchError::Status(404))));
    for url in [format!("http://localhost:{port}/page"), "file:///etc/passwd".to_owned(), "page".to_owned()] {
        assert!(matches!(fetcher.get(&url, 100).await, Err(FetchError::NotHttps)), "{url}");
    }
    let strange = fetcher.get(&format!("https://127.0.0.1:{port}/page"), 100).await;
    assert!(
        matches!(strange, Err(FetchError::Failed(why)) if why.contains("certificate")),
        "a name that is not in the certificate"
    );
}
