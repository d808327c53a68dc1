//! Endpoints.

use axum::http::StatusCode;
use postrider_model::ids::EndpointId;
use postrider_model::payload::rfc3339;
use postrider_model::signature::SigningSecret;
use postrider_registry::Lookup;
use serde_json::{Value, json};

use crate::world::{Answer, START_MS, World};

const ALL: &str = "/v1/tenants/acme/endpoints";
const GOOD: &str =
    r#"{"url":"https://example.com/hooks","metadata":{"a":"1"},"event_types":["invoice.*"]}"#;

async fn create(world: &World, body: &str) -> Value {
    world
        .post(ALL, body.to_owned())
        .await
        .expect(StatusCode::CREATED)
        .json()
}

fn path(endpoint: &Value) -> String {
    format!("{ALL}/{}", endpoint["id"].as_str().unwrap())
}

async fn patch(world: &World, path: &str, if_match: Option<&str>, body: &str) -> Answer {
    let mut headers = vec![("content-type", "application/merge-patch+json")];
    headers.extend(if_match.map(|tag| ("if-match", tag)));
    world.send("PATCH", path, &headers, body.to_owned()).await
}

/// The secrets that sign for the endpoint now.
fn signing(world: &World, id: &Value) -> Vec<String> {
    let id = EndpointId::try_new(id.as_str().unwrap()).unwrap();
    let Lookup::Found(found) = world.registry.endpoint(&id) else {
        panic!("{id} is not there")
    };
    let now_ms = postrider_log::Clock::now_ms(&*world.clock);
    let secrets = world
        .registry
        .signing_secrets(&found.value, now_ms)
        .unwrap();
    secrets.iter().map(SigningSecret::reveal).collect()
}

#[tokio::test]
async fn a_new_endpoint_has_the_documented_fields_and_a_place_in_the_list() {
    let world = World::with_tenant().await;
    let answer = world.post(ALL, GOOD).await.expect(StatusCode::CREATED);
    assert_eq!(answer.header("etag"), "\"1\"");
    let mut created = answer.json();
    assert!(created["id"].as_str().unwrap().starts_with("ep_"));
    created.as_object_mut().unwrap().remove("secret").unwrap();
    let expected = json!({
        "id": created["id"], "tenant": "acme", "url": "https://example.com/hooks", "description": "",
        "metadata": {"a": "1"}, "event_types": ["invoice.*"], "format": "standard", "rate_limit": null,
        "retry_schedule": null, "attempt_timeout": null, "ordered": false, "when_blocked": null, "state": "enabled",
        "disabled_reason": null, "disabled_since": null, "created_at": rfc3339(START_MS), "version": 1,
        "public_key": null,
    });
    assert_eq!(created, expected);
    let shown = world.get(&path(&created)).await.expect(StatusCode::OK);
    assert_eq!(
        (shown.json(), shown.header("etag")),
        (created.clone(), "\"1\"")
    );
    assert_eq!(world.get(ALL).await.json()["data"], json!([created]));
    let matched = world
        .registry
        .matching(&"acme".parse().unwrap(), &"invoice.paid".parse().unwrap());
    assert_eq!(matched.endpoints.len(), 1);
}

#[tokio::test]
async fn what_is_wrong_or_not_supported_is_named() {
    let world = World::with_tenant().await;
    let cases = [
        (json!({}), "url"),
        (json!({"url": "ftp://example.com"}), "url"),
        (json!({"url": "https://user:pass@example.com"}), "url"),
        (json!({"id": "x"}), "id"),
        (json!({"secret": "hunter2"}), "secret"),
        (json!({"rate_limit": {"per_second": 0}}), "rate_limit"),
        (json!({"rate_limit": {"burst": 5}}), "rate_limit"),
        (json!({"ordered": 1}), "ordered"),
        (json!({"when_blocked": "wait"}), "when_blocked"),
        (json!({"channels": ["a"]}), "channels"),
        (json!({"format": "cloudevents"}), "format"),
        (json!({"format": "xml"}), "format"),
        (json!({"retry_schedule": [0.5]}), "retry_schedule"),
        (json!({"event_types": ["*"]}), "event_types"),
        (json!({"state": "disabled"}), "state"),
        (json!({"colour": "red"}), "colour"),
    ];
    for (mut body, field) in cases {
        if field != "url" {
            body["url"] = json!("https://example.com");
        }
        let answer = world
            .post(ALL, body.to_string())
            .await
            .expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), [field], "{body}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2"));
    }
    assert!(
        world.get(ALL).await.json()["data"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    world
        .post("/v1/tenants/other/endpoints", GOOD)
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_secret_is_shown_once_and_never_again() {
    let world = World::with_tenant().await;
    let created = create(&world, GOOD).await;
    let secret = created["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_"));
    assert_eq!(
        signing(&world, &created["id"]),
        std::slice::from_ref(&secret)
    );
    let path = path(&created);
    let rotated = world
        .post(&format!("{path}/secret/rotate"), "")
        .await
        .expect(StatusCode::OK);
    let rotated = rotated.json()["secret"].as_str().unwrap().to_owned();
    assert_ne!(rotated, secret);
    let answers = [
        world.get(&path).await,
        world.get(ALL).await,
        patch(&world, &path, None, r#"{"description":"x"}"#).await,
        world.post(&format!("{path}/disable"), "").await,
        world.post(&format!("{path}/enable"), "").await,
    ];
    for answer in answers {
        let text = String::from_utf8_lossy(&answer.expect(StatusCode::OK).body).into_owned();
        assert!(
            !text.contains("whsec_") && !text.contains("secret"),
            "{text}"
        );
    }
    for record in world.records("registry") {
        let value = String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
        assert!(!value.contains("whsec_"), "a secret rests unencrypted");
    }
}

#[tokio::test]
async fn a_secret_can_be_taken_over() {
    let world = World::with_tenant().await;
    let secret = SigningSecret::generate(&[3; 32]).reveal();
    let body = json!({"url": "https://example.com", "id": "ep_old-1", "secret": secret});
    let created = create(&world, &body.to_string()).await;
    assert_eq!(created["id"], "ep_old-1");
    assert_eq!(signing(&world, &created["id"]), [secret]);
    world
        .post(ALL, body.to_string())
        .await
        .expect(StatusCode::CONFLICT)
        .problem("exists");
}

#[tokio::test]
async fn an_address_that_webhooks_never_reach_is_refused_and_a_name_is_not_judged() {
    let world = World::with_tenant().await;
    for host in [
        "10.2.0.1",
        "127.0.0.1",
        "[::1]",
        "2130706433",
        "169.254.169.254",
    ] {
        let body = json!({ "url": format!("https://{host}/hook") });
        let answer = world.post(ALL, body.to_string()).await;
        let answer = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), ["url"], "{host}");
        assert!(answer.json().to_string().contains("egress.allow_cidrs"));
    }
    let mut created = Value::Null;
    for host in ["10.1.2.3", "localhost", "internal.example"] {
        let body = json!({ "url": format!("https://{host}/hook") });
        created = create(&world, &body.to_string()).await;
    }
    let moved = patch(
        &world,
        &path(&created),
        None,
        r#"{"url":"http://192.168.0.1/"}"#,
    )
    .await;
    let moved = moved.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(moved.wrong_fields(), ["url"]);
}

/// The pair is of the vectors of `crates/model/src/signature/tests.rs`.
#[tokio::test]
async fn who_signs_by_key_pair_is_told_the_public_key() {
    let world = World::with_tenant().await;
    let secret = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    let public = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
    let body = json!({"url": "https://example.com", "secret": secret});
    let created = create(&world, &body.to_string()).await;
    let shown = world.get(&path(&created)).await.json();
    let listed = world.get(ALL).await.json();
    for shown in [&created, &shown, &listed["data"][0]] {
        assert_eq!(shown["public_key"], public, "{shown}");
    }
    let rotated = world
        .post(&format!("{}/secret/rotate", path(&created)), "{}")
        .await;
    assert_eq!(
        rotated.json()["public_key"],
        Value::Null,
        "the newest is shared"
    );
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_new_one_until_its_overlap_ends() {
    let world = World::with_tenant().await;
    let created = create(&world, GOOD).await;
    let first = created["secret"].as_str().unwrap().to_owned();
    let rotate = format!("{}/secret/rotate", path(&created));
    let second = world
        .post(&rotate, r#"{"overlap":60}"#)
        .await
        .expect(StatusCode::OK)
        .json();
    let second = second["secret"].as_str().unwrap().to_owned();
    assert_eq!(signing(&world, &created["id"]), [second.clone(), first]);
    world.clock.advance(60_000);
    assert_eq!(
        signing(&world, &created["id"]),
        std::slice::from_ref(&second)
    );
    let third = SigningSecret::generate(&[4; 32]).reveal();
    let body = json!({"overlap": 0, "secret": third}).to_string();
    world.post(&rotate, body).await.expect(StatusCode::OK);
    assert_eq!(
        signing(&world, &created["id"]),
        std::slice::from_ref(&third)
    );
    world.post(&rotate, "").await.expect(StatusCode::OK);
    world.clock.advance(24 * 3600 * 1000 - 1);
    assert!(
        signing(&world, &created["id"]).contains(&third),
        "the default overlap is a day"
    );
    world.clock.advance(1);
    assert!(!signing(&world, &created["id"]).contains(&third));
    let answer = world.post(&rotate, r#"{"overlap":-1}"#).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["overlap"]
    );
    for _ in 0..4 {
        world.post(&rotate, "").await;
    }
    world
        .post(&rotate, "")
        .await
        .expect(StatusCode::CONFLICT)
        .problem("too-many");
}

#[tokio::test]
async fn a_patch_merges_and_if_match_guards_it() {
    let world = World::with_tenant().await;
    let created = create(&world, GOOD).await;
    let path = path(&created);
    let body = r#"{"metadata":{"a":null,"b":"2"},"retry_schedule":[1,2.5],"event_types":null}"#;
    let answer = patch(&world, &path, Some("\"1\""), body)
        .await
        .expect(StatusCode::OK);
    assert_eq!(answer.header("etag"), "\"2\"");
    let patched = answer.json();
    assert_eq!(patched["metadata"], json!({"b": "2"}));
    assert_eq!(patched["retry_schedule"], json!([1, 2.5]));
    assert_eq!(patched["event_types"], json!([]));
    assert_eq!(patched["url"], created["url"]);

    for tag in ["\"1\"", "\"3\"", "\"x\"", "2", "W/\"2\""] {
        let answer = patch(&world, &path, Some(tag), r#"{"description":"lost"}"#).await;
        let problem = answer
            .expect(StatusCode::PRECONDITION_FAILED)
            .problem("changed");
        assert_eq!(problem["version"], 2, "{tag}");
    }
    for (tag, version) in [("\"2\"", 3), ("\"1\", \"3\"", 4), ("*", 5)] {
        let body = json!({"description": format!("kept {version}")}).to_string();
        let answer = patch(&world, &path, Some(tag), &body)
            .await
            .expect(StatusCode::OK);
        assert_eq!(answer.json()["version"], version, "{tag}");
    }
    let answer = patch(&world, &path, None, r#"{"url":null}"#).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["url"]
    );
    let answer = patch(&world, &path, None, r#"{"ordered":true}"#).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["ordered"]
    );
    let answer = patch(&world, &path, None, r#"{"secret":"x","id":"ep_2"}"#).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["id", "secret"]
    );
    assert_eq!(
        signing(&world, &created["id"]),
        [created["secret"].as_str().unwrap()]
    );
}

#[tokio::test]
async fn concurrent_patches_are_all_kept() {
    let world = World::with_tenant().await;
    let path = path(&create(&world, GOOD).await);
    let patches = (0..8).map(|number| {
        let (world, path) = (&world, &path);
        async move {
            let body = json!({"metadata": {format!("n{number}"): "x"}}).to_string();
            patch(world, path, None, &body).await.expect(StatusCode::OK);
        }
    });
    futures_util::future::join_all(patches).await;
    let shown = world.get(&path).await.json();
    assert_eq!(shown["metadata"].as_object().unwrap().len(), 9, "{shown}");
}

#[tokio::test]
async fn a_deleted_endpoint_is_gone_and_its_id_never_used_again() {
    let world = World::with_tenant().await;
    let body = r#"{"id":"ep_1","url":"https://example.com"}"#;
    let path = path(&create(&world, body).await);
    let answer = world
        .send("DELETE", &path, &[("if-match", "\"7\"")], "")
        .await;
    answer.expect(StatusCode::PRECONDITION_FAILED);
    let other = path.replace("acme", "other");
    world
        .put("/v1/tenants/other", "")
        .await
        .expect(StatusCode::CREATED);
    world
        .send("DELETE", &other, &[], "")
        .await
        .expect(StatusCode::NOT_FOUND);
    let answer = world
        .send("DELETE", &path, &[("if-match", "\"1\"")], "")
        .await;
    assert!(answer.expect(StatusCode::NO_CONTENT).body.is_empty());
    world
        .send("DELETE", &path, &[], "")
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("not-found");
    world.get(&path).await.expect(StatusCode::NOT_FOUND);
    patch(&world, &path, None, "{}")
        .await
        .expect(StatusCode::NOT_FOUND);
    world
        .post(ALL, body)
        .await
        .expect(StatusCode::CONFLICT)
        .problem("deleted");
}

/// Whoever creates the tenant when it turns out to be missing creates none for an endpoint that is
/// refused.
#[tokio::test]
async fn what_is_wrong_with_an_endpoint_is_said_before_that_its_tenant_is_missing() {
    let world = World::new().await;
    let path = "/v1/tenants/missing/endpoints";
    let refused = world.post(path, r#"{"url":"example.com/hooks"}"#).await;
    let problem = refused
        .expect(StatusCode::UNPROCESSABLE_ENTITY)
        .problem("invalid");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("such as `https://"), "{detail}");
    let missing = world.post(path, GOOD).await;
    missing.expect(StatusCode::NOT_FOUND).problem("not-found");
}

#[tokio::test]
async fn lists_every_endpoint_of_its_tenant_once() {
    let world = World::with_tenant().await;
    world
        .put("/v1/tenants/other", "")
        .await
        .expect(StatusCode::CREATED);
    world
        .post("/v1/tenants/other/endpoints", GOOD)
        .await
        .expect(StatusCode::CREATED);
    let mut ids = Vec::new();
    for _ in 0..7 {
        world.clock.advance(1);
        ids.push(
            create(&world, GOOD).await["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let pages = world.all_pages(&format!("{ALL}?limit=2")).await;
    assert_eq!((pages.field("id"), pages.requests), (ids, 4));
}

#[tokio::test]
async fn an_import_has_a_result_for_every_item() {
    let world = World::with_tenant().await;
    let given = SigningSecret::generate(&[5; 32]).reveal();
    let items = json!([
        {"url": "https://example.com/1", "id": "ep_1", "secret": given},
        {"url": "https://example.com/2"},
        {"url": "nowhere", "ordered": "yes"},
        7,
        {"url": "https://example.com/1", "id": "ep_1"},
    ]);
    let lines = items
        .as_array()
        .unwrap()
        .iter()
        .map(|item| format!("{item}\r\n"))
        .collect::<String>();
    let path = format!("{ALL}/import");
    let answer = world
        .post(&path, items.to_string())
        .await
        .expect(StatusCode::OK)
        .json();
    let results = answer["results"].as_array().unwrap();
    let statuses: Vec<_> = results
        .iter()
        .map(|result| result["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        statuses,
        ["created", "created", "failed", "failed", "failed"]
    );
    assert_eq!(
        (&answer["created"], &answer["failed"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(
        results[0]["secret"],
        json!(null),
        "a secret that was given is not shown"
    );
    assert!(results[1]["secret"].as_str().unwrap().starts_with("whsec_"));
    let wrong = results[2]["errors"].as_array().unwrap();
    assert_eq!(
        wrong
            .iter()
            .map(|error| &error["field"])
            .collect::<Vec<_>>(),
        ["url", "ordered"]
    );
    assert_eq!(results[4]["problem"], "exists");
    assert_eq!(signing(&world, &json!("ep_1")), [given]);

    let headers = [("content-type", "application/x-ndjson")];
    let answer = world
        .send("POST", &path, &headers, format!("\n{lines}"))
        .await;
    let answer = answer.expect(StatusCode::OK).json();
    assert_eq!(
        (&answer["created"], &answer["failed"]),
        (&json!(1), &json!(4))
    );
    let answer = world.send("POST", &path, &headers, "{}\n{").await;
    let problem = answer.expect(StatusCode::BAD_REQUEST).problem("syntax");
    assert!(problem["detail"].as_str().unwrap().contains("line 2"));
    world
        .post(&path, "{}")
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn an_import_is_bounded() {
    let world = World::with_tenant_and(|config| config.import_endpoints_max = 2).await;
    let items =
        |count: usize| json!(vec![json!({"url": "https://example.com"}); count]).to_string();
    let path = format!("{ALL}/import");
    world
        .post(&path, items(3))
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY)
        .problem("invalid");
    assert_eq!(world.get(ALL).await.json()["data"], json!([]));
    world.post(&path, items(2)).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn a_mark_before_an_import_is_passed_over() {
    let world = World::with_tenant().await;
    let item = r#"{"url":"https://example.com"}"#;
    for (media_type, body) in [
        ("application/json", format!("\u{feff}[{item}]")),
        ("application/x-ndjson", format!("\u{feff}{item}\n{item}")),
    ] {
        let headers = [("content-type", media_type)];
        let path = format!("{ALL}/import");
        let answer = world.send("POST", &path, &headers, body).await;
        let answer = answer.expect(StatusCode::OK).json();
        assert_eq!(answer["failed"], 0, "{answer}");
    }
}
