//! Names, addresses and versions of the brokers.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::kafka::{BROKERS, Cluster, KafkaLog, Requests};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::commands::finding::{Finding, Level};
use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Older ones may work; nobody has looked.
const TESTED_FROM: (u32, u32) = (3, 0);

/// Whether the brokers can be asked, and what is to be said of them.
pub(super) async fn look(log: &KafkaLog, config: &Config) -> (Vec<Finding>, bool) {
    let bootstrap = bootstrap(config);
    let mut findings = Vec::new();
    match log.cluster().await {
        Ok(cluster) => {
            findings.push(version(&bootstrap, &cluster.requests, config));
            findings.extend(addresses(&cluster, &mut dns(&bootstrap).await).await);
            (findings, true)
        }
        Err(error) => {
            findings.extend(dns(&bootstrap).await.findings);
            let detail = format!(
                "{error}; see that a broker listens there, and that `kafka.security.protocol` and its passwords are \
                 what it wants"
            );
            findings.push(Finding::new("broker", &bootstrap, Level::Error, detail));
            (findings, false)
        }
    }
}

fn bootstrap(config: &Config) -> String {
    let mut properties = BROKERS
        .iter()
        .filter_map(|name| config.kafka.properties.get(*name));
    properties.next().cloned().unwrap_or_default()
}

fn version(bootstrap: &str, requests: &Requests, config: &Config) -> Finding {
    let finding = |level, detail: String| Finding::new("broker", bootstrap, level, detail);
    let protocol = config.kafka.properties.get("group.protocol");
    if protocol.is_some_and(|protocol| protocol == "consumer")
        && requests.has_consumer_protocol() == Some(false)
    {
        let detail = "it knows no groups of the `consumer` protocol, which Kafka has since 4.0; set \
                      `kafka.group.protocol` to `classic`";
        return finding(Level::Error, detail.to_owned());
    }
    match requests.at_least() {
        Some(release) => {
            let (major, minor) = release;
            let detail = format!("reached, speaks as Kafka {major}.{minor} or later");
            if release < TESTED_FROM {
                let (major, minor) = TESTED_FROM;
                let detail = format!("{detail}; use {major}.{minor} or later");
                return finding(Level::Warn, detail);
            }
            finding(Level::Ok, detail)
        }
        None if *requests == Requests::default() => {
            finding(Level::Ok, "reached, its version is not known".to_owned())
        }
        None => finding(
            Level::Warn,
            "reached, but it speaks as a Kafka before 2.8; use a later one".to_owned(),
        ),
    }
}

/// What was looked up, and for which names.
struct Names {
    seen: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl Names {
    /// Looks a name up once.
    async fn look_up(&mut self, host: &str) {
        if !self.seen.insert(host.to_owned()) {
            return;
        }
        let found = timeout(CONNECT_TIMEOUT, lookup_host((host, 0))).await;
        let (level, detail) = match found {
            Ok(Ok(addresses)) => {
                let addresses: BTreeSet<String> =
                    addresses.map(|address| address.ip().to_string()).collect();
                let list: Vec<String> = addresses.into_iter().collect();
                (Level::Ok, list.join(", "))
            }
            Ok(Err(error)) => (
                Level::Error,
                format!(
                    "does not resolve: {error}; see the resolver of this machine, and the spelling"
                ),
            ),
            Err(_) => (
                Level::Error,
                "no answer within 5 s; see that this machine reaches its resolver".to_owned(),
            ),
        };
        self.findings.push(Finding::new("dns", host, level, detail));
    }
}

async fn dns(bootstrap: &str) -> Names {
    let mut names = Names {
        seen: BTreeSet::new(),
        findings: Vec::new(),
    };
    for server in bootstrap.split(',') {
        if let Some(host) = host_of(server) {
            names.look_up(host).await;
        }
    }
    names
}

/// The host of `host:port`, `[::1]:9092` or `PLAINTEXT://host:port`.
fn host_of(server: &str) -> Option<&str> {
    let server = server.trim();
    let server = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(host)
}

/// Clients go where the brokers say they are, which need not be where they were first found.
async fn addresses(cluster: &Cluster, names: &mut Names) -> Vec<Finding> {
    let mut findings = Vec::new();
    for broker in &cluster.brokers {
        let place = format!("{} at {}:{}", broker.id, broker.host, broker.port);
        names.look_up(&broker.host).await;
        let connected = timeout(
            CONNECT_TIMEOUT,
            TcpStream::connect((broker.host.as_str(), broker.port)),
        );
        let (level, detail) = match connected.await {
            Ok(Ok(_)) => (Level::Ok, "can be reached".to_owned()),
            Ok(Err(error)) => (Level::Error, unreachable(&error.to_string())),
            Err(_) => (Level::Error, unreachable("no answer within 5 s")),
        };
        findings.push(Finding::new("broker", &place, level, detail));
    }
    findings.append(&mut names.findings);
    findings
}

fn unreachable(error: &str) -> String {
    format!(
        "cannot be reached where it says it is: {error}; set its `advertised.listeners` to an address that this machine \
         reaches, or let this machine reach that one"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_a_host_however_it_is_written() {
        for (server, host) in [
            ("broker:9092", Some("broker")),
            (" broker ", Some("broker")),
            ("[::1]:9092", Some("::1")),
            (
                "SASL_SSL://broker.example.com:9092",
                Some("broker.example.com"),
            ),
            ("", None),
            (":9092", None),
        ] {
            assert_eq!(host_of(server), host, "{server}");
        }
    }
}
