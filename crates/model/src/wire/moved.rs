//! Records that go to another log, where positions begin anew.
//!
//! A field that is written again after the others counts instead of the first, so what changes is
//! appended to the bytes as they are: whatever else a record holds stays, also what only a later
//! release knows.

use bytes::Bytes;
use prost::Message;

use super::proto;
use crate::endpoint::Endpoint;
use proto::registry_record::Entity;

/// A delivery with another run and registry position, of no registry in particular. Both must not
/// be 0, which is never written.
pub fn moved_delivery(value: &[u8], run: u64, registry_position: u64) -> Bytes {
    let changed = proto::Delivery {
        run,
        registry_position,
        registry_id: Some(0),
        ..proto::Delivery::default()
    };
    appended(value, &changed)
}

/// An event with another registry position, which must not be 0.
pub fn moved_event(value: &[u8], registry_position: u64) -> Bytes {
    let changed = proto::Event {
        registry_position,
        registry_id: Some(0),
        ..proto::Event::default()
    };
    appended(value, &changed)
}

/// A registry record whose endpoint, if it discards what was matched before a position, does so no
/// more: the position means nothing in another log. Position 1 is before everything there.
pub fn moved_registry_record(value: &Bytes) -> Bytes {
    let record = proto::RegistryRecord::decode(value.as_ref());
    let discards = record.is_ok_and(|record| {
        matches!(record.entity, Some(Entity::Endpoint(endpoint)) if endpoint.discard_matched_before > 1)
    });
    if !discards {
        return value.clone();
    }
    let changed = proto::Endpoint {
        discard_matched_before: 1,
        ..proto::Endpoint::default()
    };
    let changed = proto::RegistryRecord {
        entity: Some(Entity::Endpoint(changed)),
        ..proto::RegistryRecord::default()
    };
    appended(value, &changed)
}

/// The endpoint in a registry record, if it holds one that is understood.
pub fn registry_endpoint(value: &[u8]) -> Option<Endpoint> {
    match proto::RegistryRecord::decode(value).ok()?.entity? {
        Entity::Endpoint(endpoint) => Endpoint::try_from(endpoint).ok(),
        _ => None,
    }
}

fn appended(value: &[u8], changed: &impl Message) -> Bytes {
    let mut all = value.to_vec();
    all.extend(changed.encode_to_vec());
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 100, as a later release may have one.
    const UNKNOWN: [u8; 3] = [0xa0, 0x06, 7];

    #[test]
    fn only_what_changes_changes() {
        let delivery = proto::Delivery {
            ordered: true,
            endpoint_id: "ep_a".into(),
            position: Some(proto::EventPosition {
                partition: 3,
                offset: 9,
                appended_at_ms: 5,
            }),
            run: 4,
            attempt: 5,
            registry_position: 77,
            registry_id: Some(78),
            due_at_ms: 6,
            event: Some(proto::Event {
                registry_position: 77,
                ..proto::Event::default()
            }),
        };
        let mut value = delivery.encode_to_vec();
        value.extend(UNKNOWN);
        let moved = moved_delivery(&value, 11, 2);
        assert!(moved.starts_with(&value));
        let expected = proto::Delivery {
            run: 11,
            registry_position: 2,
            registry_id: Some(0),
            ..delivery
        };
        assert_eq!(proto::Delivery::decode(moved).unwrap(), expected);
    }

    #[test]
    fn an_endpoint_discards_nothing_in_another_log() {
        let record = |discard_matched_before| proto::RegistryRecord {
            version: 3,
            nonce: "n".into(),
            entity: Some(Entity::Endpoint(proto::Endpoint {
                id: "ep_a".into(),
                url: "https://example.com/".into(),
                discard_matched_before,
                ..proto::Endpoint::default()
            })),
            ..proto::RegistryRecord::default()
        };
        let value = Bytes::from(record(90).encode_to_vec());
        let moved = moved_registry_record(&value);
        assert_eq!(proto::RegistryRecord::decode(moved).unwrap(), record(1));
        let value = Bytes::from(record(0).encode_to_vec());
        assert_eq!(moved_registry_record(&value), value);
        let garbage = Bytes::from_static(b"\xff\xff");
        assert_eq!(moved_registry_record(&garbage), garbage);
    }
}
