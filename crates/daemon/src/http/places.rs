//! Who is connected: so many in all and from one address, and those go first that ask for nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// A connection that asked for nothing so long can go: what it asked last is answered, and a new
/// one has had time to ask.
const RESTED: Duration = Duration::from_secs(1);

/// The places of a server. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Places {
    connections_max: usize,
    of_address_max: usize,
    taken: Arc<Mutex<Taken>>,
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    /// Since when it asks for nothing; `None` while it does.
    idle_since: Option<Instant>,
    /// It has asked for something once.
    has_asked: bool,
    ended: CancellationToken,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    places: Places,
    /// Cancelled when somebody else got the place.
    pub(super) ended: CancellationToken,
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Asking {
    number: u64,
    places: Places,
}

/// Why a connection got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All connections of its address ask for something.
    OfAddress,
    /// All connections do.
    AtAll,
}

impl Places {
    pub(super) fn new(connections_max: usize, of_address_max: usize) -> Self {
        Self {
            connections_max,
            of_address_max,
            taken: Arc::default(),
            freed: Arc::new(Notify::new()),
        }
    }

    /// Takes a place. Where there is none, the connection that asked for nothing longest loses its
    /// own, first of those that never asked for anything; none before it has [`RESTED`], but for
    /// those of the same address.
    pub(super) fn take(&self, address: IpAddr) -> Result<Place, NoPlace> {
        let mut taken = self.taken();
        let of_address = |connection: &Connection| connection.address == address;
        // Who may take all places waits for one like everybody.
        if self.of_address_max < self.connections_max {
            let count = taken.connections.values().filter(|one| of_address(one));
            if count.count() >= self.of_address_max && !taken.end_one(of_address) {
                return Err(NoPlace::OfAddress);
            }
        }
        let has_rested = |connection: &Connection| {
            let since = connection.idle_since;
            since.is_some_and(|since| since.elapsed() >= RESTED)
        };
        if taken.connections.len() >= self.connections_max && !taken.end_one(has_rested) {
            return Err(NoPlace::AtAll);
        }
        taken.next += 1;
        let number = taken.next;
        let ended = CancellationToken::new();
        let connection = Connection {
            address,
            idle_since: Some(Instant::now()),
            has_asked: false,
            ended: ended.clone(),
        };
        taken.connections.insert(number, connection);
        Ok(Place {
            number,
            places: self.clone(),
            ended,
        })
    }

    /// Waits until there may be a place: one is free, or somebody in one has asked for nothing long
    /// enough.
    pub(super) async fn freed(&self) {
        // Running out of time is an answer too.
        timeout(RESTED, self.freed.notified())
            .await
            .unwrap_or_default();
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }
}

impl Taken {
    fn end_one(&mut self, among: impl Fn(&Connection) -> bool) -> bool {
        let idle = self.connections.iter().filter_map(|(number, one)| {
            let since = one.idle_since.filter(|_| among(one))?;
            Some((one.has_asked, since, *number))
        });
        let Some((_, _, number)) = idle.min() else {
            return false;
        };
        if let Some(connection) = self.connections.remove(&number) {
            connection.ended.cancel();
        }
        true
    }
}

impl Place {
    /// The connection asks for something from now on, until what it gets is dropped. `None`:
    /// somebody else got its place.
    pub(super) fn ask(&self) -> Option<Asking> {
        let mut taken = self.places.taken();
        let connection = taken.connections.get_mut(&self.number)?;
        (connection.idle_since, connection.has_asked) = (None, true);
        drop(taken);
        Some(Asking {
            number: self.number,
            places: self.places.clone(),
        })
    }

    /// Whether it has asked for anything so far.
    pub(super) fn has_asked(&self) -> bool {
        let taken = self.places.taken();
        let connection = taken.connections.get(&self.number);
        connection.is_some_and(|connection| connection.has_asked)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().connections.remove(&self.number);
        self.places.freed.notify_one();
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(connection) = taken.connections.get_mut(&self.number) {
            connection.idle_since = Some(Instant::now());
        }
        drop(taken);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn ended(places: &[&Place]) -> Vec<bool> {
        places.iter().map(|one| one.ended.is_cancelled()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_goes_first_and_before_it_who_never_asked() {
        let places = Places::new(3, 3);
        let asked = places.take(HERE).unwrap();
        drop(asked.ask());
        sleep(RESTED).await;
        let silent = places.take(HERE).unwrap();
        let asking = places.take(HERE).unwrap();
        let under_way = asking.ask();
        sleep(RESTED).await;
        let fourth = places.take(THERE).unwrap();
        assert_eq!(ended(&[&asked, &silent, &asking]), [false, true, false]);
        assert!(silent.ask().is_none(), "it comes too late");
        drop(fourth.ask());
        let fifth = places.take(THERE).unwrap();
        assert_eq!(ended(&[&asked, &asking, &fourth]), [true, false, false]);
        assert_eq!(
            places.take(HERE).unwrap_err(),
            NoPlace::AtAll,
            "all are new or busy"
        );
        let (fourth_asks, fifth_asks) = (fourth.ask(), fifth.ask());
        assert_eq!(places.take(HERE).unwrap_err(), NoPlace::AtAll);
        drop((under_way, fourth_asks, fifth_asks));
        sleep(RESTED).await;
        places.take(HERE).unwrap();
        assert_eq!(ended(&[&asking, &fourth, &fifth]), [true, false, false]);
    }

    #[tokio::test]
    async fn one_address_that_may_take_all_places_waits_for_one() {
        let places = Places::new(2, 2);
        let taken = [places.take(HERE).unwrap(), places.take(HERE).unwrap()];
        let asking = taken.each_ref().map(|place| place.ask().unwrap());
        assert_eq!(places.take(HERE).unwrap_err(), NoPlace::AtAll);
        drop(asking);
    }

    #[tokio::test]
    async fn one_address_takes_only_its_part() {
        let places = Places::new(10, 2);
        let first = places.take(HERE).unwrap();
        let second = places.take(HERE).unwrap();
        let other = places.take(THERE).unwrap();
        let third = places.take(HERE).unwrap();
        assert_eq!(ended(&[&first, &second, &other]), [true, false, false]);
        let asking = (second.ask(), third.ask());
        assert_eq!(places.take(HERE).unwrap_err(), NoPlace::OfAddress);
        drop(asking);
        drop((first, second, third));
        assert!(!other.has_asked() && places.take(HERE).is_ok());
    }
}
