//! What the client tells a member's thread while it polls.

use std::sync::Mutex;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};

use crate::kafka::clients::Place;
use crate::kafka::context::{log_line, note_error};
use crate::locked;
use crate::port::Partition;

/// Callbacks only note what happened; the thread acts when the poll has returned.
#[derive(Debug)]
pub(super) enum Signal {
    Assign(Vec<Partition>),
    Revoke {
        partitions: Vec<Partition>,
        lost: bool,
    },
}

pub(super) type Client = BaseConsumer<GroupContext>;

pub(super) struct GroupContext {
    pub(super) place: Place,
    /// At most one rebalance is unanswered, so this stays short.
    signals: Mutex<Vec<Signal>>,
}

impl GroupContext {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            signals: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn take_signals(&self) -> Vec<Signal> {
        std::mem::take(&mut *locked(&self.signals))
    }

    fn signal(&self, signal: Signal) {
        locked(&self.signals).push(signal);
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(self.place.name(), level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note_error(&self.place, &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        // A member that has nothing to read sends heartbeats.
        self.place.told(&statistics, true);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = list
            .elements()
            .iter()
            .map(|element| element.partition())
            .collect();
        self.signal(
            if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
                Signal::Assign(partitions)
            } else {
                Signal::Revoke {
                    partitions,
                    lost: client.assignment_lost(),
                }
            },
        );
    }
}
