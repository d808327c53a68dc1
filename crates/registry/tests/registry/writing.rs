use std::time::Duration;

use postrider_log::memory::{AppendFate, AppendPlan};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::filter::EventTypeName;
use postrider_registry::{Lookup, Registry, RetryDelaysError, WriteError};
use tokio::task::JoinSet;

use crate::world::{
    World, all, described, endpoint, endpoint_id, eventually, found, tenant, tenant_id,
};

fn counted(endpoint: &Endpoint) -> Endpoint {
    let mut endpoint = endpoint.clone();
    let count = endpoint
        .metadata
        .get("count")
        .map_or(0, |count| count.parse::<u64>().unwrap());
    endpoint
        .metadata
        .insert("count".into(), (count + 1).to_string());
    endpoint
}

async fn with_endpoint(registry: &Registry, id: &str) {
    registry.put_tenant(tenant("acme")).await.unwrap();
    registry
        .create_endpoint(endpoint(id, "acme"))
        .await
        .unwrap();
}

fn disabled(registry: &Registry, id: &str) -> bool {
    matches!(
        found(registry, id).value.state,
        EndpointState::Disabled { .. }
    )
}

const UNKNOWN: WriteError = WriteError::Unavailable {
    may_have_been_written: true,
};
const NOT_WRITTEN: WriteError = WriteError::Unavailable {
    may_have_been_written: false,
};

#[tokio::test(start_paused = true)]
async fn loses_no_update_of_three_writers() {
    for seed in 0..10 {
        let world = World::new(seed).await;
        let processes = [
            world.join("a").await,
            world.join("b").await,
            world.join("c").await,
        ];
        with_endpoint(&processes[0], "ep_a").await;
        world.log.faults().on_append(|_, random| AppendPlan {
            delay: Duration::from_millis(random.below(5)),
            fate: if random.once_in(10) {
                AppendFate::Failed
            } else {
                AppendFate::Acked
            },
        });
        let mut writers = JoinSet::new();
        for process in &processes {
            let registry = process.registry.clone();
            writers.spawn(async move {
                for _ in 0..20 {
                    registry
                        .update_endpoint(&endpoint_id("ep_a"), None, counted)
                        .await
                        .unwrap();
                }
            });
        }
        writers.join_all().await;
        for process in &processes {
            let (_, endpoints, _) = all(process).await;
            assert_eq!(endpoints[0].value.metadata["count"], "60", "seed {seed}");
            assert_eq!(endpoints[0].version, 61, "seed {seed}");
        }
        let conflicts: u64 = processes
            .iter()
            .map(|process| process.counts().conflicts_total)
            .sum();
        assert!(conflicts > 0, "the writers never met, seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn creates_an_id_once() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    a.put_tenant(tenant("acme")).await.unwrap();
    let first = described(&endpoint("ep_a", "acme"), "first");
    let second = described(&endpoint("ep_a", "acme"), "second");
    b.refresh(Duration::from_secs(5)).await;
    let (one, other) = tokio::join!(a.create_endpoint(first), b.create_endpoint(second));
    let won = match (one, other) {
        (Ok(won), Err(WriteError::Exists)) | (Err(WriteError::Exists), Ok(won)) => won,
        other => panic!("{other:?}"),
    };
    assert_eq!(won.version, 1);
    for process in [&a, &b] {
        assert_eq!(found(process, "ep_a"), won);
        let again = process.create_endpoint(endpoint("ep_a", "acme")).await;
        assert_eq!(again, Err(WriteError::Exists));
    }
}

#[tokio::test(start_paused = true)]
async fn deletes_for_ever() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    with_endpoint(&a, "ep_a").await;
    a.delete_endpoint(&endpoint_id("ep_a"), Some(1))
        .await
        .unwrap();
    for process in [&a, &b] {
        let id = endpoint_id("ep_a");
        let deleted = Err(WriteError::Deleted);
        assert_eq!(process.update_endpoint(&id, None, counted).await, deleted);
        assert_eq!(
            process.create_endpoint(endpoint("ep_a", "acme")).await,
            deleted
        );
        assert_eq!(
            process.delete_endpoint(&id, None).await,
            Err(WriteError::Deleted)
        );
        assert_eq!(
            process.disable_endpoint(&id, 1, "endpoint_gone").await,
            Ok(false)
        );
        assert_eq!(process.endpoint(&id), Lookup::Deleted);
        assert_eq!(process.endpoint(&endpoint_id("ep_b")), Lookup::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn refuses_a_change_of_another_version_than_expected() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    with_endpoint(&a, "ep_a").await;
    let id = endpoint_id("ep_a");
    assert_eq!(
        a.update_endpoint(&id, Some(1), counted)
            .await
            .unwrap()
            .version,
        2
    );
    // Even where the view has not seen the second version yet.
    let conflict = WriteError::Conflict { present: 2 };
    for process in [&a, &b] {
        for expected in [1, 3] {
            let updated = process.update_endpoint(&id, Some(expected), counted).await;
            assert_eq!(updated, Err(conflict.clone()));
            let deleted = process.delete_endpoint(&id, Some(expected)).await;
            assert_eq!(deleted, Err(conflict.clone()));
        }
    }
    // Two at once: one wins, the other is told.
    let (one, other) = tokio::join!(
        a.update_endpoint(&id, Some(2), |endpoint| described(endpoint, "a")),
        b.update_endpoint(&id, Some(2), |endpoint| described(endpoint, "b")),
    );
    let conflict = WriteError::Conflict { present: 3 };
    assert!(matches!((&one, &other), (Ok(_), Err(lost)) | (Err(lost), Ok(_)) if *lost == conflict));
    assert_eq!(found(&a, "ep_a"), one.or(other).unwrap());
}

#[tokio::test(start_paused = true)]
async fn sees_what_another_process_has_just_written() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    for number in 0..20 {
        let id = format!("ep_{number}");
        with_endpoint(&a, &id).await;
        let id = endpoint_id(&id);
        assert_eq!(
            b.update_endpoint(&id, Some(1), counted)
                .await
                .unwrap()
                .version,
            2
        );
        let tenant_name = format!("tenant-{number}");
        a.put_tenant(tenant(&tenant_name)).await.unwrap();
        let other = endpoint(&format!("ep_other-{number}"), &tenant_name);
        b.create_endpoint(other).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn writes_nothing_that_is_so_already() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    with_endpoint(&a, "ep_a").await;
    let before = world.live_keys();
    let later = postrider_model::tenant::Tenant {
        created_at_ms: 99,
        ..tenant("acme")
    };
    let present = a.put_tenant(later).await.unwrap();
    assert_eq!((present.version, present.value.created_at_ms), (1, 5));
    let same = a
        .update_endpoint(&endpoint_id("ep_a"), None, Clone::clone)
        .await
        .unwrap();
    assert_eq!(same.version, 1);
    assert_eq!(world.live_keys(), before);
    let renamed = postrider_model::tenant::Tenant {
        name: "other".into(),
        ..tenant("acme")
    };
    assert_eq!(a.put_tenant(renamed).await.unwrap().version, 2);
}

#[tokio::test(start_paused = true)]
async fn keeps_id_and_tenant_of_an_endpoint_that_is_changed() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    with_endpoint(&a, "ep_a").await;
    let moved = |_: &Endpoint| described(&endpoint("ep_b", "other"), "moved");
    a.update_endpoint(&endpoint_id("ep_a"), None, moved)
        .await
        .unwrap();
    let found = found(&a, "ep_a");
    assert_eq!(
        (found.value.tenant.as_str(), &*found.value.description),
        ("acme", "moved")
    );
    assert_eq!(a.endpoint(&endpoint_id("ep_b")), Lookup::Unknown);
}

#[tokio::test(start_paused = true)]
async fn disables_only_the_version_that_was_judged() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    with_endpoint(&a, "ep_a").await;
    let id = endpoint_id("ep_a");
    assert_eq!(b.disable_endpoint(&id, 1, "endpoint_gone").await, Ok(true));
    assert!(disabled(&b, "ep_a"));
    let event_type = EventTypeName::try_new("invoice.paid").unwrap();
    assert!(
        b.matching(&tenant_id("acme"), &event_type)
            .endpoints
            .is_empty()
    );
    let enabled = |endpoint: &Endpoint| Endpoint {
        state: EndpointState::Enabled,
        ..endpoint.clone()
    };
    a.update_endpoint(&id, None, enabled).await.unwrap();
    assert_eq!(b.disable_endpoint(&id, 1, "endpoint_gone").await, Ok(false));
    assert_eq!(b.disable_endpoint(&id, 2, "endpoint_gone").await, Ok(false));
    assert!(!disabled(&b, "ep_a"));
    assert_eq!(
        b.matching(&tenant_id("acme"), &event_type).endpoints.len(),
        1
    );
    assert_eq!(
        (b.counts().endpoints_enabled, b.counts().endpoints_disabled),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn keeps_the_limits() {
    let mut world = World::new(1).await;
    world.options.tenants_max = 1;
    world.options.endpoints_per_tenant_max = 2;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    let limit = a.put_tenant(tenant("other")).await;
    assert_eq!(
        limit,
        Err(WriteError::Limit {
            of: "tenants",
            max: 1
        })
    );
    a.put_tenant(postrider_model::tenant::Tenant {
        name: "new".into(),
        ..tenant("acme")
    })
    .await
    .unwrap();
    let unknown = a.create_endpoint(endpoint("ep_a", "other")).await;
    assert_eq!(unknown, Err(WriteError::TenantUnknown));
    let ids = ["ep_a", "ep_b", "ep_c"];
    let results = a
        .import_endpoints(ids.map(|id| endpoint(id, "acme")).into())
        .await;
    let limit = WriteError::Limit {
        of: "endpoints of the tenant",
        max: 2,
    };
    assert!(results[0].is_ok() && results[1].is_ok());
    assert_eq!(results[2], Err(limit.clone()));
    a.delete_endpoint(&endpoint_id("ep_a"), None).await.unwrap();
    a.create_endpoint(endpoint("ep_d", "acme")).await.unwrap();
    assert_eq!(
        a.create_endpoint(endpoint("ep_e", "acme")).await,
        Err(limit)
    );
}

#[tokio::test(start_paused = true)]
async fn imports_many_each_by_itself() {
    let mut world = World::new(1).await;
    world.options.endpoints_per_tenant_max = 5_000;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    let mut endpoints: Vec<_> = (0..2_500)
        .map(|number| endpoint(&format!("ep_{number}"), "acme"))
        .collect();
    endpoints[7] = endpoint("ep_3", "acme");
    endpoints[9] = endpoint("ep_9", "nobody");
    let results = a.import_endpoints(endpoints).await;
    assert_eq!(results.len(), 2_500);
    for (number, result) in results.into_iter().enumerate() {
        match number {
            7 => assert_eq!(result, Err(WriteError::Exists)),
            9 => assert_eq!(result, Err(WriteError::TenantUnknown)),
            _ => assert_eq!(result.unwrap().value.id.as_str(), format!("ep_{number}")),
        }
    }
    let first = a.endpoints(&tenant_id("acme"), None, 2);
    let after = a.endpoints(&tenant_id("acme"), Some(&first[0].value.id), 1);
    assert_eq!(first[1], after[0]);
    assert_eq!(a.counts().endpoints_enabled, 2_498);
}

#[tokio::test(start_paused = true)]
async fn changes_no_delay_that_may_be_waited_for() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    assert_eq!(a.retry_delays(), None);
    a.record_retry_delays(&[1_000, 5_000], &[]).await.unwrap();
    b.refresh(Duration::from_secs(5)).await;
    assert_eq!(
        b.record_retry_delays(&[1_000, 5_000], &[])
            .await
            .unwrap()
            .version,
        1
    );
    let longer = b
        .record_retry_delays(&[1_000, 5_000, 60_000], &[])
        .await
        .unwrap();
    assert_eq!(
        (longer.version, &**longer.value),
        (2, &[1_000, 5_000, 60_000][..])
    );
    a.refresh(Duration::from_secs(5)).await;
    let in_use = |partition, delay_ms| {
        Err(RetryDelaysError::InUse {
            partition,
            delay_ms,
        })
    };
    assert_eq!(
        a.record_retry_delays(&[1_000, 5_000], &[]).await,
        in_use(2, 60_000)
    );
    assert_eq!(
        a.record_retry_delays(&[1_000, 2_000, 5_000], &[1]).await,
        in_use(2, 60_000)
    );
    a.record_retry_delays(&[1_000, 2_000, 5_000], &[1, 2])
        .await
        .unwrap();
    assert_eq!(*a.retry_delays().unwrap().value, [1_000, 2_000, 5_000]);
}

#[tokio::test(start_paused = true)]
async fn answers_by_what_the_log_has_when_the_fate_is_unknown() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    with_endpoint(&a, "ep_a").await;
    let id = endpoint_id("ep_a");
    world
        .log
        .faults()
        .next_append("registry", AppendFate::UnknownLanded);
    assert_eq!(
        a.update_endpoint(&id, None, counted).await.unwrap().version,
        2
    );

    world
        .log
        .faults()
        .next_append("registry", AppendFate::UnknownAbsent);
    assert_eq!(a.update_endpoint(&id, None, counted).await, Err(UNKNOWN));
    assert_eq!(
        a.update_endpoint(&id, None, counted).await.unwrap().version,
        3
    );

    world
        .log
        .faults()
        .next_append("registry", AppendFate::Failed);
    assert_eq!(
        a.update_endpoint(&id, None, counted).await.unwrap().version,
        4
    );
    assert_eq!(all(&a).await, all(&b).await);
    assert_eq!(found(&b, "ep_a").value.metadata["count"], "3");
}

#[tokio::test(start_paused = true)]
async fn lets_a_late_write_count_only_in_place_of_what_it_was_based_on() {
    for overtaken in [false, true] {
        let world = World::new(1).await;
        let (a, b) = (world.join("a").await, world.join("b").await);
        with_endpoint(&a, "ep_a").await;
        let id = endpoint_id("ep_a");
        world
            .log
            .faults()
            .next_append("registry", AppendFate::UnknownLate);
        let late = a
            .update_endpoint(&id, None, |endpoint| described(endpoint, "late"))
            .await;
        assert_eq!(late, Err(UNKNOWN));
        if overtaken {
            b.delete_endpoint(&id, None).await.unwrap();
        }
        assert!(world.log.faults().release_late());
        assert_eq!(all(&a).await, all(&b).await);
        if overtaken {
            assert_eq!(a.endpoint(&id), Lookup::Deleted);
        } else {
            assert_eq!(
                (
                    found(&b, "ep_a").version,
                    &*found(&b, "ep_a").value.description
                ),
                (2, "late")
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn says_that_nothing_was_written_when_every_append_fails() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    with_endpoint(&a, "ep_a").await;
    world
        .log
        .faults()
        .on_append(|_, _| AppendFate::Failed.into());
    let started = tokio::time::Instant::now();
    let id = endpoint_id("ep_a");
    assert_eq!(
        a.update_endpoint(&id, None, counted).await,
        Err(NOT_WRITTEN)
    );
    assert!(
        started.elapsed() <= Duration::from_millis(10_100),
        "{:?}",
        started.elapsed()
    );
    world.log.faults().calm();
    assert_eq!(
        a.update_endpoint(&id, None, counted).await.unwrap().version,
        2
    );
}

#[tokio::test(start_paused = true)]
async fn refuses_what_no_reader_would_understand() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    let url = "ftp://example.com/".parse().unwrap();
    let unreadable = Endpoint {
        url,
        ..endpoint("ep_a", "acme")
    };
    let refused = a.create_endpoint(unreadable).await;
    assert!(
        matches!(refused, Err(WriteError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(world.live_keys().len(), 1);
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leaves_nothing_behind_when_a_caller_gives_up() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    with_endpoint(&a, "ep_a").await;
    let delay = Duration::from_secs(1);
    world.log.faults().next_append(
        "registry",
        AppendPlan {
            delay,
            fate: AppendFate::Acked,
        },
    );
    let id = endpoint_id("ep_a");
    let change = a.update_endpoint(&id, None, counted);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), change)
            .await
            .is_err()
    );
    eventually("the write that nobody waits for counts", || {
        found(&a, "ep_a").version == 2
    })
    .await;
    assert_eq!(
        a.update_endpoint(&id, None, counted).await.unwrap().version,
        3
    );
}
