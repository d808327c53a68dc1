//! Where requests may go: customers choose the URLs, so the addresses behind them are judged before
//! each connection.
//!
//! Only addresses of the public internet are permitted. Anything that could reach our own network
//! is refused: private and link-local nets, the metadata services of clouds, and every way to write
//! such an IPv4 address as IPv6. The operator opens nets by an allow list.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Url;

/// Longest URL of an endpoint in bytes.
pub const URL_BYTES_MAX: usize = 2048;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v6(a: u16, b: u16, c: u16, prefix_len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix_len)
}

/// What IANA's registry of special addresses says is not globally reachable, and one that a cloud
/// took.
const REFUSED_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),          // this host on this network
    v4(10, 0, 0, 0, 8),         // private
    v4(100, 64, 0, 0, 10),      // shared by carrier NAT
    v4(127, 0, 0, 0, 8),        // loopback
    v4(168, 63, 129, 16, 32),   // Azure's virtual host, public in name only
    v4(169, 254, 0, 0, 16),     // link-local, metadata services
    v4(172, 16, 0, 0, 12),      // private
    v4(192, 0, 0, 0, 24),       // protocol assignments, Oracle's metadata service
    v4(192, 0, 2, 0, 24),       // documentation
    v4(192, 88, 99, 0, 24),     // relays of 6to4
    v4(192, 168, 0, 0, 16),     // private
    v4(198, 18, 0, 0, 15),      // benchmarking
    v4(198, 51, 100, 0, 24),    // documentation
    v4(203, 0, 113, 0, 24),     // documentation
    v4(224, 0, 0, 0, 4),        // multicast
    v4(240, 0, 0, 0, 4),        // reserved
    v4(255, 255, 255, 255, 32), // broadcast
];

/// The only part of IPv6 from which public addresses are given out. Outside are unspecified,
/// loopback, IPv4-compatible and IPv4-translated, unique local (with the metadata services there),
/// link-local, site-local and multicast.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

/// What is not globally reachable inside [`GLOBAL_V6`].
const REFUSED_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 0, 23), // protocol assignments: Teredo, benchmarking, overlay identifiers
    v6(0x2001, 0xdb8, 0, 32), // documentation
    v6(0x2002, 0, 0, 16), // 6to4, which could carry any IPv4 address and is no longer in use
    v6(0x3fff, 0, 0, 20), // documentation
];

/// Where NAT64 finds IPv4 hosts for networks without IPv4; its last 32 bits are the IPv4 address.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// The host of a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, which has whatever addresses DNS says.
    Name(String),
    /// An address that stands in the URL itself.
    Address(IpAddr),
}

impl Host {
    /// The host of this URL, if it has one.
    pub fn of(url: &Url) -> Option<Self> {
        Some(match url.host()? {
            url::Host::Domain(name) => Self::Name(name.to_owned()),
            url::Host::Ipv4(address) => Self::Address(address.into()),
            url::Host::Ipv6(address) => Self::Address(address.into()),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// A text in the allow list is no net.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no net such as `10.0.0.0/8`")]
pub struct InvalidAllowedNet {
    /// The text.
    pub text: String,
}

/// Which addresses may be dialled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressPolicy {
    allow: Vec<IpNet>,
}

impl AddressPolicy {
    /// A policy that also permits these nets.
    ///
    /// # Errors
    /// When one is no net in the notation `address/bits`.
    pub fn try_new(allow_cidrs: &[String]) -> Result<Self, InvalidAllowedNet> {
        let parse = |text: &String| {
            text.parse::<IpNet>()
                .map_err(|_| InvalidAllowedNet { text: text.clone() })
        };
        Ok(Self {
            allow: allow_cidrs.iter().map(parse).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a connection to this address may be made. An IPv4-mapped address is judged as the
    /// IPv4 address that a socket would in fact dial.
    pub fn permits(&self, address: IpAddr) -> bool {
        let dialled = address.to_canonical();
        if self.allow.iter().any(|net| net.contains(&dialled)) {
            return true;
        }
        match dialled {
            IpAddr::V4(address) => is_public_v4(address),
            IpAddr::V6(address) => is_public_v6(address),
        }
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !REFUSED_V4.iter().any(|net| net.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if NAT64.contains(&address) {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    GLOBAL_V6.contains(&address) && !REFUSED_V6.iter().any(|net| net.contains(&address))
}

/// Why a URL cannot be an endpoint's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpointUrl {
    /// It is longer than [`URL_BYTES_MAX`].
    #[error("must be at most {URL_BYTES_MAX} bytes, not {0}")]
    TooLong(usize),
    /// It is neither `http` nor `https`.
    #[error("must begin with `https://` or `http://`")]
    Scheme,
    /// It names no host.
    #[error("must name a host")]
    Host,
    /// It has a user name or password, which would be kept and shown unencrypted.
    #[error("must not have a user name or password")]
    Credentials,
    /// It has a fragment, which is never sent.
    #[error("must not have a fragment")]
    Fragment,
}

/// Checks the form of an endpoint's URL. Its addresses are judged when it is dialled, not here:
/// names change.
///
/// # Errors
/// When it is too long, not HTTP, names no host, or has parts that are not sent.
pub fn check_url(url: &Url) -> Result<(), InvalidEndpointUrl> {
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(InvalidEndpointUrl::TooLong(url.as_str().len()));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(InvalidEndpointUrl::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(InvalidEndpointUrl::Credentials);
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(InvalidEndpointUrl::Host);
    }
    if url.fragment().is_some() {
        return Err(InvalidEndpointUrl::Fragment);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
