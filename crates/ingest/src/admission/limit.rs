//! How many events may be under way: fewer while they are more than this process or the log keeps
//! up with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const PERIOD: Duration = Duration::from_millis(20);
/// So late a task may begin that is due. More events under way make none quicker from here on: each
/// only waits for a turn of this process, and finds its connection in no cache any more.
const LATE_MAX: Duration = Duration::from_millis(2);
/// Periods without a late task after which it rises.
const PUNCTUAL_MIN: usize = 25;
/// With fewer under way, writes to the log would not be full.
const EVENTS_MIN: usize = 256;

/// Lets so many events be under way at a time. In an overload, more only wait longer: each for a
/// turn of this process, or for the log. So the limit falls while tasks begin late or events wait
/// for the log too long, and rises again while they don't. A log that pauses makes nothing late,
/// and is waited for with as many events as the configuration allows.
#[derive(Debug)]
pub(super) struct Limit {
    max: usize,
    wait_max: Duration,
    present: AtomicUsize,
    taken: AtomicUsize,
    /// Most of them at once in this period.
    taken_most: AtomicUsize,
    waits: Mutex<Waits>,
    /// Periods since a task was late.
    punctual: AtomicUsize,
    /// An event is under way after there was none.
    first: Notify,
    gauge: IntGauge,
}

/// Of the events that the log acknowledged in this period.
#[derive(Debug, Default)]
struct Waits {
    sum: Duration,
    count: u32,
}

/// An event's place among those under way.
#[derive(Debug)]
pub(super) struct Taken(Arc<Limit>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limit {
    pub(super) fn new(max: usize, wait_max: Duration, gauge: IntGauge) -> Arc<Self> {
        gauge.set(whole(max));
        Arc::new(Self {
            max,
            wait_max,
            present: AtomicUsize::new(max),
            taken: AtomicUsize::new(0),
            taken_most: AtomicUsize::new(0),
            waits: Mutex::default(),
            punctual: AtomicUsize::new(0),
            first: Notify::new(),
            gauge,
        })
    }

    /// A place, if there is one.
    pub(super) fn take(self: &Arc<Self>) -> Option<Taken> {
        let present = self.present.load(Ordering::Relaxed);
        let one_more = |taken| (taken < present).then_some(taken + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let others = self.taken.fetch_update(set, fetch, one_more).ok()?;
        self.taken_most.fetch_max(others + 1, Ordering::Relaxed);
        if others == 0 {
            self.first.notify_one();
        }
        Some(Taken(Arc::clone(self)))
    }

    /// The log took so long to acknowledge an event.
    pub(super) fn waited(&self, time: Duration) {
        let mut waits = self.waits();
        waits.sum += time;
        waits.count += 1;
    }

    /// Adapts the limit, for ever. Where there is nothing to adapt, it sleeps until an event comes.
    pub(super) async fn watch(limit: Arc<Self>) {
        loop {
            if limit.is_calm() {
                limit.first.notified().await;
            }
            let due = Instant::now() + PERIOD;
            sleep_until(due).await;
            limit.adapt(due.elapsed());
        }
    }

    /// Nothing is under way, and the limit is what it is then.
    fn is_calm(&self) -> bool {
        self.taken.load(Ordering::Relaxed) == 0 && self.present.load(Ordering::Relaxed) == self.max
    }

    /// After a period, at the end of which a task began so late.
    fn adapt(&self, late: Duration) {
        let Waits { sum, count } = std::mem::take(&mut *self.waits());
        let waited = sum.checked_div(count).unwrap_or_default();
        let present = self.present.load(Ordering::Relaxed);
        let taken = self.taken.load(Ordering::Relaxed);
        let taken_most = self.taken_most.swap(taken, Ordering::Relaxed);
        let next = if late > LATE_MAX || waited > self.wait_max {
            self.punctual.store(0, Ordering::Relaxed);
            // Where few are under way, others make it late.
            let is_used = taken_most >= present / 2;
            present - if is_used { present / 10 } else { 0 }
        } else if self.punctual.fetch_add(1, Ordering::Relaxed) < PUNCTUAL_MIN {
            present
        } else {
            present + present / 50 + 1
        };
        let next = next.clamp(EVENTS_MIN.min(self.max), self.max);
        self.present.store(next, Ordering::Relaxed);
        self.gauge.set(whole(next));
    }

    fn waits(&self) -> parking_lot::MutexGuard<'_, Waits> {
        self.waits.lock()
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use postrider_daemon::metrics::catalogue;
    use prometheus::Registry;
    use tokio::time::sleep;

    use super::*;

    const WAIT_MAX: Duration = Duration::from_millis(500);
    const QUICK: Duration = Duration::from_millis(1);

    fn limit(max: usize) -> Arc<Limit> {
        let gauge = catalogue::EVENTS_IN_FLIGHT_MAX.gauge(&Registry::new());
        Limit::new(max, WAIT_MAX, gauge.unwrap())
    }

    fn take_all(limit: &Arc<Limit>) -> Vec<Taken> {
        std::iter::from_fn(|| limit.take()).collect()
    }

    #[test]
    fn places_come_back() {
        let limit = limit(3);
        let taken = take_all(&limit);
        assert_eq!(taken.len(), 3);
        drop(taken);
        assert_eq!(take_all(&limit).len(), 3);
    }

    #[test]
    fn late_tasks_lower_it_and_punctual_ones_raise_it() {
        let limit = limit(1_000);
        let taken = take_all(&limit);
        limit.adapt(LATE_MAX + QUICK);
        assert!(limit.take().is_none());
        drop(taken);
        assert_eq!(take_all(&limit).len(), 900);
        for _ in 0..100 {
            drop(take_all(&limit));
            limit.adapt(LATE_MAX + QUICK);
        }
        assert_eq!(take_all(&limit).len(), EVENTS_MIN, "some always go on");
        limit.adapt(QUICK);
        assert_eq!(take_all(&limit).len(), EVENTS_MIN, "one is no proof");
        for _ in 0..300 {
            limit.adapt(QUICK);
        }
        assert_eq!(take_all(&limit).len(), 1_000);
    }

    #[test]
    fn a_log_that_is_slow_lowers_it_and_one_that_pauses_does_not() {
        let limit = limit(1_000);
        let taken = take_all(&limit);
        limit.adapt(QUICK);
        drop(taken);
        let taken = take_all(&limit);
        assert_eq!(taken.len(), 1_000);
        limit.waited(WAIT_MAX * 3);
        limit.waited(QUICK);
        limit.adapt(QUICK);
        drop(taken);
        assert_eq!(take_all(&limit).len(), 900);
    }

    #[test]
    fn what_is_late_while_few_are_under_way_does_not_lower_it() {
        let limit = limit(1_000);
        let few: Vec<_> = std::iter::repeat_with(|| limit.take()).take(400).collect();
        for _ in 0..100 {
            limit.adapt(LATE_MAX + QUICK);
        }
        drop(few);
        assert_eq!(take_all(&limit).len(), 1_000);
    }

    #[test]
    fn a_small_one_stays_as_it_is() {
        let limit = limit(2);
        limit.adapt(LATE_MAX * 2);
        assert_eq!(take_all(&limit).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_watches_it_raises_it_again() {
        let limit = limit(1_000);
        drop(take_all(&limit));
        limit.adapt(LATE_MAX + QUICK);
        assert_eq!(take_all(&limit).len(), 900);
        let punctual = async {
            sleep(PERIOD * 200).await;
            take_all(&limit).len()
        };
        let count = tokio::select! {
            () = Limit::watch(Arc::clone(&limit)) => unreachable!(),
            count = punctual => count,
        };
        assert_eq!(count, 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_wakes_while_nothing_is_under_way() {
        let limit = limit(1_000);
        let began = Instant::now();
        let hour = Duration::from_secs(3600);
        // Time moves on by itself when nobody has anything to do until then.
        tokio::select! {
            () = Limit::watch(Arc::clone(&limit)) => unreachable!(),
            () = sleep(hour) => {}
        }
        assert_eq!(began.elapsed(), hour);
        assert_eq!(limit.punctual.load(Ordering::Relaxed), 0, "no period ended");
    }
}
