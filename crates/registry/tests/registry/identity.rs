//! Which registry it is, whose keys it seals with, and what comes of the loss of its records.

use std::sync::Arc;

use postrider_model::endpoint::Endpoint;
use postrider_model::identity::Identity;
use postrider_model::signature::SigningSecret;
use postrider_registry::{JoinError, Keyring, Registry};

use crate::world::{
    LONG, Process, TOPIC, World, all, endpoint, endpoint_id, eventually, keyring, tenant, tenant_id,
};

fn keys(primary: u8, older: &[u8]) -> Keyring {
    Keyring::from_bytes([primary; 32], older.iter().map(|key| [*key; 32]).collect())
}

fn identity(registry: &Registry) -> Arc<Identity> {
    registry.identity().expect("there is an identity").value
}

async fn process(world: &World, name: &str, keyring: Keyring) -> Process {
    world.join_with(world.log.process(name), keyring).await
}

fn with_secret(registry: &Registry, id: &str) -> Endpoint {
    let secret = SigningSecret::generate(&[7; 32]);
    Endpoint {
        secrets: vec![registry.seal(&endpoint_id(id), &secret)],
        ..endpoint(id, "acme")
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_first_names_the_registry_and_the_others_see_the_same() {
    let world = World::new(1).await;
    let processes = [
        process(&world, "a", keyring(1)).await,
        process(&world, "b", keyring(1)).await,
        process(&world, "c", keyring(1)).await,
    ];
    let joins = processes.iter().map(|one| one.join());
    for joined in futures_util::future::join_all(joins).await {
        joined.unwrap();
    }
    let first = identity(&processes[0]);
    for process in &processes {
        assert!(process.refresh(LONG).await);
        assert_eq!(identity(process), first);
        assert_eq!(process.stamp().registry_id, first.id);
    }
    assert_ne!(first.id, 0);
    // A second time nothing is written.
    let end = processes[0].position();
    processes[1].join().await.unwrap();
    assert!(processes[0].refresh(LONG).await);
    assert_eq!(processes[0].position(), end);
}

#[tokio::test(start_paused = true)]
async fn another_installation_may_not_join() {
    let world = World::new(1).await;
    process(&world, "a", keyring(1)).await.join().await.unwrap();
    let other = process(&world, "b", keyring(2)).await;
    let refused = other.join().await;
    assert!(
        matches!(refused, Err(JoinError::OtherKeys { .. })),
        "{refused:?}"
    );
    // Not even where the key is lost for good, unless an operator says so.
    other.accept_keys().await.unwrap();
    other.join().await.unwrap();
    process(&world, "c", keyring(1)).await.join().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_installation_of_an_earlier_release_is_joined_by_those_whose_keys_it_sealed_with() {
    let world = World::new(1).await;
    let earlier = process(&world, "earlier", keyring(1)).await;
    earlier.put_tenant(tenant("acme")).await.unwrap();
    let sealed = with_secret(&earlier, "ep_a");
    earlier.create_endpoint(sealed).await.unwrap();

    let other = process(&world, "other", keyring(2)).await;
    let refused = other.join().await;
    assert!(
        matches!(refused, Err(JoinError::OtherKeys { .. })),
        "{refused:?}"
    );
    assert!(other.identity().is_none());
    process(&world, "a", keys(2, &[1]))
        .await
        .join()
        .await
        .unwrap();
    process(&world, "b", keyring(1)).await.join().await.unwrap();
}

/// Each step of a rotation, process by process, with restarts of any of them in between.
#[tokio::test(start_paused = true)]
async fn keys_are_rotated_while_processes_of_both_kinds_start() {
    let world = World::new(1).await;
    let steps: [(u8, &[u8]); 6] = [
        (1, &[]),
        (1, &[2]),
        (2, &[1]),
        (1, &[2]),
        (2, &[1]),
        (2, &[]),
    ];
    for (step, (primary, older)) in steps.into_iter().enumerate() {
        let name = format!("p{step}");
        let process = process(&world, &name, keys(primary, older)).await;
        process
            .join()
            .await
            .unwrap_or_else(|error| panic!("{step}: {error}"));
    }
    // One that was not given the new key yet starts again in the middle.
    process(&world, "late", keyring(1))
        .await
        .join()
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn secrets_that_do_not_open_are_counted_until_they_are_replaced_or_end() {
    let world = World::new(1).await;
    let a = process(&world, "a", keyring(1)).await;
    let b = process(&world, "b", keys(1, &[2])).await;
    a.join().await.unwrap();
    b.join().await.unwrap();
    b.put_tenant(tenant("acme")).await.unwrap();
    let foreign = process(&world, "c", keyring(2)).await;
    for id in ["ep_a", "ep_b", "ep_c"] {
        b.create_endpoint(with_secret(&foreign, id)).await.unwrap();
    }
    b.create_endpoint(with_secret(&b, "ep_d")).await.unwrap();
    assert!(a.refresh(LONG).await);
    let (count, first) = a.unsignable();
    assert_eq!((count, first.unwrap().0), (3, endpoint_id("ep_a")));
    assert_eq!(b.unsignable().0, 0);

    let fresh = with_secret(&a, "ep_a").secrets;
    let renew = |endpoint: &Endpoint| Endpoint {
        secrets: fresh.clone(),
        ..endpoint.clone()
    };
    a.update_endpoint(&endpoint_id("ep_a"), None, renew)
        .await
        .unwrap();
    let end = |endpoint: &Endpoint| {
        let mut ended = endpoint.clone();
        ended.secrets[0].expires_at_ms = Some(1);
        ended
    };
    a.update_endpoint(&endpoint_id("ep_b"), None, end)
        .await
        .unwrap();
    assert_eq!(a.unsignable().0, 1);
    a.delete_endpoint(&endpoint_id("ep_c"), None).await.unwrap();
    assert_eq!(a.unsignable().0, 0);
}

/// Three processes and a few entities; the last endpoint is the newest record.
async fn settled() -> (World, [Process; 3]) {
    let world = World::new(1).await;
    let processes = [
        process(&world, "a", keyring(1)).await,
        process(&world, "b", keyring(1)).await,
        process(&world, "c", keyring(1)).await,
    ];
    for process in &processes {
        process.join().await.unwrap();
    }
    let [a, ..] = &processes;
    a.put_tenant(tenant("acme")).await.unwrap();
    for id in ["ep_a", "ep_b", "ep_c"] {
        a.create_endpoint(with_secret(a, id)).await.unwrap();
    }
    for process in &processes {
        assert!(process.refresh(LONG).await);
    }
    (world, processes)
}

async fn all_know_the_loss(processes: &[Process]) {
    for process in processes {
        eventually("the loss is known", || {
            process
                .identity()
                .is_some_and(|identity| identity.value.loss.is_some())
        })
        .await;
        assert!(process.loss().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_tail_is_noticed_by_all_who_read_it_and_all_show_the_same() {
    let (world, processes) = settled().await;
    let end = world.log.snapshot(TOPIC).last().unwrap().offset;
    world.log.faults().cut(TOPIC, 0, end - 1);
    all_know_the_loss(&processes).await;
    let [a, b, c] = &processes;
    let expected = all(a).await;
    assert_eq!(expected.1.len(), 1);
    assert_eq!(all(b).await, expected);
    assert_eq!(all(c).await, expected);
    // Writes win again, and a process that starts only now knows what happened.
    b.create_endpoint(with_secret(b, "ep_d")).await.unwrap();
    assert_eq!(all(a).await, all(b).await);
    assert!(a.identity().unwrap().value.loss.is_some());
    let late = process(&world, "late", keyring(1)).await;
    late.join().await.unwrap();
    assert!(late.loss().is_some());

    let before = a.stamp().registry_id;
    late.accept_loss().await.unwrap();
    for process in [a, b, c, &late] {
        assert!(process.refresh(LONG).await);
        assert_eq!(process.loss(), None);
        let identity = identity(process);
        assert_ne!(identity.id, before);
        assert!(identity.former_ids.contains(&before));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_grew_again_past_what_was_read_is_noticed() {
    let (world, processes) = settled().await;
    let end = world.log.snapshot(TOPIC).last().unwrap().offset;
    world.log.faults().cut(TOPIC, 0, end - 1);
    for number in 0..20 {
        world
            .append(&format!("tenant/other{number}/1/n"), Some(vec![]))
            .await;
    }
    all_know_the_loss(&processes).await;
    for process in &processes {
        eventually("it has read everything again", || {
            process.endpoints(&tenant_id("acme"), None, 10).len() == 1
        })
        .await;
    }
    assert_eq!(all(&processes[0]).await, all(&processes[1]).await);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_was_made_again_is_noticed_and_gets_an_identity() {
    let (world, processes) = settled().await;
    let before = identity(&processes[0]).id;
    world.log.faults().cut(TOPIC, 0, 0);
    all_know_the_loss(&processes).await;
    let [a, b, c] = &processes;
    let made = identity(a);
    assert_ne!(made.id, before);
    assert_eq!(made.loss.as_ref().unwrap().lost_id, before);
    assert_eq!((identity(b), identity(c)), (made.clone(), made));
    b.accept_loss().await.unwrap();
    assert!(a.refresh(LONG).await);
    assert!(identity(a).former_ids.contains(&before));
    assert_eq!(a.loss(), None);
    // It is told once only.
    tokio::time::sleep(LONG).await;
    assert_eq!(a.loss(), None);
}

#[tokio::test(start_paused = true)]
async fn a_write_under_way_hears_what_the_topic_that_was_made_again_says() {
    let (world, processes) = settled().await;
    let [a, ..] = &processes;
    // Nobody reads on while the topic is made again, so that the write falls between.
    world.log.faults().cut(TOPIC, 0, 0);
    let written = a.put_tenant(tenant("globex")).await;
    let again = match written {
        Ok(_) => Ok(()),
        Err(_) => a.put_tenant(tenant("globex")).await.map(drop),
    };
    again.unwrap();
    assert!(processes[1].refresh(LONG).await);
    assert!(processes[1].tenant(&tenant_id("globex")).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_too_low_for_a_moment_and_compaction_are_no_loss() {
    let (world, processes) = settled().await;
    for round in 0..5 {
        let a = &processes[0];
        let change = |endpoint: &Endpoint| crate::world::described(endpoint, &format!("{round}"));
        a.update_endpoint(&endpoint_id("ep_a"), None, change)
            .await
            .unwrap();
        tokio::time::sleep(LONG).await;
        world.log.compact(TOPIC);
        tokio::time::sleep(LONG).await;
    }
    for process in &processes {
        assert_eq!(process.loss(), None);
    }
}
