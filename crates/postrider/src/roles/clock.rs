//! The clock that the stages go by: the log's.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context;
use postrider_daemon::metrics::catalogue::CLOCK_SKEW;
use postrider_daemon::metrics::{Collected, Metric, Sample};
use postrider_log::{Log, LogClock, SystemClock};
use postrider_model::topics::ROUTES;

use super::Process;
use crate::config::Config;

/// Starts to follow the log's clock, and shows how far this machine's is off.
pub(super) fn follow(
    process: &mut Process,
    config: &Config,
    log: Arc<dyn Log>,
) -> anyhow::Result<Arc<LogClock>> {
    let skew_ms_max = i64::try_from(config.clock.skew_ms_max).unwrap_or(i64::MAX);
    let clock = Arc::new(LogClock::new(Arc::new(SystemClock), skew_ms_max));
    let declared: [&'static Metric; 1] = [&CLOCK_SKEW];
    let shown = clock.clone();
    Collected::declare(process.metrics.registry(), &declared, move || {
        let seconds = shown.skew_ms().map_or(f64::NAN, seconds);
        vec![(&CLOCK_SKEW, vec![Sample::plain(seconds)])]
    })
    .context("declare metrics")?;
    let (stop, followed) = (process.base.token().clone(), clock.clone());
    process.base.background("clock", async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            // Not `endpoint-state`: that its end has not passed a state that was written proves a
            // loss.
            () = followed.follow(&*log, ROUTES) => {}
        }
        Ok::<(), Infallible>(())
    });
    Ok(clock)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a skew of milliseconds is far below 2^53"
)]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}
