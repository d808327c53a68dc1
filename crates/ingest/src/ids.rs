//! New identifiers, and the time that is in them.

use postrider_model::ids::{ApiKeyId, EndpointId, EventId};
use ring::rand::{SecureRandom, SystemRandom};
use uuid::{NoContext, Timestamp, Uuid};

const EVENT_PREFIX: &str = "evt_";
const ENDPOINT_PREFIX: &str = "ep_";
const API_KEY_PREFIX: &str = "key_";
const AUDIT_PREFIX: &str = "aud_";
const COMMAND_PREFIX: &str = "cmd_";

/// `evt_` and a UUIDv7 of this time, so that reads can seek by it.
pub(crate) fn new_event_id(now_ms: i64) -> EventId {
    EventId::try_new(&unique(EVENT_PREFIX, now_ms)).expect("a UUID has only letters and digits")
}

/// `ep_` and a UUIDv7 of this time, so that endpoints are listed in order of creation.
pub(crate) fn new_endpoint_id(now_ms: i64) -> EndpointId {
    EndpointId::try_new(&unique(ENDPOINT_PREFIX, now_ms))
        .expect("a UUID has only letters and digits")
}

/// `key_` and a UUIDv7 of this time, so that keys are listed in order of creation.
pub(crate) fn new_api_key_id(now_ms: i64) -> ApiKeyId {
    ApiKeyId::try_new(&unique(API_KEY_PREFIX, now_ms)).expect("a UUID has only letters and digits")
}

/// `aud_` and a UUIDv7.
pub(crate) fn new_audit_id(now_ms: i64) -> String {
    unique(AUDIT_PREFIX, now_ms)
}

/// `cmd_` and a UUIDv7.
pub(crate) fn new_command_id(now_ms: i64) -> String {
    unique(COMMAND_PREFIX, now_ms)
}

/// When an event's id was made, if it is one of ours.
pub(crate) fn event_id_time_ms(id: &EventId) -> Option<i64> {
    let uuid = Uuid::try_parse(id.as_str().strip_prefix(EVENT_PREFIX)?).ok()?;
    if uuid.get_version_num() != 7 {
        return None;
    }
    let (seconds, nanoseconds) = uuid.get_timestamp()?.to_unix();
    let ms = seconds
        .checked_mul(1000)?
        .checked_add(u64::from(nanoseconds / 1_000_000))?;
    i64::try_from(ms).ok()
}

/// Bytes that nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut random = [0; N];
    SystemRandom::new()
        .fill(&mut random)
        .expect("the operating system has a random source");
    random
}

fn unique(prefix: &str, now_ms: i64) -> String {
    let ms = now_ms.max(0).unsigned_abs();
    let nanoseconds = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    let time = Timestamp::from_unix(NoContext, ms / 1000, nanoseconds);
    format!("{prefix}{}", Uuid::new_v7(time).simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_795_237_200_123;

    #[test]
    fn the_time_of_an_event_id_can_be_read_back() {
        assert_eq!(event_id_time_ms(&new_event_id(NOW_MS)), Some(NOW_MS));
        for other in ["order-1", "evt_1", "evt_67e5504410b1426f9247bb680e5fe0c8"] {
            assert_eq!(
                event_id_time_ms(&EventId::try_new(other).unwrap()),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn ids_of_one_moment_differ_and_later_ones_sort_after() {
        assert_ne!(new_endpoint_id(NOW_MS), new_endpoint_id(NOW_MS));
        assert!(new_endpoint_id(NOW_MS) < new_endpoint_id(NOW_MS + 1));
    }
}
