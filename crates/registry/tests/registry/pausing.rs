use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::filter::EventTypeName;
use postrider_model::tenant::Installation;
use postrider_registry::{Gate, Registry, WriteError};

use crate::world::{LONG, World, endpoint, endpoint_id, found, tenant, tenant_id};

const PAUSED: Installation = Installation {
    deliveries_paused: true,
};

async fn set_state(registry: &Registry, id: &str, state: EndpointState) {
    let change = |endpoint: &Endpoint| Endpoint {
        state: state.clone(),
        ..endpoint.clone()
    };
    registry
        .update_endpoint(&endpoint_id(id), None, change)
        .await
        .unwrap();
}

fn gate(registry: &Registry, id: &str) -> Gate {
    registry.gate(&found(registry, id).value)
}

fn matches(registry: &Registry, id: &str) -> bool {
    let event_type = EventTypeName::try_new("invoice.paid").unwrap();
    let matched = registry.matching(&tenant_id("acme"), &event_type);
    matched
        .endpoints
        .iter()
        .any(|endpoint| endpoint.id.as_str() == id)
}

async fn two_processes(world: &World) -> [crate::world::Process; 2] {
    let processes = [world.join("a").await, world.join("b").await];
    for id in ["acme", "other"] {
        processes[0].put_tenant(tenant(id)).await.unwrap();
    }
    for (id, tenant) in [("ep_a", "acme"), ("ep_b", "acme"), ("ep_c", "other")] {
        processes[0]
            .create_endpoint(endpoint(id, tenant))
            .await
            .unwrap();
    }
    processes
}

#[tokio::test(start_paused = true)]
async fn a_pause_closes_the_gate_of_what_it_names_in_every_process_and_goes_on_matching() {
    let world = World::new(1).await;
    let [a, b] = two_processes(&world).await;
    let gates = async || {
        assert!(b.refresh(LONG).await);
        assert!(matches(&b, "ep_a") && matches(&b, "ep_b"));
        ["ep_a", "ep_b", "ep_c"].map(|id| gate(&b, id))
    };
    assert_eq!(gates().await, [Gate::Open; 3]);
    set_state(&a, "ep_a", EndpointState::Paused).await;
    assert_eq!(
        gates().await,
        [Gate::PausedEndpoint, Gate::Open, Gate::Open]
    );
    a.pause_tenant(&tenant_id("acme"), true).await.unwrap();
    assert_eq!(
        gates().await,
        [Gate::PausedTenant, Gate::PausedTenant, Gate::Open]
    );
    a.put_installation(PAUSED).await.unwrap();
    assert_eq!(gates().await, [Gate::PausedInstallation; 3]);
    assert_eq!(*b.installation().value, PAUSED);

    a.put_installation(Installation::default()).await.unwrap();
    a.pause_tenant(&tenant_id("acme"), false).await.unwrap();
    assert_eq!(
        gates().await,
        [Gate::PausedEndpoint, Gate::Open, Gate::Open]
    );
    let counts = b.counts();
    assert_eq!((counts.endpoints_enabled, counts.endpoints_paused), (2, 1));
    set_state(&a, "ep_a", EndpointState::Enabled).await;
    assert_eq!(gates().await, [Gate::Open; 3]);
}

#[tokio::test(start_paused = true)]
async fn what_is_disabled_is_disabled_whatever_is_paused_and_matches_nothing() {
    let world = World::new(1).await;
    let [a, _] = two_processes(&world).await;
    let id = endpoint_id("ep_a");
    a.put_installation(PAUSED).await.unwrap();
    assert_eq!(a.disable_endpoint(&id, 1, "endpoint_gone").await, Ok(true));
    assert_eq!(gate(&a, "ep_a"), Gate::Disabled);
    assert!(!matches(&a, "ep_a"));
    let reason = "endpoint_gone".to_owned();
    let since_ms = 1_700_000_000_000;
    let disabled = EndpointState::Disabled { reason, since_ms };
    assert_eq!(found(&a, "ep_a").value.state, disabled);
    // Judging it again neither changes why and since when it is disabled nor claims to have done it.
    assert_eq!(a.disable_endpoint(&id, 2, "failing").await, Ok(false));
    assert_eq!(found(&a, "ep_a").value.state, disabled);
    assert_eq!(found(&a, "ep_a").version, 2);
}

#[tokio::test(start_paused = true)]
async fn changing_a_tenant_does_not_resume_it() {
    let world = World::new(1).await;
    let [a, b] = two_processes(&world).await;
    let acme = tenant_id("acme");
    let paused = a.pause_tenant(&acme, true).await.unwrap();
    assert_eq!((paused.value.paused, paused.version), (true, 2));
    // The same again is no write, also in a process that may not have seen it yet.
    assert_eq!(b.pause_tenant(&acme, true).await.unwrap().version, 2);
    let renamed = postrider_model::tenant::Tenant {
        name: "new".into(),
        ..tenant("acme")
    };
    let renamed = b.put_tenant(renamed).await.unwrap();
    assert_eq!((renamed.value.paused, renamed.version), (true, 3));
    assert_eq!(
        a.pause_tenant(&tenant_id("nobody"), true).await,
        Err(WriteError::NotFound)
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_joins_later_knows_what_is_paused() {
    let world = World::new(1).await;
    let [a, _] = two_processes(&world).await;
    a.put_installation(PAUSED).await.unwrap();
    a.put_installation(Installation::default()).await.unwrap();
    a.put_installation(PAUSED).await.unwrap();
    a.pause_tenant(&tenant_id("acme"), true).await.unwrap();
    let late = world.join("late").await;
    assert_eq!(late.installation(), a.installation());
    assert_eq!(late.installation().version, 3);
    assert_eq!(gate(&late, "ep_c"), Gate::PausedInstallation);
}
