use proptest::prelude::*;

use super::*;

fn event_type(text: &str) -> EventTypeName {
    EventTypeName::try_new(text).unwrap()
}

fn filter(patterns: &[&str]) -> EventTypeFilter {
    EventTypeFilter::try_new(patterns.iter().map(|text| (*text).to_owned()).collect()).unwrap()
}

#[test]
fn no_pattern_matches_every_type_of_a_producer() {
    assert!(filter(&[]).matches(&event_type("invoice.paid")));
    assert!(filter(&[]).matches(&event_type("postrider")));
}

#[test]
fn what_postrider_publishes_comes_only_to_those_that_name_it() {
    let disabled = event_type("postrider.endpoint.disabled");
    for naming in [
        "postrider.*",
        "postrider.endpoint.*",
        "postrider.endpoint.disabled",
    ] {
        assert!(
            filter(&["invoice.*", naming]).matches(&disabled),
            "{naming}"
        );
    }
    for other in [
        &[][..],
        &["invoice.*"],
        &["postrider"],
        &["postrider.tenant.*"],
    ] {
        assert!(!filter(other).matches(&disabled), "{other:?}");
    }
}

#[test]
fn an_exact_pattern_matches_its_type_alone() {
    let filter = filter(&["invoice.paid", "user.created"]);
    assert!(filter.matches(&event_type("invoice.paid")));
    assert!(filter.matches(&event_type("user.created")));
    for other in [
        "invoice",
        "invoice.paid.late",
        "invoice.pai",
        "Invoice.paid",
    ] {
        assert!(!filter.matches(&event_type(other)), "{other}");
    }
}

#[test]
fn a_prefix_pattern_matches_below_it_at_any_depth_but_not_itself() {
    let filter = filter(&["invoice.*"]);
    assert!(filter.matches(&event_type("invoice.paid")));
    assert!(filter.matches(&event_type("invoice.paid.late")));
    for other in ["invoice", "invoices.paid", "invoices", "my.invoice.paid"] {
        assert!(!filter.matches(&event_type(other)), "{other}");
    }
}

#[test]
fn malformed_types_and_patterns_are_refused() {
    let long = "a".repeat(EVENT_TYPE_BYTES_MAX + 1);
    for text in [
        "", ".", "a.", ".a", "a..b", "a b", "a+b", "ä", "a\"b", "a\n", &long,
    ] {
        assert!(EventTypeName::try_new(text).is_err(), "{text:?}");
        assert!(
            EventTypeFilter::try_new(vec![text.to_owned()]).is_err(),
            "{text:?}"
        );
    }
    for pattern in ["*", ".*", "a*", "a.*.b", "*.a", "a.**", "a.*.*"] {
        assert!(EventTypeName::try_new(pattern).is_err(), "{pattern:?}");
        assert!(
            EventTypeFilter::try_new(vec![pattern.to_owned()]).is_err(),
            "{pattern:?}"
        );
    }
}

#[test]
fn a_misplaced_asterisk_is_told_where_one_may_stand() {
    for pattern in ["*", "a.*.b"] {
        let error = EventTypeFilter::try_new(vec![pattern.to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "may have letters, digits, `_`, `-`, `/` and `:` between full stops only, and `.*` at the end, as in \
             `invoice.*`, for all types below; leave the list out for all types"
        );
    }
    // A type has no such end.
    let error = EventTypeName::try_new("invoice.*").unwrap_err();
    assert_eq!(error, InvalidEventType::Character('*'));
    let error = EventTypeFilter::try_new(vec!["a+b".to_owned()]).unwrap_err();
    assert_eq!(error, InvalidEventType::Character('+'));
}

#[test]
fn types_are_as_other_systems_write_them() {
    let long = "a".repeat(EVENT_TYPE_BYTES_MAX);
    for text in [
        "invoice-paid",
        "com.example.invoice.paid.v1",
        "com.example/invoice:paid",
        "Microsoft.Storage.BlobCreated",
        &long,
    ] {
        assert!(filter(&[text]).matches(&event_type(text)), "{text}");
    }
    let below = filter(&["com.example.*"]);
    assert!(below.matches(&event_type("com.example.invoice-paid/v1")));
    assert!(!below.matches(&event_type("com.example/invoice")));
}

#[test]
fn the_number_of_patterns_is_bounded() {
    assert!(EventTypeFilter::try_new(vec!["a".to_owned(); PATTERNS_MAX]).is_ok());
    let error = EventTypeFilter::try_new(vec!["a".to_owned(); PATTERNS_MAX + 1]).unwrap_err();
    assert_eq!(error, InvalidEventType::TooManyPatterns(PATTERNS_MAX + 1));
}

#[test]
fn only_what_is_below_postrider_is_reserved() {
    assert!(event_type("postrider.endpoint.disabled").is_reserved());
    assert!(!event_type("postrider").is_reserved());
    assert!(!event_type("postriders.ride").is_reserved());
}

proptest! {
    #[test]
    fn matching_agrees_with_comparing_identifiers(
        pattern in "[ab](\\.[ab]){0,3}",
        below in any::<bool>(),
        text in "[ab](\\.[ab]){0,4}",
    ) {
        let wanted: Vec<&str> = pattern.split('.').collect();
        let given: Vec<&str> = text.split('.').collect();
        let expected = if below {
            given.len() > wanted.len() && given.starts_with(&wanted)
        } else {
            given == wanted
        };
        let pattern = if below { format!("{pattern}.*") } else { pattern };
        prop_assert_eq!(filter(&[&pattern]).matches(&event_type(&text)), expected);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,140}") {
        if let Ok(parsed) = EventTypeName::try_new(&text) {
            prop_assert_eq!(parsed.as_str(), text.as_str());
            let own = EventTypeFilter::try_new(vec![text]).unwrap();
            prop_assert!(own.matches(&parsed));
        }
    }
}
