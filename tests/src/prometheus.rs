//! A real Prometheus that scrapes what is under test. `tests/tools/fetch-prometheus` puts it into
//! `.tools`.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::Value;
use tempfile::TempDir;

use crate::foreign::tool;
use crate::http::{HttpClient, NoAnswer};
use crate::poll::eventually;
use crate::ports;
use crate::process::Process;

const START_TRIES: usize = 5;
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A running Prometheus. It ends when dropped.
#[derive(Debug)]
pub struct Prometheus {
    // Before the directory, so that it ends before that goes.
    _process: Process,
    http: HttpClient,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these addresses every second, as one job, and evaluates these rules
    /// as often.
    pub async fn start(targets: &[SocketAddr], rules: &[&Path]) -> Self {
        let mut said = String::new();
        for _ in 0..START_TRIES {
            let directory = tempfile::tempdir().expect("a temporary directory can be made");
            let configuration = serde_json::json!({
                "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
                "rule_files": rules,
                "scrape_configs": [{
                    "job_name": "postrider",
                    "static_configs": [{ "targets": targets }],
                }],
            });
            let file = directory.path().join("prometheus.yaml");
            // JSON is YAML.
            fs::write(&file, configuration.to_string()).expect("a temporary file can be written");
            let [port] = ports::unused();
            let mut command = Command::new(tool("prometheus/prometheus"));
            command
                .arg(format!("--config.file={}", file.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    directory.path().join("data").display()
                ))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"));
            let mut process = Process::start("prometheus", directory.path(), &mut command);
            let http = HttpClient::new((Ipv4Addr::LOCALHOST, port).into());
            let ready = eventually("Prometheus is ready", STARTS_WITHIN, || {
                let (ended, http) = (process.ended(), http.clone());
                async move {
                    if ended.is_some() {
                        return Ok(false);
                    }
                    match get(&http, "/-/ready").await {
                        Ok((200, _)) => Ok(true),
                        other => Err(format!("{other:?}")),
                    }
                }
            });
            if ready.await {
                return Self {
                    _process: process,
                    http,
                    _directory: directory,
                };
            }
            said = process.output();
        }
        panic!("Prometheus does not start: {said}");
    }

    /// The values that a query has now, those that are no number left out.
    ///
    /// # Errors
    /// What Prometheus says is wrong with it.
    pub async fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let path = format!("/api/v1/query?query={}", encoded(query));
        let (_, answer) = get(&self.http, &path).await.map_err(|error| error.0)?;
        if answer["status"] != "success" {
            return Err(format!("{query}: {}", answer["error"]));
        }
        let series = answer["data"]["result"].as_array().into_iter().flatten();
        let values = series.filter_map(|series| series["value"][1].as_str()?.parse::<f64>().ok());
        Ok(values.filter(|value| !value.is_nan()).collect())
    }

    /// Its rules, as it has them.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn rules(&self) -> Vec<Value> {
        let (_, answer) = get(&self.http, "/api/v1/rules")
            .await
            .expect("Prometheus answers");
        let groups = answer["data"]["groups"].as_array().into_iter().flatten();
        groups
            .flat_map(|group| group["rules"].as_array().into_iter().flatten())
            .cloned()
            .collect()
    }
}

async fn get(http: &HttpClient, path: &str) -> Result<(u16, Value), NoAnswer> {
    let request = Request::get(path)
        .header("host", http.address().to_string())
        .body(Body::empty())
        .expect("the path is encoded");
    let answer = http.send(request).await?;
    Ok((answer.status, answer.json()))
}

/// As a value in a query string.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("text can be written to");
        }
        encoded
    })
}
