//! What the adversary in the memory log does, and that one seed gives one history.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::memory::{
    AppendFate, AppendPlan, CommitFault, Faults, MemoryLog, MemoryProcess, SplitMix64,
};
use postrider_log::{
    Append, AppendError, Bounds, Clock, Commit, CommitError, Committed, Group, GroupEvent,
    GroupOptions, Log, LogError, NewRecord, Producer, ProducerOptions, Record, Stretch, Target,
    TopicSpec,
};
use tokio::time::Instant;

const TOPIC: &str = "topic";
const GROUP: &str = "group";

/// The same in every run, as one seed gives one history.
#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }
}

async fn log(seed: u64, partitions: i32) -> (Arc<MemoryLog>, Faults) {
    let log = MemoryLog::new(Arc::new(StoppedClock), seed);
    let spec = TopicSpec {
        name: TOPIC.into(),
        partitions,
        retention: Some(Duration::from_secs(3600)),
        message_bytes_max: 10_000,
        settings: Vec::new(),
    };
    log.create_topics(&[spec]).await.unwrap();
    let faults = log.faults();
    (log, faults)
}

async fn producer(process: &MemoryProcess, append_timeout: Option<Duration>) -> Box<dyn Producer> {
    let options = ProducerOptions {
        name: "test",
        append_timeout,
        linger: Duration::ZERO,
        queue_bytes_max: 100_000,
    };
    process.producer(options).await.unwrap()
}

async fn group(process: &MemoryProcess) -> Box<dyn Group> {
    let options = GroupOptions {
        group: GROUP.into(),
        topic: TOPIC.into(),
        revoke_deadline: Duration::from_secs(5),
        prefetch_bytes_max: 10_000,
    };
    process.group(options).await.unwrap()
}

fn append(producer: &dyn Producer, value: &str) -> Append {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    producer.append(
        TOPIC,
        Target::Partition(0),
        NewRecord {
            value,
            ..NewRecord::default()
        },
    )
}

fn values(log: &MemoryLog) -> Vec<String> {
    let text = |record: Record| String::from_utf8(record.value.unwrap().to_vec()).unwrap();
    log.snapshot(TOPIC).into_iter().map(text).collect()
}

fn unknown<T: std::fmt::Debug>(fate: &Result<T, AppendError>) -> bool {
    matches!(fate, Err(AppendError::Unknown(_)))
}

#[tokio::test(start_paused = true)]
async fn appends_meet_the_fate_that_was_decided() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("worker");
    let producer = producer(&process, None).await;
    for fate in [
        AppendFate::Failed,
        AppendFate::UnknownLanded,
        AppendFate::UnknownAbsent,
    ] {
        faults.next_append(TOPIC, fate);
    }
    assert!(matches!(
        append(&*producer, "failed").await,
        Err(AppendError::Failed(_))
    ));
    assert!(unknown(&append(&*producer, "landed").await));
    assert!(unknown(&append(&*producer, "absent").await));
    append(&*producer, "acked").await.unwrap();
    assert_eq!(values(&log), ["landed", "acked"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_append_of_a_former_owner_lands_after_its_successors() {
    let (log, faults) = log(1, 1).await;
    let (former, successor) = (log.process("former"), log.process("successor"));
    let of_former = producer(&former, None).await;
    faults.next_append(TOPIC, AppendFate::UnknownLate);
    assert!(unknown(&append(&*of_former, "late").await));
    former.kill();
    append(&*producer(&successor, None).await, "next")
        .await
        .unwrap();
    assert_eq!((values(&log), faults.late()), (vec!["next".to_owned()], 1));
    assert!(faults.release_late());
    assert_eq!(
        (values(&log), faults.late()),
        (vec!["next".to_owned(), "late".to_owned()], 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_late_append_never_breaks_the_order_of_its_own_producer() {
    let mut landed = 0;
    for seed in 0..20 {
        let (log, faults) = log(seed, 1).await;
        let process = log.process("worker");
        let producer = producer(&process, None).await;
        faults.next_append(TOPIC, AppendFate::UnknownLate);
        assert!(unknown(&append(&*producer, "late").await));
        append(&*producer, "next").await.unwrap();
        assert_eq!(faults.late(), 0);
        match values(&log).as_slice() {
            [late, next] if late == "late" && next == "next" => landed += 1,
            others => assert_eq!(others, ["next"]),
        }
    }
    assert!(
        (1..20).contains(&landed),
        "the seed decides, not the rule: {landed}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_delayed_append_lands_when_it_is_told_and_keeps_its_place() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("worker");
    let producer = producer(&process, None).await;
    let began = Instant::now();
    faults.next_append(
        TOPIC,
        AppendPlan {
            delay: Duration::from_secs(3),
            fate: AppendFate::Acked,
        },
    );
    let (slow, quick) = (append(&*producer, "slow"), append(&*producer, "quick"));
    assert!(values(&log).is_empty());
    assert_eq!(quick.await.unwrap().offset, 1);
    assert_eq!(slow.await.unwrap().offset, 0);
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(values(&log), ["slow", "quick"]);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_takes_longer_than_its_timeout_is_unknown_and_lands_later() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("worker");
    let producer = producer(&process, Some(Duration::from_secs(1))).await;
    faults.next_append(
        TOPIC,
        AppendPlan {
            delay: Duration::from_secs(3),
            fate: AppendFate::Acked,
        },
    );
    assert!(unknown(&append(&*producer, "slow").await));
    assert!(values(&log).is_empty());
    append(&*producer, "behind it").await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(values(&log), ["slow", "behind it"]);
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_lands_a_prefix_and_has_no_effect_afterwards() {
    let mut prefixes = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let (log, faults) = log(seed, 1).await;
        let process = log.process("worker");
        let producer = producer(&process, None).await;
        faults.on_append(|_, _| AppendPlan {
            delay: Duration::from_secs(1),
            fate: AppendFate::Acked,
        });
        let appends = ["0", "1", "2"].map(|value| append(&*producer, value));
        process.kill();
        for append in appends {
            assert!(unknown(&append.await));
        }
        faults.calm();
        assert!(unknown(&append(&*producer, "after death").await));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let landed = values(&log);
        assert_eq!(landed, ["0", "1", "2"][..landed.len()]);
        prefixes.insert(landed.len());
        assert!(matches!(
            process.bounds(TOPIC, 0).await,
            Err(LogError::Permanent(_))
        ));
    }
    assert_eq!(prefixes.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_killed_member_keeps_its_partitions_until_its_session_is_over() {
    let (log, faults) = log(1, 2).await;
    faults.session_timeout(Duration::from_secs(30));
    let (first, second) = (log.process("first"), log.process("second"));
    let mut dead = group(&first).await;
    assert!(matches!(dead.next().await, Ok(GroupEvent::Assigned(all)) if all.len() == 2));
    let ack = dead.commit(vec![commit(0, 1, 0)]);
    ack.await.unwrap();
    first.kill();
    assert!(dead.next().await.is_err());
    assert!(dead.commit(vec![commit(0, 1, 7)]).await.is_err());
    dead.close().await;
    drop(dead);
    let died = Instant::now();
    let mut heir = group(&second).await;
    let mut assigned = Vec::new();
    while assigned.len() < 2 {
        if let GroupEvent::Assigned(more) = heir.next().await.unwrap() {
            assigned.extend(more);
        }
    }
    // One of the two was to be handed over within the revoke's deadline; the other waited for the
    // session.
    assert_eq!(died.elapsed().as_secs(), 30);
    let of_0 = assigned
        .iter()
        .find(|assignment| assignment.partition == 0)
        .unwrap();
    assert_eq!(
        of_0.committed.as_ref().map(|committed| committed.offset),
        Some(0)
    );
}

fn commit(partition: i32, generation: u64, offset: i64) -> Commit {
    let committed = Committed {
        offset,
        metadata: String::new(),
    };
    Commit {
        partition,
        generation,
        committed,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_without_revoke_is_fenced_and_given_to_the_next() {
    let (log, faults) = log(1, 1).await;
    let (first, second) = (log.process("first"), log.process("second"));
    let mut loser = group(&first).await;
    loser.next().await.unwrap();
    let mut winner = group(&second).await;
    faults.lose(&first, GROUP);
    // The new owner hears of it first.
    let event = winner.next().await.unwrap();
    assert!(matches!(event, GroupEvent::Assigned(all) if all[0].generation == 2));
    assert_eq!(
        loser.commit(vec![commit(0, 1, 0)]).await,
        Err(CommitError::Fenced)
    );
    assert_eq!(loser.next().await, Ok(GroupEvent::Lost(vec![0])));
}

#[tokio::test(start_paused = true)]
async fn a_forced_rebalance_revokes_and_assigns_again() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("only");
    let mut member = group(&process).await;
    member.next().await.unwrap();
    faults.rebalance(GROUP);
    let deadline = Duration::from_secs(5);
    assert_eq!(
        member.next().await,
        Ok(GroupEvent::Revoke {
            partitions: vec![0],
            deadline
        })
    );
    member.commit(vec![commit(0, 1, 0)]).await.unwrap();
    member.release();
    let Ok(GroupEvent::Assigned(again)) = member.next().await else {
        panic!("assigned again")
    };
    assert_eq!(
        (again[0].generation, again[0].committed.is_some()),
        (2, true)
    );
}

#[tokio::test(start_paused = true)]
async fn commits_meet_the_fate_that_was_decided() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("worker");
    let mut member = group(&process).await;
    member.next().await.unwrap();
    faults.next_commit(GROUP, CommitFault::UnknownAbsent);
    faults.next_commit(GROUP, CommitFault::UnknownLanded);
    for (offset, expected) in [(1, None), (2, Some(2))] {
        let fate = member.commit(vec![commit(0, 1, offset)]).await;
        assert!(matches!(fate, Err(CommitError::Unknown(_))));
        let committed = log.committed(GROUP, TOPIC).await.unwrap();
        assert_eq!(
            committed[0].as_ref().map(|committed| committed.offset),
            expected
        );
    }
}

/// Three workers that append, consume, lose, are killed and come back: everything that happened, in
/// order.
async fn history(seed: u64) -> Vec<String> {
    let (log, faults) = log(seed, 4).await;
    let mut random = SplitMix64::new(seed);
    faults.session_timeout(Duration::from_secs(2));
    faults.on_append(|_, random| AppendPlan {
        delay: Duration::from_millis(random.below(50)),
        fate: match random.below(10) {
            0 => AppendFate::Failed,
            1 => AppendFate::UnknownLanded,
            2 => AppendFate::UnknownAbsent,
            3 => AppendFate::UnknownLate,
            _ => AppendFate::Acked,
        },
    });
    let mut history = Vec::new();
    let mut workers = tokio::task::JoinSet::new();
    let (told, mut heard) = tokio::sync::mpsc::channel(10_000);
    let mut processes = Vec::new();
    for round in 0..20 {
        let name = format!("worker-{round}");
        let process = log.process(&name);
        let (of_worker, told) = (Arc::clone(&process), told.clone());
        workers.spawn(async move { work(&name, &of_worker, &told).await });
        processes.push(process);
        tokio::time::sleep(Duration::from_millis(random.below(3_000))).await;
        match random.below(4) {
            0 => processes[usize::try_from(random.below(processes.len() as u64)).unwrap()].kill(),
            1 => faults.rebalance(GROUP),
            2 => faults.lose(&processes[0], GROUP),
            _ => drop(faults.release_late()),
        }
    }
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    while let Ok(line) = heard.try_recv() {
        history.push(line);
    }
    let records = log.snapshot(TOPIC).into_iter();
    history.extend(
        records.map(|record| format!("{} {} {:?}", record.partition, record.offset, record.value)),
    );
    history
}

async fn work(name: &str, process: &MemoryProcess, told: &tokio::sync::mpsc::Sender<String>) {
    let producer = producer(process, Some(Duration::from_millis(40))).await;
    let mut group = group(process).await;
    let mut count = 0;
    loop {
        let event = tokio::select! {
            biased;
            event = group.next() => event,
            () = tokio::time::sleep(Duration::from_millis(10)) => {
                count += 1;
                let value = Some(Bytes::from(format!("{name}-{count}")));
                let target = Target::Partition(count % 4);
                let fate = producer.append(TOPIC, target, NewRecord { value, ..NewRecord::default() }).await;
                told.send(format!("{name} {fate:?}")).await.unwrap();
                continue;
            }
        };
        match &event {
            Ok(GroupEvent::Assigned(all)) => {
                all.iter().for_each(|assignment| {
                    group.start(assignment.partition, assignment.bounds.start);
                });
            }
            Ok(GroupEvent::Revoke { .. }) => group.release(),
            Ok(_) => {}
            Err(_) => return,
        }
        told.send(format!("{name} {}", summary(&event.unwrap())))
            .await
            .unwrap();
    }
}

fn summary(event: &GroupEvent) -> String {
    match event {
        GroupEvent::Records(records) => {
            format!("{} records from {}", records.len(), records[0].offset)
        }
        GroupEvent::Assigned(all) => {
            format!(
                "{:?}",
                all.iter()
                    .map(|one| (one.partition, one.generation))
                    .collect::<Vec<_>>()
            )
        }
        GroupEvent::Truncated { .. }
        | GroupEvent::BeyondEnd { .. }
        | GroupEvent::Revoke { .. }
        | GroupEvent::Lost(_) => {
            format!("{event:?}")
        }
    }
}

#[test]
fn one_seed_gives_one_history() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(history(seed))
    };
    let first = run(7);
    assert!(first.len() > 500, "{}", first.len());
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
}

#[tokio::test(start_paused = true)]
async fn offsets_that_are_cut_off_are_given_again() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("a");
    let producer = producer(&process, None).await;
    for value in ["a", "b", "c"] {
        append(&*producer, value).await.unwrap();
    }
    faults.cut(TOPIC, 0, 1);
    assert_eq!(append(&*producer, "d").await.unwrap().offset, 1);
    let values = log
        .snapshot(TOPIC)
        .into_iter()
        .map(|record| record.value.unwrap());
    assert_eq!(values.collect::<Vec<_>>(), ["a", "d"]);
    faults.truncate(TOPIC, 0, 2);
    faults.cut(TOPIC, 0, 0);
    assert_eq!(
        log.bounds(TOPIC, 0).await.unwrap(),
        Bounds { start: 0, end: 0 }
    );
    assert_eq!(append(&*producer, "e").await.unwrap().offset, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stretch_that_is_cut_while_it_is_read_ends_with_an_error() {
    let (log, faults) = log(1, 1).await;
    let process = log.process("a");
    let producer = producer(&process, None).await;
    for value in ["a", "b", "c"] {
        append(&*producer, value).await.unwrap();
    }
    let mut reader = process.reader(TOPIC).await.unwrap();
    let mut stretch = Stretch::new(0, 2..3);
    faults.cut(TOPIC, 0, 1);
    let read = stretch.read(&mut *reader).await;
    assert!(matches!(read, Err(LogError::Unavailable(_))), "{read:?}");
}
