//! The switch for the worst hour: nothing is sent to anybody until it is turned back. Events are
//! accepted and matched, and wait.

use axum::Json;
use axum::extract::State;
use postrider_model::tenant::Installation;
use postrider_registry::Versioned;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::shared::{ApiState, Shared};

/// `GET /v1/installation`
pub(crate) async fn show(State(api): ApiState) -> Result<Json<Value>, Problem> {
    api.refresh_registry().await?;
    Ok(Json(view(&api.registry.installation())))
}

/// `POST /v1/pause`
pub(crate) async fn pause(State(api): ApiState) -> Result<Json<Value>, Problem> {
    set_paused(&api, true).await
}

/// `POST /v1/resume`
pub(crate) async fn resume(State(api): ApiState) -> Result<Json<Value>, Problem> {
    set_paused(&api, false).await
}

async fn set_paused(api: &Shared, deliveries_paused: bool) -> Result<Json<Value>, Problem> {
    let written = api
        .registry
        .put_installation(Installation { deliveries_paused })
        .await;
    let written =
        written.map_err(|error| Problem::of_write(error, || "the installation".to_owned()))?;
    Ok(Json(view(&written)))
}

fn view(installation: &Versioned<Installation>) -> Value {
    json!({
        "deliveries_paused": installation.value.deliveries_paused,
        "version": installation.version,
    })
}
