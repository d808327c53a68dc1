use proptest::prelude::*;

use super::*;

fn taken(bucket: &mut TokenBucket, now_ms: i64) -> u64 {
    let mut count = 0;
    while bucket.take(now_ms).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn begins_with_one_token_and_rests_up_to_the_burst() {
    let mut bucket = TokenBucket::new(10.0, 5, 0);
    assert_eq!(taken(&mut bucket, 0), 1);
    assert_eq!(bucket.take(0), Err(100));
    assert_eq!(bucket.take(99), Err(100));
    assert_eq!(taken(&mut bucket, 100), 1);
    assert_eq!(taken(&mut bucket, 1_000_000), 5);
}

#[test]
fn does_not_drift_over_a_month() {
    // A third of a token a second, asked at odd times.
    let mut bucket = TokenBucket::new(1.0 / 3.0, 1, 0);
    let month_ms = 30 * 24 * 60 * 60 * 1000;
    let (mut now_ms, mut count) = (0, 0_i64);
    while now_ms < month_ms {
        match bucket.take(now_ms) {
            Ok(()) => count += 1,
            Err(at_ms) => now_ms = at_ms,
        }
    }
    // Each token comes in a whole millisecond; the rest of that millisecond is not lost.
    let expected = month_ms / 3_000;
    assert!((count - expected).abs() <= 2, "{count} of {expected}");
}

#[test]
fn hostile_rates_and_bursts_are_clamped() {
    for (per_second, wait_ms) in [
        (0.0, 1_000_000),
        (-0.0, 1_000_000),
        (-5.0, 1_000_000),
        (f64::NAN, 1_000_000),
        (f64::NEG_INFINITY, 1_000_000),
        (1e-9, 1_000_000),
        (f64::MIN_POSITIVE, 1_000_000),
        (PER_SECOND_MIN, 1_000_000),
        (1.0, 1_000),
    ] {
        let mut bucket = TokenBucket::new(per_second, 0, 0);
        assert_eq!(bucket.take(0), Ok(()), "{per_second}");
        assert_eq!(bucket.take(0), Err(wait_ms), "{per_second}");
        assert_eq!(bucket.take(wait_ms), Ok(()), "{per_second}");
    }
    for per_second in [f64::INFINITY, 1e300, PER_SECOND_MAX] {
        let mut bucket = TokenBucket::new(per_second, u32::MAX, 0);
        assert_eq!(taken(&mut bucket, 0), 1);
        assert_eq!(taken(&mut bucket, 1), 1_000, "{per_second}");
    }
}

#[test]
fn a_change_counts_from_now_on() {
    let mut bucket = TokenBucket::new(1.0, 10, 0);
    bucket.change(100.0, 4, 2_000);
    assert_eq!(taken(&mut bucket, 2_000), 3);
    assert_eq!(taken(&mut bucket, 2_020), 2);
    bucket.change(100.0, 1, 3_000);
    assert_eq!(taken(&mut bucket, 3_000), 1);
}

proptest! {
    #[test]
    fn no_window_holds_more_than_burst_and_rate_allow(
        per_second in 0.01..5_000.0_f64,
        burst in 1..50_u32,
        begins_ms in -1_000_000..1_000_000_i64,
        steps in prop::collection::vec((0..3_000_i64, 1..100_u32), 1..150),
    ) {
        let mut bucket = TokenBucket::new(per_second, burst, begins_ms);
        let mut now_ms = begins_ms;
        let mut takes: Vec<i64> = Vec::new();
        for (passed_ms, wishes) in steps {
            now_ms += passed_ms;
            for _ in 0..wishes {
                match bucket.take(now_ms) {
                    Ok(()) => takes.push(now_ms),
                    Err(at_ms) => {
                        // Not before the time named, and then indeed.
                        prop_assert!(at_ms > now_ms);
                        prop_assert!(bucket.clone().take(at_ms - 1).is_err());
                        prop_assert!(bucket.clone().take(at_ms).is_ok());
                    }
                }
            }
        }
        for (first, from_ms) in takes.iter().enumerate() {
            for (last, to_ms) in takes.iter().enumerate().skip(first) {
                let count = (last - first + 1) as f64;
                // A millisecond more, since times are rounded to milliseconds.
                let window_s = (to_ms - from_ms + 1) as f64 / 1000.0;
                let allowed = f64::from(burst) + per_second * window_s;
                prop_assert!(count <= allowed * 1.000_1, "{count} > {allowed}");
            }
        }
    }

    #[test]
    fn who_always_asks_gets_the_whole_rate(
        per_second in 0.5..2_000.0_f64,
        burst in 10..50_u32,
        passes_ms in prop::collection::vec(1..5_i64, 200),
    ) {
        let mut bucket = TokenBucket::new(per_second, burst, 0);
        let (mut now_ms, mut count) = (0, taken(&mut bucket, 0));
        for passed_ms in passes_ms {
            now_ms += passed_ms;
            count += taken(&mut bucket, now_ms);
        }
        let expected = 1.0 + per_second * now_ms as f64 / 1000.0;
        prop_assert!((count as f64 - expected).abs() <= 1.01, "{count} of {expected}");
    }

    #[test]
    fn any_numbers_are_taken(
        per_second: f64,
        burst: u32,
        times in prop::collection::vec(any::<i64>(), 1..20),
        changed: f64,
    ) {
        let mut bucket = TokenBucket::new(per_second, burst, times[0]);
        let mut latest_ms = times[0];
        for now_ms in times {
            latest_ms = latest_ms.max(now_ms);
            if let Err(at_ms) = bucket.take(now_ms) {
                prop_assert!(at_ms > latest_ms || latest_ms == i64::MAX);
            }
            bucket.change(changed, burst, now_ms);
        }
    }
}
