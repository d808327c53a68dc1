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
        "rate_limit": {"per_second": 0.5, "burst": 3},
        "ordered": true,
        "when_blocked": "wait",
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
fn order_is_chosen_once_but_what_blocks_a_key_may_change() {
    let changed = patched(&json!({"when_blocked": "dead_letter"})).unwrap();
    assert_eq!(changed.ordered, Some(WhenBlocked::DeadLetter));
    assert_eq!(patched(&json!({"ordered": true})).unwrap(), full());
    for patch in [
        json!({"ordered": false, "when_blocked": null}),
        json!({"ordered": null, "when_blocked": null}),
    ] {
        match patched(&patch) {
            Err(Problem::Invalid(errors)) => assert_eq!(errors[0].field, "ordered"),
            other => panic!("{patch}: {other:?}"),
        }
    }
}

#[test]
fn null_in_a_patch_restores_the_default() {
    let changed = patched(&json!({"retry_schedule": null, "format": null, "event_types": null}));
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
        ("rate_limit", json!(5)),
        ("rate_limit", json!({})),
        ("rate_limit", json!({"per_second": 0})),
        ("rate_limit", json!({"per_second": -1})),
        ("rate_limit", json!({"per_second": 1e300})),
        ("rate_limit", json!({"per_second": "1"})),
        ("rate_limit", json!({"per_second": 1, "burst": 0})),
        ("rate_limit", json!({"per_second": 1, "burst": 1.5})),
        ("rate_limit", json!({"per_second": 1, "per_minute": 2})),
        ("ordered", json!("yes")),
        ("when_blocked", json!("wait")),
        ("when_blocked", json!("skip")),
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

#[test]
fn a_rate_limit_without_a_burst_lets_a_second_come_at_once() {
    for (per_second, burst) in [(0.1, 1), (1.0, 1), (2.5, 3), (100_000.0, 100_000)] {
        let document =
            json!({"url": "https://example.com/", "rate_limit": {"per_second": per_second}});
        let limit = settings(&document).unwrap().rate_limit.unwrap();
        assert_eq!(limit.burst(), burst);
        assert!((limit.per_second() - per_second).abs() < f64::EPSILON);
    }
}

#[test]
fn a_patch_changes_a_part_of_the_rate_limit_or_removes_it() {
    let limit = |patch| patched(&patch).unwrap().to_json()["rate_limit"].clone();
    let changed = limit(json!({"rate_limit": {"per_second": 7}}));
    assert_eq!(changed, json!({"per_second": 7, "burst": 3}));
    let changed = limit(json!({"rate_limit": {"burst": null}}));
    assert_eq!(changed, json!({"per_second": 0.5, "burst": 1}));
    assert_eq!(limit(json!({"rate_limit": null})), json!(null));
}
