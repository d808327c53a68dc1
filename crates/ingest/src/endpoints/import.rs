//! Many endpoints in one request, each with a result of its own.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use postrider_model::ids::TenantId;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{NewEndpoint, name_of, read_new};
use crate::items;
use crate::problem::{FieldError, Problem};
use crate::request::{self, JSON, JSON_LINES, Segments};
use crate::shared::{ApiState, Shared};

/// `POST /v1/tenants/{tenant}/endpoints/import`: a JSON array, or JSON lines. Answers with one
/// result for each item, in their order; a secret is in it only where it was made here.
pub(crate) async fn import(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    let lines = match request::media_type(&headers).as_deref() {
        Some(JSON) => false,
        Some(JSON_LINES) => true,
        _ => {
            return Err(Problem::MediaType {
                expected: "application/json or application/x-ndjson",
            });
        }
    };
    let config = &api.config;
    let body = request::read_body(
        &headers,
        body,
        config.import_bytes_max,
        config.body_timeout(),
    )
    .await?;
    let max = config.import_endpoints_max;
    let items = if lines {
        items_of_lines(&body, max)
    } else {
        items::of_array(&body, max)
    }?;
    let results = write(&api, &tenant, items).await;
    let created = results
        .iter()
        .filter(|result| result["status"] == "created")
        .count();
    Ok(Json(
        json!({ "created": created, "failed": results.len() - created, "results": results }),
    ))
}

fn items_of_lines(body: &[u8], max: usize) -> Result<Vec<&RawValue>, Problem> {
    let mut found = Vec::new();
    for (number, line) in items::of_lines(body, max)? {
        let item = serde_json::from_slice(line).map_err(|error| Problem::Syntax {
            format: "JSON lines",
            detail: format!("line {number}: {error}"),
        })?;
        found.push(item);
    }
    Ok(found)
}

async fn write(api: &Shared, tenant: &TenantId, items: Vec<&RawValue>) -> Vec<Value> {
    let mut results = Vec::with_capacity(items.len());
    let mut endpoints = Vec::new();
    let mut secrets = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match read_item(api, tenant, item) {
            Ok((NewEndpoint { endpoint, secret }, given)) => {
                secrets.push((
                    index,
                    endpoint.id.clone(),
                    (!given).then(|| secret.reveal()),
                ));
                endpoints.push(endpoint);
                results.push(Value::Null);
            }
            Err(problem) => results.push(failed(&problem)),
        }
    }
    let written = api.registry.import_endpoints(endpoints).await;
    for ((index, id, secret), written) in secrets.into_iter().zip(written) {
        results[index] = match written {
            Ok(created) => {
                json!({"status": "created", "id": id, "version": created.version, "secret": secret})
            }
            Err(error) => {
                let mut result = failed(&Problem::of_write(error, || name_of(&id)));
                result["id"] = json!(id);
                result
            }
        };
    }
    results
}

/// The endpoint, and whether its secret was given.
fn read_item(
    api: &Shared,
    tenant: &TenantId,
    item: &RawValue,
) -> Result<(NewEndpoint, bool), Problem> {
    let values: Result<Map<String, Value>, _> = serde_json::from_str(item.get());
    let values = values.map_err(|_| Problem::field("", "must be an object"))?;
    let given = values.get("secret").is_some_and(|secret| !secret.is_null());
    read_new(api, tenant, values).map(|new| (new, given))
}

fn failed(problem: &Problem) -> Value {
    let errors: &[FieldError] = match problem {
        Problem::Invalid(errors) => errors,
        _ => &[],
    };
    json!({
        "status": "failed",
        "problem": problem.slug(),
        "detail": problem.to_string(),
        "errors": errors,
    })
}
