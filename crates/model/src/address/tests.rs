use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn allowing(nets: &[&str]) -> AddressPolicy {
    let nets: Vec<String> = nets.iter().map(|net| (*net).to_owned()).collect();
    AddressPolicy::try_new(&nets).unwrap()
}

#[test]
fn public_addresses_are_permitted() {
    for text in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "169.253.255.255",
        "192.0.1.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450::1",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ] {
        assert!(AddressPolicy::default().permits(ip(text)), "{text}");
    }
}

#[test]
fn addresses_that_could_be_our_own_are_refused() {
    for text in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.255.255",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
    ] {
        assert!(!AddressPolicy::default().permits(ip(text)), "{text}");
    }
}

#[test]
fn an_allow_list_opens_its_nets_and_nothing_else() {
    let policy = allowing(&["127.0.0.0/8", "::1/128", "fd00::/8"]);
    for text in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "fd00::7", "1.1.1.1"] {
        assert!(policy.permits(ip(text)), "{text}");
    }
    for text in [
        "10.0.0.1",
        "::2",
        "fc00::1",
        "169.254.169.254",
        "64:ff9b::127.0.0.1",
    ] {
        assert!(!policy.permits(ip(text)), "{text}");
    }
}

#[test]
fn texts_that_are_no_net_are_refused() {
    for text in [
        "",
        "localhost",
        "127.0.0.1",
        "10.0.0.0/33",
        "10.0.0/8",
        "::/129",
    ] {
        let error = AddressPolicy::try_new(&[text.to_owned()]).unwrap_err();
        assert_eq!(error.text, text);
    }
}

#[test]
fn urls_of_endpoints_are_plain_http() {
    let check = |text: &str| check_url(&Url::parse(text).unwrap());
    for text in [
        "https://example.com/hook?a=1",
        "http://[::1]:8080/",
        "http://127.0.0.1",
    ] {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    assert_eq!(check("ftp://example.com/"), Err(InvalidEndpointUrl::Scheme));
    assert_eq!(check("data:,x"), Err(InvalidEndpointUrl::Scheme));
    assert_eq!(check("file:///etc/passwd"), Err(InvalidEndpointUrl::Scheme));
    assert_eq!(
        check("https://user@example.com/"),
        Err(InvalidEndpointUrl::Credentials)
    );
    assert_eq!(
        check("https://:pw@example.com/"),
        Err(InvalidEndpointUrl::Credentials)
    );
    assert_eq!(
        check("https://example.com/#x"),
        Err(InvalidEndpointUrl::Fragment)
    );
    let base = "https://example.com/";
    let longest = format!("{base}{}", "a".repeat(URL_BYTES_MAX - base.len()));
    assert_eq!(check(&longest), Ok(()));
    assert_eq!(
        check(&format!("{longest}a")),
        Err(InvalidEndpointUrl::TooLong(URL_BYTES_MAX + 1))
    );
}

proptest! {
    #[test]
    fn a_mapped_address_is_judged_as_what_it_maps(bits: u32, allow_private: bool) {
        let address = Ipv4Addr::from(bits);
        let policy = if allow_private { allowing(&["10.0.0.0/8"]) } else { AddressPolicy::default() };
        let mapped = IpAddr::V6(address.to_ipv6_mapped());
        prop_assert_eq!(policy.permits(mapped), policy.permits(IpAddr::V4(address)));
    }

    #[test]
    fn no_way_to_write_a_refused_address_is_permitted(
        net in prop::sample::select(REFUSED_V4.to_vec()),
        host: u32,
    ) {
        let host_bits = host & !u32::from(net.netmask());
        let bits = u32::from(net.network()) | host_bits;
        let [high, low] = [(bits >> 16) as u16, bits as u16];
        for address in [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !high, !low),
        ] {
            prop_assert!(!AddressPolicy::default().permits(IpAddr::V6(address)), "{}", address);
        }
        prop_assert!(!AddressPolicy::default().permits(IpAddr::V4(Ipv4Addr::from(bits))));
    }
}
