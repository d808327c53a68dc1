//! Delivering again: what redrive and replay append to `deliveries`, as a run of their own.
//!
//! The run is the hash of the command's id, so a command that is repeated, or cut and gone on with,
//! appends the same pieces of work again, and their owner drops what it has settled: nothing is
//! delivered twice for it.

use bytes::Bytes;
use futures_util::future::join_all;
use postrider_log::{AppendError, NewRecord};
use postrider_model::delivery::Delivery;
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::ids::{EndpointId, EventId};
use postrider_model::topics::DELIVERIES;
use postrider_registry::Lookup;
use prometheus::IntCounter;
use ring::digest;
use serde_json::{Value, json};

use crate::fields::{Fields, parsed};
use crate::problem::Problem;
use crate::reading::Range;
use crate::shared::Shared;
use crate::{ids, page};

/// Deliveries appended together, at most: in number, and in bytes.
const CHUNK_DELIVERIES_MAX: usize = 256;
const CHUNK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The id of a command: the caller's own, so that it may be repeated, or a new one.
pub(crate) fn take_command_id(api: &Shared, fields: &mut Fields) -> String {
    let given = fields.optional("command_id", parsed(EventId::try_new));
    given.map_or_else(
        || ids::new_command_id(api.clock.now_ms()),
        |command_id| command_id.to_string(),
    )
}

/// The deliveries of one command, as they are appended.
pub(crate) struct Run<'a> {
    api: &'a Shared,
    command_id: String,
    run: u64,
    chunk: Vec<(String, NewRecord, TraceContext)>,
    chunk_bytes: usize,
    appended_total: &'a IntCounter,
    appended: usize,
    skipped: Vec<Value>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(api: &'a Shared, command_id: String, appended_total: &'a IntCounter) -> Self {
        Self {
            api,
            run: run_of(&command_id),
            command_id,
            chunk: Vec::new(),
            chunk_bytes: 0,
            appended_total,
            appended: 0,
            skipped: Vec::new(),
        }
    }

    /// Adds the delivery of an event, from its first attempt on, under the name that the answer is
    /// to give it. It is appended at the latest by [`Run::flush`].
    pub(crate) async fn add(
        &mut self,
        name: &str,
        event: Event,
        position: EventPosition,
        endpoint: &EndpointId,
    ) -> Result<(), Problem> {
        let registry = &self.api.registry;
        let ordered = match registry.endpoint(endpoint) {
            Lookup::Found(found) => found.value.ordered.is_some(),
            Lookup::Deleted | Lookup::Unknown => false,
        };
        let delivery = Delivery {
            event,
            endpoint: endpoint.clone(),
            position,
            run: self.run,
            attempt: 1,
            registry: registry.stamp(),
            due_at_ms: 0,
            ordered,
        };
        let value = delivery.encode();
        self.chunk_bytes += value.len();
        let record = NewRecord {
            key: Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes()),
            value: Some(value),
            headers: Vec::new(),
        };
        let trace = delivery.event.trace;
        self.chunk.push((name.to_owned(), record, trace));
        if self.chunk.len() >= CHUNK_DELIVERIES_MAX || self.chunk_bytes >= CHUNK_BYTES_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    /// Appends what was added.
    pub(crate) async fn flush(&mut self) -> Result<(), Problem> {
        self.chunk_bytes = 0;
        let api = self.api;
        let appends =
            std::mem::take(&mut self.chunk)
                .into_iter()
                .map(async |(name, record, trace)| {
                    let fate = api.producing.append(DELIVERIES, record, &trace).await;
                    (name, fate)
                });
        for (name, fate) in join_all(appends).await {
            match fate {
                Ok(_) => {
                    self.appended += 1;
                    self.appended_total.inc();
                }
                Err(AppendError::TooLarge) => self.skip(&name, "too_large"),
                Err(error) => {
                    let command_id = self.command_id.clone();
                    tracing::warn!(%error, command_id, "deliveries of a command cut short");
                    return Err(Problem::RunCut { command_id });
                }
            }
        }
        Ok(())
    }

    /// Notes what cannot be delivered, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.push(json!({ "id": name, "reason": reason }));
    }

    /// What is answered: how many were appended, under this word, and where to go on if it was cut.
    pub(crate) fn answer(self, word: &str, rest: Option<&Vec<Range>>) -> Value {
        let mut answer = json!({
            "command_id": self.command_id,
            "skipped": self.skipped,
            "complete": rest.is_none(),
            "next_cursor": rest.map(page::encode),
        });
        answer[word] = json!(self.appended);
        answer
    }
}

/// The run of a command: never 0, which is the first delivery.
fn run_of(command_id: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, command_id.as_bytes());
    let (first, _) = digest
        .as_ref()
        .split_first_chunk()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*first).max(1)
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn the_run_of_a_command_is_the_same_for_ever_and_never_the_first() {
        assert_eq!(run_of("abc"), 0xba78_16bf_8f01_cfea);
        assert_ne!(run_of("a"), run_of("b"));
        assert_ne!(run_of(""), 0);
    }
}
