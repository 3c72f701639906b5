//! How often a request is sent anew, and when a second engine is asked beside the first.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use http::Method;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::wire::to_status;
use phalanx_router::{RawBreaker, RawRetry, RawRouter};
use tonic::Status;

use crate::cluster::{Cluster, chat_body, eventually};
use crate::worker::{FakeWorker, finished, started, usage};

const CHAT: &str = "/v1/chat/completions";

fn gone() -> Status {
    to_status(&Fault::new(FaultCode::Unavailable, "gone"))
}

/// Ejects nobody, so that only retries are at work.
fn patient() -> RawBreaker {
    RawBreaker {
        breaker_failures_in_a_row: Some(1_000),
        breaker_failure_percent: Some(100),
        breaker_slow_percent: Some(0),
        ..RawBreaker::default()
    }
}

/// Answers every request after `lag`, which is what a slow engine does.
async fn serve(worker: &mut FakeWorker, lag: Duration) {
    loop {
        let call = worker.call().await;
        tokio::time::sleep(lag).await;
        // One that lost a race is cancelled.
        let answering = call.accept();
        for event in [started(), finished(0), usage(0)] {
            answering.offer(event).await;
        }
    }
}

/// Races that the second engine won.
async fn won(cluster: &Cluster) -> u64 {
    let text = cluster.get("/metrics").await.text;
    let line = "phalanx_hedges_total{result=\"won\"} ";
    text.lines().find_map(|text| text.strip_prefix(line)?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn when_half_of_all_calls_fail_attempts_stay_within_the_budget() {
    const REQUESTS: u32 = 200;
    let mut workers: Vec<_> = (1..=4).map(FakeWorker::start).collect();
    let retry = RawRetry {
        retry_budget_percent: Some(20),
        retry_floor_per_second: Some(0),
        ..RawRetry::default()
    };
    let raw = RawRouter { retry, breaker: patient(), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &workers.iter().collect::<Vec<_>>()).await;
    let attempts = AtomicU32::new(0);
    let serving = futures::future::join_all(workers.iter_mut().map(async |worker| {
        loop {
            let call = worker.call().await;
            if attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                call.refuse(gone());
            } else {
                call.answer(&["x"]).await;
            }
        }
    }));
    let clients = stream::iter(0..REQUESTS).map(|_| cluster.chat("")).buffer_unordered(8);
    let answered =
        async { clients.filter(|answer| std::future::ready(answer.status == 200)).count().await };
    let answered = tokio::select! {
        answered = answered => answered,
        _ = serving => unreachable!("workers serve for ever"),
    };
    let attempts = attempts.load(Ordering::Relaxed);
    assert!(attempts <= REQUESTS * 12 / 10, "{attempts} attempts of {REQUESTS} requests");
    assert!(attempts > REQUESTS * 11 / 10, "{attempts} attempts: the budget was not used");
    assert!(answered >= 100, "{answered} were answered");
    let text = cluster.get("/metrics").await.text;
    assert!(!text.contains("phalanx_retries_refused_total 0\n"));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_retry_that_cannot_be_in_time_is_not_made() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let raw = RawRouter { breaker: patient(), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[&workers[0], &workers[1]]).await;
    let [first, second] = &mut workers;
    let timeout = [("x-request-timeout-ms", "2000")];
    let learn = async || {
        for _ in 0..3 {
            assert_eq!(cluster.chat("").await.status, 200);
        }
    };
    eventually(async || {
        let lag = Duration::from_millis(600);
        tokio::select! { () = learn() => {} () = serve(first, lag) => {} () = serve(second, lag) => {} }
        let hurried = cluster.send(Method::POST, CHAT, &timeout, chat_body(""));
        let (answer, was_asked_twice) = tokio::join!(hurried, async {
            let (call, other) = tokio::select! {
                call = first.call() => (call, &mut *second),
                call = second.call() => (call, &mut *first),
            };
            // Less is left now than an engine takes.
            tokio::time::sleep(Duration::from_millis(1_600)).await;
            call.refuse(gone());
            tokio::select! {
                call = other.call() => {
                    call.answer(&["x"]).await;
                    true
                }
                () = cluster.assert_idle() => false,
            }
        });
        if !was_asked_twice {
            answer.assert_error(503, "unavailable");
        }
        !was_asked_twice
    })
    .await;
}

#[tokio::test]
async fn a_late_request_is_raced_by_another_engine_and_the_loser_is_cancelled() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let retry = RawRetry { hedge: true, hedge_budget_percent: Some(100), ..RawRetry::default() };
    let raw = RawRouter { retry, breaker: patient(), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[&workers[0], &workers[1]]).await;
    let [first, second] = &mut workers;
    // Until it is known what is late, nothing is; then one is held, and another engine is asked.
    let learn = async || {
        for _ in 0..60 {
            assert_eq!(cluster.chat("").await.status, 200);
        }
    };
    eventually(async || {
        let lag = Duration::ZERO;
        tokio::select! { () = learn() => {} () = serve(first, lag) => {} () = serve(second, lag) => {} }
        let before = won(&cluster).await;
        let (answer, ()) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
            let (held, other) = tokio::select! {
                call = first.call() => (call, &mut *second),
                call = second.call() => (call, &mut *first),
            };
            let held = held.accept();
            tokio::select! {
                call = other.call() => {
                    call.answer(&["quick"]).await;
                    held.cancelled().await;
                }
                () = tokio::time::sleep(Duration::from_millis(300)) => {
                    for event in [started(), finished(0), usage(0)] {
                        held.offer(event).await;
                    }
                }
            }
        });
        let answer = answer.finish().await;
        let has_won = won(&cluster).await > before;
        assert_eq!(has_won, answer.text.contains("quick"), "{}", answer.text);
        has_won
    })
    .await;
    cluster.assert_idle().await;
}
