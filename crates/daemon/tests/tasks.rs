//! What the policies of tasks promise.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postrider_daemon::CancellationToken;
use postrider_daemon::errors::chain;
use postrider_daemon::tasks::{TaskFailure, Tasks, Unfinished};
use tokio::time::{Instant, timeout};

const LONG: Duration = Duration::from_secs(3600);

fn tasks() -> Tasks {
    Tasks::new(CancellationToken::new())
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_critical_task_ends_the_process() {
    let mut tasks = tasks();
    tasks.critical("idle", async { pending::<Result<(), Infallible>>().await });
    tasks.critical("fetch", async { Err(io::Error::other("broken pipe")) });
    let failure = timeout(LONG, tasks.wait()).await.unwrap().unwrap_err();
    assert_eq!(chain(&failure), "task fetch failed: broken pipe");
    assert!(tasks.token().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_critical_task_ends_the_process() {
    let mut tasks = tasks();
    tasks.critical("fetch", async {
        if tokio::time::Instant::now().elapsed() < LONG {
            panic!("index {} out of bounds", 7);
        }
        Ok::<(), Infallible>(())
    });
    let failure = timeout(LONG, tasks.wait()).await.unwrap().unwrap_err();
    assert_eq!(
        chain(&failure),
        "task fetch failed: panicked: index 7 out of bounds"
    );
}

#[tokio::test(start_paused = true)]
async fn a_critical_task_may_end_only_when_asked() {
    let mut unasked = tasks();
    unasked.critical("serve", async { Ok::<(), Infallible>(()) });
    let failure = timeout(LONG, unasked.wait()).await.unwrap().unwrap_err();
    assert!(
        matches!(failure, TaskFailure::Ended { name: "serve" }),
        "{failure}"
    );

    let mut asked = tasks();
    let token = asked.token().clone();
    let cancelled = token.clone();
    asked.critical("serve", async move {
        cancelled.cancelled().await;
        Ok::<(), Infallible>(())
    });
    token.cancel();
    assert!(timeout(LONG, asked.wait()).await.unwrap().is_ok());
    assert!(asked.shutdown(LONG).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_background_task_changes_nothing() {
    let mut tasks = tasks();
    let token = tasks.token().clone();
    tasks.background("report", async { Err("no disk") });
    tasks.background("panic", async {
        if !LONG.is_zero() {
            panic!("on purpose");
        }
        Ok::<(), Infallible>(())
    });
    assert!(
        timeout(Duration::from_secs(60), tasks.wait())
            .await
            .is_err(),
        "it waits on"
    );
    assert!(!token.is_cancelled());
    assert!(tasks.shutdown(LONG).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn shutdown_names_and_cuts_what_is_not_done_in_time() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut tasks = tasks();
    let cut = Arc::new(AtomicUsize::new(0));
    for name in ["stuck", "also stuck"] {
        let guard = Dropped(cut.clone());
        tasks.background(name, async move {
            let _guard = guard;
            pending::<Result<(), Infallible>>().await
        });
    }
    let token = tasks.token().clone();
    tasks.critical("orderly", async move {
        token.cancelled().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok::<(), Infallible>(())
    });
    let began = Instant::now();
    let unfinished = tasks.shutdown(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(unfinished, Unfinished(vec!["also stuck", "stuck"]));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    timeout(LONG, async {
        while cut.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
