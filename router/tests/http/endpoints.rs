//! Everything that is not a completion, and what all endpoints share.

use http::Method;
use phalanx_proto::view::{Alias, AliasTarget, Model, ViewOp};
use phalanx_router::RawRouter;
use serde_json::json;

use crate::cluster::{Cluster, chat_body, eventually};
use crate::worker::FakeWorker;

#[tokio::test]
async fn models_and_aliases_are_listed_and_found() {
    let worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    cluster.change(ViewOp::PutModel(Model { name: "org/idle".into(), revision: "r".into() }));
    let target = AliasTarget { model: "demo".into(), revision: None, weight: 1 };
    let alias = Alias { name: "best".into(), targets: vec![target], shadow: None, previous: None };
    cluster.change(ViewOp::PutAlias(alias));
    eventually(async || cluster.get("/v1/models/best").await.status == 200).await;
    let list = cluster.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["best", "demo", "org/idle"]);
    let model = cluster.get("/v1/models/demo").await.json();
    assert_eq!((&model["object"], &model["owned_by"]), (&json!("model"), &json!("phalanx")));
    assert_eq!(model["max_model_len"], 512);
    assert!(model["created"].is_u64());
    assert_eq!(cluster.get("/v1/models/org/idle").await.status, 200);
    cluster.get("/v1/models/nope").await.assert_error(404, "model_not_found");
}

#[tokio::test]
async fn an_alias_reaches_the_worker_under_the_models_own_name() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let target = AliasTarget { model: "demo".into(), revision: None, weight: 1 };
    let alias = Alias { name: "best".into(), targets: vec![target], shadow: None, previous: None };
    cluster.change(ViewOp::PutAlias(alias));
    eventually(async || cluster.get("/v1/models/best").await.status == 200).await;
    let body = chat_body("").replace("demo", "best");
    let (answer, model) = tokio::join!(cluster.post("/v1/chat/completions", body), async {
        let call = worker.call().await;
        let model = call.request.model.clone();
        call.answer(&["x"]).await;
        model
    });
    assert_eq!(model, "demo");
    assert_eq!(answer.json()["model"], "best");
}

#[tokio::test]
async fn a_router_that_has_not_heard_from_control_asks_to_come_back() {
    let cluster = Cluster::start(&[]).await;
    let answer = cluster.post("/v1/chat/completions", chat_body("")).await;
    answer.assert_error(503, "no_worker");
    assert!(answer.header("retry-after").is_some());
    cluster.get("/v1/models/demo").await.assert_error(503, "no_worker");
    cluster.assert_idle().await;
}

#[tokio::test]
async fn tokenize_and_detokenize_have_vllms_shapes() {
    let worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let answer = cluster.post("/tokenize", r#"{"model":"demo","prompt":"AB"}"#).await;
    let expected = r#"{"count":3,"max_model_len":512,"tokens":[1,65,66],"token_strs":null}"#;
    assert_eq!(answer.text, expected);
    // Without a model there is only one it can be; a chat's template adds the special tokens itself.
    let body = r#"{"messages":[{"role":"user","content":"A"}],"return_token_strs":true}"#;
    let answer = cluster.post("/tokenize", body).await;
    let expected = r#"{"count":1,"max_model_len":512,"tokens":[65],"token_strs":["<65>"]}"#;
    assert_eq!(answer.text, expected);
    let answer = cluster.post("/detokenize", r#"{"model":"demo","tokens":[72,34]}"#).await;
    assert_eq!(answer.text, r#"{"prompt":"H\""}"#);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn unknown_routes_and_methods_get_the_envelope() {
    let cluster = Cluster::start(&[]).await;
    cluster.get("/v2/nothing").await.assert_error(404, "unknown_url");
    cluster.get("/v1/chat/completions").await.assert_error(405, "method_not_supported");
    cluster.post("/health", "").await.assert_error(405, "method_not_supported");
}

#[tokio::test]
async fn a_router_without_workers_is_alive_but_not_ready() {
    let cluster = Cluster::start(&[]).await;
    for (path, status) in [("/health", 200), ("/health/live", 200), ("/health/ready", 503)] {
        assert_eq!(cluster.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn request_ids_are_echoed_if_sane_and_traces_passed_on() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("x-request-id", "my-id"), ("traceparent", trace)];
    let path = "/v1/chat/completions";
    let (answer, ()) =
        tokio::join!(cluster.send(Method::POST, path, &headers, chat_body("")), async {
            let call = worker.call().await;
            assert_eq!(call.request.request_id, "my-id");
            assert_eq!(call.metadata("traceparent"), Some(trace));
            call.answer(&["x"]).await;
        });
    assert_eq!(answer.header("x-request-id"), Some("my-id"));
    let long = "x".repeat(129);
    for insane in ["with space", long.as_str()] {
        let answer = cluster.send(Method::GET, "/v1/models", &[("x-request-id", insane)], "").await;
        assert!(answer.header("x-request-id").unwrap().starts_with("req-"), "{insane}");
    }
}

#[tokio::test]
async fn metrics_count_requests_and_tokens_under_known_models_only() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (_, ()) = tokio::join!(cluster.chat(""), async {
        worker.call().await.answer(&["a", "b", "c"]).await;
    });
    let unheard = chat_body("").replace("demo", "made-up-by-a-client");
    cluster.post("/v1/chat/completions", unheard).await.assert_error(404, "model_not_found");
    cluster.assert_idle().await;
    let text = cluster.get("/metrics").await.text;
    for line in [
        r#"phalanx_requests_total{model="demo",code="200"} 1"#,
        r#"phalanx_requests_total{model="unknown",code="404"} 1"#,
        "phalanx_prompt_tokens_total 5",
        "phalanx_cached_tokens_total 2",
        "phalanx_generated_tokens_total 3",
        "phalanx_time_to_first_token_seconds_count 1",
        "phalanx_inter_token_seconds_count 2",
        "phalanx_router_overhead_seconds_count 1",
        "phalanx_request_duration_seconds_count 2",
        "phalanx_control_staleness_seconds 1.5",
        "phalanx_retries_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in:\n{text}");
    }
    assert!(!text.contains("made-up-by-a-client"));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_unread() {
    let raw = RawRouter { body_bytes_max: Some(1024), ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[]).await;
    let answer = cluster.post("/v1/chat/completions", vec![b' '; 1025]).await;
    answer.assert_error(413, "request_too_large");
    assert_eq!(answer.header("connection"), Some("close"));
    cluster.assert_idle().await;
}
