//! HTTP/2, without TLS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use postrider_log::SystemClock;
use postrider_model::ids::TenantId;
use postrider_model::outcome::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// An HTTP/2 server that refuses the first requests and answers the others.
async fn refusing(count: usize, tasks: &mut JoinSet<()>) -> (SocketAddr, Arc<AtomicUsize>) {
    let script = move |number, mut respond: h2::server::SendResponse<Bytes>| {
        if number < count {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        } else {
            // The default is 200.
            respond.send_response(Default::default(), true).unwrap();
        }
    };
    let (address, requests, _) = scripted(script, tasks).await;
    (address, requests)
}

fn sender(config: &EgressConfig) -> HttpSender {
    let policy = AddressPolicy::try_new(&["127.0.0.0/8".to_owned()]).unwrap();
    HttpSender::over(Protocol::Http2, policy, config, Arc::new(SystemClock)).unwrap()
}

async fn send(address: SocketAddr) -> WebhookResponse {
    send_by(&sender(&EgressConfig::default()), address).await
}

async fn send_by(sender: &HttpSender, address: SocketAddr) -> WebhookResponse {
    let sent = sender.send(request(address), Arc::new(|| true));
    sent.await.unwrap()
}

fn request(address: SocketAddr) -> WebhookRequest {
    WebhookRequest {
        tenant: TenantId::try_new("acme").unwrap(),
        url: format!("http://{address}/").parse().unwrap(),
        id: "evt_1".to_owned(),
        attempt: 1,
        timestamp_s: 1_700_000_000,
        signature: "v1,abc=".to_owned(),
        traceparent: String::new(),
        body: Bytes::from_static(b"{}"),
        timeout: TIMEOUT,
    }
}

/// Requests wait on one connection until it is found dead, and the next one gets another.
#[tokio::test]
async fn a_dead_connection_is_left_before_the_attempt_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for answers in [1, 9] {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            for _ in 0..answers {
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                respond.send_response(Default::default(), true).unwrap();
            }
            // The answer leaves when the connection is asked for more; after that nobody looks at
            // it.
            drop(timeout(Duration::from_millis(100), connection.accept()).await);
            std::mem::forget(connection);
        }
    });
    let sender = sender(&EgressConfig {
        http2_ping_interval_ms: 200,
        http2_ping_timeout_ms: 200,
        ..EgressConfig::default()
    });
    assert_eq!(send_by(&sender, address).await.status(), Some(200));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    // On the dead one nothing comes, so it is sent once more on the next.
    assert_eq!(send_by(&sender, address).await.status(), Some(200));
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_the_receiver_refused_unprocessed_is_sent_once_more() {
    let mut tasks = JoinSet::new();
    let (address, requests) = refusing(1, &mut tasks).await;
    let outcome = send(address).await.outcome;
    assert!(
        matches!(outcome, Outcome::Answered { status: 200, .. }),
        "{outcome:?}"
    );
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_came_after_a_connection_was_going_away_is_sent_once_more() {
    // Frames of RFC 9113: SETTINGS without any, then GOAWAY with no stream processed and NO_ERROR.
    const GOES_AWAY: [u8; 26] = [
        0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        // The request is on its way when its connection goes.
        let mut begin = [0; 128];
        first.read_exact(&mut begin).await.unwrap();
        first.write_all(&GOES_AWAY).await.unwrap();
        let (second, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(second).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_response(Default::default(), true).unwrap();
        }
    });
    let outcome = send(address).await.outcome;
    assert!(
        matches!(outcome, Outcome::Answered { status: 200, .. }),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn what_is_refused_twice_has_failed() {
    let mut tasks = JoinSet::new();
    let (address, requests) = refusing(9, &mut tasks).await;
    assert_eq!(
        send(address).await.outcome,
        Outcome::Unanswered(Reason::Connect)
    );
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

/// Answers over HTTP/2 as the script says, and counts requests and connections.
async fn scripted(
    script: impl Fn(usize, h2::server::SendResponse<Bytes>) + Send + Clone + 'static,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counts = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (requests, connections) = counts.clone();
    tasks.spawn(async move {
        let mut serving = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let (requests, script) = (Arc::clone(&requests), script.clone());
            serving.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, respond))) = connection.accept().await {
                    script(requests.fetch_add(1, Ordering::SeqCst), respond);
                }
            });
        }
    });
    (address, counts.0, counts.1)
}

fn answer(respond: &mut h2::server::SendResponse<Bytes>, body: usize) {
    let mut body_stream = respond.send_response(Default::default(), false).unwrap();
    body_stream
        .send_data(vec![b'x'; body].into(), true)
        .unwrap();
}

#[tokio::test]
async fn many_bodies_at_once_are_no_flood() {
    let mut tasks = JoinSet::new();
    let script = |_, mut respond: h2::server::SendResponse<Bytes>| answer(&mut respond, 40_000);
    let (address, _, connections) = scripted(script, &mut tasks).await;
    let sender = sender(&EgressConfig::default());
    assert_eq!(send_by(&sender, address).await.status(), Some(200));
    for _ in 0..5 {
        let all = (0..64).map(|_| send_by(&sender, address));
        for response in futures_util::future::join_all(all).await {
            assert_eq!(response.status(), Some(200), "{}", response.detail);
            assert_eq!(response.detail, "");
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn those_that_connect_at_once_share_one_connection_afterwards() {
    let mut tasks = JoinSet::new();
    let script = |_, mut respond: h2::server::SendResponse<Bytes>| answer(&mut respond, 1);
    let (address, _, connections) = scripted(script, &mut tasks).await;
    let sender = sender(&EgressConfig::default());
    for _ in 0..3 {
        let all = (0..8).map(|_| send_by(&sender, address));
        futures_util::future::join_all(all).await;
    }
    assert!(connections.load(Ordering::SeqCst) <= 8);
}

#[tokio::test]
async fn a_shared_connection_is_used_only_so_long() {
    let mut tasks = JoinSet::new();
    let script = |_, mut respond: h2::server::SendResponse<Bytes>| answer(&mut respond, 1);
    let (address, _, connections) = scripted(script, &mut tasks).await;
    let sender = sender(&EgressConfig {
        connection_age_max_ms: 200,
        ..EgressConfig::default()
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(900) {
        let all = (0..4).map(|_| send_by(&sender, address));
        futures_util::future::join_all(all).await;
    }
    let made = connections.load(Ordering::SeqCst);
    // Four may be made at once at the beginning, and then one in each time.
    assert!((4..=10).contains(&made), "{made}");
}

#[tokio::test]
async fn for_a_new_connection_one_idle_one_goes() {
    let mut tasks = JoinSet::new();
    let sender = sender(&EgressConfig {
        connections_max: 8,
        ..EgressConfig::default()
    });
    let mut servers = Vec::new();
    for _ in 0..9 {
        let script = |_, mut respond: h2::server::SendResponse<Bytes>| answer(&mut respond, 1);
        servers.push(scripted(script, &mut tasks).await);
    }
    // The ninth takes the place of the first, and of no other.
    for number in [0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8] {
        assert_eq!(
            send_by(&sender, servers[number].0).await.status(),
            Some(200)
        );
    }
    let made = servers
        .iter()
        .map(|(_, _, connections)| connections.load(Ordering::SeqCst));
    assert_eq!(made.collect::<Vec<_>>(), [1; 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_get_through_few_shared_connections() {
    let mut tasks = JoinSet::new();
    let mut servers = Vec::new();
    for _ in 0..5 {
        let script = |_, mut respond: h2::server::SendResponse<Bytes>| answer(&mut respond, 1);
        servers.push(scripted(script, &mut tasks).await.0);
    }
    let sender = sender(&EgressConfig {
        connections_max: 2,
        connect_timeout_ms: 60_000,
        ..EgressConfig::default()
    });
    let patient = |address: &SocketAddr| WebhookRequest {
        timeout: Duration::from_secs(60),
        ..request(*address)
    };
    let requests = servers.iter().cycle().take(60);
    let all = requests.map(|address| sender.send(patient(address), Arc::new(|| true)));
    for response in futures_util::future::join_all(all).await {
        let response = response.expect("a place is free in time");
        assert_eq!(response.status(), Some(200), "{}", response.detail);
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_was_an_answer() {
    let mut tasks = JoinSet::new();
    let script = |number, mut respond: h2::server::SendResponse<Bytes>| {
        let mut response = hyper::Response::new(());
        if number > 0 {
            let long = HeaderValue::from_str(&"x".repeat(70_000)).unwrap();
            response.headers_mut().insert("x-long", long);
        }
        respond.send_response(response, true).unwrap();
    };
    let (address, requests, connections) = scripted(script, &mut tasks).await;
    let sender = sender(&EgressConfig::default());
    assert_eq!(send_by(&sender, address).await.status(), Some(200));
    let unread = send_by(&sender, address).await;
    assert_eq!(
        unread.outcome,
        Outcome::Unanswered(Reason::Connect),
        "{}",
        unread.detail
    );
    let counts = (
        requests.load(Ordering::SeqCst),
        connections.load(Ordering::SeqCst),
    );
    assert_eq!(counts, (2, 1), "it is not sent once more, and others go on");
}

#[tokio::test]
async fn who_wants_http_1_gets_it_and_is_asked_by_it_from_then_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_reset(h2::Reason::HTTP_1_1_REQUIRED);
        drop(timeout(Duration::from_millis(50), connection.accept()).await);
        let (mut plain, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        let mut buffer = [0; 4096];
        while plain.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            plain
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let sender = sender(&EgressConfig::default());
    for _ in 0..3 {
        let response = send_by(&sender, address).await;
        assert_eq!(response.status(), Some(204), "{}", response.detail);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// A flood of interim answers over HTTP/2 (RFC 9113, section 8.1).
#[tokio::test]
async fn a_flood_of_interim_answers_ends_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let flooded = tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // SETTINGS, then for ever HEADERS on stream 1 with `:status: 103`, which is written
        // plainly.
        stream
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        let mut begin = [0; 64];
        stream.read_exact(&mut begin).await.unwrap();
        let interim = [&[0, 0, 5, 1, 4, 0, 0, 0, 1, 0x08, 3][..], b"103"].concat();
        while stream.write_all(&interim.repeat(100)).await.is_ok() {}
    });
    let began = Instant::now();
    let response = send(address).await;
    assert_eq!(
        response.outcome,
        Outcome::Unanswered(Reason::Connect),
        "{}",
        response.detail
    );
    assert!(began.elapsed() < TIMEOUT);
    timeout(TIMEOUT, tasks.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    drop(flooded);
}

/// A body that the receiver does not take is not kept beyond its attempt, nor its connection.
#[tokio::test]
async fn a_connection_that_is_not_read_ends_with_its_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            // SETTINGS with the largest initial window, and as much for the connection; then it
            // reads no more.
            let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
            let window = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0];
            stream.write_all(&settings).await.unwrap();
            stream.write_all(&window).await.unwrap();
            held.push(stream);
        }
    });
    let sender = sender(&EgressConfig {
        connections_max: 1,
        ..EgressConfig::default()
    });
    for _ in 0..3 {
        let mut large = request(address);
        large.body = vec![b' '; 8 << 20].into();
        large.timeout = Duration::from_secs(1);
        let sent = sender.send(large, Arc::new(|| true)).await;
        let sent = sent.expect("a place is free for each attempt");
        assert_eq!(
            sent.outcome,
            Outcome::Unanswered(Reason::Timeout),
            "{}",
            sent.detail
        );
    }
}
