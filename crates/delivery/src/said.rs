//! Log lines of which there may be very many.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Such a line is written once in this time at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// When a line was written last, and how often it was kept back since.
#[derive(Debug)]
pub(crate) struct Said(Mutex<(Option<Instant>, u64)>);

impl Said {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Whether the line may be written now; if so, how often it was kept back before.
    pub(crate) fn say(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let (said_at, unsaid) = &mut *state;
        if said_at.is_some_and(|at| at.elapsed() < INTERVAL) {
            *unsaid += 1;
            return None;
        }
        *said_at = Some(Instant::now());
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn says_it_once_in_a_while_and_how_often_it_did_not() {
        let said = Said::new();
        assert_eq!(said.say(), Some(0));
        assert_eq!((said.say(), said.say()), (None, None));
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(said.say(), Some(2));
        assert_eq!(said.say(), None);
    }
}
