//! The thread of a group's member.

mod asking;
mod moves;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset as KafkaOffset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, TopicPartitionList};

use super::committer;
use super::context::{Client, Signal, Signals};
use super::state::{Ended, Shared};
use crate::kafka::clients::Place;
use crate::kafka::context::Context;
use crate::kafka::errors::log_error;
use crate::kafka::query;
use crate::kafka::questions::Questions;
use crate::kafka::record::record;
use crate::kafka::stopped;
use crate::port::{GroupOptions, LogError, Offset, Partition, Record};
use asking::ask_committed;
use moves::Moves;

/// How long one poll may take when nothing is about to change, and when something is. The client
/// spins for the last millisecond of each.
const POLL_QUIET: Duration = Duration::from_millis(250);
const POLL_MOVING: Duration = Duration::from_millis(10);
/// What is taken from the client at once.
const DRAIN_RECORDS: usize = 1000;
const DRAIN_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);
/// How long the thread waits for room before it pauses.
const ROOM_WAIT: Duration = Duration::from_millis(50);
/// While so many events wait to be taken, rebalances wait too.
const EVENTS_MAX: usize = 4096;
/// Between repetitions of a question that found no broker.
const ASK_PAUSE: Duration = Duration::from_millis(200);
/// After this long without a partition a user wants to know why.
const UNASSIGNED_FOR: Duration = Duration::from_secs(10);
/// How long leaving the group is attended to.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(8);

struct Member {
    shared: Arc<Shared>,
    client: Arc<Client>,
    questions: Arc<Questions>,
    topic: String,
    /// Bytes that may wait to be taken by the user.
    queue_bytes_max: usize,
    revoke_deadline: Duration,
    /// Read, but not handed over for lack of room.
    stash: Vec<Record>,
    /// Whether there was no room and everything is paused.
    throttled: bool,
    /// What the client has been told to pause. Telling it to resume anything else loses its place.
    paused: BTreeSet<Partition>,
    moves: Moves,
    /// From when on it is said that no partition has come; `None` when one has, or it was said.
    waits_from: Option<Instant>,
    /// Given up, but not given back to the client yet, as a commit for them may still be on its
    /// way.
    giving_back: Option<Ended>,
}

/// Makes the client, joins, and starts the thread.
pub(super) fn start(
    config: &ClientConfig,
    topic: String,
    options: &GroupOptions,
    place: Place,
    questions: Arc<Questions>,
) -> Result<Arc<Shared>, LogError> {
    let client: Client = config
        .create_with_context(Context {
            place,
            own: Signals::default(),
        })
        .map_err(|error| log_error(&options.topic, &error))?;
    client
        .subscribe(&[&topic])
        .map_err(|error| log_error(&options.topic, &error))?;
    let client = Arc::new(client);
    let shared = Arc::new(Shared::new(topic.clone()));
    let member = Member {
        shared: Arc::clone(&shared),
        client,
        questions,
        topic,
        queue_bytes_max: (options.prefetch_bytes_max / 2).max(1),
        revoke_deadline: options.revoke_deadline,
        stash: Vec::new(),
        throttled: false,
        paused: BTreeSet::new(),
        moves: Moves::new(),
        waits_from: Some(Instant::now() + UNASSIGNED_FOR),
        giving_back: None,
    };
    thread::Builder::new()
        .name(format!("kafka-{}", options.group))
        .spawn(move || member.run())
        .map_err(|error| {
            LogError::Permanent(format!("no thread for a member of a group: {error}"))
        })?;
    Ok(shared)
}

impl Member {
    fn run(mut self) {
        self.start_committer();
        while !self.shared.lock().closing() {
            self.start_partitions();
            self.end_revoke();
            self.move_partitions();
            self.adjust_pauses();
            self.give_back();
            self.poll();
            self.hand_over();
            self.look_after_client();
            self.say_that_it_waits();
        }
        self.leave();
    }

    /// Nothing more comes from a dead client, and others have its partitions: the user joins anew.
    fn look_after_client(&self) {
        let failed = self.shared.lock().failed();
        if !failed && self.client.context().place.is_dead() {
            self.fail(LogError::Unavailable("the member's client is dead".into()));
        }
    }

    fn say_that_it_waits(&mut self) {
        if self.waits_from.is_some() && !self.client.context().place.brokers_answer() {
            // Until then it waits for them, not for the group.
            self.waits_from = Some(Instant::now() + UNASSIGNED_FOR);
        }
        if self.waits_from.is_some_and(|from| Instant::now() >= from) {
            self.waits_from = None;
            tracing::info!(
                topic = self.topic,
                "no partition is assigned: the group waits for its other members, and for one that was killed, or that lost its \
                 partitions while no broker answered, as long as its session lasts; or it has more members than partitions"
            );
        }
    }

    fn start_partitions(&mut self) {
        let starting = self.shared.lock().take_starting();
        if !starting.is_empty() {
            self.give_to_client(starting);
        }
    }

    fn give_to_client(&self, partitions: Vec<(Partition, Offset)>) {
        let at = partitions
            .into_iter()
            .map(|(partition, from)| (partition, KafkaOffset::Offset(from)));
        if let Err(error) = self
            .client
            .incremental_assign(&query::list(&self.topic, at))
        {
            self.fail(LogError::Permanent(format!(
                "partitions could not be started: {error}"
            )));
        }
    }

    fn take_from_client(&mut self, partitions: &[Partition]) {
        let list = |partitions: &[Partition]| {
            query::list(
                &self.topic,
                partitions.iter().map(|one| (*one, KafkaOffset::Invalid)),
            )
        };
        // The client remembers a pause beyond the assignment.
        let paused: Vec<Partition> = partitions
            .iter()
            .copied()
            .filter(|partition| self.paused.contains(partition))
            .collect();
        if !paused.is_empty() {
            self.note_error(self.client.resume(&list(&paused)));
            self.paused.retain(|partition| !paused.contains(partition));
        }
        // Even an empty list is an answer that the client waits for.
        self.note_error(self.client.incremental_unassign(&list(partitions)));
        self.stash
            .retain(|record| !partitions.contains(&record.partition));
    }

    /// Takes them from the client so that they can be given to it again.
    fn take_from_client_for_now(&mut self, partitions: &[Partition]) {
        self.take_from_client(partitions);
        if let Err(error) = stopped::wait(&self.client, &self.topic, partitions) {
            self.fail(error);
        }
    }

    fn end_revoke(&mut self) {
        let lost = self.client.assignment_lost();
        let ended = self.shared.lock().end_revoke(lost, Instant::now());
        if let Some(ended) = ended {
            self.giving_back = Some(ended);
            self.shared.changed.notify_one();
        }
    }

    fn give_back(&mut self) {
        let waits = |ended: &mut Ended| !self.shared.lock().commits(&ended.partitions);
        if let Some(Ended { running, .. }) = self.giving_back.take_if(waits) {
            self.take_from_client(&running);
        }
    }

    fn start_committer(&self) {
        let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.client));
        let topic = self.topic.clone();
        let committing = thread::Builder::new()
            .name("kafka-commit".into())
            .spawn(move || committer::run(&shared, &client, &topic));
        if let Err(error) = committing {
            self.fail(LogError::Permanent(format!("no thread to commit: {error}")));
        }
    }

    fn adjust_pauses(&mut self) {
        let running: BTreeMap<Partition, bool> = self
            .shared
            .lock()
            .running()
            .map(|(partition, _, _, paused)| (partition, paused || self.throttled))
            .collect();
        let change = |pause: bool| -> Vec<Partition> {
            let differs = |partition: &Partition| self.paused.contains(partition) != pause;
            running
                .iter()
                .filter(|(partition, wanted)| **wanted == pause && differs(partition))
                .map(|(partition, _)| *partition)
                .collect()
        };
        let (pause, resume) = (change(true), change(false));
        let list = |partitions: &[Partition]| -> TopicPartitionList {
            query::list(
                &self.topic,
                partitions.iter().map(|one| (*one, KafkaOffset::Invalid)),
            )
        };
        if !pause.is_empty() {
            self.note_error(self.client.pause(&list(&pause)));
            self.paused.extend(pause);
        }
        if !resume.is_empty() {
            self.note_error(self.client.resume(&list(&resume)));
            self.paused.retain(|partition| !resume.contains(partition));
        }
    }

    fn poll(&mut self) {
        let moving = self.throttled
            || self.moves.asking
            || self.giving_back.is_some()
            || self.shared.lock().is_moving();
        let client = Arc::clone(&self.client);
        let mut wait = if moving { POLL_MOVING } else { POLL_QUIET };
        let bytes_max = self
            .queue_bytes_max
            .clamp(*DRAIN_BYTES.start(), *DRAIN_BYTES.end());
        let mut bytes = 0;
        for _ in 0..DRAIN_RECORDS {
            match client.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    if self
                        .shared
                        .lock()
                        .admit(message.partition(), message.offset())
                    {
                        let record = record(&message);
                        bytes += record.size_bytes();
                        self.stash.push(record);
                    }
                }
                Some(Err(error)) => self.take_error(&error),
            }
            if bytes >= bytes_max {
                break;
            }
            wait = Duration::ZERO;
        }
        if self.shared.lock().queue.len() < EVENTS_MAX {
            for signal in client.context().own.take() {
                self.answer(signal);
            }
        }
    }

    /// Hands records over if there is room; otherwise waits a little, and then pauses until half of
    /// it is free.
    fn hand_over(&mut self) {
        if self.throttled && self.shared.lock().queue.bytes() > self.queue_bytes_max / 2 {
            return;
        }
        self.throttled = false;
        if self.stash.is_empty() {
            return;
        }
        self.shared.wait_for_room(self.queue_bytes_max, ROOM_WAIT);
        self.throttled = self.shared.lock().queue.bytes() > self.queue_bytes_max;
        if !self.throttled {
            self.push_stash();
        }
    }

    fn push_stash(&mut self) {
        let mut state = self.shared.lock();
        for record in self.stash.drain(..) {
            state.queue.push_record(record);
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    fn answer(&mut self, signal: Signal) {
        match signal {
            Signal::Assign(partitions) => self.assigned(&partitions),
            Signal::Revoke { partitions, lost } => {
                tracing::info!(
                    topic = self.topic,
                    ?partitions,
                    lost,
                    "partitions are revoked"
                );
                let until = Instant::now() + self.revoke_deadline;
                let ended = self.shared.lock().revoke(&partitions, lost, until);
                self.stash
                    .retain(|record| !partitions.contains(&record.partition));
                if let Some(ended) = ended {
                    self.giving_back = Some(ended);
                }
                if lost {
                    self.waits_from = Some(Instant::now() + UNASSIGNED_FOR);
                }
                self.shared.changed.notify_one();
            }
        }
    }

    fn assigned(&mut self, partitions: &[Partition]) {
        tracing::info!(topic = self.topic, ?partitions, "partitions are assigned");
        if !partitions.is_empty() {
            self.waits_from = None;
        }
        // Nothing should be left of an earlier assignment. If it is, it was lost unnoticed.
        let left = self.shared.lock().lose(partitions);
        if !left.running.is_empty() {
            self.take_from_client_for_now(&left.running);
        }
        let generations = self.shared.lock().assign(partitions);
        // This accepts the assignment. Reading begins when the user starts the partitions.
        self.note_error(self.client.incremental_assign(&TopicPartitionList::new()));
        if generations.is_empty() {
            return;
        }
        let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.client));
        let questions = Arc::clone(&self.questions);
        let asking = thread::Builder::new()
            .name("kafka-assign".into())
            .spawn(move || ask_committed(&shared, &client, &questions, &generations));
        if let Err(error) = asking {
            self.fail(LogError::Permanent(format!(
                "no thread to ask for committed offsets: {error}"
            )));
        }
    }

    fn take_error(&mut self, error: &KafkaError) {
        if let KafkaError::MessageConsumptionFatal(code) = error {
            return self.fail(LogError::Permanent(format!(
                "the kafka client failed: {code}"
            )));
        }
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            ) => self.moves.wanted = true,
            _ => match log_error(&self.topic, error) {
                // The client repairs connections by itself.
                LogError::Unavailable(reason) => {
                    tracing::debug!(topic = self.topic, reason, "kafka client reports an error");
                }
                error => self.fail(error),
            },
        }
    }

    fn fail(&self, error: LogError) {
        tracing::error!(topic = self.topic, %error, "a member of a kafka group cannot go on");
        self.shared.lock().fail(error);
        self.shared.changed.notify_one();
    }

    fn note_error(&self, result: Result<(), KafkaError>) {
        if let Err(error) = result {
            tracing::warn!(topic = self.topic, %error, "kafka client refused an instruction");
        }
    }

    /// Leaves the group. What hangs is left to a thread of its own, which this one then is.
    fn leave(self) {
        let Ended { running, .. } = self.shared.lock().close();
        let mut held: BTreeSet<Partition> = running.into_iter().collect();
        let closing = self.client.close_queue();
        // A client that failed for good says so and closes no more.
        let patience = if closing.is_ok() {
            LEAVE_TIMEOUT
        } else {
            Duration::ZERO
        };
        self.note_error(closing);
        let deadline = Instant::now() + patience;
        while !self.client.closed() && Instant::now() < deadline {
            // Records that still come are dropped; another member will read them.
            drop(self.client.poll(POLL_MOVING));
            for signal in self.client.context().own.take() {
                match signal {
                    Signal::Assign(_) => {
                        self.note_error(self.client.incremental_assign(&TopicPartitionList::new()));
                    }
                    Signal::Revoke { partitions, .. } => {
                        let ours: Vec<_> = partitions
                            .into_iter()
                            .filter(|one| held.remove(one))
                            .collect();
                        let at = ours.into_iter().map(|one| (one, KafkaOffset::Invalid));
                        let list = query::list(&self.topic, at);
                        self.note_error(self.client.incremental_unassign(&list));
                    }
                }
            }
        }
        self.shared.lock().set_closed();
        self.shared.changed.notify_one();
        // Threads that still ask something must not be the ones to let go of the client.
        while Arc::strong_count(&self.client) > 1 {
            thread::sleep(POLL_MOVING);
        }
    }
}
