//! Many endpoints in one request, each with a result of its own.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use postrider_model::ids::TenantId;
use serde_json::{Map, Value, json};

use super::{NewEndpoint, name_of, read_new};
use crate::fields::without_mark;
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
    let body = without_mark(&body);
    let items = if lines {
        parse_lines(body)
    } else {
        parse_array(body)
    }?;
    let max = config.import_endpoints_max;
    if items.len() > max {
        return Err(Problem::field(
            "",
            format!("must have at most {max} endpoints, not {}", items.len()),
        ));
    }
    let results = write(&api, &tenant, items).await;
    let created = results
        .iter()
        .filter(|result| result["status"] == "created")
        .count();
    Ok(Json(
        json!({ "created": created, "failed": results.len() - created, "results": results }),
    ))
}

fn parse_array(body: &[u8]) -> Result<Vec<Value>, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Problem::field("", "the body must be a JSON array")
        } else {
            Problem::Syntax {
                format: "JSON",
                detail: error.to_string(),
            }
        }
    })
}

fn parse_lines(body: &[u8]) -> Result<Vec<Value>, Problem> {
    let lines = body
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .enumerate();
    let filled = lines.filter(|(_, line)| !line.is_empty());
    let parse = |(index, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|error| Problem::Syntax {
            format: "JSON lines",
            detail: format!("line {}: {error}", index + 1),
        })
    };
    filled.map(parse).collect()
}

async fn write(api: &Shared, tenant: &TenantId, items: Vec<Value>) -> Vec<Value> {
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
fn read_item(api: &Shared, tenant: &TenantId, item: Value) -> Result<(NewEndpoint, bool), Problem> {
    let values: Map<String, Value> = match item {
        Value::Object(values) => values,
        _ => return Err(Problem::field("", "must be an object")),
    };
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
