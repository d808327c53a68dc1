//! Against a server of names that answers as its tests say.

use std::net::SocketAddr;
use std::time::Instant;

use futures_util::future::join_all;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;

const TTL_S: u32 = 1;
const QUERY_A: u16 = 1;

/// Answers questions for `A` with so many addresses as the first label of the name says, others
/// with none, and those for names that begin with `silent` not at all.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let (name, kind, question) = question(&buffer[..length]);
                if kind == QUERY_A {
                    seen.lock().push(name.clone());
                }
                if !name.starts_with("silent") {
                    let label = name.split('.').next().unwrap_or_default();
                    let count = if kind == QUERY_A {
                        label.parse().unwrap_or(1)
                    } else {
                        0
                    };
                    let answer = answer(&buffer[..2], question, count);
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self {
            address,
            asked,
            _tasks: tasks,
        }
    }

    fn resolver(&self, config: &EgressConfig) -> Resolver {
        let mut server = NameServerConfig::udp(self.address.ip());
        server.connections[0].port = self.address.port();
        Resolver::asking(vec![server], ResolverOpts::default(), config).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

/// The name, the type and the bytes of a message's question (RFC 1035, section 4.1.2).
fn question(message: &[u8]) -> (String, u16, &[u8]) {
    let (mut name, mut at) = (String::new(), 12);
    while message[at] != 0 {
        let length = usize::from(message[at]);
        name.push_str(std::str::from_utf8(&message[at + 1..=at + length]).unwrap());
        name.push('.');
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([message[at + 1], message[at + 2]]);
    (name.to_lowercase(), kind, &message[12..at + 5])
}

fn answer(id: &[u8], question: &[u8], count: u8) -> Vec<u8> {
    let mut answer = id.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(question);
    for number in 0..count {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(TTL_S.to_be_bytes());
        answer.extend([0, 4, 192, 0, 2, number]);
    }
    answer
}

fn tenant(name: &str) -> TenantId {
    TenantId::try_new(name).unwrap()
}

#[tokio::test]
async fn names_are_absolute_and_answers_are_kept_for_as_long_as_they_say() {
    let server = Server::start().await;
    let resolver = server.resolver(&EgressConfig::default());
    for name in ["2.example", "2.example", "host"] {
        let found = resolver.resolve(&tenant("acme"), name).await.unwrap();
        assert_eq!(found[0].to_string(), "192.0.2.0");
    }
    assert_eq!(server.asked(), ["2.example.", "host."]);
    sleep(Duration::from_millis(u64::from(TTL_S) * 1000 + 200)).await;
    let again = resolver.resolve(&tenant("acme"), "2.example").await;
    assert_eq!(again.unwrap().len(), 2);
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn only_some_addresses_of_a_name_are_tried() {
    let server = Server::start().await;
    let resolver = server.resolver(&EgressConfig::default());
    let found = resolver.resolve(&tenant("acme"), "25.example").await;
    assert_eq!(
        found.unwrap().len(),
        EgressConfig::default().dns_addresses_max
    );
}

#[tokio::test]
async fn names_that_are_not_answered_hold_up_their_tenants_only() {
    const TENANTS: usize = 20;
    let server = Server::start().await;
    let config = EgressConfig {
        dns_timeout_ms: 3_000,
        dns_lookups_per_tenant_max: 4,
        ..EgressConfig::default()
    };
    let resolver = server.resolver(&config);
    let began = Instant::now();
    let silent = join_all((0..TENANTS * 5).map(async |number| {
        let name = format!("silent{number}.example");
        let acme = tenant(&format!("acme{}", number % TENANTS));
        let failed = resolver.resolve(&acme, &name).await.unwrap_err();
        // The last one of each tenant found all its lookups taken, which is not what its name is
        // charged with.
        assert!(
            matches!(failed, Failure::Unresolved(_) | Failure::Ours(_)),
            "{failed}"
        );
    }));
    let others = async {
        let mut slowest = Duration::ZERO;
        for number in 0..50 {
            let began = Instant::now();
            let name = format!("1.host{number}.example");
            let found = resolver.resolve(&tenant("globex"), &name).await;
            assert_eq!(found.unwrap().len(), 1);
            slowest = slowest.max(began.elapsed());
            sleep(Duration::from_millis(5)).await;
        }
        slowest
    };
    let (_, slowest) = tokio::join!(silent, others);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let names: std::collections::BTreeSet<String> = server.asked().into_iter().collect();
    let silent = names.iter().filter(|name| name.starts_with("silent"));
    // Those of the first that ended with their time may have been followed by as many.
    assert!(silent.count() <= 2 * 4 * TENANTS, "{names:?}");
    assert!(resolver.tenants.lock().is_empty());
}

#[test]
fn addresses_of_both_families_take_turns() {
    let found: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]
        .map(|text| text.parse().unwrap())
        .into();
    let turns: Vec<String> = alternating(&found, 3)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(turns, ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
}
