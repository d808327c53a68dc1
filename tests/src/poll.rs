//! Waiting for what is bound to happen: level-triggered, bounded, and telling the last state when
//! it did not.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there was none in time; the panic tells what was waited for and what was seen last.
pub async fn eventually<T, S: Debug, F: Future<Output = Result<T, S>>>(
    what: &str,
    at_most: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        let last = match ask().await {
            Ok(answer) => return answer,
            Err(last) => last,
        };
        assert!(
            started.elapsed() < at_most,
            "not within {at_most:?}: {what}; last seen: {last:?}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
