//! What operators are told of where a request was sent.

use http::Method;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::wire::to_status;
use phalanx_router::{RawDispatch, RawRouter};
use serde_json::Value;

use crate::cluster::{Answer, Cluster, Live, chat_body, eventually};
use crate::server::FakeServer;
use crate::worker::{Call, FakeWorker, delta, started};

const CHAT: &str = "/v1/chat/completions";

async fn open(cluster: &Cluster, id: &str, extra: &str) -> Live {
    cluster.open(Method::POST, CHAT, &[("x-request-id", id)], chat_body(extra)).await
}

async fn ask(cluster: &Cluster, id: &str) -> Answer {
    open(cluster, id, "").await.finish().await
}

async fn attempts(cluster: &Cluster, id: &str) -> Vec<Value> {
    let answer = cluster.get(&format!("/admin/decisions/{id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["request_id"], id);
    answer.json()["attempts"].as_array().unwrap().clone()
}

/// The names of an attempt's candidates.
fn candidates(attempt: &Value) -> Vec<&str> {
    let candidates = attempt["candidates"].as_array().unwrap();
    let mut names: Vec<_> = candidates.iter().map(|one| one["worker"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

async fn either(workers: &mut [FakeWorker; 2]) -> Call {
    let [left, right] = workers;
    tokio::select! { call = left.call() => call, call = right.call() => call }
}

#[tokio::test]
async fn a_decision_shows_who_came_into_question_and_what_came_of_it() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let (mut live, answering) = tokio::join!(open(&cluster, "one", r#""stream":true"#), async {
        let answering = either(&mut workers).await.accept();
        answering.send(started()).await;
        answering.send(delta(0, "first", 10)).await;
        answering
    });
    live.until("first").await;
    let begun = attempts(&cluster, "one").await.remove(0);
    assert_eq!((&begun["outcome"], &begun["fault"]), (&"in_progress".into(), &Value::Null));
    assert_eq!(begun["worker"], live.headers["x-phalanx-worker"].to_str().unwrap());
    assert_eq!((begun["model"].as_str(), candidates(&begun)), (Some("demo"), vec!["1", "2"]));
    assert_eq!(
        (&begun["candidates_total"], &begun["predicted"]["cached_tokens"]),
        (&2.into(), &0.into())
    );
    // As the worker said, which nobody had told the router.
    assert_eq!(begun["actual"]["cached_tokens"], 2);
    assert!(begun["actual"]["ttft_seconds"].as_f64() > Some(0.0), "{begun}");
    let chosen = begun["candidates"].as_array().unwrap();
    let chosen = chosen.iter().find(|one| one["worker"] == begun["worker"]).unwrap();
    let seconds = |name: &str| chosen[name].as_f64().unwrap();
    let predicted = begun["predicted"]["ttft_seconds"].as_f64().unwrap();
    let sum = seconds("wait_seconds") + seconds("prefill_seconds") + seconds("risk_seconds");
    assert!(predicted > 0.0 && (predicted - sum).abs() < 1e-12, "{begun}");
    assert!(seconds("cost_seconds") > predicted && seconds("error_seconds") > 0.0, "{begun}");

    // Its client leaves.
    drop(live);
    answering.cancelled().await;
    eventually(async || attempts(&cluster, "one").await[0]["outcome"] == "cancelled").await;
    let text = cluster.get("/metrics").await.text;
    assert!(text.contains("phalanx_prediction_error_ratio_count 1\n"), "{text}");
}

#[tokio::test]
async fn every_engine_that_a_request_was_sent_to_is_shown_in_order() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let (answer, ()) = tokio::join!(ask(&cluster, "two/tries"), async {
        let gone = Fault::new(FaultCode::Unavailable, "gone");
        either(&mut workers).await.refuse(to_status(&gone));
        either(&mut workers).await.answer(&["x"]).await;
    });
    let shown = attempts(&cluster, "two/tries").await;
    let [first, second] = &shown[..] else { panic!("{shown:?}") };
    assert_eq!((&first["outcome"], &first["fault"]), (&"failed".into(), &"unavailable".into()));
    assert_eq!((&first["candidates_total"], &second["candidates_total"]), (&2.into(), &1.into()));
    assert_eq!(first["actual"]["ttft_seconds"], Value::Null);
    assert_eq!((&second["outcome"], &second["fault"]), (&"answered".into(), &Value::Null));
    assert_eq!(second["worker"], answer.header("x-phalanx-worker").unwrap());
    assert_ne!(first["worker"], second["worker"]);
    assert!(first["at"].as_f64() <= second["at"].as_f64(), "{shown:?}");
}

#[tokio::test]
async fn a_foreign_engine_goes_by_its_name_and_tells_what_it_had_cached() {
    let mut server = FakeServer::start();
    let cluster = Cluster::with_servers(&[], &[&server]).await;
    let usage =
        r#"{"choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}"#;
    let (answer, ()) = tokio::join!(ask(&cluster, "foreign"), async {
        server.call().await.answer(200, &[("content-type", "application/json")], usage);
    });
    assert_eq!(answer.status, 200);
    let shown = attempts(&cluster, "foreign").await.remove(0);
    assert_eq!((&shown["worker"], candidates(&shown)), (&"one".into(), vec!["one"]));
    assert_eq!(
        (&shown["outcome"], &shown["actual"]["cached_tokens"]),
        (&"answered".into(), &8.into())
    );
    // It came in one piece.
    assert_eq!(shown["actual"]["ttft_seconds"], Value::Null);
}

#[tokio::test]
async fn the_cheapest_of_those_that_are_soon_enough_is_taken() {
    let (mut dear, mut cheap) = (FakeServer::start(), FakeServer::start());
    let engine = vec![
        format!("dear={},price_in=5,price_out=5", dear.url),
        format!("cheap={},price_in=1,price_out=1", cheap.url),
    ];
    let dispatch = RawDispatch { ttft_target_ms: Some(3_600_000), ..RawDispatch::default() };
    let raw = RawRouter { engine, dispatch, ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[]).await;
    cluster.until_servers_up(2).await;
    // Enough of them that chance would take each once.
    for request in 0..20 {
        let id = format!("paid-{request}");
        let (answer, ()) = tokio::join!(ask(&cluster, &id), async {
            let call = tokio::select! { call = cheap.call() => call, call = dear.call() => call };
            call.answer(200, &[("content-type", "application/json")], "{}");
        });
        assert_eq!(answer.header("x-phalanx-worker"), Some("cheap"));
    }
    let shown = attempts(&cluster, "paid-0").await.remove(0);
    assert_eq!(candidates(&shown), ["cheap", "dear"]);
    let money = |name: &str| {
        let mut candidates = shown["candidates"].as_array().unwrap().iter();
        candidates.find(|one| one["worker"] == name).unwrap()["money"].as_f64().unwrap()
    };
    assert!(money("cheap") > 0.0 && (money("dear") / money("cheap") - 5.0).abs() < 1e-9, "{shown}");
}

#[tokio::test]
async fn a_request_that_was_sent_nowhere_is_unknown() {
    let cluster = Cluster::start(&[]).await;
    ask(&cluster, "nobody").await.assert_error(503, "no_worker");
    for id in ["nobody", "never"] {
        let answer = cluster.get(&format!("/admin/decisions/{id}")).await;
        answer.assert_error(404, "decision_not_found");
    }
}
