//! SIGTERM and SIGINT: the first asks the process to end, the second ends it.

use std::io;
use std::process;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// How long the process that exits at once waits for its last line to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// Listens on a thread of its own, so that the second signal works even when the main runtime is
/// stuck. The first SIGTERM or SIGINT cancels the token; the second exits at once with 128 plus its
/// number (143, 130), as a shell reports it.
///
/// From the return of this function on, the signals no longer end the process by themselves.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn listen(token: CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async move {
                loop {
                    let (name, exit_code) = tokio::select! {
                        biased;
                        Some(()) = terminate.recv() => ("SIGTERM", 143),
                        Some(()) = interrupt.recv() => ("SIGINT", 130),
                        else => return,
                    };
                    if token.is_cancelled() {
                        tracing::warn!(
                            signal = name,
                            "signal while shutting down: exiting at once"
                        );
                        telemetry::flush_log(FLUSH_TIMEOUT);
                        process::exit(exit_code);
                    }
                    tracing::info!(signal = name, "signal: shutting down");
                    token.cancel();
                }
            });
        })?;
    Ok(())
}
