//! `POST /v1/chat/completions`, to the byte.

use phalanx_proto::generate::{Delta, Event, FinishReason, StoppedBy};
use serde_json::json;

use crate::cluster::Cluster;
use crate::worker::{FakeWorker, delta, finished, score, scored, started, usage};

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (answer, ()) = tokio::join!(cluster.chat(""), async {
        worker.call().await.answer(&["Hel", "lo \"you\"\n"]).await;
    });
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-phalanx-worker"), Some("1"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = concat!(
        r#"{"id":"chatcmpl","object":"chat.completion","created":0,"model":"demo","system_fingerprint":"fp_0123456789ab","#,
        r#""choices":[{"index":0,"message":{"role":"assistant","content":"Hello \"you\"\n","refusal":null},"#,
        r#""logprobs":null,"finish_reason":"stop","stop_reason":null}],"#,
        r#""usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"#,
        r#""prompt_tokens_details":{"cached_tokens":2,"audio_tokens":0},"#,
        r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}"#,
    );
    assert_eq!(answer.settled(), expected);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_stream_is_exact_to_the_byte() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (answer, ()) = tokio::join!(cluster.chat(r#""stream":true"#), async {
        worker.call().await.answer(&["Hel", "", "lo"]).await;
    });
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let head = r#"data: {"id":"chatcmpl","object":"chat.completion.chunk","created":0,"model":"demo","system_fingerprint":"fp_0123456789ab","choices":[{"index":0,"#;
    let expected = [
        r#""delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}"#,
        r#""delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}"#,
        r#""delta":{"content":"lo"},"logprobs":null,"finish_reason":null}]}"#,
        r#""delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}"#,
    ]
    .map(|chunk| format!("{head}{chunk}\n\n"))
    .concat();
    assert_eq!(answer.settled(), format!("{expected}data: [DONE]\n\n"));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn usage_comes_last_and_is_null_before() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let extra = r#""stream":true,"stream_options":{"include_usage":true}"#;
    let (answer, ()) = tokio::join!(cluster.chat(extra), async {
        worker.call().await.answer(&["a"]).await;
    });
    let chunks = chunks(&answer.text);
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(before.len(), 3);
    assert!(before.iter().all(|chunk| chunk.get("usage").is_some_and(serde_json::Value::is_null)));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 1);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
}

#[tokio::test]
async fn log_probabilities_have_openais_shape_streamed_or_not() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    for stream in [false, true] {
        let extra = format!(r#""logprobs":true,"top_logprobs":2,"stream":{stream}"#);
        let (answer, ()) = tokio::join!(cluster.chat(&extra), async {
            let call = worker.call().await;
            assert_eq!(call.request.top_logprobs, Some(2));
            let answering = call.accept();
            answering.send(started()).await;
            let top = vec![score(9, b"A", -0.25), score(8, &[0xe2, 0x82], f32::NEG_INFINITY)];
            answering.send(scored("A", score(9, b"A", -0.25), top)).await;
            answering.send(finished(0)).await;
            answering.send(usage(1)).await;
        });
        let choice = if stream {
            chunks(&answer.text)[1]["choices"][0].clone()
        } else {
            answer.json()["choices"][0].clone()
        };
        let expected = json!({
            "content": [{
                "token": "A", "logprob": -0.25, "bytes": [65],
                "top_logprobs": [
                    {"token": "A", "logprob": -0.25, "bytes": [65]},
                    {"token": "bytes:\\xe2\\x82", "logprob": -9999.0, "bytes": [226, 130]},
                ],
            }],
            "refusal": null,
        });
        assert_eq!(choice["logprobs"], expected);
    }
}

#[tokio::test]
async fn choices_come_interleaved_and_leave_in_order() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let (answer, ()) = tokio::join!(cluster.chat(r#""n":2"#), async {
        let call = worker.call().await;
        assert_eq!(call.request.choices, 2);
        let answering = call.accept();
        answering.send(started()).await;
        answering.send(delta(1, "b1", 1)).await;
        answering.send(delta(0, "a1", 2)).await;
        answering.send(delta(1, "b2", 3)).await;
        let stopped_by = Some(StoppedBy::Text("END".to_owned()));
        answering.send(Event::Finished { choice: 1, reason: FinishReason::Stop, stopped_by }).await;
        let reason = FinishReason::Length;
        answering.send(Event::Finished { choice: 0, reason, stopped_by: None }).await;
        answering.send(usage(3)).await;
    });
    let choices = answer.json()["choices"].clone();
    assert_eq!(choices[0]["message"]["content"], "a1");
    assert_eq!(choices[0]["finish_reason"], "length");
    assert_eq!(choices[1]["message"]["content"], "b1b2");
    assert_eq!(choices[1]["stop_reason"], "END");
}

#[tokio::test]
async fn token_ids_are_shown_when_asked_for() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    for stream in [false, true] {
        let extra = format!(r#""return_token_ids":true,"stream":{stream}"#);
        let (answer, ()) = tokio::join!(cluster.chat(&extra), async {
            let call = worker.call().await;
            assert!(call.request.return_token_ids);
            let answering = call.accept();
            let prompt_token_ids = vec![1, 2, 3];
            answering
                .send(Event::Started { prompt_tokens: 3, cached_tokens: 0, prompt_token_ids })
                .await;
            let logprobs = Vec::new();
            let two = Delta { choice: 0, text: "x".to_owned(), token_ids: vec![4, 5], logprobs };
            answering.send(Event::Delta(two)).await;
            // Held back text: the token is shown all the same.
            answering.send(delta(0, "", 6)).await;
            answering.send(finished(0)).await;
            answering.send(usage(3)).await;
        });
        if stream {
            let chunks = chunks(&answer.text);
            assert_eq!(chunks[0]["prompt_token_ids"], json!([1, 2, 3]));
            assert!(chunks[1].get("prompt_token_ids").is_none());
            assert_eq!(chunks[1]["choices"][0]["token_ids"], json!([4, 5]));
            assert_eq!(chunks[2]["choices"][0]["token_ids"], json!([6]));
        } else {
            let body = answer.json();
            assert_eq!(body["prompt_token_ids"], json!([1, 2, 3]));
            assert_eq!(body["choices"][0]["token_ids"], json!([4, 5, 6]));
        }
    }
}

#[tokio::test]
async fn the_worker_gets_what_the_client_asked_for() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let body = r#"{"model":"demo","messages":[
        {"role":"system","content":[{"type":"text","text":"be"},{"type":"text","text":"kind"}]},
        {"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"c","content":"42"}],
        "tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto",
        "temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"presence_penalty":1,"frequency_penalty":-1,
        "repetition_penalty":1.5,"logit_bias":{"42":-100},"seed":-1,"stop":["a","b"],"stop_token_ids":[3],
        "max_tokens":5,"max_completion_tokens":9,"min_tokens":2,"ignore_eos":true,"cache_salt":"s",
        "chat_template_kwargs":{"x":1},"user":"u","metadata":{},"temperature_typo":"ignored"}"#;
    let (answer, request) = tokio::join!(cluster.post("/v1/chat/completions", body), async {
        let call = worker.call().await;
        let request = call.request.clone();
        call.answer(&["x"]).await;
        request
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
    let Some(phalanx_proto::pb::generate_request::Input::Chat(chat)) = request.input else {
        panic!("not a chat");
    };
    assert_eq!(chat.messages[0].content, "be\nkind");
    assert!(chat.messages[1].tool_calls_json.contains("arguments"));
    assert_eq!(chat.messages[2].tool_call_id, "c");
    assert!(chat.tools_json.contains("function") && chat.add_generation_prompt);
    assert_eq!(chat.template_kwargs_json, r#"{"x":1}"#);
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.0, 0.5, 0));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.0, -1.0));
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.1, 1.5));
    assert_eq!((sampling.logit_bias[0].token_id, sampling.logit_bias[0].bias), (42, -100.0));
    assert_eq!(sampling.seed, u64::MAX);
    let stopping = request.stopping.unwrap();
    assert_eq!((stopping.max_tokens, stopping.min_tokens), (Some(9), 2));
    assert_eq!((stopping.strings, stopping.token_ids), (vec!["a".into(), "b".into()], vec![3]));
    assert!(stopping.ignore_eos);
    assert_eq!((request.worker_epoch, request.cache_salt.as_str()), (7, "s"));
}

#[tokio::test]
async fn requests_without_a_seed_differ_and_nulls_are_defaults() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let nulls = r#""temperature":null,"top_p":null,"n":null,"stop":null,"stream":null,"seed":null,"max_tokens":null,"logit_bias":null,"tools":null,"logprobs":null,"stream_options":null,"response_format":null,"user":null"#;
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let (answer, ()) = tokio::join!(cluster.chat(nulls), async {
            let call = worker.call().await;
            let sampling = call.request.sampling.clone().unwrap();
            assert_eq!((sampling.temperature, sampling.top_p), (1.0, 1.0));
            seeds.push(sampling.seed);
            call.answer(&["x"]).await;
        });
        assert_eq!(answer.status, 200);
    }
    assert_ne!(seeds[0], seeds[1]);
}

/// The JSON chunks of a stream that ended well.
#[track_caller]
pub(crate) fn chunks(text: &str) -> Vec<serde_json::Value> {
    let mut frames: Vec<_> = text.split_terminator("\n\n").collect();
    assert_eq!(frames.pop(), Some("data: [DONE]"), "{text}");
    let parse = |frame: &str| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap();
    frames.into_iter().map(parse).collect()
}
