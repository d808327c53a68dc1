//! Several processes write tenants and endpoints at the same time.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::Method;
use futures_util::future::join_all;
use postrider_tests::{Api, LogKind, Plan, eventually};
use serde_json::{Value, json};

const INGESTS: usize = 3;
const SOON: Duration = Duration::from_secs(10);

on_kafka!(three_ingest_processes_write_at_once_and_no_update_is_lost);

async fn three_ingest_processes_write_at_once_and_no_update_is_lost(log: LogKind) {
    const CREATED: usize = 20;
    const COUNTED: u32 = 10;
    let cluster = Plan::new(log).ingests(INGESTS).start().await;
    let apis = cluster.apis();
    assert_eq!(apis.len(), INGESTS);

    let created = join_all(apis.iter().map(async |api| {
        let mut ids = Vec::new();
        for _ in 0..CREATED {
            ids.push(
                api.create_endpoint("https://example.com/hook", json!({}))
                    .await,
            );
        }
        ids
    }));
    let created: BTreeSet<String> = created.await.into_iter().flatten().collect();
    assert_eq!(created.len(), INGESTS * CREATED);
    for api in &apis {
        api.list_when("/endpoints?limit=250", "all see all", |list| {
            ids_of(list) == created
        })
        .await;
    }

    // Each change of one endpoint adds a pair or one to a number, at whatever version it is.
    let endpoint = created.first().unwrap();
    let path = format!("/endpoints/{endpoint}");
    let path = &path;
    apis[0]
        .must(Method::PATCH, path, &json!({ "description": "0" }))
        .await;
    for api in &apis {
        eventually("the first update is seen", SOON, async || {
            let shown = api.get(path).await;
            if shown["description"] == "0" {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }
    join_all(apis.iter().enumerate().map(async |(writer, api)| {
        for step in 0..COUNTED {
            count_up(api, path).await;
            if step < 5 {
                let pair = json!({ "metadata": { format!("w{writer}-{step}"): "set" } });
                api.must(Method::PATCH, path, &pair).await;
            }
        }
    }))
    .await;
    let total = (INGESTS * usize::try_from(COUNTED).unwrap()).to_string();
    for api in &apis {
        eventually("every update is seen", SOON, async || {
            let shown = api.get(path).await;
            let pairs = shown["metadata"]
                .as_object()
                .map_or(0, serde_json::Map::len);
            if pairs == INGESTS * 5 && shown["description"] == total {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }
}

/// Adds one to the number in the description, as a careful client does: on the version that it
/// read, or again.
async fn count_up(api: &Api, path: &str) {
    loop {
        let read = api.call(Method::GET, path, &[], "").await.unwrap();
        let number: u32 = read.json()["description"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let patch = json!({ "description": (number + 1).to_string() }).to_string();
        let headers = [
            ("content-type", "application/merge-patch+json"),
            ("if-match", read.header("etag")),
        ];
        let written = api
            .call(Method::PATCH, path, &headers, patch)
            .await
            .unwrap();
        match written.status {
            200 => return,
            412 => {}
            other => panic!("{other} {}", written.json()),
        }
    }
}

fn ids_of(list: &[Value]) -> BTreeSet<String> {
    list.iter()
        .filter_map(|endpoint| endpoint["id"].as_str().map(str::to_owned))
        .collect()
}
