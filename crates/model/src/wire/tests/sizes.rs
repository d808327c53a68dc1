//! What a record that derives from an event adds to it.

use super::*;
use crate::delivery::{DETAIL_BYTES_MAX, RESPONSE_EXCERPT_BYTES_MAX};
use crate::identity::RegistryStamp;
use crate::ids::ID_BYTES_MAX;
use crate::topics::DERIVED_OVERHEAD_BYTES;
use prost::Message;

/// Key, headers (`traceparent` and `tracestate` with their names) and what Kafka puts around the
/// record of a batch.
const SURROUNDINGS: usize = ID_BYTES_MAX + (11 + 128) + (10 + 512) + 128;

fn overhead() -> usize {
    usize::try_from(DERIVED_OVERHEAD_BYTES).unwrap()
}

fn letter_of(delivery: Delivery) -> DeadLetter {
    let endpoint = delivery.endpoint.as_str().trim_start_matches("ep_");
    DeadLetter {
        id: format!("dl_{}_{}_{endpoint}_{:x}", i32::MIN, i64::MIN, u64::MAX),
        reason: Reason::AddressForbidden,
        detail: "d".repeat(DETAIL_BYTES_MAX),
        dead_lettered_at_ms: -1,
        last_status: Some(u16::MAX),
        content: DeadLetterContent::Delivery(Box::new(delivery)),
    }
}

proptest! {
    #[test]
    fn an_event_of_any_producer_fits_with_what_surrounds_it(
        mut event in event(),
        delivery in delivery(),
        left_out: bool,
        data in 0_usize..100_000,
    ) {
        event.data = Bytes::from(vec![b'0'; data]);
        let mut written = crate::wire::event::event_to_proto(&event);
        if left_out {
            // What the producer leaves out, the log's place and time and a header fill in.
            written.id = String::new();
            written.occurred_at_ms = 0;
            written.accepted_at_ms = 0;
            written.traceparent = String::new();
            written.registry_position = 0;
        }
        let record = written.encode_to_vec();
        let traceparent = "0".repeat(128);
        let context = EventContext {
            position: EventPosition {
                partition: i32::MAX,
                offset: i64::MAX,
                appended_at_ms: 200_000_000_000_000,
            },
            traceparent: Some(&traceparent),
        };
        let event = Event::decode(&Bytes::from(record.clone()), context).unwrap();
        let delivery = Delivery {
            event,
            position: context.position,
            run: u64::MAX,
            attempt: u32::MAX,
            registry: RegistryStamp {
                registry_id: u64::MAX,
                position: u64::MAX,
            },
            due_at_ms: -1,
            ordered: true,
            ..delivery
        };
        let most = record.len() + overhead() - SURROUNDINGS;
        prop_assert!(delivery.encode().len() <= most);
        prop_assert!(letter_of(delivery).encode().len() <= most);
    }

    #[test]
    fn an_attempt_fits_whatever_the_event(attempt in attempt()) {
        let longest = Attempt {
            event_id: EventId::try_new(&"e".repeat(ID_BYTES_MAX)).unwrap(),
            tenant: TenantId::try_new(&"t".repeat(ID_BYTES_MAX)).unwrap(),
            event_type: EventTypeName::try_new(&"a".repeat(crate::filter::EVENT_TYPE_BYTES_MAX)).unwrap(),
            detail: "d".repeat(DETAIL_BYTES_MAX),
            response_excerpt: vec![0; RESPONSE_EXCERPT_BYTES_MAX].into(),
            traceparent: "0".repeat(128),
            ..attempt
        };
        prop_assert!(longest.encode().len() <= overhead() - SURROUNDINGS);
    }
}
