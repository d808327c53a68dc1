//! The API as commands and the demo call it.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{CONTENT_TYPE, HeaderMap, IF_MATCH, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::cli::ApiArgs;
use crate::data_dir::DataDir;

const URL_DEFAULT: &str = "http://127.0.0.1:8080";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls the API with the operator key.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

/// Why a call did not work.
#[derive(Debug)]
pub(crate) enum CallError {
    /// There was no answer.
    Unreachable {
        base: String,
        source: reqwest::Error,
    },
    /// The answer says why not.
    Refused(Refusal),
    /// The answer is none of the API, or cannot be read.
    Unreadable {
        base: String,
        source: serde_json::Error,
    },
}

/// What the API said against a call.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    problem: Value,
}

impl CallError {
    /// Whether the API answered with this status.
    pub(crate) fn is_status(&self, status: StatusCode) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == status)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { base, source } if source.is_connect() => {
                write!(
                    formatter,
                    "nothing answers at {base}: is `postrider up` or `postrider ingest` running there, and ready? POSTRIDER_URL says \
                     where else"
                )
            }
            Self::Unreachable { base, .. } => write!(formatter, "no answer from {base}"),
            Self::Refused(refusal) => refusal.fmt(formatter),
            Self::Unreadable { base, .. } => write!(
                formatter,
                "what {base} answered cannot be read as an answer of Postrider's API, so it is not known whether anything was \
                 done: does POSTRIDER_URL or --api-url name another server?"
            ),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } => Some(source),
            Self::Refused(_) => None,
            Self::Unreadable { source, .. } => Some(source),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |field: &str| self.problem[field].as_str().filter(|text| !text.is_empty());
        let said = text("detail")
            .or_else(|| text("title"))
            .unwrap_or("the API said no more");
        write!(formatter, "{said} (status {})", self.status.as_u16())?;
        for error in self.problem["errors"].as_array().into_iter().flatten() {
            let field = error["field"]
                .as_str()
                .filter(|field| !field.is_empty())
                .unwrap_or("body");
            write!(
                formatter,
                "\n  {field}: {}",
                error["detail"].as_str().unwrap_or("is not as it must be")
            )?;
        }
        if self.status == StatusCode::UNAUTHORIZED {
            write!(
                formatter,
                "\n  the key comes from POSTRIDER_API_KEY, or from the data directory of `postrider up`"
            )?;
        }
        Ok(())
    }
}

impl Client {
    /// The API that the arguments name, or else that of the process on the data directory.
    pub(crate) fn from_args(args: &ApiArgs, data_dir: &DataDir) -> anyhow::Result<Self> {
        let url = match &args.api_url {
            Some(url) => url.clone(),
            None => data_dir
                .api_url()?
                .unwrap_or_else(|| URL_DEFAULT.to_owned()),
        };
        let key = match &args.api_key {
            Some(key) => key.clone(),
            None => data_dir.operator_key()?.with_context(|| {
                format!(
                    "there is no API key: set POSTRIDER_API_KEY, or name the data directory of `postrider up` with \
                     --data-dir ({} has no key)",
                    data_dir.path().display()
                )
            })?,
        };
        Self::new(&url, key)
    }

    /// The API at this address.
    pub(crate) fn new(url: &str, key: String) -> anyhow::Result<Self> {
        let mut base: Url = url
            .parse()
            .with_context(|| format!("read the URL of the API, {url:?}"))?;
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()
            .context("build the HTTP client")?;
        Ok(Self { http, base, key })
    }

    /// Reads. Answers here and below are the body, `null` for none.
    pub(crate) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, CallError> {
        self.call(Method::GET, path, query, Body::None, None).await
    }

    /// Writes what the body says, or merely acts if there is none.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        let body = body.map_or(Body::None, |body| Body::Json(body.to_string()));
        self.call(method, path, &[], body, None).await
    }

    /// Writes, if what is there still is the version that was seen.
    pub(crate) async fn send_if(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        etag: Option<&str>,
    ) -> Result<Value, CallError> {
        self.call(method, path, &[], Body::Json(body.to_string()), etag)
            .await
    }

    /// Posts JSON that stays as it is written, byte for byte.
    pub(crate) async fn post_raw_json(&self, path: &str, json: String) -> Result<Value, CallError> {
        self.call(Method::POST, path, &[], Body::Json(json), None)
            .await
    }

    /// Posts lines of JSON.
    pub(crate) async fn post_lines(&self, path: &str, lines: String) -> Result<Value, CallError> {
        self.call(Method::POST, path, &[], Body::Lines(lines), None)
            .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Body,
        etag: Option<&str>,
    ) -> Result<Value, CallError> {
        let base = || self.base.as_str().trim_end_matches('/').to_owned();
        let unreachable = |source: reqwest::Error| CallError::Unreachable {
            base: base(),
            source: source.without_url(),
        };
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).bearer_auth(&self.key);
        if let Some(etag) = etag {
            request = request.header(IF_MATCH, etag);
        }
        request = match body {
            Body::None => request,
            Body::Json(text) => request.header(CONTENT_TYPE, "application/json").body(text),
            Body::Lines(text) => request
                .header(CONTENT_TYPE, "application/x-ndjson")
                .body(text),
        };
        let response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.map_err(unreachable)?;
        if status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let body = serde_json::from_slice(&bytes);
        if status.is_success() {
            let base = base();
            return body.map_err(|source| CallError::Unreadable { base, source });
        }
        let retry_after = retry_after(&headers);
        Err(CallError::Refused(Refusal {
            status,
            retry_after,
            problem: body.unwrap_or_default(),
        }))
    }
}

enum Body {
    None,
    Json(String),
    Lines(String),
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// What the client makes of such an answer.
    async fn answered(status: StatusCode, body: &'static str) -> Result<Value, CallError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let other = Router::new().fallback(async move || (status, body));
        let mut serving = JoinSet::new();
        serving.spawn(async { axum::serve(listener, other).await });
        postrider_daemon::telemetry::install_crypto();
        let client = Client::new(&url, "key".to_owned()).unwrap();
        client.send(Method::DELETE, "v1/tenants/acme", None).await
    }

    #[tokio::test]
    async fn an_answer_of_another_server_is_no_success() {
        for body in ["ok", "", "<html></html>"] {
            let answer = answered(StatusCode::OK, body).await;
            let error = answer.expect_err(body);
            assert!(matches!(error, CallError::Unreadable { .. }), "{error}");
        }
        assert_eq!(
            answered(StatusCode::OK, "{}").await.unwrap(),
            serde_json::json!({})
        );
        assert_eq!(
            answered(StatusCode::NO_CONTENT, "").await.unwrap(),
            Value::Null
        );
        let refused = answered(StatusCode::BAD_GATEWAY, "down").await.unwrap_err();
        assert!(refused.is_status(StatusCode::BAD_GATEWAY));
    }
}
