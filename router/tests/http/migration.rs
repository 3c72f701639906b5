//! Streams whose workers die, stall or drain: another one goes on, and the client sees one answer.

use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Event, Usage};
use phalanx_proto::pb;
use phalanx_proto::wire::to_status;

use crate::cluster::{Cluster, Live, eventually};
use crate::worker::{Answering, Call, FakeWorker, delta, finished, started, usage};

const STREAM: &str = r#""stream":true,"stream_options":{"include_usage":true}"#;

/// A stream that one of two workers has begun with the token "one", which the client has.
struct Begun {
    live: Live,
    answering: Answering,
    holder: FakeWorker,
    other: FakeWorker,
    cluster: Cluster,
}

/// The call that arrives at either, and at which.
async fn first_of(workers: &mut [FakeWorker; 2]) -> (usize, Call) {
    let [left, right] = workers;
    tokio::select! { call = left.call() => (0, call), call = right.call() => (1, call) }
}

async fn begin(extra: &str) -> Begun {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let (mut live, (holder, answering)) = tokio::join!(cluster.open_chat(extra), async {
        let (holder, call) = first_of(&mut workers).await;
        assert!(call.request.resume.is_empty());
        let answering = call.accept();
        answering.send(started()).await;
        answering.send(delta(0, "one", 11)).await;
        (holder, answering)
    });
    live.until("one").await;
    let [left, right] = workers;
    let (holder, other) = if holder == 0 { (left, right) } else { (right, left) };
    Begun { live, answering, holder, other, cluster }
}

fn told(token_ids: &[u32], finished: bool) -> pb::ChoiceProgress {
    pb::ChoiceProgress { token_ids: token_ids.to_vec(), finished }
}

/// A worker that goes on says again that it started, perhaps with another cache.
fn started_again() -> Event {
    Event::Started { prompt_tokens: 5, cached_tokens: 4, prompt_token_ids: Vec::new() }
}

async fn migrations(cluster: &Cluster, count: usize) {
    let line = format!("phalanx_migrations_total {count}\n");
    let text = cluster.get("/metrics").await.text;
    assert!(text.contains(&line), "not {line}: {text}");
}

/// The frames of a stream, its ids and times made alike.
fn frames(text: &str) -> Vec<&str> {
    text.split("\n\n").filter(|frame| !frame.is_empty()).collect()
}

#[tokio::test]
async fn a_stream_whose_worker_dies_goes_on_at_another_unseen() {
    let Begun { live, answering: _dead, mut holder, mut other, cluster } = begin(STREAM).await;
    let first = live.headers["x-phalanx-worker"].clone();
    holder.kill();
    let (answer, ()) = tokio::join!(live.finish(), async {
        let call = other.call().await;
        assert_eq!(call.request.resume, [told(&[11], false)]);
        assert_eq!(call.request.worker_epoch, other.epoch);
        // What the first worker's context left: 512 tokens, 5 of them of the prompt.
        assert_eq!(call.request.stopping.as_ref().unwrap().max_tokens, Some(507));
        let answering = call.accept();
        answering.send(started_again()).await;
        answering.send(delta(0, " two", 12)).await;
        answering.send(finished(0)).await;
        let (prompt_tokens, cached_tokens, completion_tokens) = (5, 4, 2);
        answering
            .send(Event::Usage(Usage { prompt_tokens, cached_tokens, completion_tokens }))
            .await;
    });
    assert_eq!(answer.headers["x-phalanx-worker"], first);
    let settled = answer.settled();
    let frames = frames(&settled);
    assert_eq!(frames.len(), 6, "{settled}");
    assert!(frames[0].contains(r#""role":"assistant""#), "{settled}");
    assert!(frames[1].contains(r#""content":"one""#), "{settled}");
    assert!(frames[2].contains(r#""content":" two""#), "{settled}");
    assert!(frames[3].contains(r#""finish_reason":"stop""#), "{settled}");
    // As the first worker counted the prompt, and as both counted the answer.
    assert!(frames[4].contains(r#""completion_tokens":2"#), "{settled}");
    assert!(frames[4].contains(r#""cached_tokens":2"#), "{settled}");
    assert_eq!(frames[5], "data: [DONE]");
    migrations(&cluster, 1).await;
    assert!(cluster.get("/metrics").await.text.contains("phalanx_retries_total 0\n"));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_whole_answer_goes_on_as_a_stream_does() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let (answer, ()) = tokio::join!(cluster.chat(r#""n":2"#), async {
        let (holder, call) = first_of(&mut workers).await;
        let answering = call.accept();
        answering.send(started()).await;
        for event in [delta(1, "x", 21), finished(1), delta(0, "a", 11), delta(0, "b", 12)] {
            answering.send(event).await;
        }
        let draining = Fault::new(FaultCode::Draining, "the worker is shutting down");
        answering.fail(to_status(&draining)).await;
        let call = workers[1 - holder].call().await;
        assert_eq!(call.request.resume, [told(&[11, 12], false), told(&[21], true)]);
        let answering = call.accept();
        for event in [started_again(), delta(0, "c", 13), finished(0), usage(4)] {
            answering.send(event).await;
        }
    });
    let json = answer.json();
    assert_eq!(json["choices"][0]["message"]["content"], "abc", "{}", answer.text);
    assert_eq!(json["choices"][1]["message"]["content"], "x");
    assert_eq!(json["usage"]["completion_tokens"], 4);
    migrations(&cluster, 1).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_stream_that_lacks_only_its_usage_needs_no_other_worker() {
    let Begun { live, answering, holder: _holder, mut other, cluster } = begin(STREAM).await;
    answering.send(finished(0)).await;
    drop(answering);
    let answer = live.finish().await;
    assert!(answer.text.contains(r#""completion_tokens":1"#), "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    assert!(!other.has_call());
    migrations(&cluster, 0).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn what_is_the_requests_own_fault_does_not_move() {
    for (code, told) in [
        (FaultCode::Numerical, "numerical"),
        (FaultCode::DeadlineExceeded, "deadline_exceeded"),
        (FaultCode::ContextLengthExceeded, "context_length_exceeded"),
    ] {
        let Begun { live, answering, holder: _holder, mut other, cluster } = begin(STREAM).await;
        answering.fail(to_status(&Fault::new(code, "no"))).await;
        let answer = live.finish().await;
        assert!(answer.text.contains(&format!(r#""code":"{told}""#)), "{}", answer.text);
        assert!(!other.has_call());
        cluster.assert_idle().await;
    }
}

#[tokio::test]
async fn only_the_same_revision_goes_on() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0]]).await;
    cluster.put_at_revision(2, &workers[1], "fedcba9876543210");
    cluster.until_up(2).await;
    let (mut live, (holder, answering)) = tokio::join!(cluster.open_chat(STREAM), async {
        let (holder, call) = first_of(&mut workers).await;
        let answering = call.accept();
        answering.send(started()).await;
        answering.send(delta(0, "one", 11)).await;
        (holder, answering)
    });
    live.until("one").await;
    drop(answering);
    let answer = live.finish().await;
    assert!(answer.text.contains(r#""code":"worker_failed""#), "{}", answer.text);
    assert!(!workers[1 - holder].has_call());
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_stream_whose_worker_falls_silent_moves_at_once() {
    let Begun { live, answering, holder, mut other, cluster } = begin(STREAM).await;
    holder.silence(true);
    let (answer, ()) = tokio::join!(live.finish(), async {
        let call = other.call().await;
        assert_eq!(call.request.resume, [told(&[11], false)]);
        let going_on = call.accept();
        going_on.send(started_again()).await;
        answering.cancelled().await;
        for event in [delta(0, " two", 12), finished(0), usage(2)] {
            going_on.send(event).await;
        }
    });
    assert!(answer.text.contains(" two"), "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    migrations(&cluster, 1).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_silent_worker_that_is_heard_before_the_other_keeps_its_stream() {
    let Begun { mut live, answering, holder, mut other, cluster } = begin(STREAM).await;
    holder.silence(true);
    let going_on = other.call().await.accept();
    answering.send(delta(0, " two", 12)).await;
    live.until(" two").await;
    going_on.cancelled().await;
    holder.silence(false);
    cluster.until_up(2).await;
    answering.send(finished(0)).await;
    answering.send(usage(2)).await;
    let answer = live.finish().await;
    assert_eq!(answer.text.matches(" two").count(), 1, "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    migrations(&cluster, 0).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn with_nobody_else_a_silent_workers_stream_is_not_cut() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (mut live, answering) = tokio::join!(cluster.open_chat(STREAM), async {
        let answering = worker.call().await.accept();
        answering.send(started()).await;
        answering
    });
    worker.silence(true);
    let line = "phalanx_workers_silent 1\n";
    eventually(async || cluster.get("/metrics").await.text.contains(line)).await;
    answering.send(delta(0, "still here", 1)).await;
    live.until("still here").await;
    // Somebody who joins takes it.
    let mut second = FakeWorker::start(8);
    cluster.put(2, &second);
    let (answer, ()) = tokio::join!(live.finish(), async {
        let call = second.call().await;
        assert_eq!(call.request.resume, [told(&[1], false)]);
        let going_on = call.accept();
        for event in [started_again(), finished(0), usage(1)] {
            going_on.send(event).await;
        }
    });
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_worker_that_fell_silent_before_its_first_event() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        let (holder, waiting) = first_of(&mut workers).await;
        workers[holder].silence(true);
        workers[1 - holder].call().await.answer(&["ok"]).await;
        waiting.accept().cancelled().await;
    });
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "ok", "{}", answer.text);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_stream_waits_for_room_where_all_others_are_full() {
    let Begun { live, answering, holder: _holder, mut other, cluster } = begin(STREAM).await;
    drop(answering);
    let (answer, ()) = tokio::join!(live.finish(), async {
        let full = Fault::new(FaultCode::Overloaded, "64 sequences, the limit");
        for _ in 0..2 {
            other.call().await.refuse(to_status(&full));
        }
        let call = other.call().await;
        assert_eq!(call.request.resume, [told(&[11], false)]);
        let going_on = call.accept();
        for event in [started_again(), delta(0, " two", 12), finished(0), usage(2)] {
            going_on.send(event).await;
        }
    });
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    migrations(&cluster, 1).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_stream_that_breaks_every_worker_ends_in_the_end() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let calls = async {
        let mut calls = 0;
        loop {
            let (_, call) = first_of(&mut workers).await;
            let generated = u32::try_from(calls).unwrap();
            let expected = (0..generated).collect::<Vec<_>>();
            assert_eq!(
                call.request.resume.iter().flat_map(|c| &c.token_ids).collect::<Vec<_>>(),
                expected.iter().collect::<Vec<_>>()
            );
            calls += 1;
            let answering = call.accept();
            answering.send(started()).await;
            answering.send(delta(0, "x", generated)).await;
            drop(answering);
            if calls == 9 {
                return;
            }
        }
    };
    let (answer, ()) = tokio::join!(cluster.chat(STREAM), calls);
    assert!(answer.text.contains(r#""code":"worker_failed""#), "{}", answer.text);
    assert_eq!(answer.text.matches(r#""content":"x""#).count(), 9, "{}", answer.text);
    migrations(&cluster, 8).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_its_stream_moves_leaves_nothing_behind() {
    let Begun { live, answering, holder: _holder, mut other, cluster } = begin(STREAM).await;
    drop(answering);
    let going_on = other.call().await.accept();
    drop(live);
    going_on.cancelled().await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn the_deadline_covers_the_move() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let timeout = [("x-request-timeout-ms", "600")];
    let body = crate::cluster::chat_body(STREAM);
    let asked = cluster.send(http::Method::POST, "/v1/chat/completions", &timeout, body);
    let (answer, ()) = tokio::join!(asked, async {
        let (holder, call) = first_of(&mut workers).await;
        let answering = call.accept();
        answering.send(started()).await;
        drop(answering);
        let call = workers[1 - holder].call().await;
        let granted = call.metadata("grpc-timeout").unwrap().to_owned();
        let (digits, unit) = granted.split_at(granted.len() - 1);
        assert_ne!(unit, "S", "{granted}");
        let scale = if unit == "m" { Duration::from_millis } else { Duration::from_micros };
        let granted = scale(digits.parse().unwrap());
        assert!(granted < Duration::from_millis(600), "{granted:?} are not what was left");
        call.accept().cancelled().await;
    });
    assert!(answer.text.contains(r#""code":"deadline_exceeded""#), "{}", answer.text);
    cluster.assert_idle().await;
}
