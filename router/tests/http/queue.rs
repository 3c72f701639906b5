//! What happens to requests while every engine is full.

use std::time::Duration;

use futures::future::join_all;
use http::Method;
use phalanx_proto::pb;
use phalanx_router::{RawDispatch, RawRouter};

use crate::cluster::{Answer, Cluster, chat_body, eventually};
use crate::worker::{Answering, FakeWorker, finished, started, usage};

const CHAT: &str = "/v1/chat/completions";

/// One request at an engine at a time, `queue_max` more wait.
fn one_at_a_time(queue_max: u64) -> RawRouter {
    let (queue_max, engine_requests_max) = (Some(queue_max), Some(1));
    let dispatch = RawDispatch { queue_max, engine_requests_max, ..RawDispatch::default() };
    RawRouter { dispatch, ..RawRouter::default() }
}

/// A request that is told from others by `tag`.
async fn tagged(cluster: &Cluster, tag: u32, headers: &[(&str, &str)]) -> Answer {
    let body = chat_body(&format!(r#""max_tokens":{tag}"#));
    cluster.send(Method::POST, CHAT, headers, body).await
}

async fn until_waiting(cluster: &Cluster, waiting: usize) {
    let line = format!("phalanx_queue_depth {waiting}\n");
    eventually(async || cluster.get("/metrics").await.text.contains(&line)).await;
}

async fn end(answering: Answering) {
    answering.send(started()).await;
    answering.send(finished(0)).await;
    answering.send(usage(0)).await;
}

/// Answers `count` requests, one after the other, and returns their tags in that order.
async fn served(worker: &mut FakeWorker, count: usize) -> Vec<u32> {
    let mut tags = Vec::new();
    for _ in 0..count {
        let call = worker.call().await;
        tags.push(call.request.stopping.as_ref().unwrap().max_tokens.unwrap());
        assert!(!worker.has_call(), "two at a time");
        end(call.accept()).await;
    }
    tags
}

#[tokio::test]
async fn requests_wait_by_priority_and_start_as_others_end() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(one_at_a_time(10), &[&worker]).await;
    let low = async {
        eventually(async || cluster.get("/metrics").await.text.contains("dispatched_requests 1\n"))
            .await;
        tagged(&cluster, 2, &[("x-priority", "low")]).await
    };
    let high = async {
        until_waiting(&cluster, 1).await;
        tagged(&cluster, 3, &[("x-priority", "high")]).await
    };
    let ((), first, low, high) = tokio::join!(
        async {
            let held = worker.call().await.accept();
            until_waiting(&cluster, 2).await;
            end(held).await;
            assert_eq!(served(&mut worker, 2).await, [3, 2]);
        },
        tagged(&cluster, 1, &[]),
        low,
        high,
    );
    for answer in [first, low, high] {
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    until_waiting(&cluster, 0).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn who_floods_the_queue_does_not_keep_others_waiting() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(one_at_a_time(10), &[&worker]).await;
    let flood = [("authorization", "Bearer flood")];
    let quiet = [("x-api-key", "quiet")];
    let (held, ()) = tokio::join!(tagged(&cluster, 1, &flood), async {
        let held = worker.call().await.accept();
        let flooding = join_all((0..6).map(|_| tagged(&cluster, 2, &flood)));
        let waiting = async {
            until_waiting(&cluster, 6).await;
            tagged(&cluster, 9, &quiet).await
        };
        let serving = async {
            until_waiting(&cluster, 7).await;
            end(held).await;
            let tags = served(&mut worker, 7).await;
            assert!(tags[..2].contains(&9), "{tags:?}");
        };
        let (flooded, waited, ()) = tokio::join!(flooding, waiting, serving);
        assert!(flooded.iter().all(|answer| answer.status == 200));
        assert_eq!(waited.status, 200, "{}", waited.text);
    });
    assert_eq!(held.status, 200);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_makes_room_for_who_has_less() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(one_at_a_time(2), &[&worker]).await;
    let flood = [("authorization", "Bearer flood")];
    let (first, ()) = tokio::join!(tagged(&cluster, 1, &flood), async {
        let held = worker.call().await.accept();
        let waiting = join_all((0..2).map(|_| tagged(&cluster, 2, &flood)));
        let others = async {
            until_waiting(&cluster, 2).await;
            let refused = tagged(&cluster, 3, &flood).await;
            refused.assert_error(503, "overloaded");
            assert_eq!(refused.header("retry-after"), Some("1"));
            let quiet = [("authorization", "Bearer quiet")];
            let displacing = tagged(&cluster, 4, &quiet);
            let serving = async {
                let displaced = "phalanx_queue_refusals_total{reason=\"displaced\"} 1\n";
                eventually(async || cluster.get("/metrics").await.text.contains(displaced)).await;
                end(held).await;
                let mut tags = served(&mut worker, 2).await;
                tags.sort_unstable();
                assert_eq!(tags, [2, 4]);
            };
            tokio::join!(displacing, serving).0
        };
        let (waited, displacing) = tokio::join!(waiting, others);
        assert_eq!(displacing.status, 200, "{}", displacing.text);
        let mut codes: Vec<_> = waited.iter().map(|answer| answer.status.as_u16()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [200, 503]);
    });
    assert_eq!(first.status, 200);
    until_waiting(&cluster, 0).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn who_leaves_gives_up_their_place_and_a_deadline_ends_the_wait() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(one_at_a_time(10), &[&worker]).await;
    let (first, ()) = tokio::join!(tagged(&cluster, 1, &[]), async {
        let held = worker.call().await.accept();
        tokio::select! {
            _ = tagged(&cluster, 2, &[]) => panic!("nobody answered it"),
            () = until_waiting(&cluster, 1) => {}
        }
        until_waiting(&cluster, 0).await;
        let late = tagged(&cluster, 3, &[("x-request-timeout-ms", "100")]).await;
        late.assert_error(408, "deadline_exceeded");
        until_waiting(&cluster, 0).await;
        end(held).await;
    });
    assert_eq!(first.status, 200);
    assert!(!worker.has_call());
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_request_that_would_wait_past_its_deadline_is_refused_at_once() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(one_at_a_time(100), &[&worker]).await;
    // One request in 100 ms, as a slow engine would.
    let waiting = join_all((0..8).map(|_| tagged(&cluster, 1, &[])));
    let serving = async {
        for _ in 0..4 {
            let call = worker.call().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            end(call.accept()).await;
        }
        let held = worker.call().await;
        until_waiting(&cluster, 3).await;
        let hurried = tagged(&cluster, 2, &[("x-request-timeout-ms", "150")]).await;
        hurried.assert_error(503, "deadline_unreachable");
        assert!(hurried.header("retry-after").is_some());
        end(held.accept()).await;
        served(&mut worker, 3).await;
    };
    let (waited, ()) = tokio::join!(waiting, serving);
    assert!(waited.iter().all(|answer| answer.status == 200));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_worker_whose_report_shows_that_others_wait_is_sent_no_more() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let full = pb::Load { running: 1, waiting: 3, ..pb::Load::default() };
    worker.report(full);
    // Others run four there: with what it is sent ahead, its bound of one is reached. Until it is heard, requests
    // still go there.
    let timeout = [("x-request-timeout-ms", "200")];
    eventually(async || {
        let is_waiting =
            async || cluster.get("/metrics").await.text.contains("phalanx_queue_depth 1\n");
        tokio::select! {
            _ = tagged(&cluster, 1, &timeout) => false,
            () = eventually(is_waiting) => true,
        }
    })
    .await;
    while worker.has_call() {
        drop(worker.call().await);
    }
    let (answer, ()) = tokio::join!(tagged(&cluster, 2, &[]), async {
        until_waiting(&cluster, 1).await;
        worker.report(pb::Load { running: 1, ..pb::Load::default() });
        end(worker.call().await.accept()).await;
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
    until_waiting(&cluster, 0).await;
}

#[tokio::test]
async fn a_priority_that_is_none_is_refused() {
    let worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let answer = tagged(&cluster, 1, &[("x-priority", "urgent")]).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "x-priority");
}
