//! Members that come, go, forget to release and are disturbed, in any order.

use proptest::prelude::*;

use super::*;

const PARTITIONS: i32 = 7;
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(prop::sample::Index),
    /// A member hears what it has to be told, and releases what is asked of it, or does not.
    Hear(prop::sample::Index, bool),
    Rotate,
    Lose(prop::sample::Index),
    Die(prop::sample::Index),
    Pass(u64),
    BeginCommit(prop::sample::Index),
    EndCommit,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Step::Join),
        1 => index().prop_map(Step::Leave),
        8 => (index(), any::<bool>()).prop_map(|(member, releases)| Step::Hear(member, releases)),
        1 => Just(Step::Rotate),
        1 => index().prop_map(Step::Lose),
        1 => index().prop_map(Step::Die),
        2 => (0_u64..7).prop_map(Step::Pass),
        2 => index().prop_map(Step::BeginCommit),
        2 => Just(Step::EndCommit),
    ]
}

/// What members believe, from what they were told.
struct World {
    group: GroupState,
    now: Instant,
    next_member: u64,
    held: BTreeMap<MemberId, BTreeMap<Partition, Generation>>,
    commits: Vec<Commit>,
}

impl World {
    fn new() -> Self {
        Self {
            group: GroupState::new(PARTITIONS),
            now: Instant::now(),
            next_member: 0,
            held: BTreeMap::new(),
            commits: Vec::new(),
        }
    }

    fn member(&self, index: prop::sample::Index) -> Option<MemberId> {
        (!self.held.is_empty())
            .then(|| *self.held.keys().nth(index.index(self.held.len())).unwrap())
    }

    fn apply(&mut self, step: &Step) {
        self.group.settle(self.now);
        match *step {
            Step::Join => {
                self.next_member += 1;
                let id = MemberId(self.next_member);
                self.held.insert(id, BTreeMap::new());
                self.group.join(id, self.next_member, DEADLINE);
            }
            Step::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Step::Rotate => self.group.rotate(),
            Step::EndCommit => {
                if let Some(commit) = self.commits.pop() {
                    self.group.end_commit(vec![commit], true);
                }
            }
            Step::Leave(index)
            | Step::Hear(index, _)
            | Step::Lose(index)
            | Step::Die(index)
            | Step::BeginCommit(index) => {
                if let Some(id) = self.member(index) {
                    self.apply_to(id, step);
                }
            }
        }
        self.group.settle(self.now);
        self.check();
    }

    fn apply_to(&mut self, id: MemberId, step: &Step) {
        match *step {
            Step::Leave(_) => {
                self.held.remove(&id);
                self.group.leave(id);
            }
            Step::Hear(_, releases) => self.hear(id, releases),
            Step::Lose(_) => self.group.lose(id.0),
            Step::Die(_) => {
                self.held.remove(&id);
                self.group.expire_client(id.0, self.now + DEADLINE);
            }
            _ => {
                let held = self.held[&id].first_key_value();
                let committed = Committed {
                    offset: 0,
                    metadata: String::new(),
                };
                let Some((&partition, &generation)) = held else {
                    return;
                };
                let commit = Commit {
                    partition,
                    generation,
                    committed,
                };
                if self.group.begin_commit(id, std::slice::from_ref(&commit)) {
                    self.commits.push(commit);
                }
            }
        }
    }

    fn hear(&mut self, id: MemberId, releases: bool) {
        while let Some(notice) = self.group.next_notice(id) {
            let view = self.held.get_mut(&id).expect("only the living hear");
            match notice {
                Notice::Assigned(held) => {
                    for held in held.into_iter().filter(|held| self.group.holds(id, *held)) {
                        let before = view.insert(held.partition, held.generation);
                        assert!(before.is_none_or(|before| before < held.generation));
                    }
                }
                Notice::Revoke { held, .. } if releases => {
                    self.group.release(id, &held);
                    for held in held {
                        view.remove(&held.partition);
                    }
                }
                Notice::Revoke { .. } => {}
                Notice::Lost(held) => {
                    for held in held {
                        if view.get(&held.partition) == Some(&held.generation) {
                            assert!(!self.group.holds(id, held), "lost means lost");
                            view.remove(&held.partition);
                        }
                    }
                }
            }
        }
    }

    /// Whoever may still commit for a partition is the only one.
    fn check(&self) {
        for partition in 0..PARTITIONS {
            let holders = self.held.iter().filter(|(id, view)| {
                view.get(&partition).is_some_and(|&generation| {
                    self.group.holds(
                        **id,
                        Held {
                            partition,
                            generation,
                        },
                    )
                })
            });
            assert!(holders.count() <= 1, "partition {partition} has two owners");
        }
        for commit in &self.commits {
            let share = self.group.share(commit.partition).unwrap();
            assert!(
                share.generation == commit.generation,
                "handed on during a commit"
            );
        }
    }

    fn counts(&self) -> Vec<usize> {
        let mine = |id: &MemberId, view: &BTreeMap<Partition, Generation>| {
            view.iter()
                .filter(|&(&partition, &generation)| {
                    self.group.holds(
                        *id,
                        Held {
                            partition,
                            generation,
                        },
                    )
                })
                .count()
        };
        self.held.iter().map(|(id, view)| mine(id, view)).collect()
    }
}

proptest! {
    #[test]
    fn one_owner_at_a_time_and_in_the_end_everything_is_shared_evenly(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.apply(step));
        // Everybody lives, listens and releases from now on.
        world.apply(&Step::Join);
        for _ in 0..10 {
            world.apply(&Step::Pass(6));
            while !world.commits.is_empty() {
                world.apply(&Step::EndCommit);
            }
            let members: Vec<MemberId> = world.held.keys().copied().collect();
            for id in members {
                world.hear(id, true);
                world.group.settle(world.now);
            }
        }
        let counts = world.counts();
        prop_assert_eq!(counts.iter().sum::<usize>(), 7);
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }
}
