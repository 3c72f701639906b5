//! Leaving in good order.

use phalanx_chassis::drain::Phase;
use phalanx_router::RawRouter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, PATIENCE, eventually};
use crate::worker::{FakeWorker, delta, finished, started, usage};

#[tokio::test]
async fn a_draining_router_refuses_new_work_and_finishes_what_it_has() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    // A second connection that stays open, so that it can carry requests once no new one is accepted.
    let (mut live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering.send(delta(0, "before", 1)).await;
        answering
    });
    live.until("before").await;
    assert_eq!(cluster.get("/health/ready").await.status, 200);
    cluster.drain.advance(Phase::Draining);
    let ready = cluster.get("/health/ready").await;
    assert_eq!((ready.status.as_u16(), ready.text.as_str()), (503, r#"{"status":"draining"}"#));
    let refused = cluster.chat("").await;
    refused.assert_error(503, "draining");
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(refused.header("retry-after").is_some());
    answering.send(delta(0, "after", 2)).await;
    answering.send(finished(0)).await;
    answering.send(usage(2)).await;
    let answer = live.finish().await;
    assert!(answer.text.contains("after") && answer.text.ends_with("data: [DONE]\n\n"));
    let left = tokio::time::timeout(PATIENCE, cluster.running).await;
    left.expect("the router did not leave").unwrap();
}

#[tokio::test]
async fn a_stopping_router_ends_its_streams_with_an_error() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (mut live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering
    });
    live.until("assistant").await;
    cluster.drain.advance(Phase::Stopping);
    let answer = live.finish().await;
    assert!(answer.text.contains(r#""code":"draining"}}"#), "{}", answer.text);
    answering.cancelled().await;
    let left = tokio::time::timeout(PATIENCE, cluster.running).await;
    left.expect("the router did not leave").unwrap();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_its_streams() {
    let mut worker = FakeWorker::start(7);
    let raw = RawRouter { drain_timeout_ms: Some(10), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[&worker]).await;
    let (live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering
    });
    cluster.drain.advance(Phase::Draining);
    let answer = live.finish().await;
    assert!(answer.text.contains(r#""code":"draining"}}"#), "{}", answer.text);
    answering.cancelled().await;
}

/// Sends the head of a request and the first byte of its body, and waits until the router reads the rest.
async fn open_slow_body(cluster: &Cluster) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.base.trim_start_matches("http://")).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let reading = "phalanx_inflight_requests 1\n";
    eventually(async || cluster.get("/metrics").await.text.contains(reading)).await;
    stream
}

#[tokio::test]
async fn a_body_that_does_not_come_does_not_hold_up_the_drain() {
    for phase in [Phase::Draining, Phase::Stopping] {
        let worker = FakeWorker::start(7);
        let cluster = Cluster::start(&[&worker]).await;
        let mut slow = open_slow_body(&cluster).await;
        cluster.drain.advance(phase);
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, slow.read_to_string(&mut answer)).await;
        read.expect("the connection stays open").unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#""code":"draining""#), "{answer}");
        let left = tokio::time::timeout(PATIENCE, cluster.running).await;
        left.expect("the router did not leave").unwrap();
    }
}
