//! What the client tells a member's thread while it polls.

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaRespErr;

use crate::kafka::context::{Context, Hears};
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

pub(super) type Client = BaseConsumer<Context<Signals>>;

/// At most one rebalance is unanswered, so this stays short.
#[derive(Debug, Default)]
pub(super) struct Signals(Mutex<Vec<Signal>>);

impl Signals {
    pub(super) fn take(&self) -> Vec<Signal> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Hears for Signals {}

impl ConsumerContext for Context<Signals> {
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
        let signal = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            Signal::Assign(partitions)
        } else {
            Signal::Revoke {
                partitions,
                lost: client.assignment_lost(),
            }
        };
        self.own.0.lock().push(signal);
    }
}
