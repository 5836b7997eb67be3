//! AMQP addresses from configuration.

use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri};

/// RabbitMQ notices a silent peer after two of these, so a frozen pod holds its mail for some ten seconds.
const HEARTBEAT_S: u16 = 5;
const HEARTBEAT_MAX_S: u16 = 10;

/// An address that is not `amqp://` or `amqps://` with a host. The text is left out: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write it as amqp://user:password@host:5672/vhost, with %2f for the virtual host `/`")]
pub struct BadAddress(String);

impl BadAddress {
    pub(super) fn none() -> BadAddress {
        BadAddress("no broker address is given".to_owned())
    }
}

/// One node's address.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Address, BadAddress> {
        let bad = |why: String| BadAddress(format!("the broker's address is not valid: {why}"));
        // The parser quotes the whole address in its errors, so they are not passed on.
        let mut uri: AMQPUri =
            url.parse().map_err(|_| bad("it does not start with amqp:// or amqps://, or has a malformed part".to_owned()))?;
        if uri.vhost.len() > 255 {
            return Err(bad("its virtual host is longer than 255 bytes".to_owned()));
        }
        if let Some(host) = bracketed_host(url) {
            uri.authority.host = host.to_owned();
        }
        let heartbeat = uri.query.heartbeat.unwrap_or(HEARTBEAT_S);
        uri.query.heartbeat = Some(heartbeat.clamp(1, HEARTBEAT_MAX_S));
        Ok(Address { uri })
    }

    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(super) fn socket(&self) -> (&str, u16) {
        (&self.uri.authority.host, self.uri.authority.port)
    }
}

/// Host and port only.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = self.socket();
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// An IPv6 host: the parser takes it for no host at all, and would connect to localhost.
fn bracketed_host(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Address {
        Address::parse(url).unwrap()
    }

    #[test]
    fn parts() {
        let a = parse("amqps://u:p%40ss@mq.example:5671/%2f?heartbeat=60");
        assert_eq!((a.socket(), a.is_tls(), a.uri.vhost.as_str()), (("mq.example", 5671), true, "/"));
        assert_eq!((a.uri.authority.userinfo.password.as_str(), a.uri.query.heartbeat), ("p@ss", Some(10)));
        assert_eq!(a.to_string(), "mq.example:5671");
        assert_eq!(parse("amqp://localhost").uri.query.heartbeat, Some(5));
        assert_eq!(parse("amqp://u:p@[::1]:5673/v").to_string(), "[::1]:5673");
    }

    #[test]
    fn errors_do_not_quote_the_password() {
        for bad in ["http://u:hunter2@h/", "amqp//u:hunter2@h", "", "amqp://u:hunter2@h:port/"] {
            let error = Address::parse(bad).err().unwrap().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
