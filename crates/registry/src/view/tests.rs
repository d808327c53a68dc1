use postrider_model::fixtures;
use proptest::prelude::*;

use super::*;

fn endpoint_id(id: &str) -> EndpointId {
    EndpointId::try_new(id).unwrap()
}

fn key(id: &str, version: u64, nonce: &str) -> RecordKey {
    let entity = EntityId::Endpoint(endpoint_id(id));
    RecordKey {
        entity,
        version,
        nonce: nonce.to_owned(),
    }
}

fn endpoint(id: &str, tenant: &str, description: &str) -> Content {
    Content::Endpoint(Box::new(Endpoint {
        tenant: TenantId::try_new(tenant).unwrap(),
        description: description.to_owned(),
        ..fixtures::endpoint(id)
    }))
}

fn version(key: RecordKey, content: Content) -> Read {
    Read::Version {
        key,
        content: Ok(content),
    }
}

fn described(view: &View, id: &str) -> Option<(String, u64)> {
    match view.lookup(&endpoint_id(id)) {
        Lookup::Found(found) => Some((found.value.description.clone(), found.version)),
        Lookup::Deleted | Lookup::Unknown => None,
    }
}

#[test]
fn counts_the_first_record_of_the_highest_version() {
    let mut view = View::default();
    assert_eq!(
        view.apply(version(key("ep_a", 1, "x"), endpoint("ep_a", "t", "1x"))),
        Applied::Counted
    );
    assert_eq!(
        view.apply(version(key("ep_a", 1, "y"), endpoint("ep_a", "t", "1y"))),
        Applied::Passed
    );
    assert_eq!(described(&view, "ep_a"), Some(("1x".into(), 1)));
    view.apply(version(key("ep_a", 2, "y"), endpoint("ep_a", "t", "2y")));
    view.apply(version(key("ep_a", 1, "z"), endpoint("ep_a", "t", "late")));
    view.apply(version(key("ep_a", 2, "x"), endpoint("ep_a", "t", "2x")));
    assert_eq!(described(&view, "ep_a"), Some(("2y".into(), 2)));
}

#[test]
fn moves_and_deletes_an_endpoint_without_a_trace() {
    let mut view = View::default();
    view.apply(version(key("ep_a", 1, "x"), endpoint("ep_a", "t", "")));
    view.apply(version(key("ep_a", 2, "x"), endpoint("ep_a", "u", "")));
    let event_type = EventTypeName::try_new("invoice.paid").unwrap();
    let matched = |view: &View, tenant: &str| {
        view.matching(&TenantId::try_new(tenant).unwrap(), &event_type)
            .endpoints
            .len()
    };
    assert_eq!((matched(&view, "t"), matched(&view, "u")), (0, 1));
    assert_eq!(view.endpoint_counts().enabled, 1);
    view.apply(version(key("ep_a", 3, "x"), Content::Deleted));
    assert!(view.await_verdict(&key("ep_a", 4, "x")).is_none());
    assert_eq!((matched(&view, "t"), matched(&view, "u")), (0, 0));
    assert_eq!(view.endpoint_counts(), EndpointCounts::default());
    assert!(view.by_tenant.is_empty());
}

#[test]
fn gives_an_unreadable_record_its_version_and_keeps_what_was_understood() {
    let mut view = View::default();
    view.apply(version(key("ep_a", 1, "x"), endpoint("ep_a", "t", "1x")));
    let unreadable = Read::Version {
        key: key("ep_a", 2, "later"),
        content: Err(Unreadable("?".into())),
    };
    assert!(matches!(view.apply(unreadable), Applied::Unreadable(..)));
    assert_eq!(described(&view, "ep_a"), Some(("1x".into(), 2)));
    view.apply(version(key("ep_a", 2, "x"), endpoint("ep_a", "t", "2x")));
    assert_eq!(described(&view, "ep_a"), Some(("1x".into(), 2)));
    view.apply(version(key("ep_a", 3, "x"), endpoint("ep_a", "t", "3x")));
    assert_eq!(described(&view, "ep_a"), Some(("3x".into(), 3)));
}

#[test]
fn tells_a_write_as_soon_as_its_version_is_taken() {
    let mut view = View::default();
    let mut winner = view.await_verdict(&key("ep_a", 1, "x")).unwrap();
    let mut loser = view.await_verdict(&key("ep_a", 1, "y")).unwrap();
    assert!(winner.try_recv().is_err());
    view.apply(version(key("ep_a", 1, "x"), endpoint("ep_a", "t", "")));
    assert_eq!(
        (winner.try_recv(), loser.try_recv()),
        (Ok(Verdict::Won), Ok(Verdict::Lost))
    );
    assert!(view.await_verdict(&key("ep_a", 1, "z")).is_none());
    assert!(view.waiters.is_empty());
    let given_up = view.await_verdict(&key("ep_a", 2, "x")).unwrap();
    view.stop_waiting(&key("ep_a", 2, "x"));
    drop(given_up);
    assert!(view.waiters.is_empty());
}

#[test]
fn cleans_up_behind_its_own_winners_only_and_never_the_winner() {
    let mut view = View::default();
    let first = view.await_verdict(&key("ep_a", 2, "mine"));
    view.apply(version(key("ep_a", 1, "theirs"), endpoint("ep_a", "t", "")));
    assert!(view.take_stale().is_empty());
    view.apply(version(key("ep_a", 2, "mine"), endpoint("ep_a", "t", "")));
    view.apply(version(key("ep_a", 2, "loser"), endpoint("ep_a", "t", "")));
    view.apply(version(
        key("ep_a", 2, "mine"),
        endpoint("ep_a", "t", "repeated"),
    ));
    assert_eq!(
        view.take_stale(),
        [key("ep_a", 1, "theirs"), key("ep_a", 2, "loser")]
    );
    view.apply(Read::Tombstone(key("ep_a", 1, "theirs")));
    view.apply(version(key("ep_a", 1, "late"), endpoint("ep_a", "t", "")));
    assert_eq!(
        view.take_stale(),
        [key("ep_a", 2, "loser"), key("ep_a", 1, "late")]
    );
    view.apply(version(key("ep_a", 3, "theirs"), endpoint("ep_a", "t", "")));
    view.apply(version(key("ep_a", 3, "loser"), endpoint("ep_a", "t", "")));
    assert!(view.take_stale().is_empty());
    drop(first);
}

#[test]
fn keeps_a_winner_that_somebody_removed() {
    let mut view = View::default();
    view.apply(version(key("ep_a", 1, "x"), endpoint("ep_a", "t", "1x")));
    let applied = view.apply(Read::Tombstone(key("ep_a", 1, "x")));
    assert_eq!(
        applied,
        Applied::WinnerTombstoned(key("ep_a", 1, "x").entity)
    );
    assert_eq!(described(&view, "ep_a"), Some(("1x".into(), 1)));
}

/// A record as some writer may have written it: it had seen some version, and writes the next
/// unless that was a deletion.
#[derive(Debug, Clone)]
struct Step {
    endpoint: usize,
    behind: u64,
    deletes: bool,
    readable: bool,
}

fn steps() -> impl Strategy<Value = Vec<(Step, bool)>> {
    let step = (
        0..3_usize,
        0..3_u64,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.9),
    )
        .prop_map(|(endpoint, behind, deletes, readable)| Step {
            endpoint,
            behind,
            deletes,
            readable,
        });
    prop::collection::vec((step, any::<bool>()), 0..60)
}

proptest! {
    /// Compaction may remove any of the records that do not count: what is left says the same.
    #[test]
    fn says_the_same_whatever_compaction_left(steps in steps()) {
        let mut whole = View::default();
        let mut records = Vec::new();
        for (number, (step, left)) in steps.into_iter().enumerate() {
            let id = format!("ep_{}", step.endpoint);
            let (taken, deleted) = whole.taken(&EntityId::Endpoint(endpoint_id(&id)));
            // A writer that saw the deletion does not write; one that lagged behind it still does.
            let seen = taken.saturating_sub(step.behind);
            if deleted && seen == taken {
                continue;
            }
            let key = key(&id, seen + 1, &number.to_string());
            let content = match (step.deletes, step.readable) {
                (true, _) => Ok(Content::Deleted),
                (false, true) => Ok(endpoint(&id, "t", &number.to_string())),
                (false, false) => Err(Unreadable("?".into())),
            };
            whole.apply(Read::Version { key: key.clone(), content: content.clone() });
            records.push((key, content, left));
        }
        let mut compacted = View::default();
        for (key, content, left) in &records {
            if *left || whole.claims[&key.entity].key == *key {
                compacted.apply(Read::Version { key: key.clone(), content: content.clone() });
            }
        }
        for (key, content, _) in records {
            if whole.claims[&key.entity].key != key {
                continue;
            }
            prop_assert_eq!(&compacted.claims[&key.entity].key, &key);
            let EntityId::Endpoint(id) = key.entity else { continue };
            // What to show instead of a record that is not understood depends on what is left of
            // the earlier ones.
            if content.is_ok() {
                prop_assert_eq!(compacted.lookup(&id), whole.lookup(&id));
            }
        }
    }
}
