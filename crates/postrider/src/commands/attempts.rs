//! Attempts as tables.

use serde_json::Value;

use crate::output;

/// Prints a page of an endpoint's attempts.
pub(crate) fn list(answer: &Value, as_json: bool) {
    let fields = [
        "started_at",
        "event_id",
        "event_type",
        "attempt",
        "outcome",
        "status",
        "reason",
        "duration_ms",
        "settlement",
    ];
    output::list(answer, as_json, &fields);
}

/// Prints the attempts of one delivery, if there are any.
pub(crate) fn of_delivery(delivery: &Value) {
    let attempts = delivery["attempts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if attempts.is_empty() {
        return;
    }
    let fields = [
        "attempt",
        "started_at",
        "outcome",
        "status",
        "reason",
        "duration_ms",
        "detail",
    ];
    let heading = [
        "ATTEMPT",
        "STARTED AT",
        "OUTCOME",
        "STATUS",
        "REASON",
        "DURATION MS",
        "DETAIL",
    ];
    let rows = attempts.iter().map(|attempt| output::row(attempt, &fields));
    output::table(&heading, &rows.collect::<Vec<_>>());
}
