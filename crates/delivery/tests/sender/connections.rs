//! Connections: which are used again, which end, and what is sent once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_delivery::config::EgressConfig;
use postrider_delivery::sender::{HttpSender, Sender, WebhookRequest};
use postrider_model::ids::TenantId;
use postrider_model::outcome::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::receiver::{NO_CONTENT, Receiver, asked};
use super::{reason, request, send_with, sender};

fn open(config: &EgressConfig) -> HttpSender {
    sender(&["127.0.0.0/8"], config)
}

async fn succeeds(sender: &HttpSender, request: WebhookRequest) {
    let response = send_with(sender, request).await;
    assert_eq!(response.status(), Some(204), "{}", response.detail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_closes_as_the_request_leaves_costs_no_attempt() {
    for idle_ms in [1, 2, 5, 10] {
        let idle = Duration::from_millis(idle_ms);
        let receiver = Receiver::closing_after(idle, NO_CONTENT).await;
        let sender = open(&EgressConfig::default());
        for _ in 0..100 {
            succeeds(&sender, request(&receiver.url)).await;
            sleep(idle).await;
        }
    }
}

#[tokio::test]
async fn a_used_connection_that_answers_nothing_but_its_end_is_replaced_once() {
    let receiver = Receiver::serving(|mut stream, number| async move {
        // The first answers one request and takes another, the second takes one.
        assert!(asked(&mut stream).await);
        if number != 1 {
            stream.write_all(NO_CONTENT).await.unwrap();
            asked(&mut stream).await;
        }
    })
    .await;
    let sender = open(&EgressConfig::default());
    succeeds(&sender, request(&receiver.url)).await;
    // On the first it is not answered, on the second it was not used before: that is the receiver's
    // doing.
    let response = send_with(&sender, request(&receiver.url)).await;
    assert_eq!(reason(&response), Reason::Connect);
    assert_eq!(receiver.connections(), 2);
    succeeds(&sender, request(&receiver.url)).await;
}

#[tokio::test]
async fn a_connection_is_left_before_its_receiver_closes_it() {
    let answer = b"HTTP/1.1 204 No Content\r\nkeep-alive: timeout=3\r\n\r\n";
    let receiver = Receiver::closing_after(Duration::from_secs(60), answer).await;
    let sender = open(&EgressConfig::default());
    for (wait_ms, connections) in [(0, 1), (100, 1), (2_700, 2)] {
        sleep(Duration::from_millis(wait_ms)).await;
        succeeds(&sender, request(&receiver.url)).await;
        assert_eq!(receiver.connections(), connections, "after {wait_ms} ms");
    }
}

#[tokio::test]
async fn a_connection_is_used_only_so_long() {
    let receiver = Receiver::closing_after(Duration::from_secs(60), NO_CONTENT).await;
    let sender = open(&EgressConfig {
        connection_age_max_ms: 300,
        ..EgressConfig::default()
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(700) {
        succeeds(&sender, request(&receiver.url)).await;
    }
    succeeds(&sender, request(&receiver.url)).await;
    assert!(
        (2..=4).contains(&receiver.connections()),
        "{}",
        receiver.connections()
    );
}

/// One answer too many would be taken for that to the next request, which may be another tenant's.
#[tokio::test]
async fn an_answer_that_nobody_awaits_ends_the_connection() {
    let receiver = Receiver::serving(|mut stream, number| async move {
        while asked(&mut stream).await {
            stream.write_all(NO_CONTENT).await.unwrap();
            if number == 0 {
                sleep(Duration::from_millis(50)).await;
                let again = b"HTTP/1.1 500 Other\r\ncontent-length: 0\r\n\r\n";
                drop(stream.write_all(again).await);
            }
        }
    })
    .await;
    let sender = open(&EgressConfig::default());
    succeeds(&sender, request(&receiver.url)).await;
    sleep(Duration::from_millis(200)).await;
    succeeds(&sender, request(&receiver.url)).await;
    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn no_two_tenants_share_a_connection() {
    let receiver = Receiver::closing_after(Duration::from_secs(60), NO_CONTENT).await;
    let sender = open(&EgressConfig::default());
    for _ in 0..3 {
        for tenant in ["acme", "globex"] {
            let tenant = TenantId::try_new(tenant).unwrap();
            let request = request(&receiver.url);
            succeeds(&sender, WebhookRequest { tenant, ..request }).await;
        }
    }
    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room_for_a_new_one() {
    let sender = open(&EgressConfig {
        connections_max: 2,
        ..EgressConfig::default()
    });
    let mut receivers = Vec::new();
    for _ in 0..4 {
        receivers.push(Receiver::closing_after(Duration::from_secs(60), NO_CONTENT).await);
    }
    for _ in 0..3 {
        for receiver in &receivers {
            succeeds(&sender, request(&receiver.url)).await;
        }
        succeeds(&sender, request(&receivers[3].url)).await;
    }
    let counts: Vec<usize> = receivers.iter().map(Receiver::connections).collect();
    assert_eq!(counts, [3, 3, 3, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_get_through_few_connections() {
    let mut receivers = Vec::new();
    for _ in 0..4 {
        let receiver = Receiver::serving(|mut stream, _| async move {
            while asked(&mut stream).await {
                sleep(Duration::from_millis(5)).await;
                if stream.write_all(NO_CONTENT).await.is_err() {
                    break;
                }
            }
        });
        receivers.push(receiver.await);
    }
    let sender = open(&EgressConfig {
        connections_max: 3,
        connect_timeout_ms: 60_000,
        ..EgressConfig::default()
    });
    let patient = |receiver: &Receiver| WebhookRequest {
        timeout: Duration::from_secs(60),
        ..request(&receiver.url)
    };
    let requests = receivers.iter().cycle().take(100);
    let all = requests.map(|receiver| succeeds(&sender, patient(receiver)));
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn a_request_waits_for_a_connection_that_others_have() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        while asked(&mut stream).await {
            sleep(Duration::from_millis(300)).await;
            stream.write_all(NO_CONTENT).await.unwrap();
        }
    })
    .await;
    let config = EgressConfig {
        connections_max: 1,
        connect_timeout_ms: 3_000,
        ..EgressConfig::default()
    };
    let sender = open(&config);
    let one = || succeeds(&sender, request(&receiver.url));
    tokio::join!(one(), one(), one());
    // Where none comes free it is nobody's fault but ours, and no attempt.
    let sender = open(&EgressConfig {
        connect_timeout_ms: 100,
        ..config
    });
    let waits = sender.send(request(&receiver.url), Arc::new(|| true));
    let first = send_with(&sender, request(&receiver.url));
    let (first, waits) = tokio::join!(first, waits);
    assert_eq!((first.status(), waits), (Some(204), None));
}

#[tokio::test]
async fn connecting_takes_no_longer_than_the_attempt_may() {
    let (address, _waiting) = super::full().await;
    let mut hasty = request(&format!("http://{address}/"));
    hasty.timeout = Duration::from_millis(300);
    let began = Instant::now();
    let response = send_with(&open(&EgressConfig::default()), hasty).await;
    assert_eq!(reason(&response), Reason::Connect, "{}", response.detail);
    let took = began.elapsed();
    assert!((300..4_500).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        assert!(asked(&mut stream).await);
        let interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100);
        while stream.write_all(&interim).await.is_ok() {}
    })
    .await;
    let response = send_with(&open(&EgressConfig::default()), request(&receiver.url)).await;
    assert_eq!(reason(&response), Reason::Connect);
    assert!(response.detail.contains("too large"), "{}", response.detail);
}

#[tokio::test]
async fn some_interim_answers_are_passed_over() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        while asked(&mut stream).await {
            let interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(10);
            let answers = [&interim[..], NO_CONTENT].concat();
            stream.write_all(&answers).await.unwrap();
        }
    })
    .await;
    let sender = open(&EgressConfig::default());
    for _ in 0..200 {
        succeeds(&sender, request(&receiver.url)).await;
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_head_of_390_kb_is_not_read_to_its_end() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        assert!(asked(&mut stream).await);
        let line = format!("x-long: {}\r\n", "x".repeat(3900));
        let head = format!("HTTP/1.1 204 No Content\r\n{}\r\n", line.repeat(100));
        drop(stream.write_all(head.as_bytes()).await);
        asked(&mut stream).await;
    })
    .await;
    let response = send_with(&open(&EgressConfig::default()), request(&receiver.url)).await;
    assert_eq!(reason(&response), Reason::Connect, "{}", response.detail);
}

/// Most servers close at once, and their kernel answers what comes afterwards with a reset.
#[tokio::test]
async fn an_answer_before_the_body_was_read_counts_though_the_connection_is_reset() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.is_ok_and(|read| read > 0));
        let answer = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let sender = open(&EgressConfig::default());
    for _ in 0..20 {
        let mut large = request(&receiver.url);
        large.body = vec![b' '; 8 << 20].into();
        let response = send_with(&sender, large).await;
        assert_eq!(response.status(), Some(413), "{}", response.detail);
    }
}
