//! What clients see when workers, deadlines or they themselves fail.

use http::Method;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::wire::to_status;
use phalanx_router::RawRouter;

use crate::cluster::{Cluster, chat_body, eventually};
use crate::worker::{FakeWorker, delta, started};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    // In the middle of a stream.
    let (live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering.send(delta(0, "a", 1)).await;
        answering
    });
    drop(live);
    answering.cancelled().await;
    // Before anything was answered.
    let waiting = tokio::select! {
        _ = cluster.open_chat("") => panic!("nobody answered it"),
        call = worker.call() => call.accept(),
    };
    waiting.cancelled().await;
    cluster.assert_idle().await;
    let gone = r#"phalanx_requests_total{model="demo",code="499"} 2"#;
    assert!(cluster.get("/metrics").await.text.contains(gone));
}

#[tokio::test]
async fn without_a_worker_the_answer_is_503_at_once() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    worker.kill();
    cluster.until_up(0).await;
    let answer = cluster.chat("").await;
    answer.assert_error(503, "no_worker");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("retry-after-ms"), Some("1000"));
    assert_eq!(cluster.get("/health/ready").await.status, 503);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_worker_that_dies_before_its_first_token_is_replaced_unseen() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let [first, second] = &mut workers;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        let (survivor, call) = tokio::select! {
            call = first.call() => { first.kill(); (second, call) }
            call = second.call() => { second.kill(); (first, call) }
        };
        let again = survivor.call().await;
        // The same seed, so that nobody could tell.
        assert_eq!(again.request.sampling, call.request.sampling);
        again.answer(&["ok"]).await;
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "ok");
    assert!(cluster.get("/metrics").await.text.contains("phalanx_retries_total 1\n"));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn no_worker_is_asked_twice_and_the_last_refusal_is_told() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    // A worker that is overloaded is spared for the time it says, so it comes last.
    for code in [FaultCode::StaleEpoch, FaultCode::Draining, FaultCode::Overloaded] {
        let fault =
            Fault::new(code, "not now").with_retry_after(std::time::Duration::from_millis(2500));
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            worker.call().await.refuse(to_status(&fault));
        });
        answer.assert_error(503, code.as_str());
        assert_eq!(answer.header("retry-after"), Some("3"));
        assert_eq!(answer.header("retry-after-ms"), Some("2500"));
        assert!(!worker.has_call());
    }
    cluster.assert_idle().await;
}

#[tokio::test]
async fn at_most_three_workers_are_tried() {
    let mut workers: Vec<_> = (1..=4).map(FakeWorker::start).collect();
    let cluster = Cluster::start(&workers.iter().collect::<Vec<_>>()).await;
    let refusing = futures::future::join_all(workers.iter_mut().map(async |worker| {
        worker.call().await.refuse(to_status(&Fault::new(FaultCode::Unavailable, "gone")));
    }));
    // The fourth waits for a call that does not come.
    tokio::select! {
        answer = cluster.chat("") => answer.assert_error(503, "unavailable"),
        _ = refusing => panic!("all four workers were asked"),
    }
    assert!(cluster.get("/metrics").await.text.contains("phalanx_retries_total 2\n"));
}

#[tokio::test]
async fn a_workers_refusal_of_the_request_keeps_its_param() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let fault =
        Fault::new(FaultCode::ContextLengthExceeded, "prompt has 600 tokens, at most 512 fit")
            .with_param("messages");
    let [first, second] = &mut workers;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        let call = tokio::select! { call = first.call() => call, call = second.call() => call };
        call.refuse(to_status(&fault));
    });
    answer.assert_error(400, "context_length_exceeded");
    assert_eq!(answer.json()["error"]["param"], "messages");
    assert!(!first.has_call() && !second.has_call(), "it was tried again");
}

#[tokio::test]
async fn the_only_worker_dying_in_mid_stream_ends_it_with_an_error() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (mut live, _answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering.send(delta(0, "partial", 1)).await;
        answering
    });
    live.until("partial").await;
    worker.kill();
    let answer = live.finish().await;
    let last = answer.text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with(r#"data: {"error":{"message":"worker 1: "#), "{last}");
    assert!(
        last.ends_with(r#""type":"server_error","param":null,"code":"worker_failed"}}"#),
        "{last}"
    );
    assert!(!answer.text.contains("[DONE]"));
    cluster.assert_idle().await;
    let counted = r#"phalanx_requests_total{model="demo",code="502"} 1"#;
    assert!(cluster.get("/metrics").await.text.contains(counted));
}

#[tokio::test]
async fn a_stream_that_the_only_worker_closes_early_is_an_error() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        drop(answering);
    });
    answer.assert_error(502, "worker_failed");
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_restarted_worker_serves_again_under_its_new_epoch() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    worker.kill();
    cluster.until_up(0).await;
    let mut restarted = FakeWorker::start(9);
    cluster.put(1, &restarted);
    cluster.until_up(1).await;
    let (answer, epoch) = tokio::join!(cluster.chat(""), async {
        let call = restarted.call().await;
        let epoch = call.request.worker_epoch;
        call.answer(&["back"]).await;
        epoch
    });
    assert_eq!((answer.status.as_u16(), epoch), (200, 9));
}

#[tokio::test]
async fn a_worker_that_says_it_drains_gets_no_more_work() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    workers[0].report(phalanx_proto::pb::Load { draining: true, ..Default::default() });
    cluster.until_up(1).await;
    for _ in 0..4 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            workers[1].call().await.answer(&["x"]).await;
        });
        assert_eq!(answer.header("x-phalanx-worker"), Some("2"));
    }
    assert!(!workers[0].has_call());
}

#[tokio::test]
async fn a_worker_that_falls_silent_gets_no_more_work_until_it_is_heard() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let silent = async |count: usize| {
        let line = format!("phalanx_workers_silent {count}\n");
        eventually(async || cluster.get("/metrics").await.text.contains(&line)).await;
    };
    let [first, second] = &mut workers;
    first.silence(true);
    silent(1).await;
    for _ in 0..4 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            second.call().await.answer(&["x"]).await;
        });
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert!(!first.has_call());
    // When nobody is heard, somebody is asked all the same.
    second.silence(true);
    silent(2).await;
    assert_eq!(cluster.get("/health/ready").await.status, 200);
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        let call = tokio::select! { call = first.call() => call, call = second.call() => call };
        call.answer(&["x"]).await;
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
    first.silence(false);
    silent(1).await;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        first.call().await.answer(&["x"]).await;
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn simultaneous_requests_spread_over_workers() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let [first, second] = &mut workers;
    let one = || cluster.chat("");
    let clients = async { tokio::join!(one(), one(), one(), one()) };
    let servers = async {
        // Both hold their first request until the other has one too.
        let (a, b) = tokio::join!(first.call(), second.call());
        let (c, d) = tokio::join!(first.call(), second.call());
        for call in [a, b, c, d] {
            call.answer(&["x"]).await;
        }
    };
    let ((a, b, c, d), ()) = tokio::join!(clients, servers);
    assert!([a, b, c, d].iter().all(|answer| answer.status == 200));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_deadline_before_the_first_event_is_408() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let timeout = [("x-request-timeout-ms", "50")];
    let (answer, ()) =
        tokio::join!(cluster.send(Method::POST, CHAT, &timeout, chat_body("")), async {
            let call = worker.call().await;
            let granted = call.metadata("grpc-timeout").map(str::to_owned);
            assert!(granted.is_some(), "the worker was not told of the deadline");
            call.accept().cancelled().await;
        });
    answer.assert_error(408, "deadline_exceeded");
    assert_eq!(answer.json()["error"]["type"], "timeout_error");
    // What was asked for, not what was left of it when the worker was called.
    assert_eq!(answer.json()["error"]["message"], "request did not finish within 50 ms");
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_deadline_in_mid_stream_is_an_error_in_the_stream() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let timeout = [("x-request-timeout-ms", "500")];
    let body = chat_body(r#""stream":true"#);
    let (answer, ()) = tokio::join!(cluster.send(Method::POST, CHAT, &timeout, body), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering.cancelled().await;
    });
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains(r#""code":"deadline_exceeded"}}"#), "{}", answer.text);
    assert!(answer.text.contains("did not finish within 500 ms"), "{}", answer.text);
    assert!(!answer.text.contains("[DONE]"));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_at_once() {
    let mut worker = FakeWorker::start(7);
    let raw = RawRouter { concurrency_max: Some(1), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[&worker]).await;
    let (live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering
    });
    let refused = cluster.chat("").await;
    refused.assert_error(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(cluster.get("/health/ready").await.status, 200, "watching is never refused");
    drop(live);
    answering.cancelled().await;
    cluster.assert_idle().await;
    eventually(async || {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            worker.call().await.answer(&["x"]).await;
        });
        answer.status == 200
    })
    .await;
}
