//! What a customer sets of an endpoint: read from JSON, shown as JSON, patched as JSON. Pure.

use std::collections::BTreeMap;

use postrider_model::address::check_url;
use postrider_model::endpoint::{
    BURST_MAX, Endpoint, EndpointState, PayloadFormat, RateLimit, WhenBlocked,
};
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
const DEAD_LETTER: &str = "dead_letter";
const WAIT: &str = "wait";
const NOT_YET: &str = "is not supported yet";
/// What an endpoint shows but a patch does not set, and what does.
const NOT_PATCHED: [(&str, &str); 10] = [
    ("id", "never changes"),
    ("tenant", "never changes"),
    ("created_at", "never changes"),
    ("version", "is set by the registry; use `If-Match`"),
    ("public_key", "follows from the secret; rotate that"),
    (
        "state",
        "is changed by POST to `…/pause`, `…/resume`, `…/disable` and `…/enable`",
    ),
    ("disabled_reason", "is set together with the state"),
    ("disabled_since", "is set together with the state"),
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
    rate_limit: Option<RateLimit>,
    ordered: Option<WhenBlocked>,
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
        let rate_limit = fields.optional("rate_limit", parse_rate_limit);
        let ordered = take_ordered(fields);
        fields.refuse("channels", NOT_YET);
        Some(Self {
            url: url?,
            description: description.unwrap_or_default(),
            metadata,
            event_types: event_types.unwrap_or_default(),
            format: format.unwrap_or_default(),
            retry_schedule,
            attempt_timeout_ms,
            rate_limit,
            ordered,
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
            rate_limit: endpoint.rate_limit,
            ordered: endpoint.ordered,
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
            rate_limit: settings.rate_limit,
            ordered: settings.ordered,
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
        if settings
            .as_ref()
            .is_some_and(|new| new.ordered.is_some() != self.ordered.is_some())
        {
            fields.wrong(
                "ordered",
                "is chosen when the endpoint is created; create another one and delete this",
            );
        }
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
            "rate_limit": self.rate_limit.map(rate_limit_to_json),
            "ordered": self.ordered.is_some(),
            "when_blocked": self.ordered.map(|when| match when {
                WhenBlocked::DeadLetter => DEAD_LETTER,
                WhenBlocked::Wait => WAIT,
            }),
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
    let (state, disabled) = match &endpoint.state {
        EndpointState::Enabled => ("enabled", None),
        EndpointState::Paused => ("paused", None),
        EndpointState::Disabled { reason, since_ms } => {
            ("disabled", Some((reason, rfc3339(*since_ms))))
        }
    };
    let (disabled_reason, disabled_since) = disabled.unzip();
    let mut shown = Settings::of(endpoint).to_json();
    let rest = [
        ("id", json!(endpoint.id)),
        ("tenant", json!(endpoint.tenant)),
        ("state", json!(state)),
        ("disabled_reason", json!(disabled_reason)),
        ("disabled_since", json!(disabled_since)),
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

/// Whether order matters, and what then becomes of a delivery that holds back the others of its
/// ordering key.
fn take_ordered(fields: &mut Fields) -> Option<WhenBlocked> {
    let ordered = fields.optional("ordered", |value| {
        value.as_bool().ok_or("must be `true` or `false`")
    });
    let when = fields.optional("when_blocked", parsed(parse_when_blocked));
    if when.is_some() && ordered != Some(true) {
        fields.wrong("when_blocked", "is for endpoints with `\"ordered\": true`");
    }
    (ordered == Some(true)).then(|| when.unwrap_or_default())
}

fn parse_when_blocked(text: &str) -> Result<WhenBlocked, &'static str> {
    match text {
        DEAD_LETTER => Ok(WhenBlocked::DeadLetter),
        WAIT => Ok(WhenBlocked::Wait),
        _ => Err("must be `dead_letter` or `wait`"),
    }
}

fn parse_url(value: &Value) -> Result<Url, String> {
    let text = value.as_str().ok_or("must be text")?;
    let url: Url = text
        .parse()
        .map_err(|error| format!("must be a URL such as `https://example.com/hook`: {error}"))?;
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

/// Without a burst, the requests of one second may come at once.
fn parse_rate_limit(value: &Value) -> Result<RateLimit, String> {
    const SHAPE: &str = "must be an object of `per_second` and, if wanted, `burst`";
    let members = value.as_object().ok_or(SHAPE)?;
    if members
        .keys()
        .any(|name| name != "per_second" && name != "burst")
    {
        return Err(SHAPE.to_owned());
    }
    let per_second = members.get("per_second").and_then(Value::as_f64);
    let per_second = per_second.ok_or("`per_second` must be a number")?;
    let burst = match members.get("burst").filter(|burst| !burst.is_null()) {
        Some(burst) => burst
            .as_u64()
            .and_then(|burst| u32::try_from(burst).ok())
            .ok_or_else(|| format!("`burst` must be a whole number from 1 to {BURST_MAX}"))?,
        None => requests_of_a_second(per_second),
    };
    RateLimit::try_new(per_second, burst).map_err(|error| error.to_string())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float stays within the type, and the clamp within the bounds"
)]
fn requests_of_a_second(per_second: f64) -> u32 {
    per_second.ceil().clamp(1.0, f64::from(BURST_MAX)) as u32
}

fn rate_limit_to_json(limit: RateLimit) -> Value {
    // Thousandths of a second and of a request are written alike.
    let per_second = ms_as_seconds(i64::from(limit.per_1000_s()));
    json!({ "per_second": per_second, "burst": limit.burst() })
}

#[cfg(test)]
mod tests;
