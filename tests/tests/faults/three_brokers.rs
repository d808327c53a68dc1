//! Three brokers, of which two must have what is acknowledged: one dies, then another; and one
//! freezes.

use std::time::{Duration, Instant};

use postrider_tests::{KafkaBroker, LogKind, Plan};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{RECOVERS_WITHIN, World, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 40.0;
const APPEND_TIMEOUT_MS: &str = "3000";
/// An append to a partition without a leader is refused within this time.
const NO_LEADER_FOR_AT_MOST: Duration = Duration::from_secs(5);
/// An append that was acknowledged just before its broker died is answered by then.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

const FROZEN_FOR: Duration = Duration::from_secs(25);
/// What was written before the broker froze has come by then.
const ON_THE_WAY: Duration = Duration::from_millis(500);
/// How long a frozen broker may keep anything from anybody.
const LEFT_WITHIN: Duration = Duration::from_secs(30);

on_kafka!(
    of_three_brokers_one_is_not_missed_and_two_refuse_without_loss,
    of_three_brokers_each_is_left_soon_when_it_freezes,
);

/// Two workers under load on three brokers.
async fn on_three_brokers(plan: Plan) -> (&'static [KafkaBroker; 3], World) {
    let brokers: &'static [KafkaBroker; 3] = Box::leak(Box::new(KafkaBroker::start_three()));
    let plan = plan
        .broker(&brokers[0])
        .delivers(2)
        .set("POSTRIDER_INGEST__APPEND_TIMEOUT_MS", APPEND_TIMEOUT_MS);
    let world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 20, 250)
    })
    .await;
    (brokers, world)
}

async fn of_three_brokers_one_is_not_missed_and_two_refuse_without_loss(form: Form) {
    let mut figures = Figures::new("three-brokers", form);
    let (brokers, world) = on_three_brokers(quick_sessions()).await;
    let away = Duration::from_secs(form.pick(8, 60));

    // The first is also the one that every process asked first.
    tokio::task::block_in_place(|| brokers[0].kill());
    let one_killed = Instant::now();
    let recovered = world.flows_since(one_killed).await;
    accepts_again(&world, one_killed).await;
    tokio::time::sleep(NO_LEADER_FOR_AT_MOST).await;
    refuses_no_more(&world).await;
    let steady = Instant::now();
    tokio::time::sleep(away).await;
    let one_away = steady..Instant::now();

    tokio::task::block_in_place(|| brokers[1].kill());
    let both_killed = Instant::now();
    tokio::time::sleep(away).await;
    let both_away = both_killed + ANSWERED_WITHIN..Instant::now();
    tokio::task::block_in_place(|| {
        brokers[1].restart();
        brokers[0].restart();
    });
    let returned = Instant::now();
    let recovered_from_both = world.flows_since(returned).await;
    accepts_again(&world, returned).await;

    let settled = world.settle(&mut figures).await;
    let refused = |when: &std::ops::Range<Instant>| {
        let refused = settled.told.refused.iter();
        refused.filter(|(_, _, at)| when.contains(at)).count()
    };
    let accepted = |when: &std::ops::Range<Instant>| {
        let accepted = settled.told.accepted.iter();
        accepted.filter(|(_, at)| when.contains(at)).count()
    };
    figures.set("accepted_with_one_away", accepted(&one_away));
    figures.set("refused_with_one_away", refused(&one_away));
    figures.set("accepted_with_two_away", accepted(&both_away));
    figures.set("refused_with_two_away", refused(&both_away));
    figures.set_time("recovery_from_one_s", recovered);
    figures.set_time("recovery_from_two_s", recovered_from_both);
    let (with_one, with_two) = (
        (accepted(&one_away), refused(&one_away)),
        (accepted(&both_away), refused(&both_away)),
    );
    figures.save();
    settled.findings.assert_nothing_lost();
    assert!(with_one.0 > 0 && with_one.1 == 0, "{with_one:?}");
    assert!(with_two.0 == 0 && with_two.1 > 0, "{with_two:?}");
    for (status, _, _) in &settled.told.refused {
        assert_eq!(*status, 503);
    }
}

async fn of_three_brokers_each_is_left_soon_when_it_freezes(form: Form) {
    let mut figures = Figures::new("three-brokers-frozen", form);
    // Sessions as they are unless somebody chooses others: they go on while a frozen coordinator is
    // left.
    let plan = Plan::new(LogKind::Kafka)
        .set("POSTRIDER_KAFKA__SESSION_TIMEOUT_MS", "45000")
        .set("POSTRIDER_KAFKA__HEARTBEAT_INTERVAL_MS", "3000")
        .set("POSTRIDER_DELIVERY__DELIVER__LEASE_MS", "20000");
    let (brokers, world) = on_three_brokers(plan).await;
    let mut left_after = Vec::new();
    for broker in &brokers[..form.pick(1, 3)] {
        let frozen = Instant::now();
        broker.freeze();
        world.flows_since(frozen + ON_THE_WAY).await;
        left_after.push(frozen.elapsed());
        tokio::time::sleep(FROZEN_FOR.saturating_sub(frozen.elapsed())).await;
        broker.thaw();
        world.flows_since(Instant::now()).await;
        refuses_no_more(&world).await;
    }
    let settled = world.settle(&mut figures).await;
    figures.set("refused", settled.told.refused.len());
    let longest = left_after.iter().max().copied().unwrap_or_default();
    figures.set_time("longest_until_left_s", longest);
    let left_after_s: Vec<f64> = left_after.iter().map(Duration::as_secs_f64).collect();
    figures.set("until_left_s", left_after_s);
    figures.save();
    settled.findings.assert_nothing_lost();
    // The full form has the machine for itself.
    let at_most = form.pick(RECOVERS_WITHIN, LEFT_WITHIN);
    assert!(longest <= at_most, "{left_after:?}");
}

/// Waits until no event was refused for longer than an append may take: then no partition is
/// without a leader.
async fn refuses_no_more(world: &World) {
    postrider_tests::eventually("nothing is refused", RECOVERS_WITHIN, async || {
        let told = world.load.told();
        match told.refused.last() {
            Some((_, _, at)) if at.elapsed() < NO_LEADER_FOR_AT_MOST => Err(at.elapsed()),
            _ => Ok(()),
        }
    })
    .await;
}

/// Waits until an event was accepted after this moment.
async fn accepts_again(world: &World, moment: Instant) {
    postrider_tests::eventually("events are accepted", RECOVERS_WITHIN, async || {
        let told = world.load.told();
        match told.accepted.last() {
            Some((_, at)) if *at > moment => Ok(()),
            _ => Err(told.refused.len()),
        }
    })
    .await;
}
