//! Ports for servers that must know their own port before they bind it.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;

use parking_lot::Mutex;

/// Below the range the kernel gives to outgoing connections. A client that keeps dialling a port in
/// that range, with nobody listening, may one day be given it as its own and talk to itself.
const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;

/// Those that were given out: whoever has one may be about to start again with it.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Ports of 127.0.0.1 that nobody used a moment ago, and nobody else in this process was given.
/// Whoever binds them must be ready to ask again.
pub(crate) fn unused<const N: usize>() -> [u16; N] {
    let mut held: Vec<(TcpListener, u16)> = Vec::with_capacity(N);
    let random = RandomState::new();
    let mut draw = 0_u64;
    while held.len() < N {
        assert!(draw < COUNT, "no free port on 127.0.0.1");
        let candidate = FIRST + random.hash_one(draw) % COUNT;
        draw += 1;
        let port = u16::try_from(candidate).expect("the range lies below 65536");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port))
            && GIVEN.lock().insert(port)
        {
            held.push((listener, port));
        }
    }
    std::array::from_fn(|index| held[index].1)
}
