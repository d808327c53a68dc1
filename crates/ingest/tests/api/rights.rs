//! Every route with every kind of key: who may is written down here once more.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use postrider_log::Clock;
use postrider_model::payload::rfc3339;
use serde_json::{Value, json};

use crate::world::{KEY, World};

/// Who may call a route besides operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    /// A key or a portal token of the tenant with one of these scopes.
    Scopes(&'static [&'static str]),
    /// Any key of the tenant, but no portal token.
    Keys,
}

use Who::{Keys, Nobody, Scopes};

const SCOPES: [&str; 4] = ["publish", "endpoints", "read", "repair"];
const PUBLISH: Who = Scopes(&["publish"]);
const ENDPOINTS: Who = Scopes(&["endpoints"]);
const READ: Who = Scopes(&["read"]);
const REPAIR: Who = Scopes(&["repair"]);
const SEE_ENDPOINTS: Who = Scopes(&["read", "endpoints"]);
const SEE_LETTERS: Who = Scopes(&["read", "repair"]);

/// Every route of the API.
const TABLE: &[(&str, &str, Who)] = &[
    ("GET", "/v1/tenants", Nobody),
    ("GET", "/v1/tenants/{tenant}", READ),
    ("PUT", "/v1/tenants/{tenant}", Nobody),
    ("POST", "/v1/tenants/{tenant}/pause", Nobody),
    ("POST", "/v1/tenants/{tenant}/resume", Nobody),
    ("POST", "/v1/tenants/{tenant}/events", PUBLISH),
    ("POST", "/v1/tenants/{tenant}/events/batch", PUBLISH),
    ("GET", "/v1/tenants/{tenant}/events/{event}", READ),
    ("GET", "/v1/tenants/{tenant}/dead-letters", SEE_LETTERS),
    (
        "GET",
        "/v1/tenants/{tenant}/dead-letters/{letter}",
        SEE_LETTERS,
    ),
    ("POST", "/v1/tenants/{tenant}/dead-letters/redrive", REPAIR),
    ("GET", "/v1/installation", Nobody),
    ("POST", "/v1/pause", Nobody),
    ("POST", "/v1/resume", Nobody),
    ("GET", "/v1/dead-letters", Nobody),
    ("GET", "/v1/dead-letters/{letter}", Nobody),
    ("GET", "/v1/audit", Nobody),
    ("GET", "/v1/tenants/{tenant}/endpoints", SEE_ENDPOINTS),
    ("POST", "/v1/tenants/{tenant}/endpoints", ENDPOINTS),
    ("POST", "/v1/tenants/{tenant}/endpoints/import", ENDPOINTS),
    (
        "GET",
        "/v1/tenants/{tenant}/endpoints/{endpoint}",
        SEE_ENDPOINTS,
    ),
    (
        "PATCH",
        "/v1/tenants/{tenant}/endpoints/{endpoint}",
        ENDPOINTS,
    ),
    (
        "DELETE",
        "/v1/tenants/{tenant}/endpoints/{endpoint}",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/enable",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/disable",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/pause",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/resume",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/secret/rotate",
        ENDPOINTS,
    ),
    (
        "POST",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/replay",
        REPAIR,
    ),
    (
        "GET",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/status",
        SEE_ENDPOINTS,
    ),
    (
        "GET",
        "/v1/tenants/{tenant}/endpoints/{endpoint}/attempts",
        READ,
    ),
    ("GET", "/v1/keys", Nobody),
    ("POST", "/v1/keys", Nobody),
    ("GET", "/v1/keys/{key}", Nobody),
    ("DELETE", "/v1/keys/{key}", Nobody),
    ("GET", "/v1/tenants/{tenant}/keys", Nobody),
    ("POST", "/v1/tenants/{tenant}/keys", Nobody),
    ("GET", "/v1/tenants/{tenant}/keys/{key}", Nobody),
    ("DELETE", "/v1/tenants/{tenant}/keys/{key}", Nobody),
    ("POST", "/v1/tenants/{tenant}/portal-tokens", Keys),
    ("POST", "/v1/tenants/{tenant}/portal-tokens/revoke", Nobody),
];

/// What a key should open.
#[derive(Debug, Clone, Copy)]
enum Opens {
    Everything,
    /// What this scope opens of the tenant `acme`, and what its keys open.
    Key(&'static str),
    /// What this scope opens of the tenant `acme`.
    Token(&'static str),
    /// It is no key, or none any more.
    Nothing,
}

impl Opens {
    fn includes(self, path: &str, who: Who) -> bool {
        let of_scope = |scope| match who {
            Nobody | Keys => false,
            Scopes(scopes) => scopes.contains(&scope),
        };
        let is_own = path.contains("/tenants/acme");
        match self {
            Self::Everything => true,
            Self::Key(scope) => is_own && (who == Keys || of_scope(scope)),
            Self::Token(scope) => is_own && of_scope(scope),
            Self::Nothing => false,
        }
    }

    /// What is answered where it opens nothing.
    fn refusal(self) -> StatusCode {
        match self {
            Self::Nothing => StatusCode::UNAUTHORIZED,
            Self::Everything | Self::Key(_) | Self::Token(_) => StatusCode::FORBIDDEN,
        }
    }
}

struct Bearer {
    what: String,
    key: String,
    opens: Opens,
}

fn bearer(what: impl Into<String>, key: impl Into<String>, opens: Opens) -> Bearer {
    Bearer {
        what: what.into(),
        key: key.into(),
        opens,
    }
}

const OPERATOR_KEYS: &str = "/v1/keys";
const TENANT_KEYS: &str = "/v1/tenants/acme/keys";
const TOKENS: &str = "/v1/tenants/acme/portal-tokens";
const ACMES_ENDPOINTS: &str = "/v1/tenants/acme/endpoints";

/// The answer to what creates a key.
async fn create(world: &World, path: &str, body: Value) -> Value {
    let answer = world.post(path, body.to_string()).await;
    answer.expect(StatusCode::CREATED).json()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A key that was revoked.
async fn revoked(world: &World, path: &str, body: Value) -> String {
    let created = create(world, path, body).await;
    let path = format!("{path}/{}", text(&created["id"]));
    let answer = world.send("DELETE", &path, &[], "").await;
    answer.expect(StatusCode::NO_CONTENT);
    text(&created["key"]).to_owned()
}

/// A key of each kind that is good. Whoever may revoke portal tokens does so, hence these come
/// first.
async fn good(world: &World) -> Vec<Bearer> {
    let (mut tokens, mut keys) = (Vec::new(), Vec::new());
    for scope in SCOPES {
        let token = create(world, TOKENS, json!({"scopes": [scope]})).await;
        let (what, token) = (format!("a token to {scope}"), text(&token["token"]));
        tokens.push(bearer(what, token, Opens::Token(scope)));
        let key = create(world, TENANT_KEYS, json!({"name": "x", "scopes": [scope]})).await;
        let (what, key) = (format!("a key to {scope}"), text(&key["key"]));
        keys.push(bearer(what, key, Opens::Key(scope)));
    }
    let operator = create(world, OPERATOR_KEYS, json!({"name": "ann"})).await;
    let operator = text(&operator["key"]);
    keys.push(bearer("an operator key", operator, Opens::Everything));
    keys.push(bearer("the configured key", KEY, Opens::Everything));
    tokens.extend(keys);
    tokens
}

/// A key of each kind that is void, and what is none.
async fn void(world: &World) -> Vec<Bearer> {
    let expires_at = rfc3339(world.clock.now_ms() + 30_000);
    let all = |more: Value| {
        let mut body = json!({"name": "x", "scopes": SCOPES});
        let more = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let expired = create(world, TENANT_KEYS, all(json!({"expires_at": expires_at}))).await;
    let token = async |expires_in: u32| {
        let token = json!({"scopes": SCOPES, "expires_in": expires_in});
        let issued = create(world, TOKENS, token).await;
        text(&issued["token"]).to_owned()
    };
    let (expired_token, revoked_token) = (token(30).await, token(3_600).await);
    let answer = world.post(&format!("{TOKENS}/revoke"), "").await;
    answer.expect(StatusCode::NO_CONTENT);
    let mut forged = token(3_600).await;
    forged.replace_range(forged.len() - 4.., "0000");
    let operators = json!({"name": "x", "expires_at": expires_at});
    let expired_operators = create(world, OPERATOR_KEYS, operators).await;
    let void = [
        ("no key", String::new()),
        ("another key", format!("prt_{}", "A".repeat(43))),
        ("a revoked token", revoked_token),
        ("a token with another proof", forged),
        ("a text", "wrong-key-wrong-key".to_owned()),
        ("an expired key", text(&expired["key"]).to_owned()),
        ("an expired token", expired_token),
        (
            "an expired operator key",
            text(&expired_operators["key"]).to_owned(),
        ),
        (
            "a revoked key",
            revoked(world, TENANT_KEYS, all(json!({}))).await,
        ),
        (
            "a revoked operator key",
            revoked(world, OPERATOR_KEYS, json!({"name": "x"})).await,
        ),
    ];
    world.clock.advance(31_000);
    void.map(|(what, key)| bearer(what, key, Opens::Nothing))
        .into()
}

#[tokio::test]
async fn every_route_opens_to_whom_it_should_and_to_nobody_else() {
    let world = World::with_tenant().await;
    world
        .put("/v1/tenants/other", "")
        .await
        .expect(StatusCode::CREATED);
    let mut wrong = Vec::new();
    let mut bearers = void(&world).await;
    bearers.extend(good(&world).await);
    for Bearer { what, key, opens } in bearers {
        for (method, route, who) in TABLE {
            for tenant in ["acme", "other", "nobodys"] {
                let path = route
                    .replace("{tenant}", tenant)
                    .replace("{endpoint}", "ep_none")
                    .replace("{key}", "key_none")
                    .replace("{event}", "evt_none")
                    .replace("{letter}", "none");
                let answer = world.send_as(&key, method, &path, "").await;
                let is_refused =
                    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status);
                let fits = if opens.includes(&path, *who) {
                    !is_refused
                } else {
                    answer.status == opens.refusal()
                };
                if !fits {
                    wrong.push(format!("{method} {path} with {what}: {}", answer.status));
                }
                if answer.status.is_server_error() {
                    wrong.push(format!("{method} {path} with {what}: {answer:?}"));
                }
                if !path.contains(tenant) {
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_every_route() {
    let routes = postrider_ingest::routes();
    let routes: BTreeSet<_> = routes
        .iter()
        .map(|(method, path, _)| (method.as_str(), *path))
        .collect();
    let table: BTreeSet<_> = TABLE
        .iter()
        .map(|(method, path, _)| (*method, *path))
        .collect();
    assert_eq!(routes, table);
}

#[test]
fn every_route_that_changes_something_is_audited() {
    for (method, path, is_audited) in postrider_ingest::routes() {
        let changes = method != "GET" && !path.contains("/events");
        assert_eq!(is_audited, changes, "{method} {path}");
    }
}

#[tokio::test]
async fn enabling_replays_only_for_who_may_repair() {
    let world = World::with_tenant().await;
    let endpoint = create(
        &world,
        ACMES_ENDPOINTS,
        json!({"url": "https://example.com/"}),
    )
    .await;
    let path = format!("{ACMES_ENDPOINTS}/{}/enable", text(&endpoint["id"]));
    let replay = r#"{"replay_since":"2026-01-01T00:00:00Z"}"#;
    for (scopes, status) in [
        (json!(["endpoints"]), StatusCode::FORBIDDEN),
        (json!(["endpoints", "repair"]), StatusCode::OK),
    ] {
        let key = create(&world, TENANT_KEYS, json!({"name": "x", "scopes": scopes})).await;
        let answer = world
            .send_as(text(&key["key"]), "POST", &path, replay)
            .await;
        answer.expect(status);
    }
}

#[tokio::test]
async fn a_tenant_sees_nothing_of_the_installation_in_a_status() {
    let world = World::with_tenant().await;
    let endpoint = create(
        &world,
        ACMES_ENDPOINTS,
        json!({"url": "https://example.com/"}),
    )
    .await;
    let path = format!("{ACMES_ENDPOINTS}/{}/status", text(&endpoint["id"]));
    let key = create(
        &world,
        TENANT_KEYS,
        json!({"name": "x", "scopes": ["read"]}),
    )
    .await;
    let shown = world.send_as(text(&key["key"]), "GET", &path, "").await;
    let shown = shown.expect(StatusCode::OK).json();
    let names: Vec<_> = shown.as_object().unwrap().keys().collect();
    let expected = [
        "complete",
        "disabled_reason",
        "disabled_since",
        "endpoint_id",
        "gate",
        "lane",
        "last_attempt",
        "last_error",
        "next_retry_at",
    ];
    assert_eq!(names, expected);
}
