//! What many endpoints cost: the memory of each in each role, how long a role that starts takes
//! until it is ready, and the rates beside those of a few.

use std::time::{Duration, Instant};

use postrider_tests::{Cluster, KafkaBroker, LogKind, Plan};
use serde_json::json;

use crate::figures::{Figures, tell};
use crate::publish::{self, event_type};
use crate::receiver_process::ReceiverProcess;
use crate::report::record_figures;
use crate::say;
use crate::throughput::{EVENTS, MANY_CALLERS, PARTITIONS, count, per_second};

const FEW: usize = 10;
const MANY: usize = 100_000;
const TENANTS: usize = 20;
/// In one request.
const IMPORT: usize = 5_000;
/// The broker's code gets warm.
const WARM_UP_ROUNDS: usize = 3;
/// The allocator gives back what is not used any more.
const CALM: Duration = Duration::from_secs(3);
const ROLES: [&str; 2] = ["deliver", "ingest-0"];

/// Measures, with a few endpoints and with many.
pub(crate) async fn bench() {
    say(&format!(
        "\nScale: {FEW} endpoints, then {MANY} of {TENANTS} tenants"
    ));
    let (mut few, mut many) = (Figures::default(), Figures::default());
    let receiver = ReceiverProcess::start();
    let each_max = (MANY / TENANTS + FEW).to_string();
    let mut cluster = Plan::new(LogKind::Kafka)
        .set("POSTRIDER_TOPICS__PARTITIONS", &PARTITIONS.to_string())
        .set("POSTRIDER_REGISTRY__ENDPOINTS_PER_TENANT_MAX", &each_max)
        .broker(KafkaBroker::as_shipped())
        .start()
        .await;
    let api = cluster.api();
    for number in 0..FEW {
        let types = json!({ "event_types": [event_type(number)] });
        api.create_endpoint(&receiver.url(), types).await;
    }
    for _ in 0..WARM_UP_ROUNDS {
        flow(&cluster, &receiver).await;
    }
    restart(&mut cluster, &mut few).await;
    few.set("delivered/s to ten", flow(&cluster, &receiver).await);

    import(&cluster, &receiver).await;
    restart(&mut cluster, &mut many).await;
    many.set("delivered/s to ten", flow(&cluster, &receiver).await);
    for role in ROLES {
        let name = format!("{role}: bytes when ready");
        let (before, after) = (few.get(&name), many.get(&name));
        let more = after.unwrap_or_default() - before.unwrap_or_default();
        many.set(format!("{role}: bytes of an endpoint"), more / count(MANY));
    }
    let measured = [("many", many), ("few", few)];
    tell(&measured);
    record_figures("scale", &measured);
}

/// Deliveries a second at full load to the first ten endpoints.
async fn flow(cluster: &Cluster, receiver: &ReceiverProcess) -> f64 {
    let began = Instant::now();
    let first = |number: usize| event_type(number % FEW);
    publish::all(&cluster.api(), EVENTS, MANY_CALLERS, first).await;
    receiver.finished(EVENTS).await;
    per_second(EVENTS, began.elapsed())
}

/// Starts each role again: how long until it is ready, and what memory it has then.
async fn restart(cluster: &mut Cluster, figures: &mut Figures) {
    for role in ROLES {
        cluster.terminate(role);
        let began = Instant::now();
        cluster.restart(role).await;
        figures.set(
            format!("{role}: seconds until ready"),
            began.elapsed().as_secs_f64(),
        );
        tokio::time::sleep(CALM).await;
        let bytes = usize::try_from(cluster.process(role).memory_bytes()).unwrap_or(usize::MAX);
        figures.set(format!("{role}: bytes when ready"), count(bytes));
    }
}

async fn import(cluster: &Cluster, receiver: &ReceiverProcess) {
    for tenant in 0..TENANTS {
        let api = cluster.api().for_tenant(&format!("tenant-{tenant}"));
        api.ensure_tenant().await;
        for _ in 0..MANY / TENANTS / IMPORT {
            let one =
                json!({ "url": receiver.url(), "event_types": ["order.paid", "order.shipped"] });
            api.import_endpoints(&vec![one; IMPORT]).await;
        }
    }
}
