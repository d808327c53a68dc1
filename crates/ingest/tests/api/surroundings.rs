//! What surrounds every route: the key, unknown paths, tenants, metrics.

use axum::http::StatusCode;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn what_is_no_key_is_told_so() {
    let world = World::new().await;
    let routes = [
        ("GET", "/v1/tenants"),
        ("PUT", "/v1/tenants/acme"),
        ("POST", "/v1/tenants/acme/events"),
        ("GET", "/v1/tenants/acme/events/evt_1"),
        ("POST", "/v1/tenants/acme/endpoints"),
        ("POST", "/v1/tenants/acme/endpoints/import"),
        ("DELETE", "/v1/tenants/acme/endpoints/ep_1"),
        ("POST", "/v1/tenants/acme/endpoints/ep_1/secret/rotate"),
        ("GET", "/v1/tenants/acme/endpoints/ep_1/attempts"),
        ("POST", "/v1/tenants/acme/dead-letters/redrive"),
        ("GET", "/v1/dead-letters"),
        ("GET", "/nowhere"),
        ("DELETE", "/v1/tenants"),
    ];
    for (method, path) in routes {
        for key in ["", "Bearer wrong-key-wrong-key", "Basic b3BlcmF0b3I="] {
            let answer = world
                .send(method, path, &[("authorization", key)], "")
                .await;
            let answer = answer.expect(StatusCode::UNAUTHORIZED);
            let problem = answer.problem("unauthorized");
            let says_it_is_another = problem["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("is none of this installation"));
            assert_eq!(says_it_is_another, key.starts_with("Bearer"), "{key}");
            assert!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{method} {path}"
            );
        }
    }
    assert!(world.registry.tenants(None, 1).is_empty());
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let world = World::new().await;
    world
        .get("/nowhere")
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("no-route");
    world
        .get("/v1/tenants/%ff")
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("no-route");
    let answer = world.send("DELETE", "/v1/tenants", &[], "").await;
    let answer = answer.expect(StatusCode::METHOD_NOT_ALLOWED);
    answer.problem("method-not-allowed");
    assert!(answer.header("allow").contains("GET"), "{answer:?}");
}

#[tokio::test]
async fn problems_name_the_trace_of_the_caller() {
    let world = World::new().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let header = format!("00-{trace}-b7ad6b7169203331-01");
    let answer = world
        .send("GET", "/nowhere", &[("traceparent", &header)], "")
        .await;
    assert_eq!(answer.problem("no-route")["trace_id"], trace);
    let answer = world
        .send("GET", "/nowhere", &[("traceparent", "nonsense")], "")
        .await;
    assert!(answer.problem("no-route").get("trace_id").is_none());
}

#[tokio::test]
async fn putting_a_tenant_twice_makes_one() {
    let world = World::new().await;
    let body = r#"{"name":"Acme","metadata":{"plan":"pro"}}"#;
    let first = world
        .put("/v1/tenants/acme", body)
        .await
        .expect(StatusCode::CREATED)
        .json();
    assert_eq!(first["id"], "acme");
    assert_eq!(first["metadata"], json!({"plan": "pro"}));
    let again = world
        .put("/v1/tenants/acme", body)
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(again, first);
    let without_body = world
        .put("/v1/tenants/acme", "")
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(without_body, first);
    let renamed = world
        .put("/v1/tenants/acme", r#"{"name":"Acme Inc"}"#)
        .await;
    let renamed = renamed.expect(StatusCode::OK).json();
    assert_eq!(
        (&renamed["name"], &renamed["version"]),
        (&json!("Acme Inc"), &json!(2))
    );
    assert_eq!(renamed["metadata"], first["metadata"], "it was not named");
    assert_eq!(world.get("/v1/tenants/acme").await.json(), renamed);
    world
        .get("/v1/tenants/other")
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("not-found");
}

#[tokio::test]
async fn refuses_tenants_that_are_none() {
    let world = World::new().await;
    let cases = [
        ("/v1/tenants/a.b", "", "tenant"),
        ("/v1/tenants/acme", r#"{"nam":"x"}"#, "nam"),
        ("/v1/tenants/acme", r#"{"name":1}"#, "name"),
        ("/v1/tenants/acme", r#"{"metadata":{"a":1}}"#, "metadata"),
    ];
    for (path, body, field) in cases {
        let answer = world
            .put(path, body)
            .await
            .expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), [field], "{body}");
    }
    world
        .put("/v1/tenants/acme", "{")
        .await
        .expect(StatusCode::BAD_REQUEST)
        .problem("syntax");
}

#[tokio::test]
async fn pages_stay_whole_while_the_list_changes() {
    let world = World::new().await;
    for number in 0..7 {
        world
            .put(&format!("/v1/tenants/t{number}"), "")
            .await
            .expect(StatusCode::CREATED);
    }
    let first = world
        .get("/v1/tenants?limit=3")
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(first["data"].as_array().unwrap().len(), 3);
    // One before the cursor, which the reader has passed, and one after it.
    world
        .put("/v1/tenants/t00", "")
        .await
        .expect(StatusCode::CREATED);
    world
        .put("/v1/tenants/t35", "")
        .await
        .expect(StatusCode::CREATED);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = world
        .all_pages(&format!("/v1/tenants?limit=3&cursor={cursor}"))
        .await;
    assert_eq!(rest.field("id"), ["t3", "t35", "t4", "t5", "t6"]);
    let exact = world.get("/v1/tenants?limit=9").await.json();
    assert_eq!(
        exact["next_cursor"],
        json!(null),
        "a last page that is full has no next"
    );
}

#[tokio::test]
async fn refuses_parameters_it_does_not_know() {
    let world = World::new().await;
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=251", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=!", "cursor"),
        ("offset=3", "offset"),
    ] {
        let answer = world.get(&format!("/v1/tenants?{query}")).await;
        let answer = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), [field], "{query}");
    }
}

#[tokio::test]
async fn counts_requests_under_their_route_and_never_their_path() {
    let world = World::new().await;
    world
        .put("/v1/tenants/acme", "")
        .await
        .expect(StatusCode::CREATED);
    world
        .get("/secret-path")
        .await
        .expect(StatusCode::NOT_FOUND);
    let count = |labels: &str| {
        world.metric(&format!(
            "postrider_http_request_duration_seconds_count{{{labels}}}"
        ))
    };
    let route = r#"method="PUT",route="/v1/tenants/{tenant}",status="2xx""#;
    assert!((count(route) - 1.0).abs() < f64::EPSILON);
    assert!((count(r#"method="GET",route="none",status="4xx""#) - 1.0).abs() < f64::EPSILON);
    assert!(world.metric("postrider_http_requests_in_flight").abs() < f64::EPSILON);
}
