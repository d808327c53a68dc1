//! Worlds without an adversary, each with one question.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::{Log, LogClock, NewRecord, Target};
use postrider_model::delivery::{DeadLetter, Delivery};
use postrider_model::event::{Event, EventPosition};
use postrider_model::identity::RegistryStamp;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::outcome::Reason;
use postrider_model::topics::{
    DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT,
    GROUP_SCHEDULER, RETRY,
};
use tokio::time::sleep;

use super::chronicle::Sent;
use super::clock::SimulatedClock;
use super::world::World;

impl World {
    /// One event at a time: answers with how late each retry left, in milliseconds. Endpoints that
    /// ask for time get it for all of their deliveries, so these say nothing.
    pub(crate) async fn run_idle(mut self) -> Vec<i64> {
        self.start(0);
        for _ in 0..30 {
            self.publish_one().await;
            self.pass(Duration::from_secs(60)).await;
        }
        self.settle().await;
        let mut sent = self.sent();
        sent.retain(|sent| !["limited", "lying"].contains(&sent.endpoint.as_str()));
        self.watch.audit(|audit| {
            let late = sent.iter().filter_map(|sent| audit.lateness_ms(sent));
            late.collect()
        })
    }

    /// Endpoints that never answer, and retention that comes near: answers with how many deliveries
    /// were dead-lettered for that, after everything is settled.
    pub(crate) async fn run_expiry(mut self) -> usize {
        self.config.deliver.breaker_failures = 2;
        self.config.deliver.expires_after_ms = 10 * 60_000;
        self.start(0);
        for _ in 0..20 {
            self.publish().await;
            self.pass(Duration::from_secs(10)).await;
        }
        self.settle().await;
        self.expired()
    }

    /// A machine whose clock is off, and workers that go by it, or by the log's clock as far as the
    /// machine knows that: answers with how many deliveries expired, a second old, and how late
    /// each retry was.
    pub(crate) async fn run_clock_off(mut self, off_ms: i64, by_log: bool) -> (usize, Vec<i64>) {
        let machine = SimulatedClock::start();
        machine.set_off(off_ms);
        self.worker_clock = machine.clone();
        if by_log {
            let clock = Arc::new(LogClock::new(machine, 60_000));
            self.worker_clock = clock.clone();
            let log = self.log.clone();
            self.background
                .spawn(async move { clock.follow(&*log, ENDPOINT_STATE).await });
            sleep(Duration::from_secs(1)).await;
        }
        self.start(0);
        for _ in 0..20 {
            self.publish().await;
            self.pass(Duration::from_secs(10)).await;
        }
        self.pass(Duration::from_secs(120)).await;
        let mut sent = self.sent();
        sent.retain(|sent| !["limited", "lying"].contains(&sent.endpoint.as_str()));
        let late = self.watch.audit(|audit| {
            let late = sent.iter().filter_map(|sent| audit.lateness_ms(sent));
            late.collect()
        });
        (self.expired(), late)
    }

    fn expired(&self) -> usize {
        let letters = self.log.snapshot(DEAD_LETTERS);
        let expired = letters.iter().filter(|record| {
            let letter = DeadLetter::decode(record.value.as_deref().unwrap_or_default());
            letter.is_ok_and(|letter| letter.reason == Reason::Expired)
        });
        expired.count()
    }

    /// Records that say what no honest writer would, then an honest event: answers whether that was
    /// delivered soon and everything was settled in the end.
    pub(crate) async fn run_forged(mut self) -> bool {
        self.start(0);
        let tenant = TenantId::try_new("acme").expect("an id");
        let far = Event {
            registry: RegistryStamp::of_unknown(u64::MAX),
            accepted_at_ms: i64::MIN,
            ..self.event(tenant.clone(), "thing.happened")
        };
        for (topic, partition, value) in forged(&far) {
            self.append(topic, partition, value).await;
        }
        let honest = self.event(tenant, "thing.happened");
        self.append(EVENTS, 0, honest.encode()).await;
        sleep(Duration::from_secs(10)).await;
        let arrived =
            |sent: &Sent| sent.event_id == honest.id.as_str() && sent.endpoint == "healthy";
        let in_time = self.sent().iter().any(arrived);
        sleep(Duration::from_secs(120)).await;
        in_time && self.is_all_committed().await
    }

    async fn append(&self, topic: &str, partition: i32, value: Bytes) {
        let record = NewRecord {
            key: Bytes::from_static(b"ep_healthy"),
            value: Some(value),
            headers: Vec::new(),
        };
        let target = Target::Partition(partition);
        let appended = self.producer.append(topic, target, record).await;
        appended.expect("the producer is spared");
    }

    async fn is_all_committed(&self) -> bool {
        for (topic, group) in [
            (EVENTS, GROUP_FAN_OUT),
            (DELIVERIES, GROUP_DELIVER),
            (RETRY, GROUP_SCHEDULER),
        ] {
            let committed = self.log.committed(group, topic).await.expect("commits");
            for (partition, committed) in (0..).zip(committed) {
                let end = self.log.bounds(topic, partition).await.expect("bounds").end;
                if committed.map_or(0, |committed| committed.offset) != end {
                    return false;
                }
            }
        }
        true
    }
}

fn forged(far: &Event) -> Vec<(&'static str, i32, Bytes)> {
    let delivery = |run, attempt, due_at_ms| Delivery {
        event: far.clone(),
        endpoint: EndpointId::try_new("ep_healthy").expect("an id"),
        position: EventPosition {
            partition: 0,
            offset: i64::MAX,
            appended_at_ms: 5,
        },
        run,
        attempt,
        registry: RegistryStamp::of_unknown(u64::MAX),
        due_at_ms,
        ordered: false,
    };
    let mut forged = vec![(EVENTS, 0, far.encode())];
    for partition in 0..4 {
        let first = delivery(1, 1, i64::MIN).encode();
        let last = delivery(2, u32::MAX, i64::MAX).encode();
        let retry = delivery(3, 7, i64::MIN).encode();
        forged.push((DELIVERIES, partition, first));
        forged.push((DELIVERIES, partition, last));
        forged.push((RETRY, partition, retry));
    }
    forged
}
