//! Attempts as tables.

use serde_json::Value;

use crate::output;

/// Characters of an answer that a table shows; `--json` shows what is recorded.
const ANSWER_SHOWN_MAX: usize = 60;

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

/// The beginning of what the receiver answered, on one line.
fn answer_of(attempt: &Value) -> String {
    let excerpt = attempt["response_excerpt"].as_str().unwrap_or_default();
    let shown = excerpt.chars().take(ANSWER_SHOWN_MAX);
    shown
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
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
        "ANSWER",
    ];
    let rows = attempts.iter().map(|attempt| {
        let mut row = output::row(attempt, &fields);
        row.push(answer_of(attempt));
        row
    });
    output::table(&heading, &rows.collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_shown_as_one_short_line() {
        let attempt = json!({ "response_excerpt": "no such\nevent\u{7}" });
        assert_eq!(answer_of(&attempt), "no such event ");
        let long = json!({ "response_excerpt": "é".repeat(200) });
        assert_eq!(answer_of(&long), "é".repeat(ANSWER_SHOWN_MAX));
        assert_eq!(answer_of(&json!({})), "");
    }
}
