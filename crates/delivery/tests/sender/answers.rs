//! Answers of real servers that are cut short, slow or unusual: the status line decides.

use std::time::{Duration, Instant};

use postrider_delivery::config::EgressConfig;
use postrider_delivery::sender::WebhookResponse;
use postrider_model::outcome::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::receiver::Receiver;
use super::{Server, request, send, send_with, sender};

fn answered(status: u16) -> Outcome {
    Outcome::Answered {
        status,
        retry_after_ms: None,
    }
}

async fn to_answer(answer: String) -> WebhookResponse {
    send(&Server::answering(answer.leak().as_bytes()).await.url()).await
}

#[tokio::test]
async fn a_body_that_fails_changes_nothing_about_the_status() {
    for body in [
        "content-length: 100\r\n\r\nthe beginning",
        "transfer-encoding: chunked\r\n\r\n5\r\nbegin\r\nnot a size\r\n",
        "transfer-encoding: chunked\r\n\r\nff\r\nbegin",
    ] {
        for (line, status) in [("200 OK", 200), ("503 Busy", 503), ("410 Gone", 410)] {
            let response = to_answer(format!("HTTP/1.1 {line}\r\n{body}")).await;
            assert_eq!(response.outcome, answered(status), "{body:?}");
            assert!(
                response.detail.contains("the body of the answer"),
                "{body:?}: {:?}",
                response.detail
            );
        }
    }
    let response =
        to_answer("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning".to_owned()).await;
    assert_eq!(response.excerpt, "the beginning");
}

#[tokio::test]
async fn a_body_that_never_ends_is_not_waited_for() {
    let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\nbegin";
    let receiver = Receiver::holding(answer).await;
    let config = EgressConfig {
        response_body_timeout_ms: 300,
        ..EgressConfig::default()
    };
    let began = Instant::now();
    let response = send_with(&sender(&["127.0.0.0/8"], &config), request(&receiver.url)).await;
    assert_eq!(response.outcome, answered(201));
    assert_eq!(response.excerpt, "begin");
    assert!(
        response.detail.contains("the body of the answer"),
        "{:?}",
        response.detail
    );
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(
        took < request(&receiver.url).timeout,
        "{took:?} is not the whole time"
    );
}

#[tokio::test]
async fn a_body_that_is_not_done_when_the_attempt_has_to_end_is_not_waited_for_either() {
    let receiver = Receiver::holding(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await;
    let mut hasty = request(&receiver.url);
    hasty.timeout = Duration::from_millis(300);
    let open = sender(&["127.0.0.0/8"], &EgressConfig::default());
    assert_eq!(send_with(&open, hasty).await.outcome, answered(200));
}

#[tokio::test]
async fn what_was_answered_is_kept_as_far_as_is_wanted() {
    for (excerpt_bytes_max, kept) in [(0, ""), (5, "no su"), (1024, "no such event")] {
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 13\r\n\r\nno such event";
        let server = Server::answering(answer).await;
        let config = EgressConfig {
            response_excerpt_bytes_max: excerpt_bytes_max,
            ..EgressConfig::default()
        };
        let response = send_with(&sender(&["127.0.0.0/8"], &config), request(&server.url())).await;
        assert_eq!(response.excerpt, kept);
    }
}

#[tokio::test]
async fn heads_that_other_clients_read_are_read() {
    let many: String = (0..300)
        .map(|number| format!("x-header-{number}: some value\r\n"))
        .collect();
    for head in [
        many.as_str(),
        "x-folded: begins\r\n  and goes on\r\n",
        "x-spaced : value\r\n",
        "no colon at all\r\n",
        "x-latin: caf\u{e9}\r\n",
    ] {
        let answer = format!("HTTP/1.1 204 No Content\r\n{head}\r\n");
        let response = to_answer(answer).await;
        assert_eq!(
            response.outcome,
            answered(204),
            "{:.60}: {}",
            head,
            response.detail
        );
    }
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_counts() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.is_ok_and(|read| read > 0));
        let answer = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        // RFC 9112, 9.6: a server that closes only its own side lets its answer be read.
        stream.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
    for _ in 0..10 {
        let mut large = request(&receiver.url);
        large.body = vec![b' '; 8 << 20].into();
        let open = sender(&["127.0.0.0/8"], &EgressConfig::default());
        let response = send_with(&open, large).await;
        assert_eq!(response.outcome, answered(413), "{}", response.detail);
    }
}
