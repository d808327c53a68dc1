//! `postrider endpoint status`: how an endpoint is doing, for the worst hour.

use serde_json::Value;

use super::OneArgs;
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

pub(super) async fn show(one: OneArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&one.api, data_dir)?;
    let status = client.get(&format!("{}/status", one.path()), &[]).await?;
    if one.api.json {
        output::json(&status);
        return Ok(());
    }
    output::facts(&facts(&status));
    if status["complete"] == Value::Bool(false) {
        output::talk("Not everything was read in the time a request has; there may be more.");
    }
    Ok(())
}

/// What is known, the owner's own words last. What there is none of is left out, but for an owner
/// that is silent.
fn facts(status: &Value) -> Vec<(String, String)> {
    let named = [
        ("endpoint", &status["endpoint_id"]),
        ("gate", &status["gate"]),
        ("obstacles", &status["obstacles"]),
        ("disabled reason", &status["disabled_reason"]),
        ("disabled since", &status["disabled_since"]),
        ("partition", &status["partition"]),
        ("partition lag", &status["partition_lag"]),
        ("owner", &status["owner"]),
        ("owner is silent", &status["live_error"]),
        ("behind since", &status["lane"]["behind"]["since"]),
        (
            "behind by at most",
            &status["lane"]["behind"]["records_at_most"],
        ),
        ("breaker opened", &status["lane"]["breaker"]["openings"]),
        (
            "breaker open until",
            &status["lane"]["breaker"]["open_until"],
        ),
        ("failing since", &status["lane"]["failing_since"]),
        ("next retry", &status["next_retry_at"]),
    ];
    let mut facts: Vec<_> = named
        .into_iter()
        .filter(|(_, value)| !value.is_null() && !is_empty(value))
        .map(|(name, value)| (name.to_owned(), output::cell(value)))
        .collect();
    for (name, field) in [
        ("last attempt", "last_attempt"),
        ("last error", "last_error"),
    ] {
        facts.extend(attempt(&status[field]).map(|text| (name.to_owned(), text)));
    }
    flatten("live", &status["live"], &mut facts);
    facts
}

fn attempt(attempt: &Value) -> Option<String> {
    let shown = [
        "started_at",
        "outcome",
        "reason",
        "status",
        "detail",
        "event_id",
    ];
    let words = shown
        .iter()
        .map(|field| &attempt[*field])
        .filter(|value| !value.is_null() && *value != "")
        .map(output::cell);
    attempt
        .is_object()
        .then(|| words.collect::<Vec<_>>().join(" "))
}

/// Whatever the owner says, one fact a line, without having to know what that is.
fn flatten(name: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Array(_) if is_empty(value) => {}
        Value::Object(members) => {
            for (member, value) in members {
                flatten(
                    &format!("{name} {}", member.replace('_', " ")),
                    value,
                    facts,
                );
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            facts.push((name.to_owned(), output::cell(value)));
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_known_is_shown_and_what_is_not_is_left_out() {
        let status = json!({
            "endpoint_id": "ep_a", "gate": "open", "partition": 3, "owner": "10.0.0.1:9464",
            "live_error": null, "lane": {"behind": {"since": "then", "records_at_most": 12}},
            "last_error": {"started_at": "then", "outcome": "failed", "status": 500, "detail": ""},
            "obstacles": ["the key is wrong"],
            "live": {"obstacles": [], "in_flight": 2, "breaker": {"state": "open", "since": null}},
        });
        let expected = [
            ("endpoint", "ep_a"),
            ("gate", "open"),
            ("obstacles", "the key is wrong"),
            ("partition", "3"),
            ("owner", "10.0.0.1:9464"),
            ("behind since", "then"),
            ("behind by at most", "12"),
            ("last error", "then failed 500"),
            ("live breaker state", "open"),
            ("live in flight", "2"),
        ];
        assert_eq!(
            facts(&status),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
