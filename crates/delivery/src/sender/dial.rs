//! New connections: to addresses that the policy permits, and nowhere else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postrider_model::address::{AddressPolicy, Host};
use postrider_model::ids::TenantId;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, DEFAULT_VERSIONS};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use url::Url;

use super::failure::Failure;
use super::failure::is_ours;
use super::metered::Stream;
use super::resolver::Resolver;
use crate::config::EgressConfig;

/// An address that does not answer at once gets company (RFC 8305, section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Where a connection goes, and whose it is: no two tenants share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) tenant: TenantId,
    is_tls: bool,
    host: Host,
    port: u16,
}

impl Origin {
    pub(super) fn of(tenant: TenantId, url: &Url) -> Option<Self> {
        Some(Self {
            tenant,
            is_tls: url.scheme() == "https",
            host: Host::of(url)?,
            port: url.port_or_known_default()?,
        })
    }
}

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

#[derive(Debug)]
pub(super) struct Dialer {
    policy: AddressPolicy,
    resolver: Resolver,
    connect_timeout: Duration,
    /// Offering HTTP/2 and HTTP/1.1, and only the latter.
    tls: [Arc<ClientConfig>; 2],
    /// What is spoken without TLS.
    plain: Protocol,
}

impl Dialer {
    pub(super) fn new(
        policy: AddressPolicy,
        config: &EgressConfig,
        plain: Protocol,
    ) -> Result<Self, super::SenderError> {
        let tls = |protocols: &[&[u8]]| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(DEFAULT_VERSIONS)?
                .with_platform_verifier()?
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        Ok(Self {
            policy,
            resolver: Resolver::new(config).map_err(super::SenderError::Resolver)?,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            tls: [tls(&[b"h2", b"http/1.1"])?, tls(&[b"http/1.1"])?],
            plain,
        })
    }

    /// Connects, and says which protocol is spoken.
    ///
    /// [`Failure::Ours`] only if nothing but this machine is to blame.
    pub(super) async fn dial(
        &self,
        origin: &Origin,
        only_http1: bool,
    ) -> Result<(Box<dyn Stream>, Protocol), Failure> {
        let addresses = self.addresses(origin).await?;
        let connected = timeout(self.connect_timeout, async {
            let stream = connect(&addresses, origin.port).await?;
            stream.set_nodelay(true).map_err(Failure::Connect)?;
            if origin.is_tls {
                self.secure(origin, stream, only_http1).await
            } else {
                let plain = if only_http1 {
                    Protocol::Http1
                } else {
                    self.plain
                };
                Ok((Box::new(stream) as Box<dyn Stream>, plain))
            }
        });
        connected.await.unwrap_or(Err(Failure::ConnectTimeout))
    }

    /// The permitted ones. What a name has beside them is passed over.
    async fn addresses(&self, origin: &Origin) -> Result<Vec<IpAddr>, Failure> {
        let found = match &origin.host {
            Host::Name(name) => self.resolver.resolve(&origin.tenant, name).await?,
            Host::Address(address) => vec![*address],
        };
        let permitted = found
            .iter()
            .copied()
            .filter(|address| self.policy.permits(*address));
        let permitted: Vec<IpAddr> = permitted.collect();
        if permitted.is_empty() {
            return Err(Failure::Forbidden(origin.host.clone()));
        }
        Ok(permitted)
    }

    async fn secure(
        &self,
        origin: &Origin,
        stream: TcpStream,
        only_http1: bool,
    ) -> Result<(Box<dyn Stream>, Protocol), Failure> {
        let name = match &origin.host {
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| Failure::Tls(io::Error::other(error)))?,
            Host::Address(address) => ServerName::from(*address),
        };
        let tls = Arc::clone(&self.tls[usize::from(only_http1)]);
        let stream = TlsConnector::from(tls).connect(name, stream).await;
        let stream = stream.map_err(Failure::Tls)?;
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        Ok((Box::new(stream), protocol))
    }
}

/// Connects to the first address that answers: one after the other, the next when one fails or
/// takes long.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream, Failure> {
    let mut rest = addresses.iter().map(|ip| SocketAddr::new(*ip, port));
    let dial = async |address| {
        let connected = TcpStream::connect(address).await;
        connected.map_err(|error| failure_of(address, error))
    };
    let mut dialing = FuturesUnordered::new();
    dialing.extend(rest.next().map(&dial));
    let mut failure = None;
    loop {
        tokio::select! {
            Some(connected) = dialing.next() => {
                match connected {
                    Ok(stream) => return Ok(stream),
                    // What one address says of the receiver counts for more than what we lacked for
                    // another.
                    Err(Failure::Ours(_)) if failure.is_some() => {}
                    Err(one) => failure = Some(one),
                }
                dialing.extend(rest.next().map(&dial));
            }
            () = sleep(NEXT_ADDRESS_AFTER), if rest.len() > 0 => {
                dialing.extend(rest.next().map(&dial));
            }
            else => return Err(failure.unwrap_or(Failure::ConnectTimeout)),
        }
    }
}

fn failure_of(address: SocketAddr, error: io::Error) -> Failure {
    if is_ours(&error, address.is_ipv4()) {
        Failure::Ours(error)
    } else {
        Failure::Connect(error)
    }
}
