//! Bad input gets the right status, envelope and `param`; it never costs a 5xx, a hang or a worker.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use phalanx_cluster_tests::check::{refusal, serves, worker_is_empty};
use phalanx_cluster_tests::cluster::Served;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A request and the refusal it must get.
struct Case {
    what: String,
    method: Method,
    path: &'static str,
    body: Bytes,
    status: u16,
    param: Option<&'static str>,
}

fn raw(
    what: &str,
    path: &'static str,
    body: impl Into<Bytes>,
    expected: (u16, Option<&'static str>),
) -> Case {
    let (status, param) = expected;
    Case { what: what.to_owned(), method: Method::POST, path, body: body.into(), status, param }
}

/// A chat that is good but for one field.
fn chat(field: &str, value: Value, param: &'static str) -> Case {
    let mut body = json!({
        "model": "demo-llm",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
    });
    body[field] = value;
    let shown: String = format!("chat with {field} {}", body[field]).chars().take(100).collect();
    raw(&shown, CHAT, body.to_string(), (400, Some(param)))
}

/// A chat with these messages.
fn said(messages: Value, param: &'static str) -> Case {
    chat("messages", messages, param)
}

fn completion(field: &str, value: Value, param: &'static str) -> Case {
    let mut body = json!({"model": "demo-llm", "prompt": "Hello", "max_tokens": 4});
    body[field] = value;
    let shown: String =
        format!("completion with {field} {}", body[field]).chars().take(100).collect();
    raw(&shown, COMPLETIONS, body.to_string(), (400, Some(param)))
}

fn bodies() -> Vec<Case> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let good_start = r#"{"model": "demo-llm", "messages": [{"role": "user", "content": "Hi"}], "#;
    let mut invalid = good_start.as_bytes().to_vec();
    invalid.extend_from_slice(b"\"user\": \"\xff\xfe\"}");
    let many_bytes = format!("{good_start}\"user\": \"{}\"}}", "x".repeat(10 << 20));
    vec![
        raw("an empty body", CHAT, "", (400, None)),
        raw("half of an object", CHAT, good_start, (400, None)),
        raw("text", CHAT, "hello", (400, None)),
        raw("an array", CHAT, "[]", (400, None)),
        raw("a string", CHAT, "\"x\"", (400, None)),
        raw("null", CHAT, "null", (400, None)),
        raw("a number", COMPLETIONS, "7", (400, None)),
        raw("a trailing comma", CHAT, format!("{good_start}}}"), (400, None)),
        raw("two objects", CHAT, format!("{good_start}\"n\": 1}} {{}}"), (400, None)),
        raw("nesting a hundred thousand deep", CHAT, deep, (400, None)),
        raw("invalid UTF-8", CHAT, invalid, (400, None)),
        raw("NaN for a number", CHAT, format!("{good_start}\"temperature\": NaN}}"), (400, None)),
        raw(
            "Infinity for a number",
            CHAT,
            format!("{good_start}\"top_p\": Infinity}}"),
            (400, None),
        ),
        raw("10 MB", CHAT, many_bytes, (413, None)),
        raw("no fields", CHAT, "{}", (400, Some("model"))),
        raw("no messages", CHAT, r#"{"model": "demo-llm"}"#, (400, Some("messages"))),
        raw("no prompt", COMPLETIONS, r#"{"model": "demo-llm"}"#, (400, Some("prompt"))),
        raw(
            "an unknown model",
            CHAT,
            format!("{good_start}\"model\": \"other\"}}"),
            (404, Some("model")),
        ),
        raw(
            "an unknown model",
            COMPLETIONS,
            r#"{"model": "other", "prompt": "Hi"}"#,
            (404, Some("model")),
        ),
    ]
}

fn routes() -> Vec<Case> {
    let route = |method: Method, path, status| Case {
        what: format!("{method} {path}"),
        method,
        path,
        body: Bytes::new(),
        status,
        param: None,
    };
    vec![
        route(Method::GET, CHAT, 405),
        route(Method::DELETE, "/v1/models", 405),
        route(Method::GET, "/v1/nothing", 404),
        route(Method::POST, "/", 404),
        Case { param: Some("model"), ..route(Method::GET, "/v1/models/other", 404) },
        raw("no text to tokenise", "/tokenize", r#"{"model": "demo-llm"}"#, (400, Some("prompt"))),
        raw("no tokens", "/detokenize", r#"{"model": "demo-llm"}"#, (400, Some("tokens"))),
    ]
}

fn conversations() -> Vec<Case> {
    let words = "What is a KV cache? ".repeat(2000);
    vec![
        said(json!([]), "messages"),
        said(json!("Hello"), "messages"),
        said(json!({"role": "user"}), "messages"),
        said(json!(["Hello"]), "messages.[0]"),
        said(json!([{"content": "Hello"}]), "messages.[0].role"),
        said(json!([{"role": "robot", "content": "Hello"}]), "messages.[0].role"),
        said(json!([{"role": 1, "content": "Hello"}]), "messages.[0].role"),
        said(json!([{"role": "user"}]), "messages.[0].content"),
        said(json!([{"role": "user", "content": 5}]), "messages.[0].content"),
        said(json!([{"role": "user", "content": {"text": "x"}}]), "messages.[0].content"),
        said(
            json!([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]),
            "messages.[1].tool_call_id",
        ),
        said(
            json!([{"role": "user", "content": [{"text": "x"}]}]),
            "messages.[0].content.[0].type",
        ),
        said(
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages.[0].content.[0].type",
        ),
        said(json!([{"role": "user", "content": words}]), "messages"),
        chat("max_tokens", json!(100_000), "max_tokens"),
    ]
}

fn parameters() -> Vec<Case> {
    let biases: serde_json::Map<String, Value> =
        (0..2000).map(|id| (id.to_string(), json!(1))).collect();
    vec![
        chat("model", json!(5), "model"),
        chat("model", json!(""), "model"),
        chat("model", Value::Null, "model"),
        chat("max_tokens", json!(-1), "max_tokens"),
        chat("max_tokens", json!(0), "max_tokens"),
        chat("max_tokens", json!(1.5), "max_tokens"),
        chat("max_tokens", json!("4"), "max_tokens"),
        chat("max_tokens", json!(1e20), "max_tokens"),
        chat("max_completion_tokens", json!(-5), "max_completion_tokens"),
        chat("temperature", json!(-0.1), "temperature"),
        chat("temperature", json!(2.1), "temperature"),
        chat("temperature", json!("hot"), "temperature"),
        chat("temperature", json!(1e300), "temperature"),
        chat("top_p", json!(0), "top_p"),
        chat("top_p", json!(1.01), "top_p"),
        chat("top_p", json!([1]), "top_p"),
        chat("top_k", json!(-2), "top_k"),
        chat("top_k", json!(0.5), "top_k"),
        chat("min_p", json!(1.5), "min_p"),
        chat("n", json!(0), "n"),
        chat("n", json!(129), "n"),
        chat("n", json!("two"), "n"),
        chat("seed", json!("x"), "seed"),
        chat("seed", json!(1.5), "seed"),
        chat("stop", json!(5), "stop"),
        chat("stop", json!([1, 2]), "stop.[0]"),
        chat("stop", json!(vec!["x"; 17]), "stop"),
        chat("stop", json!(vec!["x"; 5000]), "stop"),
        chat("stop", json!([""]), "stop"),
        chat("stop_token_ids", json!(["x"]), "stop_token_ids.[0]"),
        chat("presence_penalty", json!(2.5), "presence_penalty"),
        chat("frequency_penalty", json!(-2.5), "frequency_penalty"),
        chat("repetition_penalty", json!(0), "repetition_penalty"),
        chat("logit_bias", json!([1]), "logit_bias"),
        chat("logit_bias", json!({"5": 101}), "logit_bias"),
        chat("logit_bias", json!({"five": 1}), "logit_bias"),
        chat("logit_bias", json!({"999999999": 1}), "logit_bias"),
        chat("logit_bias", Value::Object(biases), "logit_bias"),
        chat("logprobs", json!("yes"), "logprobs"),
        chat("logprobs", json!(5), "logprobs"),
        chat("top_logprobs", json!(3), "top_logprobs"),
        chat("stream", json!("yes"), "stream"),
        chat("stream_options", json!({"include_usage": true}), "stream_options"),
        chat("response_format", json!("json"), "response_format"),
        chat("response_format", json!({"type": "yaml"}), "response_format.type"),
        chat("tools", json!({}), "tools"),
        chat("tools", json!([{"type": "plugin"}]), "tools.[0].type"),
        chat("ignore_eos", json!(1), "ignore_eos"),
        chat("min_tokens", json!(5), "min_tokens"),
        completion("prompt", json!([]), "prompt"),
        completion("prompt", json!({}), "prompt"),
        completion("prompt", json!([-1]), "prompt.[0]"),
        completion("prompt", json!([1, "x"]), "prompt.[1]"),
        completion("prompt", json!([999_999_999]), "prompt"),
        completion("prompt", json!(vec![300; 3000]), "prompt"),
        completion("logprobs", json!(21), "logprobs"),
        completion("suffix", json!("end"), "suffix"),
        completion("echo", json!("yes"), "echo"),
    ]
}

#[tokio::test]
async fn every_bad_request_is_refused_as_it_deserves() -> Result<()> {
    let served = Served::start(&[]).await?;
    let cases = [bodies(), routes(), conversations(), parameters()].into_iter().flatten();
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in cases {
        count += 1;
        let json = [("content-type", "application/json")];
        let asked = served.client.send(case.method, case.path, &json, case.body).await;
        let outcome = asked.and_then(|answer| refusal(&answer, case.status, case.param));
        if let Err(error) = outcome {
            wrong.push(format!("{}: {error:#}", case.what));
        }
    }
    ensure!(count >= 60, "only {count} cases");
    ensure!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    serves(&served.client).await.context("after all the bad requests")?;
    worker_is_empty(&served.client).await
}

#[tokio::test]
async fn what_openai_ignores_is_ignored() -> Result<()> {
    let served = Served::start(&[]).await?;
    let body = json!({
        "model": "demo-llm",
        "messages": [{"role": "user", "content": "What is the capital of France?", "colour": 1}],
        "temperature": 0, "unknown_field": {"a": [1]}, "user": "me", "metadata": {"a": "b"},
        "store": false, "stop": null, "seed": null, "n": null, "tools": null,
    });
    let answer = served.client.post(CHAT, &body).await?.good()?;
    let text = &answer["choices"][0]["message"]["content"];
    ensure!(text == "The capital of France is Paris.", "answered {text}");
    Ok(())
}
