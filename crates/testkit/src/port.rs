//! Ports that nobody else takes, even while the service behind one is down.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rand::RngExt;

/// A TCP port on 127.0.0.1 reserved for this value's lifetime.
///
/// The port lies below the range the kernel gives to outgoing connections, and an abstract Unix socket of its name
/// keeps every other test on this machine from choosing it. So a service may be stopped for a while and find its
/// port free when it returns. The reservation ends with the process, whatever ends it.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Panics
    /// When none of a few hundred candidates is free.
    #[must_use]
    pub fn reserve() -> Port {
        let mut random = rand::rng();
        (0..500)
            .find_map(|_| Port::take(random.random_range(10_000..32_000)))
            .unwrap_or_else(|| panic!("no free port among 500 candidates between 10000 and 32000"))
    }

    /// The number, for URLs and command lines.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    fn take(number: u16) -> Option<Port> {
        let name = SocketAddr::from_abstract_name(format!("paceline-testkit-port-{number}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).ok()?;
        Some(Port { number, _reservation: reservation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_free_to_bind_but_not_to_reserve() {
        let port = Port::reserve();
        assert!(Port::take(port.number()).is_none());
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).is_ok());
    }

    #[test]
    fn a_port_in_use_is_not_given() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(Port::take(listener.local_addr().unwrap().port()).is_none());
    }
}
