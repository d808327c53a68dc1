use bytes::Bytes;
use postrider_model::fixtures;

use super::*;

fn delivery(endpoint: &str, attempt: u32) -> Delivery {
    Delivery {
        attempt,
        ..fixtures::delivery(fixtures::event("evt_1"), endpoint, 1)
    }
}

/// A delivery to an endpoint, appended at 1000 plus its offset.
fn record(offset: Offset, endpoint: &str, attempt: u32) -> Record {
    Record {
        partition: 0,
        offset,
        timestamp_ms: 1_000 + offset,
        key: endpoint.to_owned().into(),
        value: Some(delivery(endpoint, attempt).encode()),
        headers: Vec::new(),
    }
}

fn ids(names: &[&str]) -> BTreeSet<EndpointId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// Searches what a partition holds; every endpoint but `ep_paused` may be called.
fn look(search: &mut Search, records: &[Record]) {
    for record in records {
        let next = search.wants(Offset::MAX);
        if next.is_some_and(|next| next <= record.offset)
            && search.look(record, |endpoint| endpoint.as_str() != "ep_paused")
        {
            break;
        }
    }
}

fn age(search: &Search) -> i64 {
    search.ready_age_ms(2_000)
}

#[test]
fn the_oldest_ready_delivery_counts() {
    let mut search = Search::default();
    search.begin(3, 1, BTreeSet::new());
    let records: Vec<_> = (3..9).map(|offset| record(offset, "ep_a", 1)).collect();
    look(&mut search, &records);
    assert_eq!((age(&search), search.lag_ms(9, 2_000)), (997, 997));
    search.begin(5, 1, BTreeSet::new());
    assert_eq!(age(&search), 0, "until it is looked for again");
    look(&mut search, &records[2..]);
    assert_eq!(age(&search), 995);
    search.begin(9, 1, BTreeSet::new());
    assert_eq!(
        (age(&search), search.lag_ms(9, 2_000), search.wants(9)),
        (0, 0, None)
    );
}

#[test]
fn paused_behind_settled_and_retried_are_left_out() {
    let records = [
        record(0, "ep_paused", 1),
        record(1, "ep_behind", 1),
        record(2, "ep_a", 2),
        record(3, "ep_a", 1),
        record(4, "ep_a", 1),
    ];
    let mut search = Search::default();
    search.begin(0, 1, ids(&["ep_behind"]));
    search.settled(3, 10);
    look(&mut search, &records);
    assert_eq!(age(&search), 996);
    assert_eq!(
        search.lag_ms(5, 2_000),
        1_000,
        "lag counts what is left out too"
    );
}

#[test]
fn a_malformed_record_is_not_ready() {
    let mut broken = record(0, "ep_a", 1);
    broken.value = Some(Bytes::from_static(b"\xff"));
    let mut search = Search::default();
    search.begin(0, 1, BTreeSet::new());
    look(&mut search, &[broken, record(1, "ep_a", 1)]);
    assert_eq!(age(&search), 999);
}

#[test]
fn what_was_left_out_is_looked_at_again_when_the_reason_is_gone() {
    let records = [record(0, "ep_behind", 1), record(1, "ep_a", 1)];
    let mut search = Search::default();
    search.begin(0, 1, ids(&["ep_behind"]));
    look(&mut search, &records);
    assert_eq!(age(&search), 999);
    search.begin(0, 1, BTreeSet::new());
    look(&mut search, &records);
    assert_eq!(age(&search), 1_000);
    // The registry changed: the endpoint may have been paused.
    search.begin(0, 2, BTreeSet::new());
    assert_eq!(search.wants(2), Some(0));
}

#[test]
fn a_found_delivery_that_is_settled_is_no_longer_ready() {
    let records = [
        record(0, "ep_paused", 1),
        record(1, "ep_a", 1),
        record(2, "ep_a", 1),
    ];
    let mut search = Search::default();
    search.begin(0, 1, BTreeSet::new());
    look(&mut search, &records);
    assert_eq!(age(&search), 999);
    search.settled(1, 10);
    look(&mut search, &records[1..]);
    assert_eq!(age(&search), 998);
}

#[test]
fn settled_offsets_are_bounded_and_forgotten_with_the_commit() {
    let mut search = Search::default();
    for offset in [5, 1, 9, 3] {
        search.settled(offset, 3);
    }
    assert_eq!(search.settled, BTreeSet::from([1, 3, 5]));
    search.begin(4, 1, BTreeSet::new());
    search.settled(2, 3);
    assert_eq!(search.settled, BTreeSet::from([5]));
}
