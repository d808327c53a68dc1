use std::time::Duration;

use postrider_log::memory::{AppendFate, AppendPlan};
use postrider_registry::{Registry, WriteError};
use proptest::prelude::*;
use tokio::task::JoinSet;

use crate::world::{
    LONG, TOPIC, World, all, described, endpoint, endpoint_id, eventually, found, tenant,
};

#[tokio::test(start_paused = true)]
async fn removes_all_but_the_winners() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    a.put_tenant(tenant("acme")).await.unwrap();
    for id in ["ep_a", "ep_b"] {
        a.create_endpoint(endpoint(id, "acme")).await.unwrap();
        for number in 0..5 {
            let change = |text: &str| {
                let text = format!("{text}{number}");
                move |endpoint: &_| described(endpoint, &text)
            };
            let id = endpoint_id(id);
            let (one, other) = tokio::join!(
                a.update_endpoint(&id, None, change("a")),
                b.update_endpoint(&id, None, change("b")),
            );
            one.unwrap();
            other.unwrap();
        }
    }
    a.delete_endpoint(&endpoint_id("ep_b"), None).await.unwrap();
    let before = all(&a).await;
    for process in [&a, &b] {
        eventually("nothing stale is left", || {
            process.counts().stale_records == 0
        })
        .await;
    }
    world.log.compact(TOPIC);
    let kept: Vec<_> = world
        .live_keys()
        .iter()
        .map(|key| key.rsplit_once('/').unwrap().0.to_owned())
        .collect();
    assert_eq!(
        kept,
        ["tenant/acme/1", "endpoint/ep_a/11", "endpoint/ep_b/12"]
    );
    let reloaded = world.join("c").await;
    assert_eq!(all(&reloaded).await, before);
    assert_eq!(
        reloaded.create_endpoint(endpoint("ep_b", "acme")).await,
        Err(WriteError::Deleted)
    );
    assert!(a.counts().tombstones_total + b.counts().tombstones_total > 0);
}

#[tokio::test(start_paused = true)]
async fn never_shows_a_record_that_lost() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    a.put_tenant(tenant("acme")).await.unwrap();
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
    let record = |version| {
        world
            .log
            .snapshot(TOPIC)
            .into_iter()
            .find(|record| {
                record
                    .key
                    .starts_with(format!("endpoint/ep_a/{version}/").as_bytes())
            })
            .unwrap()
    };
    let first = record(1);
    let first_key = String::from_utf8(first.key.to_vec()).unwrap();
    let change = |endpoint: &_| described(endpoint, "second");
    b.update_endpoint(&endpoint_id("ep_a"), None, change)
        .await
        .unwrap();
    // The same record once more, as a producer without idempotence repeats it, and others of
    // versions long taken.
    world
        .append(&first_key, first.value.map(|value| value.to_vec()))
        .await;
    world.append("endpoint/ep_a/2/another", Some(vec![])).await;
    for process in [&a, &b, &world.join("c").await] {
        all(process).await;
        assert_eq!(found(process, "ep_a").version, 2);
        assert_eq!(found(process, "ep_a").value.description, "second");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Create(String),
    Change(String),
    ChangeExpected(String, u64),
    Disable(String, u64),
    Delete(String),
    PutTenant(String),
    Compact,
}

fn ops() -> impl Strategy<Value = Vec<(usize, Op)>> {
    let id = || (0..4_u8).prop_map(|number| format!("ep_{number}"));
    let op = prop_oneof![
        3 => id().prop_map(Op::Create),
        6 => id().prop_map(Op::Change),
        3 => (id(), 1..5_u64).prop_map(|(id, version)| Op::ChangeExpected(id, version)),
        2 => (id(), 1..5_u64).prop_map(|(id, version)| Op::Disable(id, version)),
        1 => id().prop_map(Op::Delete),
        1 => "[ab]".prop_map(Op::PutTenant),
        1 => Just(Op::Compact),
    ];
    prop::collection::vec((0..3_usize, op), 1..60)
}

async fn run(registry: &Registry, op: Op, number: usize) {
    let text = number.to_string();
    let change = |endpoint: &_| described(endpoint, &text);
    let refused = match op {
        Op::Create(id) => registry.create_endpoint(endpoint(&id, "acme")).await.err(),
        Op::Change(id) => registry
            .update_endpoint(&endpoint_id(&id), None, change)
            .await
            .err(),
        Op::ChangeExpected(id, expected) => registry
            .update_endpoint(&endpoint_id(&id), Some(expected), change)
            .await
            .err(),
        Op::Disable(id, judged) => registry
            .disable_endpoint(&endpoint_id(&id), judged, "endpoint_gone")
            .await
            .err(),
        Op::Delete(id) => registry
            .delete_endpoint(&endpoint_id(&id), None)
            .await
            .err(),
        Op::PutTenant(id) => {
            let tenant = postrider_model::tenant::Tenant {
                name: text,
                ..tenant(&id)
            };
            registry.put_tenant(tenant).await.err()
        }
        Op::Compact => None,
    };
    // A fate that stays unknown is the adversary's doing; anything else must be an answer about the
    // endpoint.
    assert!(
        !matches!(refused, Some(WriteError::Invalid(_) | WriteError::TooLarge)),
        "{refused:?}"
    );
}

async fn agree_after(seed: u64, ops: Vec<(usize, Op)>) {
    let world = World::new(seed).await;
    let processes = [
        world.join("a").await,
        world.join("b").await,
        world.join("c").await,
    ];
    processes[0].put_tenant(tenant("acme")).await.unwrap();
    world.log.faults().on_append(|_, random| AppendPlan {
        delay: Duration::from_millis(random.below(4)),
        fate: match random.below(20) {
            0 => AppendFate::Failed,
            1 => AppendFate::UnknownLanded,
            2 => AppendFate::UnknownAbsent,
            3 => AppendFate::UnknownLate,
            _ => AppendFate::Acked,
        },
    });
    let mut running = JoinSet::new();
    for (number, (writer, op)) in ops.into_iter().enumerate() {
        if matches!(op, Op::Compact) {
            // Compaction removes nothing younger than a write may take, and no reader is that far
            // behind.
            for process in &processes {
                assert!(process.refresh(LONG).await);
            }
            world.log.compact(TOPIC);
            continue;
        }
        let registry = processes[writer].registry.clone();
        running.spawn(async move { run(&registry, op, number).await });
        if number % 4 == 0 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    running.join_all().await;
    while world.log.faults().release_late() {}
    world.log.faults().calm();

    let expected = all(&processes[0]).await;
    assert_eq!(all(&processes[1]).await, expected);
    assert_eq!(all(&processes[2]).await, expected);
    assert_eq!(all(&world.join("before").await.registry).await, expected);
    // Whatever was removed so far, and then whatever can be.
    world.log.compact(TOPIC);
    assert_eq!(all(&world.join("compacted").await.registry).await, expected);
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.log.compact(TOPIC);
    assert_eq!(all(&world.join("cleaned").await.registry).await, expected);
    let [a, b, c] = processes;
    for process in [a, b, c] {
        process.stop().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_in_every_process_and_after_every_compaction(seed in any::<u64>(), ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(agree_after(seed, ops));
    }
}
