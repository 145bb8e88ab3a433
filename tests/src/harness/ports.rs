//! Ports that nobody has at the moment.

use std::net::{Ipv4Addr, TcpListener};

use super::Error;

/// Below the range from which Linux takes ports for outgoing connections, so that none of those lands on ours.
const LOW: u16 = 20_000;
const HIGH: u16 = 32_000;
const TRIES: usize = 200;

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The first of `count` ports in a row that are free now, at a random place: two runs at a time seldom meet.
///
/// # Errors
/// [`Error::NoPorts`].
pub fn free_range(count: u16) -> Result<u16, Error> {
    for _ in 0..TRIES {
        let first = fastrand::u16(LOW..HIGH - count.min(HIGH - LOW - 1));
        if (first..first + count).all(is_free) {
            return Ok(first);
        }
    }
    Err(Error::NoPorts { count })
}

/// One free port.
///
/// # Errors
/// [`Error::NoPorts`].
pub fn free_port() -> Result<u16, Error> {
    free_range(1)
}
