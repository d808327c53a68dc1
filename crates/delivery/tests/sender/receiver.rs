//! A receiver in process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// A server that treats each connection as the test says, and counts them.
pub(crate) struct Receiver {
    pub(crate) url: String,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn serving<F: Future<Output = ()> + Send>(
        serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let serve = Arc::new(serve);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let serve = Arc::clone(&serve);
                let number = count.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move { serve(stream, number).await });
            }
        });
        Self {
            url,
            connections,
            _tasks: tasks,
        }
    }

    /// Answers each request, and closes a connection so long after the last answer.
    pub(crate) async fn closing_after(idle: Duration, answer: &'static [u8]) -> Self {
        Self::serving(move |mut stream, _| async move {
            // The first request has its time, however busy this machine is.
            let mut is_asked = asked(&mut stream).await;
            while is_asked {
                stream.write_all(answer).await.unwrap();
                is_asked = timeout(idle, asked(&mut stream)).await == Ok(true);
            }
        })
        .await
    }

    /// Answers the first bytes that come on each connection and keeps it open.
    pub(crate) async fn holding(answer: &'static [u8]) -> Self {
        Self::serving(move |mut stream, _| async move {
            assert!(asked(&mut stream).await);
            stream.write_all(answer).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Whether the next request came.
pub(crate) async fn asked(stream: &mut TcpStream) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    stream.read(&mut buffer).await.is_ok_and(|read| read > 0)
}
