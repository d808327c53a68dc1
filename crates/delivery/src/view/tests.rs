use std::sync::Arc;

use postrider_log::memory::MemoryLog;
use postrider_log::{Log, SystemClock, TopicSpec};
use postrider_model::topics::REGISTRY;
use postrider_registry::{Keyring, RegistryOptions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const FAR: u64 = 1_000_000;

/// A registry that this process takes part in, and what keeps it.
async fn joined() -> (Registry, JoinSet<()>) {
    let log = MemoryLog::new(Arc::new(SystemClock), 1);
    let topic = TopicSpec {
        name: REGISTRY.to_owned(),
        partitions: 1,
        retention: None,
        message_bytes_max: 1 << 20,
        settings: Vec::new(),
    };
    log.create_topics(&[topic]).await.unwrap();
    let keyring = Arc::new(Keyring::from_bytes([1; 32], Vec::new()));
    let options = RegistryOptions::default();
    let (registry, follower) = Registry::open(log, Arc::new(SystemClock), keyring, options)
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(CancellationToken::new()));
    registry.join().await.unwrap();
    (registry, tasks)
}

fn stamp(registry_id: u64, position: u64) -> RegistryStamp {
    RegistryStamp {
        registry_id,
        position,
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_of_another_registry_or_of_none_proves_nothing() {
    let (registry, _tasks) = joined().await;
    let here = registry.stamp();
    for id in [0, here.registry_id ^ 1] {
        let began = Instant::now();
        as_new_as(&registry, stamp(id, FAR)).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(registry.position_of(stamp(id, FAR)), None);
    }
    as_new_as(&registry, here).await;
    assert_eq!(registry.loss(), None);
}

#[tokio::test(start_paused = true)]
async fn a_position_past_the_end_of_this_registry_proves_a_loss_if_the_end_stays() {
    let (registry, _tasks) = joined().await;
    let here = registry.stamp();
    let began = Instant::now();
    as_new_as(&registry, stamp(here.registry_id, FAR)).await;
    assert!(began.elapsed() >= BEYOND_END_FOR);
    let loss = registry.loss().unwrap();
    assert_eq!(loss.lost_id, here.registry_id);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_judged_from_a_proven_loss_until_it_is_accepted() {
    let (registry, _tasks) = joined().await;
    let here = registry.stamp();
    let lost = stamp(here.registry_id, FAR);
    let mut view = CurrentView::new(registry.clone());
    let received = view.receive();
    let needed = |stamp| match registry.position_of(stamp) {
        Some(position) => Needed::Position(position),
        None => Needed::AsReceived,
    };
    assert!(view.suffices(needed(here), received));
    let began = Instant::now();
    while registry.loss().is_none() {
        assert!(!view.suffices(needed(lost), received));
        assert!(began.elapsed() < 3 * BEYOND_END_FOR, "it is proven in time");
        if registry.loss().is_none() {
            view.refreshed().await;
        }
    }
    assert!(
        !view.suffices(needed(here), received),
        "it might match nobody"
    );

    registry.accept_loss().await.unwrap();
    // What is stamped by the former registry is judged as one without a stamp.
    assert_eq!(needed(lost), Needed::AsReceived);
    view.refreshed().await;
    assert!(view.suffices(needed(lost), received));
}
