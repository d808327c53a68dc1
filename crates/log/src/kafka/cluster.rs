//! What the brokers are: where they say they are, and which version they speak.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::metadata::MetadataBroker;

use super::clients::Place;
use super::context::{Context, Hears};
use super::errors::log_error;
use super::query;
use crate::port::LogError;

/// How long what the client says of the brokers' versions may come after their first answer.
const SAID_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// Numbers of requests that tell releases apart.
const FETCH: i16 = 1;
const PRODUCE: i16 = 0;
const DESCRIBE_CLUSTER: i16 = 60;
const DESCRIBE_TRANSACTIONS: i16 = 65;
const CONSUMER_GROUP_HEARTBEAT: i16 = 68;
const LIST_CLIENT_METRICS: i16 = 74;
const ADD_RAFT_VOTER: i16 = 80;

/// The brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Where each says it is: every process must reach every one of them there.
    pub brokers: Vec<Broker>,
    /// What the broker that answered understands. Empty if the client did not tell.
    pub requests: Requests,
}

/// A broker, as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// Where clients are told to go.
    pub host: String,
    /// Where clients are told to go.
    pub port: u16,
}

/// Versions of each kind of request that a broker understands, lowest and highest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<i16, (i16, i16)>);

impl Requests {
    /// The release of Kafka that it is at least. Brokers don't name theirs, but each has its
    /// requests.
    #[must_use]
    pub fn at_least(&self) -> Option<(u32, u32)> {
        let has = |request: i16| self.0.contains_key(&request);
        let (fetch_min, _) = self.0.get(&FETCH)?;
        let (_, produce_max) = self.0.get(&PRODUCE)?;
        // The oldest requests were taken out in 4.0.
        let releases = [
            (*produce_max >= 13, (4, 1)),
            (*fetch_min >= 4, (4, 0)),
            (has(ADD_RAFT_VOTER), (3, 9)),
            (has(LIST_CLIENT_METRICS), (3, 7)),
            (has(DESCRIBE_TRANSACTIONS), (3, 0)),
            (has(DESCRIBE_CLUSTER), (2, 8)),
        ];
        let first = releases.into_iter().find(|(seen, _)| *seen);
        first.map(|(_, release)| release)
    }

    /// Whether groups of the `consumer` protocol can be had; none if that is not known.
    #[must_use]
    pub fn has_consumer_protocol(&self) -> Option<bool> {
        (!self.0.is_empty()).then(|| self.0.contains_key(&CONSUMER_GROUP_HEARTBEAT))
    }
}

/// Asks any broker. Blocks.
pub(super) fn describe(mut config: ClientConfig, place: Place) -> Result<Cluster, LogError> {
    // No call tells what a broker understands; a line of the client's log does. Where it is missing
    // nothing is concluded.
    let debug = config.get("debug").map(|debug| format!("{debug},feature"));
    config.set("debug", debug.as_deref().unwrap_or("feature"));
    config.set_log_level(RDKafkaLogLevel::Debug);
    let said = Arc::default();
    let context = Context {
        place,
        own: Listening(Arc::clone(&said)),
    };
    let client: BaseConsumer<Context<Listening>> = config
        .create_with_context(context)
        .map_err(|error| log_error("", &error))?;
    let metadata =
        query::cluster(&client, query::TIMEOUT).map_err(|error| log_error("", &error))?;
    let mut brokers: Vec<Broker> = metadata.brokers().iter().map(broker).collect();
    brokers.sort_by_key(|broker| broker.id);
    let until = Instant::now() + SAID_WITHIN;
    while Instant::now() < until && said.lock().0.len() < 2 {
        drop(client.poll(POLL));
    }
    // The lines of one answer come together.
    drop(client.poll(POLL));
    let requests = said.lock().clone();
    Ok(Cluster { brokers, requests })
}

fn broker(broker: &MetadataBroker) -> Broker {
    Broker {
        id: broker.id(),
        host: broker.host().to_owned(),
        port: u16::try_from(broker.port()).unwrap_or_default(),
    }
}

/// Hears what the client says of the brokers' versions.
struct Listening(Arc<Mutex<Requests>>);

impl Hears for Listening {
    fn line(&self, _: &str, _: RDKafkaLogLevel, facility: &str, text: &str) {
        if facility == "APIVERSION"
            && let Some((request, versions)) = versions(text)
        {
            self.0.lock().0.insert(request, versions);
        }
    }
}

impl ConsumerContext for Context<Listening> {}

/// Reads `… ApiKey Fetch (1) Versions 4..18`.
fn versions(text: &str) -> Option<(i16, (i16, i16))> {
    let (_, rest) = text.split_once("ApiKey ")?;
    let (name, versions) = rest.split_once(" Versions ")?;
    let request = name.rsplit_once('(')?.1.strip_suffix(')')?;
    let (lowest, highest) = versions.split_once("..")?;
    let lowest = lowest.parse().ok()?;
    Some((request.parse().ok()?, (lowest, highest.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_told_by_its_requests() {
        let of = |lines: &[(i16, &str)]| {
            let line = |(request, text): &(i16, &str)| {
                versions(&format!(
                    "[thrd:b]: b:   ApiKey X ({request}) Versions {text}"
                ))
            };
            Requests(lines.iter().map(|one| line(one).unwrap()).collect())
        };
        for (lines, release) in [
            (&[][..], None),
            (&[(0, "0..13"), (1, "4..18")], Some((4, 1))),
            (&[(0, "0..12"), (1, "4..17")], Some((4, 0))),
            (&[(0, "0..11"), (1, "0..17"), (80, "0..0")], Some((3, 9))),
            (&[(0, "0..9"), (1, "0..13"), (65, "0..0")], Some((3, 0))),
            (&[(0, "0..8"), (1, "0..11")], None),
        ] {
            assert_eq!(of(lines).at_least(), release, "{lines:?}");
        }
        assert_eq!(versions("Broker API support:"), None);
        assert_eq!(of(&[]).has_consumer_protocol(), None);
        assert_eq!(of(&[(0, "0..9")]).has_consumer_protocol(), Some(false));
        assert_eq!(of(&[(68, "0..1")]).has_consumer_protocol(), Some(true));
    }
}
