use proptest::prelude::*;

use super::*;

type Health = NetworkHealth<(u64, u64), u64>;

/// One endpoint each of so many tenants, each on its own host, that succeeded at 0.
fn healthy(tenants: u64) -> Health {
    let mut health = Health::default();
    for tenant in 0..tenants {
        health.succeeded(&(tenant, 0), &tenant, &host_of(tenant), 0);
    }
    health
}

fn host_of(tenant: u64) -> String {
    format!("host-{tenant}.example")
}

fn fail(health: &mut Health, tenants: std::ops::Range<u64>) {
    for tenant in tenants {
        health.failed(&(tenant, 0), Reason::Connect);
    }
}

#[test]
fn is_down_when_nearly_all_fail_and_none_succeeded_for_a_while() {
    let mut health = healthy(10);
    fail(&mut health, 0..8);
    assert!(!health.is_down(60_000));
    fail(&mut health, 8..9);
    assert!(!health.is_down(SILENCE_MS - 1));
    assert!(health.is_down(SILENCE_MS));
}

#[test]
fn takes_three_tenants_and_three_hosts() {
    let mut health = healthy(2);
    fail(&mut health, 0..2);
    assert!(!health.is_down(10_000));
    health = healthy(3);
    fail(&mut health, 0..3);
    assert!(health.is_down(10_000));
    let mut health = Health::default();
    for tenant in 0..50_u64 {
        health.succeeded(&(tenant, 0), &tenant, &host_of(tenant % 2), 0);
    }
    for tenant in 0..50_u64 {
        health.failed(&(tenant, 0), Reason::Connect);
    }
    assert!(!health.is_down(10_000), "two hosts are down, not we");
}

#[test]
fn hosts_of_one_tenant_do_not_make_an_outage_of_one_host_ours() {
    let mut health = Health::default();
    let shared = (0..5_u64).map(|tenant| (tenant, "shared.example".to_owned()));
    let own = (0..20_u64).map(|host| (9, host_of(host)));
    let endpoints: Vec<(u64, String)> = shared.chain(own).collect();
    for (endpoint, (tenant, host)) in (0..).zip(&endpoints) {
        health.succeeded(&(*tenant, endpoint), tenant, host, 0);
    }
    for (endpoint, (tenant, _)) in (0..).zip(&endpoints) {
        health.failed(&(*tenant, endpoint), Reason::Connect);
    }
    assert!(!health.is_down(10_000));
}

#[test]
fn any_success_ends_it_and_answers_count_as_reached() {
    let mut health = healthy(10);
    fail(&mut health, 0..10);
    assert!(health.is_down(10_000));
    health.succeeded(&(3, 0), &3, &host_of(3), 10_000);
    assert!(!health.is_down(14_999));
    assert!(health.is_down(15_000));
    health.failed(&(4, 0), Reason::Timeout);
    assert!(health.is_down(15_000), "on a connection from before");
    health.failed(&(4, 0), Reason::ServerError);
    assert!(!health.is_down(15_000));
}

#[test]
fn stays_down_for_hours_until_something_is_reached() {
    let mut health = healthy(10);
    fail(&mut health, 0..10);
    for minute in 1..300 {
        fail(&mut health, 0..10);
        assert!(health.is_down(minute * 60_000));
    }
    health.succeeded(&(3, 0), &3, &host_of(3), 300 * 60_000);
    assert!(!health.is_down(300 * 60_000 + SILENCE_MS));
}

#[test]
fn what_succeeded_long_ago_says_nothing() {
    let mut health = healthy(10);
    assert!(!health.is_down(RECENT_MS + 1));
    fail(&mut health, 0..10);
    assert!(!health.is_down(RECENT_MS + 10_000));
    let mut health = healthy(10);
    assert!(!health.is_down(RECENT_MS));
    fail(&mut health, 0..10);
    assert!(health.is_down(RECENT_MS));
}

#[test]
fn endpoints_that_never_worked_say_nothing() {
    let mut health = Health::default();
    fail(&mut health, 0..50);
    assert!(!health.is_down(60_000));
}

#[test]
fn a_crowd_neither_fills_the_memory_nor_drives_out_the_others() {
    let mut health = healthy(10);
    for endpoint in 0..20_000_u64 {
        health.succeeded(&(1_000, endpoint), &1_000, &host_of(endpoint), 1_000);
    }
    assert_eq!(health.endpoints.len(), ENDPOINTS_MAX);
    assert_eq!(health.tenants.len(), 11);
    for endpoint in 0..20_000_u64 {
        health.failed(&(1_000, endpoint), Reason::Connect);
    }
    assert!(!health.is_down(60_000));
    // A latecomer finds a place.
    health.succeeded(&(99, 0), &99, "late.example", 2_000);
    assert_eq!(health.endpoints.len(), ENDPOINTS_MAX);
    assert_eq!(health.tenants.len(), 12);
}

#[derive(Debug, Clone, Copy)]
struct Report {
    what: u8,
    endpoint: u64,
    tenant: u64,
    host: u64,
    passed_ms: i64,
}

fn reports(tenants: std::ops::Range<u64>) -> impl Strategy<Value = Vec<Report>> {
    let report = (0..3_u8, 0..8_u64, tenants, 0..4_u64, 0..20_000_i64).prop_map(
        |(what, endpoint, tenant, host, passed_ms)| Report {
            what,
            endpoint,
            tenant,
            host,
            passed_ms,
        },
    );
    prop::collection::vec(report, 0..300)
}

fn apply(health: &mut Health, report: &Report, now_ms: i64) {
    let endpoint = (report.tenant, report.endpoint);
    match report.what {
        0 => health.succeeded(&endpoint, &report.tenant, &host_of(report.host), now_ms),
        1 => health.failed(&endpoint, Reason::Connect),
        _ => health.failed(&endpoint, Reason::ServerError),
    }
}

/// The rule, counted anew from the endpoints.
fn holds(health: &Health) -> bool {
    let all = || health.endpoints.values().map(|seen| (seen.tenant, seen));
    let tenants: BTreeSet<u64> = all().map(|(tenant, _)| tenant).collect();
    let failing = |without: Option<u64>| {
        let failing = all().filter(|(tenant, seen)| seen.is_failing && Some(*tenant) != without);
        let (tenants, hosts): (BTreeSet<u64>, BTreeSet<u64>) =
            failing.map(|(tenant, seen)| (tenant, seen.host)).unzip();
        (tenants.len(), hosts.len())
    };
    let part = |tenant: u64| {
        let of = |is_failing: bool| {
            all()
                .filter(|(owner, seen)| *owner == tenant && (seen.is_failing || !is_failing))
                .count()
        };
        of(true) * WEIGHT / of(false)
    };
    let weight: usize = tenants.iter().map(|tenant| part(*tenant)).sum();
    let (failing_tenants, failing_hosts) = failing(None);
    failing_tenants >= 3
        && failing_hosts >= 3
        && weight * 10 >= tenants.len() * WEIGHT * 9
        && tenants.iter().all(|tenant| {
            let (tenants, hosts) = failing(Some(*tenant));
            tenants >= 2 && hosts >= 2
        })
}

proptest! {
    #[test]
    fn counts_as_if_it_counted_anew(reports in reports(0..5)) {
        let mut health = Health::default();
        let mut now_ms = 0;
        for report in reports {
            now_ms += report.passed_ms;
            apply(&mut health, &report, now_ms);
            health.is_down(now_ms);
            prop_assert_eq!(health.nearly_all_fail, holds(&health));
        }
    }

    #[test]
    fn no_tenant_trips_it_alone(
        others in 0..30_u64,
        others_failing in prop::collection::vec(any::<bool>(), 30),
        attack in prop::collection::vec((0..3_u8, 0..50_u64, 0..60_u64, 0..10_000_i64), 0..500),
    ) {
        // The others stay as they are, at least one in five of them healthy.
        let mut health = healthy(others);
        let mut sick = 0;
        for (tenant, fails) in (0..others).zip(others_failing) {
            if fails && (sick + 1) * 5 <= others * 4 {
                fail(&mut health, tenant..tenant + 1);
                sick += 1;
            }
        }
        let mut now_ms = 0;
        for (what, endpoint, host, passed_ms) in attack {
            now_ms += passed_ms;
            let report = Report { what, endpoint, tenant: 1_000, host, passed_ms };
            apply(&mut health, &report, now_ms);
            prop_assert!(!health.is_down(now_ms));
            prop_assert!(!health.is_down(now_ms + 60_000));
        }
    }

    #[test]
    fn any_time_is_taken(reports in reports(0..5), times in prop::collection::vec(any::<i64>(), 300)) {
        let mut health = Health::default();
        for (report, now_ms) in reports.iter().zip(times) {
            apply(&mut health, report, now_ms);
            health.is_down(now_ms.saturating_add(report.passed_ms));
        }
    }
}
