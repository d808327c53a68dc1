//! The API as a customer's program calls it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::http::{Answer, HttpClient, NoAnswer};
use crate::poll::eventually;

/// How long anything may take that nobody disturbs.
const SOON: Duration = Duration::from_secs(30);

/// Calls the API of one process for one tenant.
#[derive(Debug, Clone)]
pub struct Api {
    http: HttpClient,
    key: String,
    tenant: String,
}

impl Api {
    /// The API at this address, opened by this key.
    pub fn new(address: SocketAddr, key: &str, tenant: &str) -> Self {
        Self {
            http: HttpClient::new(address),
            key: key.to_owned(),
            tenant: tenant.to_owned(),
        }
    }

    /// The tenant it acts for.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The same API for another tenant, over the same connections.
    #[must_use]
    pub fn for_tenant(&self, tenant: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            ..self.clone()
        }
    }

    /// The same API for somebody with another key, over the same connections.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    /// Sends a request to a path below the tenant, such as `/events`; one that begins with `/v1/`
    /// stays as it is.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes> + Send,
    ) -> Result<Answer, NoAnswer> {
        let path = if path.starts_with("/v1/") {
            path.to_owned()
        } else {
            format!("/v1/tenants/{}{path}", self.tenant)
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.http.address().to_string())
            .header("authorization", format!("Bearer {}", self.key));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Body::from(body.into()))
            .expect("tests build valid requests");
        self.http.send(request).await
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn json(&self, method: Method, path: &str, body: &Value) -> Result<Answer, NoAnswer> {
        let json = [("content-type", "application/json")];
        self.call(method, path, &json, body.to_string()).await
    }

    /// Sends JSON and reads JSON.
    ///
    /// # Panics
    /// When the answer is not 2xx.
    pub async fn must(&self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self
            .json(method.clone(), path, body)
            .await
            .expect("the API answers");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(
            (200..300).contains(&answer.status),
            "{method} {path}: {} {text}",
            answer.status
        );
        answer.json()
    }

    /// Reads.
    ///
    /// # Panics
    /// When the answer is not 2xx.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self
            .call(Method::GET, path, &[], Bytes::new())
            .await
            .expect("the API answers");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(
            (200..300).contains(&answer.status),
            "GET {path}: {} {text}",
            answer.status
        );
        answer.json()
    }

    /// Creates the tenant, once the API takes it.
    pub async fn ensure_tenant(&self) {
        eventually("the tenant is created", SOON, async || {
            let answer = self.call(Method::PUT, "", &[], Bytes::new()).await;
            match answer {
                Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// Creates an endpoint and gives its id. `more` are further settings.
    pub async fn create_endpoint(&self, url: &str, more: Value) -> String {
        let mut settings = json!({ "url": url });
        if let (Some(settings), Value::Object(more)) = (settings.as_object_mut(), more) {
            settings.extend(more);
        }
        let endpoint = self.must(Method::POST, "/endpoints", &settings).await;
        endpoint["id"]
            .as_str()
            .expect("an endpoint has an id")
            .to_owned()
    }

    /// Creates many endpoints at once and gives their ids, in their order.
    ///
    /// # Panics
    /// When one of them is refused.
    pub async fn import_endpoints(&self, endpoints: &[Value]) -> Vec<String> {
        let answer = self
            .must(Method::POST, "/endpoints/import", &json!(endpoints))
            .await;
        assert_eq!(answer["failed"], json!(0), "{answer}");
        let results = answer["results"].as_array().cloned().unwrap_or_default();
        let id = |result: &Value| result["id"].as_str().map(str::to_owned);
        results.iter().filter_map(id).collect()
    }

    /// Publishes an event and gives its id.
    pub async fn publish(&self, event: &Value) -> String {
        let answer = self.must(Method::POST, "/events", event).await;
        answer["id"]
            .as_str()
            .expect("an accepted event has an id")
            .to_owned()
    }

    /// Reads an event with what became of it until that is as wanted.
    pub async fn event_when(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, async || {
            let answer = self
                .call(Method::GET, &format!("/events/{id}"), &[], Bytes::new())
                .await;
            match answer {
                Ok(answer) if answer.status == 200 && wanted(&answer.json()) => Ok(answer.json()),
                Ok(answer) => Err(format!("{} {}", answer.status, answer.json())),
                Err(NoAnswer(why)) => Err(why),
            }
        })
        .await
    }

    /// Reads a list until it is as wanted.
    pub async fn list_when(
        &self,
        path: &str,
        what: &str,
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        eventually(what, SOON, async || {
            let list = self.get(path).await;
            let data = list["data"].as_array().cloned().unwrap_or_default();
            if wanted(&data) { Ok(data) } else { Err(list) }
        })
        .await
    }
}
