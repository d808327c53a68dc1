//! Keys for the API: created, used, revoked; portal tokens; who changed what.

use std::time::Duration;

use axum::http::StatusCode;
use futures_util::FutureExt;
use postrider_log::memory::AppendFate;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::{KEY, World};

const SOON: Duration = Duration::from_secs(10);
const TENANTS: &str = "/v1/tenants";
const KEYS: &str = "/v1/tenants/acme/keys";
const TOKENS: &str = "/v1/tenants/acme/portal-tokens";
const ENDPOINTS: &str = "/v1/tenants/acme/endpoints";

impl World {
    async fn created(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body.to_string()).await;
        answer.expect(StatusCode::CREATED).json()
    }

    async fn status_with(&self, key: &Value, path: &str) -> StatusCode {
        self.send_as(key.as_str().unwrap(), "GET", path, "")
            .await
            .status
    }

    async fn audit(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/v1/audit{query}")).await;
        let page = answer.expect(StatusCode::OK).json();
        page["data"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn operator_keys_hold_side_by_side_until_they_are_revoked() {
    let world = World::new().await;
    let old = world.created("/v1/keys", json!({"name": "old"})).await;
    let new = world.created("/v1/keys", json!({"name": "new"})).await;
    for key in [&old["key"], &new["key"]] {
        assert_eq!(world.status_with(key, TENANTS).await, StatusCode::OK);
    }
    let path = format!("/v1/keys/{}", old["id"].as_str().unwrap());
    let answer = world.send("DELETE", &path, &[], "").await;
    answer.expect(StatusCode::NO_CONTENT);
    let refused = StatusCode::UNAUTHORIZED;
    assert_eq!(world.status_with(&old["key"], TENANTS).await, refused);
    assert_eq!(
        world.status_with(&new["key"], TENANTS).await,
        StatusCode::OK
    );
    let shown = world.get(&path).await.expect(StatusCode::NOT_FOUND);
    shown.problem("not-found");
    let again = world.send("DELETE", &path, &[], "").await;
    again.expect(StatusCode::NOT_FOUND).problem("not-found");
}

#[tokio::test]
async fn a_key_is_shown_once_and_is_nowhere_in_the_log() {
    let world = World::with_tenant().await;
    let body = json!({"name": "ci", "scopes": ["read", "publish"]});
    let created = world.created(KEYS, body).await;
    let key = created["key"].as_str().unwrap();
    assert!(key.starts_with("prt_") && key.starts_with(created["prefix"].as_str().unwrap()));
    let path = format!("{KEYS}/{}", created["id"].as_str().unwrap());
    let shown = world.get(&path).await.expect(StatusCode::OK).json();
    let expected = json!({
        "id": created["id"], "name": "ci", "tenant": "acme", "scopes": ["publish", "read"],
        "prefix": created["prefix"], "created_at": created["created_at"],
        "expires_at": null, "last_used_at": null,
    });
    assert_eq!(shown, expected);
    let listed = world.get(KEYS).await.expect(StatusCode::OK).json();
    assert_eq!(listed, json!({"data": [expected], "next_cursor": null}));
    for topic in ["registry", "audit"] {
        for record in world.records(topic) {
            let value = record.value.unwrap_or_default();
            let found = value
                .windows(key.len())
                .any(|bytes| bytes == key.as_bytes());
            assert!(!found, "{topic} holds the key");
        }
    }
}

#[tokio::test]
async fn the_use_of_a_key_is_noted_by_the_hour() {
    let world = World::with_tenant().await;
    let body = json!({"name": "ci", "scopes": ["read"]});
    let created = world.created(KEYS, body).await;
    let path = format!("{KEYS}/{}", created["id"].as_str().unwrap());
    let last_used = async || world.get(&path).await.json()["last_used_at"].clone();
    let use_it = async || {
        let status = world.status_with(&created["key"], "/v1/tenants/acme").await;
        assert_eq!(status, StatusCode::OK);
    };
    use_it().await;
    let moves_on_from = async |before: Value| {
        let moved = async {
            loop {
                let last = last_used().await;
                if last != before {
                    return last;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, moved).await.unwrap()
    };
    let first = moves_on_from(Value::Null).await;
    world.clock.advance(59 * 60 * 1000);
    use_it().await;
    assert_eq!(last_used().await, first);
    world.clock.advance(60 * 1000);
    use_it().await;
    moves_on_from(first).await;
}

#[tokio::test]
async fn what_is_no_key_for_somebody_is_refused_by_name() {
    let world = World::with_tenant().await;
    let refused = async |path: &str, body: Value| {
        let answer = world.post(path, body.to_string()).await;
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields()
    };
    assert_eq!(refused("/v1/keys", json!({})).await, ["name"]);
    assert_eq!(refused("/v1/keys", json!({"name": " "})).await, ["name"]);
    let scoped = json!({"name": "x", "scopes": ["read"]});
    assert_eq!(refused("/v1/keys", scoped).await, ["scopes"]);
    assert_eq!(refused(KEYS, json!({"name": "x"})).await, ["scopes"]);
    for scopes in [json!([]), json!(["all"]), json!("read"), json!([1])] {
        let body = json!({"name": "x", "scopes": scopes});
        assert_eq!(refused(KEYS, body).await, ["scopes"], "{scopes}");
        let tokens = json!({"scopes": scopes});
        assert_eq!(refused(TOKENS, tokens).await, ["scopes"], "{scopes}");
    }
    let past = json!({"name": "x", "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(refused("/v1/keys", past).await, ["expires_at"]);
    for expires_in in [json!(0), json!(86_401), json!("1h"), json!(-1)] {
        let body = json!({"scopes": ["read"], "expires_in": expires_in});
        assert_eq!(refused(TOKENS, body).await, ["expires_in"], "{expires_in}");
    }
    let path = "/v1/tenants/nobody/keys";
    let answer = world
        .post(path, json!({"name": "x", "scopes": ["read"]}).to_string())
        .await;
    answer.expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_portal_token_opens_no_more_and_lives_no_longer_than_the_key_that_issued_it() {
    let world = World::with_tenant().await;
    let body = json!({"name": "backend", "scopes": ["read", "endpoints"]});
    let backend = world.created(KEYS, body).await;
    let key = backend["key"].as_str().unwrap();
    let wide = json!({"scopes": ["read", "repair"]}).to_string();
    let answer = world.send_as(key, "POST", TOKENS, wide).await;
    let answer = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.wrong_fields(), ["scopes"]);
    let narrow = json!({"scopes": ["read"], "user": "ann"}).to_string();
    let answer = world.send_as(key, "POST", TOKENS, narrow).await;
    let token = answer.expect(StatusCode::CREATED).json()["token"].clone();
    assert_eq!(world.status_with(&token, ENDPOINTS).await, StatusCode::OK);
    let id = backend["id"].as_str().unwrap();
    let answer = world.send("DELETE", &format!("{KEYS}/{id}"), &[], "").await;
    answer.expect(StatusCode::NO_CONTENT);
    let refused = StatusCode::UNAUTHORIZED;
    assert_eq!(world.status_with(&token, ENDPOINTS).await, refused);
}

#[tokio::test]
async fn revoked_portal_tokens_are_void_and_later_ones_are_not() {
    let world = World::with_tenant().await;
    let issue = async || world.created(TOKENS, json!({"scopes": ["read"]})).await["token"].clone();
    let before = issue().await;
    assert_eq!(world.status_with(&before, ENDPOINTS).await, StatusCode::OK);
    let answer = world.post(&format!("{TOKENS}/revoke"), "").await;
    answer.expect(StatusCode::NO_CONTENT);
    let refused = StatusCode::UNAUTHORIZED;
    assert_eq!(world.status_with(&before, ENDPOINTS).await, refused);
    let after = issue().await;
    assert_eq!(world.status_with(&after, ENDPOINTS).await, StatusCode::OK);
}

#[tokio::test]
async fn an_address_that_tries_keys_is_told_to_wait_and_good_keys_go_on() {
    let world = World::with(|config| config.failed_keys_per_minute_max = 3).await;
    let attacker = "203.0.113.9";
    let wrong = format!("prt_{}", "A".repeat(43));
    for _ in 0..3 {
        let answer = world.get_from(attacker, &wrong, TENANTS).await;
        answer.expect(StatusCode::UNAUTHORIZED);
    }
    let answer = world.get_from(attacker, &wrong, TENANTS).await;
    let answer = answer.expect(StatusCode::TOO_MANY_REQUESTS);
    answer.problem("too-many-failures");
    assert_eq!(answer.header("retry-after"), "20");
    let good = world.get_from(attacker, KEY, TENANTS).await;
    good.expect(StatusCode::OK);
    let neighbour = world.get_from("203.0.113.10", "wrong", TENANTS).await;
    neighbour.expect(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn there_are_no_more_keys_than_allowed() {
    let world = World::with_tenant().await;
    for number in 0..100 {
        let body = json!({"name": format!("{number}"), "scopes": ["read"]});
        world.created(KEYS, body).await;
    }
    let body = json!({"name": "one more", "scopes": ["read"]}).to_string();
    let answer = world.post(KEYS, body).await.expect(StatusCode::CONFLICT);
    answer.problem("too-many");
    let pages = world.all_pages(&format!("{KEYS}?limit=30")).await;
    assert_eq!((pages.data.len(), pages.requests), (100, 4));
    world
        .created("/v1/keys", json!({"name": "an operator's"}))
        .await;
}

#[tokio::test]
async fn the_audit_says_who_changed_what() {
    let world = World::with_tenant().await;
    let backend = world
        .created(KEYS, json!({"name": "backend", "scopes": ["endpoints"]}))
        .await;
    let key = backend["key"].as_str().unwrap();
    let answer = world
        .send_as(key, "POST", ENDPOINTS, r#"{"url":"https://example.com/"}"#)
        .await;
    let endpoint = answer.expect(StatusCode::CREATED).json();
    let id = endpoint["id"].as_str().unwrap();
    let token = json!({"scopes": ["endpoints"], "user": "ann"});
    let token = world.created(TOKENS, token).await;
    let path = format!("{ENDPOINTS}/{id}/pause");
    let answer = world
        .send_as(token["token"].as_str().unwrap(), "POST", &path, "")
        .await;
    answer.expect(StatusCode::OK);
    let refused = world.post(&format!("{ENDPOINTS}/ep_none/pause"), "").await;
    refused.expect(StatusCode::NOT_FOUND);
    let seen: Vec<_> = world
        .audit("")
        .await
        .iter()
        .map(|entry| {
            let text = |field: &Value| field.as_str().unwrap_or("-").to_owned();
            let actor = &entry["actor"];
            [
                text(&entry["action"]),
                text(&entry["subject"]),
                text(&actor["kind"]),
                text(&actor["name"]),
            ]
        })
        .collect();
    let key_id = backend["id"].as_str().unwrap();
    let expected = [
        ["endpoint.pause", id, "portal_token", "ann"],
        ["portal_token.issue", "ann", "configured_key", "-"],
        ["endpoint.create", id, "tenant_key", "backend"],
        ["key.create", key_id, "configured_key", "-"],
        ["tenant.put", "-", "configured_key", "-"],
    ];
    assert_eq!(seen, expected.map(|entry| entry.map(str::to_owned)));
    let count = async |query: String| world.audit(&query).await.len();
    assert_eq!(count("?actor=ann".into()).await, 1);
    assert_eq!(count(format!("?actor={key_id}")).await, 1);
    assert_eq!(
        count("?kind=configured_key&action=key.create".into()).await,
        1
    );
    assert_eq!(count("?tenant=other".into()).await, 0);
    assert_eq!(count("?tenant=acme".into()).await, 5);
    assert_eq!(count("?until=2020-01-01T00:00:00Z".into()).await, 0);
}

#[tokio::test]
async fn who_hangs_up_is_in_the_audit_all_the_same() {
    let world = World::with_tenant().await;
    let pause = world.post("/v1/pause", "");
    assert!(pause.now_or_never().is_none(), "it takes its time");
    let noted = async {
        while world.audit("?action=installation.pause").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, noted).await.unwrap();
    assert!(world.registry.installation().value.deliveries_paused);
}

#[tokio::test]
async fn an_entry_that_was_not_taken_is_appended_again() {
    let world = World::with_tenant().await;
    for _ in 0..3 {
        world.faults().next_append("audit", AppendFate::Failed);
    }
    world.post("/v1/pause", "").await.expect(StatusCode::OK);
    assert_eq!(world.audit("?action=installation.pause").await.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_noted_is_not_said_to_be_made() {
    let world = World::with_tenant().await;
    world
        .faults()
        .next_append("audit", AppendFate::UnknownAbsent);
    let answer = world.post("/v1/pause", "").await;
    let answer = answer.expect(StatusCode::SERVICE_UNAVAILABLE);
    answer.problem("not-audited");
    assert!(world.registry.installation().value.deliveries_paused);
    assert!(world.audit("?action=installation.pause").await.is_empty());
}
