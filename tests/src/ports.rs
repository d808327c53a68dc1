//! Ports for servers that must know their own port before they bind it.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;

/// Below the range the kernel gives to outgoing connections. A client that keeps dialling a port in
/// that range, with nobody listening, may one day be given it as its own and talk to itself.
const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;

/// Ports of 127.0.0.1 that nobody used a moment ago. Whoever binds them must be ready to ask again.
pub(crate) fn unused<const N: usize>() -> [u16; N] {
    let mut held: Vec<(TcpListener, u16)> = Vec::with_capacity(N);
    let random = RandomState::new();
    let mut draw = 0_u64;
    while held.len() < N {
        assert!(draw < COUNT, "no free port on 127.0.0.1");
        let candidate = FIRST + random.hash_one(draw) % COUNT;
        draw += 1;
        let port = u16::try_from(candidate).expect("the range lies below 65536");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((listener, port));
        }
    }
    std::array::from_fn(|index| held[index].1)
}
