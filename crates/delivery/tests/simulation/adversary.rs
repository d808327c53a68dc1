//! Everything that goes wrong on purpose.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_log::memory::{AppendFate, AppendPlan, CommitFault};
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER, GROUP_FAN_OUT, GROUP_SCHEDULER};

use super::worker::Worker;
use super::world::{WORKERS, World};

const GROUPS: [&str; 3] = [GROUP_FAN_OUT, GROUP_DELIVER, GROUP_SCHEDULER];
/// How long the log may take for an append.
const SLOW_APPEND_MS_MAX: u64 = 3_000;
/// How far off the wall clock is set, at most.
const CLOCK_OFF_MS: u64 = 10 * 60_000;

impl World {
    /// From now on the workers' appends and commits meet every fate. What a frozen worker's tasks
    /// still append is under way until it thaws.
    pub(super) fn unleash(&self) {
        let faults = self.faults.clone();
        let gates = self.gates.clone();
        let mut broken = BTreeSet::new();
        self.log.faults().on_append(move |site, random| {
            let mut delay = Duration::from_millis(random.below(30));
            let index = site.process.strip_prefix("worker-");
            let Some(index) = index.and_then(|index| index.parse::<usize>().ok()) else {
                return acked(delay);
            };
            delay += gates[index].remaining();
            if random.once_in(60) {
                // Later ones of the producer wait behind it.
                delay += Duration::from_millis(random.below(SLOW_APPEND_MS_MAX));
            }
            // Appends without a time limit fail together: what comes after one is not in the log
            // without it, and later neither, since the log takes a producer's batches in their
            // order only.
            let (producer, name) = site.producer;
            let keeps_order = name == GROUP_FAN_OUT && site.topic == DELIVERIES;
            if keeps_order && broken.contains(&producer) {
                return AppendPlan {
                    delay,
                    fate: AppendFate::Failed,
                };
            }
            if !random.once_in(25) {
                return acked(delay);
            }
            if keeps_order {
                broken.insert(producer);
            }
            faults.fetch_add(1, Ordering::Relaxed);
            let fates = if keeps_order { 3 } else { 4 };
            let fate = match random.below(fates) {
                0 => AppendFate::Failed,
                1 => AppendFate::UnknownLanded,
                2 => AppendFate::UnknownAbsent,
                _ => AppendFate::UnknownLate,
            };
            AppendPlan { delay, fate }
        });
        let decide = |random: u64| match random {
            0 => CommitFault::UnknownLanded,
            1 => CommitFault::UnknownAbsent,
            _ => CommitFault::Acked,
        };
        self.log
            .faults()
            .on_commit(move |_, random| decide(random.below(8)));
    }

    /// One move.
    pub(super) async fn disturb(&mut self) {
        let index = usize::try_from(self.random.below(WORKERS as u64)).expect("few");
        match self.random.below(14) {
            0 | 1 => match self.workers[index].take() {
                Some(worker) => {
                    self.note(format!("worker {index} is killed"));
                    self.moves.kills += 1;
                    worker.kill();
                }
                None => self.start(index),
            },
            2 => match self.workers[index].take() {
                Some(worker) => {
                    self.note(format!("worker {index} is told to stop"));
                    self.background.spawn(worker.stop());
                }
                None => self.start(index),
            },
            3 | 4 => self.freeze(index),
            5..8 => self.change_registry().await,
            8 => self.burst().await,
            9 if self.clock_is_set => self.set_clock(),
            9 => {
                let time = Duration::from_millis(self.random.below(20_000));
                self.note(format!("the network is down for {time:?}"));
                self.network.go_down(time);
            }
            _ => self.disturb_log(index),
        }
    }

    fn disturb_log(&mut self, index: usize) {
        let group = GROUPS[usize::try_from(self.random.below(3)).expect("few")];
        let faults = self.log.faults();
        match self.random.below(5) {
            0 | 1 => {
                self.note(format!("{group} is rebalanced"));
                faults.rebalance(group);
            }
            2 => {
                if let Some(worker) = &self.workers[index] {
                    self.note(format!("worker {index} loses {group}"));
                    faults.lose(&worker.process, group);
                }
            }
            3 => {
                if faults.release_late() {
                    self.note("a late append lands".to_owned());
                }
            }
            _ => {
                self.note(format!("{DELIVERIES} gets a gap"));
                faults.gap(DELIVERIES, 0, 3);
            }
        }
    }

    fn freeze(&mut self, index: usize) {
        if self.workers[index].is_some() && self.gates[index].remaining().is_zero() {
            let time = Duration::from_millis(5_000 + self.random.below(85_000));
            self.note(format!("worker {index} freezes for {time:?}"));
            self.moves.freezes += 1;
            self.gates[index].freeze(time);
        }
    }

    async fn change_registry(&mut self) {
        let at_ms = self.clock.elapsed_ms();
        let change = self.tenants.change(&mut self.random, at_ms).await;
        self.note(change);
        self.moves.changes += 1;
    }

    fn set_clock(&mut self) {
        let range = i64::try_from(CLOCK_OFF_MS).expect("short");
        let off_ms = i64::try_from(self.random.below(2 * CLOCK_OFF_MS)).expect("short") - range;
        self.note(format!("the clock is set {off_ms} ms off"));
        self.moves.clock_jumps += 1;
        self.clock.set_off(off_ms);
    }

    /// Takes everything from a worker without asking.
    pub(super) fn lose(&self, worker: &Worker) {
        for group in GROUPS {
            self.log.faults().lose(&worker.process, group);
        }
    }

    /// From now on nothing goes wrong any more; who is frozen thaws in time.
    pub(super) fn calm(&mut self) {
        self.note("peace".to_owned());
        self.log.faults().calm();
        self.log.faults().forget_late();
        self.clock.set_off(0);
        self.network.heal();
        for index in 0..WORKERS {
            if self.workers[index].is_none() {
                self.start(index);
            }
        }
    }
}

fn acked(delay: Duration) -> AppendPlan {
    AppendPlan {
        delay,
        fate: AppendFate::Acked,
    }
}
