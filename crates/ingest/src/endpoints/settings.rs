//! What a customer sets of an endpoint: read from JSON, shown as JSON, patched as JSON. Pure.

use std::collections::BTreeMap;

use postrider_model::address::check_url;
use postrider_model::endpoint::{Endpoint, EndpointState, PayloadFormat};
use postrider_model::filter::EventTypeFilter;
use postrider_model::payload::rfc3339;
use postrider_model::retry::RetrySchedule;
use postrider_registry::Versioned;
use serde_json::{Map, Value, json};
use url::Url;

use crate::fields::{Fields, ms_as_seconds, parsed, seconds_as_ms, text, texts};
use crate::metadata;
use crate::problem::Problem;

const DESCRIPTION_BYTES_MAX: usize = 512;
const ATTEMPT_TIMEOUT_MS_MIN: i64 = 100;
const ATTEMPT_TIMEOUT_MS_MAX: i64 = 60_000;
const NOT_YET: &str = "is not supported yet";
/// What an endpoint shows but a patch does not set, and what does.
const NOT_PATCHED: [(&str, &str); 8] = [
    ("id", "never changes"),
    ("tenant", "never changes"),
    ("created_at", "never changes"),
    ("version", "is set by the registry; use `If-Match`"),
    ("state", "is changed by POST to `…/enable` and `…/disable`"),
    ("disabled_reason", "is set together with the state"),
    ("secret", "is changed by POST to `…/secret/rotate`"),
    ("secrets", "are changed by POST to `…/secret/rotate`"),
];

/// What a customer sets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    url: Url,
    description: String,
    metadata: BTreeMap<String, String>,
    event_types: EventTypeFilter,
    format: PayloadFormat,
    retry_schedule: Option<RetrySchedule>,
    attempt_timeout_ms: Option<u32>,
}

impl Settings {
    /// Takes the settings; `None` only after noting what is wrong.
    pub(crate) fn take(fields: &mut Fields) -> Option<Self> {
        let url = fields.required("url", parse_url);
        let description = fields.optional("description", text(DESCRIPTION_BYTES_MAX));
        let metadata = metadata::take(fields);
        let event_types = fields.optional("event_types", |value| {
            EventTypeFilter::try_new(texts(value)?).map_err(|error| error.to_string())
        });
        let format = fields.optional("format", parsed(parse_format));
        let retry_schedule = fields.optional("retry_schedule", parse_schedule);
        let attempt_timeout_ms = fields.optional("attempt_timeout", parse_attempt_timeout);
        for unsupported in ["rate_limit", "ordered", "channels"] {
            fields.refuse(unsupported, NOT_YET);
        }
        Some(Self {
            url: url?,
            description: description.unwrap_or_default(),
            metadata,
            event_types: event_types.unwrap_or_default(),
            format: format.unwrap_or_default(),
            retry_schedule,
            attempt_timeout_ms,
        })
    }

    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.clone();
        Self {
            url: endpoint.url,
            description: endpoint.description,
            metadata: endpoint.metadata,
            event_types: endpoint.event_types,
            format: endpoint.format,
            retry_schedule: endpoint.retry_schedule,
            attempt_timeout_ms: endpoint.attempt_timeout_ms,
        }
    }

    /// The endpoint with these settings.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Endpoint {
        let settings = self.clone();
        Endpoint {
            url: settings.url,
            description: settings.description,
            metadata: settings.metadata,
            event_types: settings.event_types,
            format: settings.format,
            retry_schedule: settings.retry_schedule,
            attempt_timeout_ms: settings.attempt_timeout_ms,
            ..endpoint
        }
    }

    /// Where to POST.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// These settings after a merge patch (RFC 7396), checked as if they were new.
    pub(crate) fn patched(&self, patch: Map<String, Value>) -> Result<Self, Problem> {
        let mut errors = Fields::default();
        let mut patch = patch;
        for (name, why) in NOT_PATCHED {
            if patch.remove(name).is_some() {
                errors.wrong(name, why);
            }
        }
        errors.finish()?;
        let mut document = Value::Object(self.to_json());
        merge(&mut document, Value::Object(patch));
        let Value::Object(document) = document else {
            unreachable!("an object merged into an object is an object")
        };
        let mut fields = Fields::new(document);
        let settings = Self::take(&mut fields);
        fields.finish()?;
        let Some(settings) = settings else {
            unreachable!("what is wrong was noted")
        };
        Ok(settings)
    }

    fn to_json(&self) -> Map<String, Value> {
        let schedule = self.retry_schedule.as_ref().map(|schedule| {
            schedule
                .delays_ms()
                .iter()
                .map(|ms| ms_as_seconds(*ms))
                .collect::<Vec<_>>()
        });
        let attempt_timeout = self
            .attempt_timeout_ms
            .map(|ms| ms_as_seconds(i64::from(ms)));
        let format = match self.format {
            PayloadFormat::Standard => "standard",
            PayloadFormat::Raw => "raw",
        };
        let json = json!({
            "url": self.url.as_str(),
            "description": self.description,
            "metadata": self.metadata,
            "event_types": self.event_types.patterns(),
            "format": format,
            "retry_schedule": schedule,
            "attempt_timeout": attempt_timeout,
            "rate_limit": null,
            "ordered": false,
        });
        match json {
            Value::Object(object) => object,
            _ => unreachable!("it is written as an object"),
        }
    }
}

/// The endpoint as shown: everything but its secrets.
pub(crate) fn view(endpoint: &Versioned<Endpoint>) -> Value {
    let (endpoint, version) = (&*endpoint.value, endpoint.version);
    let (state, disabled_reason) = match &endpoint.state {
        EndpointState::Enabled => ("enabled", None),
        EndpointState::Paused => ("paused", None),
        EndpointState::Disabled { reason, .. } => ("disabled", Some(reason)),
    };
    let mut shown = Settings::of(endpoint).to_json();
    let rest = [
        ("id", json!(endpoint.id)),
        ("tenant", json!(endpoint.tenant)),
        ("state", json!(state)),
        ("disabled_reason", json!(disabled_reason)),
        ("created_at", json!(rfc3339(endpoint.created_at_ms))),
        ("version", json!(version)),
    ];
    shown.extend(rest.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(shown)
}

/// Merges as RFC 7396 says: `null` removes, objects merge, everything else replaces.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(&name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

fn parse_url(value: &Value) -> Result<Url, String> {
    let text = value.as_str().ok_or("must be text")?;
    let url: Url = text
        .parse()
        .map_err(|error| format!("must be a URL: {error}"))?;
    check_url(&url).map_err(|error| error.to_string())?;
    Ok(url)
}

fn parse_format(text: &str) -> Result<PayloadFormat, &'static str> {
    match text {
        "standard" => Ok(PayloadFormat::Standard),
        "raw" => Ok(PayloadFormat::Raw),
        "cloudevents" | "cloudevents-binary" => Err(NOT_YET),
        _ => Err("must be `standard` or `raw`"),
    }
}

fn parse_schedule(value: &Value) -> Result<RetrySchedule, String> {
    let delays = value.as_array().ok_or("must be a list of seconds")?;
    let delays_ms = delays.iter().map(seconds_as_ms).collect::<Result<_, _>>()?;
    RetrySchedule::try_new(delays_ms).map_err(|error| error.to_string())
}

fn parse_attempt_timeout(value: &Value) -> Result<u32, String> {
    let ms = seconds_as_ms(value)?;
    if !(ATTEMPT_TIMEOUT_MS_MIN..=ATTEMPT_TIMEOUT_MS_MAX).contains(&ms) {
        let [min, max] = [ATTEMPT_TIMEOUT_MS_MIN, ATTEMPT_TIMEOUT_MS_MAX].map(ms_as_seconds);
        return Err(format!("must be {min} to {max} seconds"));
    }
    u32::try_from(ms).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &Value) -> Result<Settings, Problem> {
        let mut fields = Fields::new(json.as_object().unwrap().clone());
        let settings = Settings::take(&mut fields);
        fields.finish().map(|()| settings.unwrap())
    }

    fn full() -> Settings {
        settings(&json!({
            "url": "https://example.com/hooks",
            "description": "orders",
            "metadata": {"a": "1", "b": "2"},
            "event_types": ["invoice.*"],
            "format": "raw",
            "retry_schedule": [5, 60.5],
            "attempt_timeout": 2.5,
        }))
        .unwrap()
    }

    fn patched(patch: &Value) -> Result<Settings, Problem> {
        full().patched(patch.as_object().unwrap().clone())
    }

    #[test]
    fn what_is_shown_can_be_set_again() {
        assert_eq!(settings(&Value::Object(full().to_json())).unwrap(), full());
    }

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let changed = patched(&json!({"description": "bills"})).unwrap();
        assert_eq!(
            changed,
            Settings {
                description: "bills".to_owned(),
                ..full()
            }
        );
        assert_eq!(patched(&json!({})).unwrap(), full());
    }

    #[test]
    fn null_in_a_patch_restores_the_default() {
        let changed =
            patched(&json!({"retry_schedule": null, "format": null, "event_types": null}));
        let expected = Settings {
            retry_schedule: None,
            format: PayloadFormat::Standard,
            event_types: EventTypeFilter::default(),
            ..full()
        };
        assert_eq!(changed.unwrap(), expected);
        assert!(patched(&json!({"url": null})).is_err());
    }

    #[test]
    fn a_patch_merges_metadata_and_replaces_lists() {
        let changed = patched(&json!({"metadata": {"a": null, "c": "3"}, "event_types": ["a"]}));
        let changed = changed.unwrap();
        let pairs: Vec<_> = changed
            .metadata
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(pairs, [("b", "2"), ("c", "3")]);
        assert_eq!(changed.event_types.patterns(), ["a"]);
    }

    #[test]
    fn a_patch_cannot_set_what_has_its_own_route_or_never_changes() {
        for (name, _) in NOT_PATCHED {
            let mut patch = Map::new();
            patch.insert(name.to_owned(), json!("x"));
            match full().patched(patch) {
                Err(Problem::Invalid(errors)) => assert_eq!(errors[0].field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(patched(&json!({"colour": "red"})).is_err());
    }

    #[test]
    fn merges_as_the_examples_of_the_standard() {
        let examples = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), Value::Null, Value::Null),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ];
        for (mut target, patch, expected) in examples {
            merge(&mut target, patch);
            assert_eq!(target, expected);
        }
    }

    #[test]
    fn refuses_what_is_not_supported_and_says_which() {
        for (name, value) in [
            ("rate_limit", json!({"per_second": 1})),
            ("ordered", json!(true)),
            ("channels", json!(["a"])),
            ("format", json!("cloudevents")),
            ("retry_schedule", json!([0])),
            ("retry_schedule", json!("5")),
            ("attempt_timeout", json!(61)),
            ("attempt_timeout", json!(0)),
            ("event_types", json!(["invoice..paid"])),
            ("metadata", json!({"a": 1})),
            ("description", json!("x".repeat(513))),
            ("url", json!("ftp://example.com/")),
            ("url", json!("not a url")),
        ] {
            let mut document = json!({"url": "https://example.com/"});
            document[name] = value;
            match settings(&document) {
                Err(Problem::Invalid(errors)) => assert_eq!(errors[0].field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
