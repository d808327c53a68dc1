use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use postrider_log::memory::MemoryLog;
use postrider_log::{
    Batch, Bounds, Committed, Group, GroupOptions, Log, LogError, Offset, Partition, Producer,
    ProducerOptions, Reader, SystemClock, TopicDescription, TopicSpec,
};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::tenant::Installation;
use postrider_registry::{Lookup, Registry, RegistryError, RegistryOptions, WriteError};

use crate::world::{
    LONG, TOPIC, World, all, create_topic, described, endpoint, endpoint_id, eventually, found,
    keyring, tenant, tenant_id,
};

#[tokio::test(start_paused = true)]
async fn matches_by_tenant_type_and_state_at_a_position() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    for id in ["acme", "other"] {
        a.put_tenant(tenant(id)).await.unwrap();
    }
    let wanting = |patterns: &[&str]| {
        EventTypeFilter::try_new(patterns.iter().map(|&pattern| pattern.into()).collect()).unwrap()
    };
    let disabled = EndpointState::Disabled {
        reason: "manual".into(),
        since_ms: 1,
    };
    let endpoints = vec![
        Endpoint {
            event_types: wanting(&["invoice.*"]),
            ..endpoint("ep_d", "acme")
        },
        endpoint("ep_b", "acme"),
        Endpoint {
            event_types: wanting(&["invoice.sent"]),
            ..endpoint("ep_a", "acme")
        },
        Endpoint {
            state: disabled,
            ..endpoint("ep_c", "acme")
        },
        endpoint("ep_e", "other"),
    ];
    let results = a.import_endpoints(endpoints).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let matched = a.matching(
        &tenant_id("acme"),
        &EventTypeName::try_new("invoice.paid").unwrap(),
    );
    let ids: Vec<_> = matched
        .endpoints
        .iter()
        .map(|endpoint| endpoint.id.as_str())
        .collect();
    assert_eq!(ids, ["ep_b", "ep_d"]);
    assert_eq!(matched.registry, a.stamp());
    assert_eq!(a.position(), 7);
    assert_eq!(
        (a.counts().endpoints_enabled, a.counts().endpoints_disabled),
        (4, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn catches_up_across_gaps() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    let faults = world.log.faults();
    faults.gap(TOPIC, 0, 5);
    a.put_tenant(tenant("acme")).await.unwrap();
    faults.gap(TOPIC, 0, 3);
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
    faults.gap(TOPIC, 0, 2);
    let b = world.join("b").await;
    assert!(b.ready());
    assert_eq!(b.position(), 12);
    assert_eq!(all(&b).await, all(&a).await);
    assert!(b.wait_for(12, Duration::ZERO).await);
    assert!(!b.wait_for(13, Duration::from_secs(5)).await);
}

#[tokio::test(start_paused = true)]
async fn is_not_ready_before_it_has_read_what_was_there() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    let opened = Registry::open(
        world.log.process("b"),
        Arc::new(SystemClock),
        Arc::new(keyring(1)),
        RegistryOptions::default(),
    );
    let (registry, _follower) = opened.await.unwrap();
    assert!(!registry.ready());
    let written = registry.put_tenant(tenant("other")).await;
    let not_written = WriteError::Unavailable {
        may_have_been_written: false,
    };
    assert_eq!(written, Err(not_written));
}

#[tokio::test(start_paused = true)]
async fn reads_past_records_it_does_not_understand() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
    world.append("garbage", Some(b"garbage".to_vec())).await;
    world.append("", None).await;
    world.append("api-key/key_1/1/n", Some(vec![])).await;
    world
        .append("endpoint/ep_a/2/n", Some(b"\xff\xff".to_vec()))
        .await;
    world
        .append("endpoint/ep_new/1/n", Some(b"\xff\xff".to_vec()))
        .await;
    a.refresh(LONG).await;
    assert_eq!(a.counts().unreadable_total, 5);
    assert_eq!(
        (
            found(&a, "ep_a").version,
            &*found(&a, "ep_a").value.description
        ),
        (2, "")
    );
    let change = |endpoint: &Endpoint| described(endpoint, "understood");
    let changed = a
        .update_endpoint(&endpoint_id("ep_a"), Some(2), change)
        .await
        .unwrap();
    assert_eq!(changed.version, 3);
    a.create_endpoint(endpoint("ep_b", "acme")).await.unwrap();
    let b = world.join("b").await;
    assert_eq!(all(&b).await, all(&a).await);
}

#[tokio::test(start_paused = true)]
async fn refuses_a_topic_that_is_missing_or_has_no_one_order() {
    let log = MemoryLog::new(Arc::new(SystemClock), 1);
    let open = || {
        let keyring = Arc::new(keyring(1));
        Registry::open(
            log.clone(),
            Arc::new(SystemClock),
            keyring,
            RegistryOptions::default(),
        )
    };
    let missing = open().await.err();
    assert!(
        matches!(missing, Some(RegistryError::Log(LogError::NoSuchTopic(_)))),
        "{missing:?}"
    );
    create_topic(&*log, 2).await;
    assert!(matches!(
        open().await.err(),
        Some(RegistryError::Partitions(2))
    ));
}

#[tokio::test(start_paused = true)]
async fn keeps_its_view_while_the_log_is_away_and_then_goes_on() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
    let away = Arc::new(AtomicBool::new(false));
    let unsteady = Unsteady {
        log: world.log.process("b"),
        away: Arc::clone(&away),
    };
    let b = world.join_with(Arc::new(unsteady), keyring(1)).await;
    assert!(b.age() <= Duration::from_secs(2));
    away.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(b.age() >= Duration::from_secs(55), "{:?}", b.age());
    assert!(b.counts().read_failures_total >= 5);
    assert_eq!(found(&b, "ep_a").version, 1);
    assert!(b.ready());
    let id = endpoint_id("ep_a");
    let written = b
        .update_endpoint(&id, None, |endpoint| described(endpoint, "b"))
        .await;
    let unknown = WriteError::Unavailable {
        may_have_been_written: true,
    };
    assert_eq!(written, Err(unknown));
    away.store(false, Ordering::SeqCst);
    eventually("the view is current", || b.age() <= Duration::from_secs(2)).await;
    assert_eq!(all(&b).await, all(&a).await);
    assert_eq!(found(&b, "ep_a").value.description, "b");
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn concludes_nothing_from_a_view_that_lags() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    let away = Arc::new(AtomicBool::new(false));
    let unsteady = Unsteady {
        log: world.log.process("b"),
        away: Arc::clone(&away),
    };
    let b = world.join_with(Arc::new(unsteady), keyring(1)).await;
    let change = |endpoint: &Endpoint| described(endpoint, "changed");
    let (id, none) = (endpoint_id("ep_a"), endpoint_id("ep_none"));

    away.store(true, Ordering::SeqCst);
    a.put_tenant(tenant("acme")).await.unwrap();
    a.create_endpoint(endpoint("ep_a", "acme")).await.unwrap();
    a.update_endpoint(&id, None, change).await.unwrap();
    assert_eq!(b.endpoint(&id), Lookup::Unknown);
    let lagging = async {
        tokio::join!(
            b.create_endpoint(endpoint("ep_b", "acme")),
            b.disable_endpoint(&id, 2, "endpoint_gone"),
            b.delete_endpoint(&none, None),
        )
    };
    let back = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        away.store(false, Ordering::SeqCst);
    };
    let ((created, disabled, deleted), ()) = tokio::join!(lagging, back);
    assert_eq!(created.map(|created| created.version), Ok(1));
    assert_eq!((disabled, deleted), (Ok(true), Err(WriteError::NotFound)));

    away.store(true, Ordering::SeqCst);
    let acme = tenant_id("acme");
    a.pause_tenant(&acme, true).await.unwrap();
    let paused = Installation {
        deliveries_paused: true,
    };
    a.put_installation(paused).await.unwrap();
    // Nothing is paused in its view, which is no reason to believe that nothing is.
    assert!(!b.installation().value.deliveries_paused);
    let resuming = async {
        tokio::join!(
            b.pause_tenant(&acme, false),
            b.put_installation(Installation::default()),
        )
    };
    let back = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        away.store(false, Ordering::SeqCst);
    };
    let ((tenant_resumed, resumed), ()) = tokio::join!(resuming, back);
    assert_eq!(tenant_resumed.map(|resumed| resumed.version), Ok(3));
    assert_eq!(resumed.map(|resumed| resumed.version), Ok(2));

    away.store(true, Ordering::SeqCst);
    a.put_tenant(tenant("other")).await.unwrap();
    let deleted = b.delete_endpoint(&none, None).await;
    let not_written = WriteError::Unavailable {
        may_have_been_written: false,
    };
    assert_eq!(deleted, Err(not_written));
}

#[tokio::test]
async fn loads_ten_thousand_endpoints_in_time() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    let mut endpoints = Vec::new();
    for tenant_number in 0..20 {
        let tenant_name = format!("tenant-{tenant_number}");
        a.put_tenant(tenant(&tenant_name)).await.unwrap();
        for number in 0..500 {
            let id = format!("ep_{tenant_number}-{number}");
            let secrets = vec![a.seal(&endpoint_id(&id), &secret())];
            endpoints.push(Endpoint {
                secrets,
                ..endpoint(&id, &tenant_name)
            });
        }
    }
    let started = Instant::now();
    let results = a.import_endpoints(endpoints).await;
    let imported = started.elapsed();
    assert!(results.iter().all(Result::is_ok));
    let started = Instant::now();
    let b = world.join("b").await;
    let loaded = started.elapsed();
    assert_eq!(b.counts().endpoints_enabled, 10_000);
    println!("imported 10,000 endpoints in {imported:?}, loaded them in {loaded:?}");
    assert!(loaded < Duration::from_secs(10), "{loaded:?}");
    assert!(imported < Duration::from_secs(30), "{imported:?}");
}

fn secret() -> postrider_model::signature::SigningSecret {
    postrider_model::signature::SigningSecret::generate(&[3; 32])
}

/// A log whose reads fail while it is away; appends go through, as if only their answers were lost.
#[derive(Debug)]
struct Unsteady {
    log: Arc<dyn Log>,
    away: Arc<AtomicBool>,
}

#[derive(Debug)]
struct UnsteadyReader {
    reader: Box<dyn Reader>,
    away: Arc<AtomicBool>,
}

#[async_trait]
impl Reader for UnsteadyReader {
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError> {
        let batch = self.reader.read(partition, from, bytes_max, wait).await?;
        if self.away.load(Ordering::SeqCst) {
            return Err(LogError::Unavailable("away".into()));
        }
        Ok(batch)
    }
}

#[async_trait]
impl Log for Unsteady {
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.log.create_topics(topics).await
    }

    async fn describe_topics(
        &self,
        topics: &[&str],
    ) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.log.describe_topics(topics).await
    }

    async fn partition_count(&self, topic: &str) -> Result<i32, LogError> {
        self.log.partition_count(topic).await
    }

    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError> {
        self.log.bounds(topic, partition).await
    }

    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError> {
        self.log
            .offset_for_time(topic, partition, timestamp_ms)
            .await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.log.committed(group, topic).await
    }

    async fn set_committed(
        &self,
        group: &str,
        topic: &str,
        commits: &[(Partition, Committed)],
    ) -> Result<(), LogError> {
        self.log.set_committed(group, topic, commits).await
    }

    async fn producer(&self, options: ProducerOptions) -> Result<Box<dyn Producer>, LogError> {
        self.log.producer(options).await
    }

    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError> {
        let reader = self.log.reader(topic).await?;
        Ok(Box::new(UnsteadyReader {
            reader,
            away: Arc::clone(&self.away),
        }))
    }

    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError> {
        self.log.group(options).await
    }
}
