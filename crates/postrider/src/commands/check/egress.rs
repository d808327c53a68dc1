//! The way out, tried as a webhook takes it: the same client, the same policy.

use std::sync::Arc;
use std::time::Duration;

use postrider_delivery::sender::{HttpSender, Sender, WebhookRequest};
use postrider_log::{Clock, SystemClock};
use postrider_model::address::check_url;
use postrider_model::ids::TenantId;
use postrider_model::outcome::{Outcome, Reason};
use reqwest::Url;

use crate::commands::finding::{Finding, Level};
use crate::config::Config;

const BODY: &str = r#"{"type":"postrider.check","data":{}}"#;

/// Sends to each URL.
pub(super) async fn look(config: &Config, urls: &[Url]) -> Vec<Finding> {
    if urls.is_empty() {
        let detail = "say --url, with a URL outside that may be sent a POST";
        return vec![Finding::new("egress", "", Level::Skip, detail)];
    }
    let sender = match sender(config) {
        Ok(sender) => sender,
        Err(error) => {
            return vec![Finding::new(
                "egress",
                "",
                Level::Error,
                format!("{error:#}"),
            )];
        }
    };
    let mut findings = Vec::new();
    for url in urls {
        let (level, detail) = send(&sender, config, url).await;
        findings.push(Finding::new("egress", url.as_str(), level, detail));
    }
    findings
}

fn sender(config: &Config) -> anyhow::Result<HttpSender> {
    Ok(HttpSender::new(
        config.egress.policy()?,
        &config.egress,
        Arc::new(SystemClock),
    )?)
}

async fn send(sender: &HttpSender, config: &Config, url: &Url) -> (Level, String) {
    if let Err(error) = check_url(url) {
        return (Level::Error, format!("no endpoint can have it: {error}"));
    }
    let Ok(tenant) = TenantId::try_new("check") else {
        unreachable!("it is a valid id");
    };
    let request = WebhookRequest {
        tenant,
        url: url.clone(),
        id: "check".to_owned(),
        attempt: 1,
        timestamp_s: SystemClock.now_ms() / 1000,
        signature: String::new(),
        traceparent: String::new(),
        body: BODY.into(),
        timeout: Duration::from_millis(config.delivery.deliver.attempt_timeout_ms),
    };
    let Some(response) = sender.send(request, Arc::new(|| true)).await else {
        return (Level::Error, "it did not leave".to_owned());
    };
    match response.outcome {
        Outcome::Answered { status, .. } => (Level::Ok, format!("answers, with status {status}")),
        Outcome::Unanswered(reason) => (
            Level::Error,
            format!("{}; {}", response.detail, advice(reason)),
        ),
        Outcome::Unsendable(reason) => (
            Level::Error,
            format!("{}; {}", response.detail, advice(reason)),
        ),
    }
}

fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::AddressForbidden => "only if endpoints are to be there, open that network",
        Reason::Dns => "see that this machine's resolver knows names outside",
        Reason::Tls => {
            "see that the certificate is one that is trusted here, and that nothing on the way opens TLS"
        }
        _ => {
            "see that firewalls, network policies and routes let this machine out; proxies are not used"
        }
    }
}
