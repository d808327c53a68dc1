//! What is answered before there is a log.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use postrider_daemon::CancellationToken;
use postrider_daemon::config::Secret;
use postrider_ingest::{Api, ApiContext, Entrance, IngestConfig};
use postrider_model::address::AddressPolicy;
use tower::ServiceExt;

use crate::world::{KEY, World};

async fn ask(entrance: &Entrance, method: &str, path: &str, key: &str) -> axum::response::Response {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap();
    entrance.router().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn before_there_is_a_log_whoever_has_the_key_is_asked_to_come_again() {
    let config = IngestConfig {
        operator_key: Some(Secret::from(KEY.to_owned())),
        ..IngestConfig::default()
    };
    let metrics = prometheus::Registry::new();
    let entrance = Entrance::new(&config, &metrics).unwrap();
    const EVENTS: &str = "/v1/tenants/acme/events";
    for (method, path) in [("POST", EVENTS), ("GET", "/v1/tenants"), ("GET", "/other")] {
        let answer = ask(&entrance, method, path, KEY).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.headers()[header::RETRY_AFTER], "5");
        assert_eq!(
            answer.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        let stranger = ask(&entrance, method, path, "somebody-elses-key").await;
        assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let refused = metrics.gather();
    let refused = refused
        .iter()
        .find(|family| family.name() == "postrider_events_refused_total")
        .unwrap();
    let refused: f64 = refused
        .get_metric()
        .iter()
        .map(|metric| metric.get_counter().get_value())
        .sum();
    assert!(
        (refused - 1.0).abs() < f64::EPSILON,
        "the event, and it once: {refused}"
    );

    let world = World::new().await;
    let context = ApiContext {
        log: world.log.clone(),
        registry: world.registry.clone(),
        clock: Arc::clone(&world.clock) as Arc<_>,
        config,
        policy: AddressPolicy::try_new(&[]).unwrap(),
        metrics: entrance.metrics().clone(),
        halt: CancellationToken::new(),
    };
    entrance.open(Api::new(context).await.unwrap()).unwrap();
    let answer = ask(&entrance, "GET", "/v1/tenants", KEY).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = ask(&entrance, "GET", "/other", KEY).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}
