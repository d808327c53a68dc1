use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::operational;
use postrider_model::tenant::{Installation, Tenant};
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
    // Judging it again neither changes why and since when it is disabled nor claims to have done
    // it.
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
    let renamed = Tenant {
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
async fn what_two_processes_change_of_a_tenant_is_kept_of_both() {
    let world = World::new(1).await;
    let [a, b] = two_processes(&world).await;
    let new = tenant("new");
    let (named, described) = tokio::join!(
        a.change_tenant(&new, |present| Tenant {
            name: "a name".into(),
            ..present.clone()
        }),
        b.change_tenant(&new, |present| Tenant {
            metadata: [("plan".to_owned(), "pro".to_owned())].into(),
            ..present.clone()
        }),
    );
    named.unwrap();
    described.unwrap();
    let seen = a.change_tenant(&new, Tenant::clone).await.unwrap();
    assert_eq!((seen.value.name.as_str(), seen.version), ("a name", 2));
    assert_eq!(seen.value.metadata["plan"], "pro");
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

#[tokio::test(start_paused = true)]
async fn the_news_of_an_endpoint_goes_to_those_that_ask_for_it_but_never_to_itself() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.put_tenant(tenant("acme")).await.unwrap();
    for (id, patterns) in [
        ("ep_all", vec![]),
        ("ep_about", vec!["postrider.*"]),
        ("ep_ops", vec!["postrider.endpoint.disabled"]),
        ("ep_ops2", vec!["invoice.*", "postrider.*"]),
    ] {
        let patterns = patterns.into_iter().map(str::to_owned).collect();
        let endpoint = Endpoint {
            event_types: EventTypeFilter::try_new(patterns).unwrap(),
            ..endpoint(id, "acme")
        };
        a.create_endpoint(endpoint).await.unwrap();
    }
    let id = endpoint_id("ep_about");
    assert_eq!(a.disable_endpoint(&id, 1, "failing").await, Ok(true));
    let disabled = found(&a, "ep_about");
    let news = operational::endpoint_disabled(&disabled.value, disabled.version).unwrap();
    // Enabled again before the news is matched, it would get it if that were left to its filter.
    set_state(&a, "ep_about", EndpointState::Enabled).await;
    let ids = |matched: postrider_registry::Matched| {
        let ids = matched
            .endpoints
            .iter()
            .map(|endpoint| endpoint.id.to_string());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(a.wanting(&news)), ["ep_ops", "ep_ops2"]);
    let published = postrider_model::event::Event {
        event_type: "invoice.paid".parse().unwrap(),
        ..news
    };
    assert_eq!(ids(a.wanting(&published)), ["ep_all", "ep_ops2"]);
}
