//! The demo's tenant and endpoints, made through the API at the first start and found again at
//! later ones.

use std::net::SocketAddr;

use anyhow::Context;
use postrider_model::signature::SigningSecret;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Behaviour, TENANT};
use crate::client::Client;
use crate::data_dir::{DataDir, random_bytes};

/// Short waits, so that there is something to see.
const RETRY_SCHEDULE_S: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// The secrets of the endpoints, as their receiver knows them.
#[derive(Debug, Clone)]
pub(crate) struct Secrets([SigningSecret; 3]);

impl Secrets {
    /// The secret of one endpoint.
    pub(crate) fn of(&self, behaviour: Behaviour) -> &SigningSecret {
        let [healthy, flaky, gone] = &self.0;
        match behaviour {
            Behaviour::Healthy => healthy,
            Behaviour::Flaky => flaky,
            Behaviour::Gone => gone,
        }
    }
}

/// The receiver keeps its secrets in the data directory: the API shows them only once.
pub(crate) fn secrets(data_dir: &DataDir) -> anyhow::Result<Secrets> {
    let secret = |behaviour: Behaviour| {
        let make = || SigningSecret::generate(&random_bytes()).reveal();
        let text = data_dir.ensure_private(&format!("demo-{}.secret", behaviour.name()), make)?;
        SigningSecret::parse(&text)
            .with_context(|| format!("read the demo's secret for {}", behaviour.name()))
    };
    let [healthy, flaky, gone] = Behaviour::ALL.map(secret);
    Ok(Secrets([healthy?, flaky?, gone?]))
}

/// Sees to it that tenant and endpoints are there, enabled, and lead to the receiver.
pub(crate) async fn endpoints(
    client: &Client,
    receiver: SocketAddr,
    secrets: &Secrets,
) -> anyhow::Result<()> {
    let tenant = format!("v1/tenants/{TENANT}");
    let name = json!({ "name": "Demo" });
    client
        .send(Method::PUT, &tenant, Some(&name))
        .await
        .context("create the demo's tenant")?;
    for behaviour in Behaviour::ALL {
        endpoint(client, &tenant, receiver, behaviour, secrets.of(behaviour))
            .await
            .with_context(|| format!("create the demo's endpoint {}", behaviour.endpoint()))?;
    }
    Ok(())
}

async fn endpoint(
    client: &Client,
    tenant: &str,
    receiver: SocketAddr,
    behaviour: Behaviour,
    secret: &SigningSecret,
) -> anyhow::Result<()> {
    let (all, id) = (format!("{tenant}/endpoints"), behaviour.endpoint());
    let one = format!("{all}/{id}");
    // Its port is another one at each start.
    let mut settings = json!({
        "url": format!("http://{receiver}/{}", behaviour.name()),
        "description": behaviour.describe(),
        "retry_schedule": RETRY_SCHEDULE_S,
    });
    match client.get(&one, &[]).await {
        Ok(_) => {
            client.send(Method::PATCH, &one, Some(&settings)).await?;
            client
                .send(Method::POST, &format!("{one}/enable"), None)
                .await?;
        }
        Err(error) if error.is_status(StatusCode::NOT_FOUND) => {
            settings["id"] = id.into();
            settings["secret"] = secret.reveal().into();
            client.send(Method::POST, &all, Some(&settings)).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
