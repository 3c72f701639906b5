//! Engines of other kinds behind the router: what passes through, what is tried again, what is given up.

use http::Method;
use phalanx_proto::view::{Alias, AliasTarget, ViewOp};
use phalanx_router::RawRouter;

use crate::cluster::{Cluster, chat_body, eventually};
use crate::server::{FakeServer, Received, Says};
use crate::worker::FakeWorker;

const CHAT: &str = "/v1/chat/completions";
const ANSWER: &str = r#"{"id":"x","choices":[{"index":0,"message":{"content":"hi"}}],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}},"kept":[1,2]}"#;
const FIRST: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const SECOND: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"more\": 1}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// Who of the two is asked, and what.
async fn either(servers: &mut [FakeServer; 2]) -> (usize, Received) {
    let [first, second] = servers;
    tokio::select! { call = first.call() => (0, call), call = second.call() => (1, call) }
}

async fn pair() -> (Cluster, [FakeServer; 2]) {
    let servers = [FakeServer::start(), FakeServer::start()];
    let cluster = Cluster::with_servers(&[], &[&servers[0], &servers[1]]).await;
    (cluster, servers)
}

async fn single() -> (Cluster, FakeServer) {
    let server = FakeServer::start();
    (Cluster::with_servers(&[], &[&server]).await, server)
}

#[tokio::test]
async fn a_request_and_its_answer_pass_untouched() {
    let (cluster, mut server) = single().await;
    let body = "{ \"x\":{\"model\":\"no\"},\"model\": \"demo\",\n\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}";
    let headers = [("authorization", "Bearer sk-client"), ("x-request-id", "mine")];
    let (answer, ()) = tokio::join!(cluster.send(Method::POST, CHAT, &headers, body), async {
        let call = server.call().await;
        assert_eq!((call.path.as_str(), &*call.body), (CHAT, body.as_bytes()));
        assert_eq!(call.headers["x-request-id"], "mine");
        assert_eq!(call.headers["host"], server.url.strip_prefix("http://").unwrap());
        assert!(
            !call.headers.contains_key("authorization"),
            "the client's key is not the engine's"
        );
        let headers = [("content-type", "application/json"), ("x-engine", "kept")];
        call.answer(200, &headers, ANSWER);
    });
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ANSWER));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-engine"), Some("kept"));
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    assert_eq!(answer.header("x-phalanx-worker"), Some("one"));
    assert_eq!(answer.header("x-phalanx-model"), Some("demo"));
    cluster.assert_idle().await;
    let metrics = cluster.get("/metrics").await.text;
    for line in [
        "phalanx_prompt_tokens_total 9\n",
        "phalanx_cached_tokens_total 8\n",
        "phalanx_generated_tokens_total 4\n",
        "phalanx_requests_total{model=\"demo\",code=\"200\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn a_stream_passes_event_by_event() {
    let (cluster, mut server) = single().await;
    let (mut live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = server.call().await.stream();
        answering.send(": ping\n\n").await;
        answering.send(FIRST).await;
        answering
    });
    live.until(FIRST).await;
    // Half an event is held back until its other half comes.
    let (half, other_half) = SECOND.split_at(20);
    answering.send(half).await;
    answering.send(other_half).await;
    live.until(SECOND).await;
    answering.send(&format!("{USAGE}{DONE}")).await;
    drop(answering);
    let answer = live.finish().await;
    assert_eq!(answer.text, format!(": ping\n\n{FIRST}{SECOND}{USAGE}{DONE}"));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    cluster.assert_idle().await;
    let metrics = cluster.get("/metrics").await.text;
    assert!(metrics.contains("phalanx_time_to_first_token_seconds_count 1\n"), "{metrics}");
    assert!(metrics.contains("phalanx_generated_tokens_total 2\n"), "{metrics}");
}

#[tokio::test]
async fn a_stream_that_dies_ends_with_an_error_after_its_last_whole_event() {
    let (cluster, mut servers) = pair().await;
    let (live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = either(&mut servers).await.1.stream();
        answering.send(FIRST).await;
        answering
    });
    answering.send("data: {\"cho").await;
    answering.die().await;
    let text = live.finish().await.text;
    let error = text.strip_prefix(FIRST).unwrap().strip_prefix("data: ").unwrap();
    let error: serde_json::Value = serde_json::from_str(error.trim()).unwrap();
    assert_eq!(error["error"]["code"], "worker_failed", "{text}");
    assert!(!text.contains("[DONE]"));
    assert!(!servers[0].has_call() && !servers[1].has_call(), "it was begun twice");
    cluster.assert_idle().await;
}

#[tokio::test]
async fn what_breaks_before_its_first_event_is_tried_elsewhere_unseen() {
    for is_streamed in [true, false] {
        let (cluster, mut servers) = pair().await;
        let extra = if is_streamed { r#""stream":true"# } else { "" };
        let (answer, ()) = tokio::join!(cluster.chat(extra), async {
            let (first, call) = either(&mut servers).await;
            if is_streamed {
                call.stream().die().await;
            } else {
                let answering = call.begin("application/json");
                answering.send(&ANSWER[..20]).await;
                answering.die().await;
            }
            let (second, call) = either(&mut servers).await;
            assert_ne!(first, second);
            call.answer_json(ANSWER);
        });
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ANSWER));
        let metrics = cluster.get("/metrics").await.text;
        assert!(metrics.contains("phalanx_retries_total 1\n"), "{metrics}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_request_is_the_clients_and_one_for_want_of_room_is_tried_elsewhere() {
    let (cluster, mut servers) = pair().await;
    let refusal = r#"{"error":{"message":"bad image","param":"messages","code":"x"}}"#;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        either(&mut servers).await.1.answer(422, &[("content-type", "application/json")], refusal);
    });
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (422, refusal));

    for status in [429, 503, 500] {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            let (first, call) = either(&mut servers).await;
            call.answer(status, &[], "full");
            let (second, call) = either(&mut servers).await;
            assert_ne!(first, second);
            call.answer_json(ANSWER);
        });
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ANSWER));
    }

    // When nobody has room, the client is told so in the last engine's words; a failure is the router's to tell.
    for (status, expected) in [(429, 429), (503, 503), (500, 502)] {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            for _ in 0..2 {
                let call = either(&mut servers).await.1;
                call.answer(status, &[("retry-after", "1")], r#"{"error":"full"}"#);
            }
        });
        assert_eq!(answer.status, expected);
        if status == expected {
            assert_eq!(answer.text, r#"{"error":"full"}"#);
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_in_every_phase() {
    let (cluster, mut server) = single().await;
    for extra in ["", r#""stream":true"#] {
        let mut asking = Box::pin(cluster.open_chat(extra));
        let call = tokio::select! {
            _ = &mut asking => panic!("nobody answered"),
            call = server.call() => call,
        };
        drop(asking);
        call.abandoned().await; // before the head
    }
    let mut asking = Box::pin(cluster.open_chat(r#""stream":true"#));
    let call = tokio::select! {
        _ = &mut asking => panic!("nobody answered"),
        call = server.call() => call,
    };
    let answering = call.stream();
    drop(asking);
    answering.cancelled().await; // in a silent prefill
    let (mut live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
        let answering = server.call().await.stream();
        answering.send(FIRST).await;
        answering
    });
    live.until(FIRST).await;
    drop(live);
    answering.cancelled().await; // in the stream
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_deadline_ends_the_request_at_the_engine_too() {
    let (cluster, mut server) = single().await;
    let soon = [("x-request-timeout-ms", "200")];
    let body = chat_body(r#""stream":true"#);
    let (answer, ()) = tokio::join!(cluster.send(Method::POST, CHAT, &soon, body.clone()), async {
        server.call().await.abandoned().await;
    });
    answer.assert_error(408, "deadline_exceeded");
    let (answer, ()) = tokio::join!(cluster.send(Method::POST, CHAT, &soon, body), async {
        let answering = server.call().await.stream();
        answering.send(FIRST).await;
        answering.cancelled().await;
    });
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains(r#""code":"deadline_exceeded""#), "{}", answer.text);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn an_engine_that_is_gone_is_asked_no_more_and_again_when_it_is_back() {
    let (cluster, mut servers) = pair().await;
    // One connection of each is kept, and dies with the process.
    let mut asked = [false; 2];
    while asked != [true; 2] {
        let (answer, who) = tokio::join!(cluster.chat(""), async {
            let (who, call) = either(&mut servers).await;
            call.answer_json(ANSWER);
            who
        });
        assert_eq!(answer.status, 200);
        asked[who] = true;
    }
    servers[0].kill();
    cluster.until_servers_up(1).await;
    for _ in 0..4 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            servers[1].call().await.answer_json(ANSWER);
        });
        assert_eq!((answer.status.as_u16(), answer.header("x-phalanx-worker")), (200, Some("two")));
    }
    servers[0].restart().await;
    cluster.until_servers_up(2).await;
    servers[1].kill();
    cluster.until_servers_up(1).await;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        servers[0].call().await.answer_json(ANSWER);
    });
    assert_eq!((answer.status.as_u16(), answer.header("x-phalanx-worker")), (200, Some("one")));
    servers[0].kill();
    cluster.until_servers_up(0).await;
    cluster.chat("").await.assert_error(503, "no_worker");
    assert_eq!(cluster.get("/health/ready").await.status, 503);
}

#[tokio::test]
async fn a_connection_that_the_engine_closed_meanwhile_costs_nothing() {
    let (cluster, mut server) = single().await;
    for _ in 0..3 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            server.call().await.answer_json(ANSWER);
        });
        assert_eq!(answer.status, 200);
        server.restart().await;
        cluster.until_servers_up(1).await;
    }
    let metrics = cluster.get("/metrics").await.text;
    assert!(metrics.contains("phalanx_retries_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn models_are_listed_and_a_new_one_is_served_when_it_is() {
    let (cluster, server) = single().await;
    assert_eq!(cluster.get("/health/ready").await.status, 200);
    let listed = cluster.get("/v1/models").await.json();
    assert_eq!(listed["data"][0]["id"], "demo");
    assert_eq!(listed["data"][0]["max_model_len"], 4096);
    cluster.get("/v1/models/lora").await.assert_error(404, "model_not_found");
    server.say(Says {
        models: Some(r#"{"data":[{"id":"demo"},{"id":"lora"}]}"#.to_owned()),
        metrics: None,
        health: http::StatusCode::OK,
    });
    eventually(async || cluster.get("/v1/models/lora").await.status == 200).await;
}

#[tokio::test]
async fn a_server_that_lists_nothing_is_asked_for_the_model_it_was_given_for_with_its_key() {
    let mut server =
        FakeServer::saying(Says { models: None, metrics: None, health: http::StatusCode::OK });
    // A variable that every test has, as none can be set.
    let engine = format!("{}/v1,model=pinned,key_env=CARGO_PKG_NAME", server.url);
    let raw = RawRouter { engine: vec![engine], ..RawRouter::default() };
    let cluster = Cluster::start_with(raw, &[]).await;
    cluster.until_servers_up(1).await;
    let body = chat_body("").replace("demo", "pinned");
    let (answer, ()) = tokio::join!(cluster.post(CHAT, body), async {
        let call = server.call().await;
        assert_eq!(call.path, CHAT);
        assert_eq!(call.headers["authorization"], "Bearer phalanx-router");
        call.answer_json(ANSWER);
    });
    assert_eq!(answer.status, 200);
    let name = server.url.strip_prefix("http://").unwrap();
    assert_eq!(answer.header("x-phalanx-worker"), Some(name));
}

#[tokio::test]
async fn an_alias_of_a_foreign_model_changes_its_name_in_the_body_and_nothing_else() {
    let (cluster, mut server) = single().await;
    cluster.change(ViewOp::PutAlias(Alias {
        name: "best".into(),
        targets: vec![AliasTarget { model: "demo".into(), revision: None, weight: 1 }],
        shadow: None,
        previous: None,
    }));
    eventually(async || cluster.get("/v1/models/best").await.status == 200).await;
    let body = "{\"a\": \"best\", \"model\" : \"best\", \"messages\":[ ]}";
    let (answer, ()) = tokio::join!(cluster.post(CHAT, body), async {
        let call = server.call().await;
        assert_eq!(
            &*call.body,
            "{\"a\": \"best\", \"model\" : \"demo\", \"messages\":[ ]}".as_bytes()
        );
        call.answer_json(ANSWER);
    });
    assert_eq!(answer.text, ANSWER);
    assert_eq!(answer.header("x-phalanx-model"), Some("demo"));
}

#[tokio::test]
async fn native_workers_and_foreign_engines_share_a_model() {
    let (mut worker, mut server) = (FakeWorker::start(7), FakeServer::start());
    let cluster = Cluster::with_servers(&[&worker], &[&server]).await;
    let (mut by_worker, mut by_server) = (0, 0);
    while by_worker == 0 || by_server == 0 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            tokio::select! {
                call = worker.call() => call.answer(&["x"]).await,
                call = server.call() => call.answer_json(ANSWER),
            }
        });
        assert_eq!(answer.status, 200);
        match answer.header("x-phalanx-worker") {
            Some("1") => by_worker += 1,
            Some("one") => by_server += 1,
            other => panic!("{other:?}"),
        }
    }
    // What native workers do not take is for the foreign engine alone, and so is what has several prompts.
    for _ in 0..3 {
        let (answer, ()) = tokio::join!(cluster.chat(r#""functions":[]"#), async {
            server.call().await.answer_json(ANSWER);
        });
        assert_eq!(answer.header("x-phalanx-worker"), Some("one"));
    }
    let prompts = r#"{"model":"demo","prompt":["a","b"]}"#;
    let (answer, ()) = tokio::join!(cluster.post("/v1/completions", prompts), async {
        let call = server.call().await;
        assert_eq!(call.body, prompts);
        call.answer_json(ANSWER);
    });
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn an_engine_that_says_it_is_busy_is_spared() {
    let (mut idle, busy) = (FakeServer::start(), FakeServer::start());
    busy.say(Says {
        models: Some(r#"{"data":[{"id":"demo"}]}"#.to_owned()),
        metrics: Some(
            "vllm:num_requests_running{a=\"b\"} 100.0\nvllm:num_requests_waiting{a=\"b\"} 9.0\n"
                .to_owned(),
        ),
        health: http::StatusCode::OK,
    });
    let cluster = Cluster::with_servers(&[], &[&idle, &busy]).await;
    for _ in 0..6 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            idle.call().await.answer_json(ANSWER);
        });
        assert_eq!(answer.header("x-phalanx-worker"), Some("one"));
    }
}

#[tokio::test]
async fn what_only_foreign_engines_answer_is_passed_on_to_them() {
    let (cluster, mut server) = single().await;
    let body = r#"{"model":"demo","input":"x"}"#;
    for path in ["/v1/embeddings", "/v1/rerank", "/tokenize", "/detokenize"] {
        let (answer, ()) = tokio::join!(cluster.post(path, body), async {
            let call = server.call().await;
            assert_eq!((call.path.as_str(), &*call.body), (path, body.as_bytes()));
            call.answer_json(r#"{"data":[]}"#);
        });
        assert_eq!(answer.text, r#"{"data":[]}"#);
    }
    let unknown = body.replace("demo", "nobody");
    cluster.post("/v1/embeddings", unknown).await.assert_error(404, "model_not_found");

    let worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    cluster.post("/v1/embeddings", body).await.assert_error(404, "unknown_url");
}
