//! Partitions whose records are gone.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;

use super::{ASK_PAUSE, Member};
use crate::port::{Bounds, Generation, LogError, Offset, Partition};

/// Partitions whose offset the client could not read are moved to one that exists, once the bounds
/// are known.
pub(super) struct Moves {
    pub(super) wanted: bool,
    pub(super) asking: bool,
    answer: mpsc::SyncSender<Option<Vec<Move>>>,
    answers: mpsc::Receiver<Option<Vec<Move>>>,
}

impl Moves {
    pub(super) fn new() -> Self {
        // One question is under way at a time.
        let (answer, answers) = mpsc::sync_channel(1);
        Self {
            wanted: false,
            asking: false,
            answer,
            answers,
        }
    }
}

pub(super) struct Move {
    partition: Partition,
    generation: Generation,
    /// Where it was when the bounds were asked for.
    next: Offset,
    bounds: Bounds,
}

impl Member {
    pub(super) fn move_partitions(&mut self) {
        if let Ok(answer) = self.moves.answers.try_recv() {
            self.moves.asking = false;
            match answer {
                Some(moves) => self.apply(&moves),
                None => self.moves.wanted = true,
            }
        }
        if self.moves.wanted && !self.moves.asking {
            (self.moves.wanted, self.moves.asking) = (false, true);
            self.ask_bounds();
        }
    }

    fn ask_bounds(&mut self) {
        let running: BTreeMap<Partition, (Generation, Offset)> = self
            .shared
            .lock()
            .running()
            .map(|(partition, generation, next, _)| (partition, (generation, next)))
            .collect();
        let (topic, answer) = (self.topic.clone(), self.moves.answer.clone());
        let questions = Arc::clone(&self.questions);
        let asking = thread::Builder::new()
            .name("kafka-bounds".into())
            .spawn(move || {
                let partitions: Vec<Partition> = running.keys().copied().collect();
                let bounds = questions.bounds(&topic, &partitions);
                let moves = bounds.map(|bounds| {
                    let known = bounds.into_iter().filter_map(|(partition, bounds)| {
                        let (generation, next) = *running.get(&partition)?;
                        Some(Move {
                            partition,
                            generation,
                            next,
                            bounds,
                        })
                    });
                    known.collect()
                });
                if moves.is_err() {
                    thread::sleep(ASK_PAUSE);
                }
                // Refused only when the member is gone.
                drop(answer.send(moves.ok()));
            });
        if let Err(error) = asking {
            self.fail(LogError::Permanent(format!(
                "no thread to ask for bounds: {error}"
            )));
        }
    }

    /// The client does not say which partition it could not read. Those outside their bounds it
    /// was; if there is none, the log changed meanwhile, and all begin anew where they are.
    fn apply(&mut self, moves: &[Move]) {
        let places: BTreeMap<Partition, Offset> = self
            .shared
            .lock()
            .running()
            .map(|(partition, _, next, _)| (partition, next))
            .collect();
        let target = |one: &Move| {
            // One that read on meanwhile can be read, and may be beyond the end that was asked for.
            let next = *places
                .get(&one.partition)
                .filter(|next| **next == one.next)?;
            Some((next, next.clamp(one.bounds.start, one.bounds.end)))
        };
        let outside = moves
            .iter()
            .any(|one| target(one).is_some_and(|(next, to)| next != to));
        for one in moves {
            let Some((next, to)) = target(one) else {
                continue;
            };
            if outside && next == to {
                continue;
            }
            if self
                .shared
                .lock()
                .move_to(one.partition, one.generation, to)
            {
                self.take_from_client_for_now(&[one.partition]);
                self.give_to_client(vec![(one.partition, to)]);
            }
        }
        self.shared.changed.notify_one();
    }
}
