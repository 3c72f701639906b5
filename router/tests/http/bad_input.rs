//! Bad requests: each gets its status, OpenAI's envelope and the field at fault, and reaches no worker.

use crate::cluster::{Answer, Cluster, chat_body};
use crate::worker::FakeWorker;

const NO_PARAM: &str = "";

/// Added to a sound chat request, and the field that must be blamed.
const CHAT_FIELDS: &[(&str, &str)] = &[
    (r#""temperature":-0.1"#, "temperature"),
    (r#""temperature":2.1"#, "temperature"),
    (r#""temperature":1e300"#, "temperature"),
    (r#""temperature":"hot""#, "temperature"),
    (r#""temperature":[1]"#, "temperature"),
    (r#""top_p":0"#, "top_p"),
    (r#""top_p":1.01"#, "top_p"),
    (r#""top_p":true"#, "top_p"),
    (r#""top_k":-2"#, "top_k"),
    (r#""top_k":1.5"#, "top_k"),
    (r#""min_p":-0.1"#, "min_p"),
    (r#""min_p":1.1"#, "min_p"),
    (r#""presence_penalty":2.1"#, "presence_penalty"),
    (r#""presence_penalty":"x""#, "presence_penalty"),
    (r#""frequency_penalty":-2.1"#, "frequency_penalty"),
    (r#""repetition_penalty":0"#, "repetition_penalty"),
    (r#""repetition_penalty":3"#, "repetition_penalty"),
    (r#""repetition_penalty":1e-38"#, "repetition_penalty"),
    (r#""n":0"#, "n"),
    (r#""n":129"#, "n"),
    (r#""n":-1"#, "n"),
    (r#""n":"1""#, "n"),
    (r#""n":1.5"#, "n"),
    (r#""max_tokens":0"#, "max_tokens"),
    (r#""max_tokens":-1"#, "max_tokens"),
    (r#""max_tokens":2.5"#, "max_tokens"),
    (r#""max_tokens":"many""#, "max_tokens"),
    (r#""max_tokens":99999999999999999999"#, "max_tokens"),
    (r#""max_completion_tokens":0"#, "max_completion_tokens"),
    (r#""max_completion_tokens":{}"#, "max_completion_tokens"),
    (r#""max_tokens":1,"min_tokens":2"#, "min_tokens"),
    (r#""min_tokens":-1"#, "min_tokens"),
    (r#""seed":1.5"#, "seed"),
    (r#""seed":"lucky""#, "seed"),
    (r#""seed":9223372036854775808"#, "seed"),
    (r#""stop":7"#, "stop"),
    (r#""stop":{}"#, "stop"),
    (r#""stop":["a",7]"#, "stop.[1]"),
    (r#""stop":"""#, "stop"),
    (
        r#""stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]"#,
        "stop",
    ),
    (r#""stop_token_ids":"3""#, "stop_token_ids"),
    (r#""stop_token_ids":[-1]"#, "stop_token_ids.[0]"),
    (r#""stop_token_ids":[4294967296]"#, "stop_token_ids.[0]"),
    (r#""ignore_eos":"yes""#, "ignore_eos"),
    (r#""logprobs":1"#, "logprobs"),
    (r#""top_logprobs":2"#, "top_logprobs"),
    (r#""logprobs":false,"top_logprobs":2"#, "top_logprobs"),
    (r#""logprobs":true,"top_logprobs":21"#, "top_logprobs"),
    (r#""logprobs":true,"top_logprobs":-1"#, "top_logprobs"),
    (r#""logit_bias":[]"#, "logit_bias"),
    (r#""logit_bias":{"x":1}"#, "logit_bias"),
    (r#""logit_bias":{"-1":1}"#, "logit_bias"),
    (r#""logit_bias":{"5":101}"#, "logit_bias"),
    (r#""logit_bias":{"5":"up"}"#, "logit_bias"),
    (r#""stream":"yes""#, "stream"),
    (r#""stream_options":{"include_usage":true}"#, "stream_options"),
    (r#""stream":true,"stream_options":true"#, "stream_options"),
    (r#""stream":true,"stream_options":{"include_usage":1}"#, "stream_options.include_usage"),
    (r#""response_format":"json""#, "response_format"),
    (r#""response_format":{}"#, "response_format.type"),
    (r#""response_format":{"type":"xml"}"#, "response_format.type"),
    (r#""response_format":{"type":"json_object"}"#, "response_format.type"),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"x"}}"#,
        "response_format.type",
    ),
    (r#""tools":{}"#, "tools"),
    (r#""tools":[1]"#, "tools.[0]"),
    (r#""tools":[{"type":"web"}]"#, "tools.[0].type"),
    (r#""tools":[{"type":"function"}]"#, "tools.[0].function"),
    (r#""tools":[{"type":"function","function":{}}]"#, "tools.[0].function.name"),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":[]}}]"#,
        "tools.[0].function.parameters",
    ),
    (r#""tool_choice":"auto""#, "tool_choice"),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required""#,
        "tool_choice",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"f"}}"#,
        "tool_choice",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"some""#,
        "tool_choice",
    ),
    (r#""functions":[]"#, "functions"),
    (r#""function_call":"auto""#, "function_call"),
    (r#""chat_template_kwargs":[]"#, "chat_template_kwargs"),
    (r#""add_generation_prompt":true,"continue_final_message":true"#, "continue_final_message"),
    (r#""return_token_ids":1"#, "return_token_ids"),
    (r#""cache_salt":"""#, "cache_salt"),
];

/// Instead of a sound chat request's messages.
const MESSAGES: &[(&str, &str)] = &[
    ("null", "messages"),
    ("[]", "messages"),
    (r#""hi""#, "messages"),
    ("[1]", "messages.[0]"),
    (r#"[{"content":"hi"}]"#, "messages.[0].role"),
    (r#"[{"role":"robot","content":"hi"}]"#, "messages.[0].role"),
    (r#"[{"role":7,"content":"hi"}]"#, "messages.[0].role"),
    (r#"[{"role":"user"}]"#, "messages.[0].content"),
    (r#"[{"role":"user","content":null}]"#, "messages.[0].content"),
    (r#"[{"role":"user","content":7}]"#, "messages.[0].content"),
    (r#"[{"role":"user","content":[]}]"#, "messages.[0].content"),
    (r#"[{"role":"user","content":["hi"]}]"#, "messages.[0].content.[0]"),
    (r#"[{"role":"user","content":[{"text":"hi"}]}]"#, "messages.[0].content.[0].type"),
    (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "messages.[0].content.[0].text"),
    (
        r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}}]}]"#,
        "messages.[0].content.[1].type",
    ),
    (
        r#"[{"role":"user","content":"a"},{"role":"tool","content":"b"}]"#,
        "messages.[1].tool_call_id",
    ),
    (r#"[{"role":"assistant","content":null}]"#, "messages.[0].content"),
    (r#"[{"role":"assistant","tool_calls":[{}]}]"#, "messages.[0].tool_calls.[0].id"),
    (
        r#"[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}}]}]"#,
        "messages.[0].tool_calls.[0].function.arguments",
    ),
    (r#"[{"role":"user","content":"a","name":1}]"#, "messages.[0].name"),
];

/// Whole bodies that are no request at all.
const BODIES: &[(&[u8], &str)] = &[
    (b"", NO_PARAM),
    (b"   ", NO_PARAM),
    (b"{", NO_PARAM),
    (b"[]", NO_PARAM),
    (b"null", NO_PARAM),
    (b"\"text\"", NO_PARAM),
    (b"{\"model\":\"demo\",}", NO_PARAM),
    (b"{\"temperature\":NaN}", NO_PARAM),
    (b"{\"temperature\":Infinity}", NO_PARAM),
    (b"{\"temperature\":1e999}", NO_PARAM),
    (b"{\"model\":\"\xff\xfe\"}", NO_PARAM),
    (b"\xff\xfe", NO_PARAM),
    (b"{\"model\":\"\\ud800\"}", NO_PARAM),
    (b"{}", "model"),
    (b"{\"model\":null}", "model"),
    (b"{\"model\":7}", "model"),
    (b"{\"model\":\"\"}", "model"),
    (b"{\"model\":\"demo\"}", "messages"),
];

/// Instead of a sound plain completion's prompt, and what follows it.
const COMPLETIONS: &[(&str, &str)] = &[
    (r#""prompt":null"#, "prompt"),
    (r#""prompt":7"#, "prompt"),
    (r#""prompt":{}"#, "prompt"),
    (r#""prompt":[]"#, "prompt"),
    (r#""prompt":[1,-1]"#, "prompt.[1]"),
    (r#""prompt":[1,"a"]"#, "prompt.[1]"),
    (r#""prompt":["a",1]"#, "prompt.[1]"),
    (r#""prompt":[[1],[]]"#, "prompt.[1]"),
    (r#""prompt":[[1.5]]"#, "prompt.[0].[0]"),
    (r#""prompt":[null]"#, "prompt.[0]"),
    (r#""prompt":"x","echo":true"#, "echo"),
    (r#""prompt":"x","suffix":"y""#, "suffix"),
    (r#""prompt":"x","best_of":2"#, "best_of"),
    (r#""prompt":"x","logprobs":true"#, "logprobs"),
    (r#""prompt":"x","logprobs":21"#, "logprobs"),
    (r#""prompt":"x","logprobs":-1"#, "logprobs"),
    (r#""prompt":"x","max_tokens":0"#, "max_tokens"),
    (r#""prompt":["a","b","c","d","e","f","g","h","i"],"n":128"#, "n"),
];

const TOKENIZERS: &[(&str, &str, &str)] = &[
    ("/tokenize", r#"{"model":"demo"}"#, "prompt"),
    ("/tokenize", r#"{"model":"demo","prompt":7}"#, "prompt"),
    ("/tokenize", r#"{"model":"demo","prompt":"x","messages":[]}"#, "messages"),
    ("/tokenize", r#"{"model":"demo","prompt":"x","add_special_tokens":1}"#, "add_special_tokens"),
    ("/detokenize", r#"{"model":"demo"}"#, "tokens"),
    ("/detokenize", r#"{"model":"demo","tokens":[-1]}"#, "tokens.[0]"),
    ("/detokenize", r#"{"model":7,"tokens":[1]}"#, "model"),
];

#[track_caller]
fn check(answer: &Answer, param: &str, body: &str) {
    assert_eq!(answer.status, 400, "{body} got {}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{body}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    if param == NO_PARAM {
        assert!(error["param"].is_null(), "{body} got {error}");
    } else {
        assert_eq!(error["param"], param, "{body} got {error}");
    }
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{body}");
}

#[tokio::test]
async fn bad_requests_are_told_which_field_is_wrong_and_reach_no_worker() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let chat = "/v1/chat/completions";
    for (extra, param) in CHAT_FIELDS {
        check(&cluster.chat(extra).await, param, extra);
    }
    for (messages, param) in MESSAGES {
        let body = format!(r#"{{"model":"demo","messages":{messages}}}"#);
        check(&cluster.post(chat, body.clone()).await, param, &body);
    }
    for (body, param) in BODIES {
        check(&cluster.post(chat, *body).await, param, &String::from_utf8_lossy(body));
    }
    for (fields, param) in COMPLETIONS {
        let body = format!(r#"{{"model":"demo",{fields}}}"#);
        check(&cluster.post("/v1/completions", body.clone()).await, param, &body);
    }
    for (path, body, param) in TOKENIZERS {
        check(&cluster.post(path, *body).await, param, body);
    }
    assert!(!worker.has_call());
    cluster.assert_idle().await;
}

#[tokio::test]
async fn absurd_sizes_are_refused() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let stops = vec!["\"s\""; 5_000].join(",");
    let biases: Vec<_> = (0..2_000).map(|id| format!("\"{id}\":1")).collect();
    let prompts = vec!["\"p\""; 129].join(",");
    for (path, body, param) in [
        ("/v1/chat/completions", chat_body(&format!("\"stop\":[{stops}]")), "stop"),
        (
            "/v1/chat/completions",
            chat_body(&format!("\"logit_bias\":{{{}}}", biases.join(","))),
            "logit_bias",
        ),
        ("/v1/chat/completions", chat_body(&format!("\"stop\":\"{}\"", "x".repeat(2_000))), "stop"),
        ("/v1/chat/completions", format!(r#"{{"model":"{}"}}"#, "m".repeat(300)), "model"),
        ("/v1/completions", format!(r#"{{"model":"demo","prompt":[{prompts}]}}"#), "prompt"),
        ("/v1/chat/completions", "[".repeat(100_000), NO_PARAM),
    ] {
        let answer = cluster.post(path, body.clone()).await;
        check(&answer, param, &body[..body.len().min(80)]);
    }
    let huge = cluster.post("/v1/chat/completions", vec![b' '; 10 << 20]).await;
    huge.assert_error(413, "request_too_large");
    assert!(!worker.has_call());
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_timeout_header_that_is_no_time_is_refused() {
    let worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    for bad in ["soon", "0", "-5", "1.5"] {
        let headers = [("x-request-timeout-ms", bad)];
        let path = "/v1/chat/completions";
        let answer = cluster.send(http::Method::POST, path, &headers, chat_body("")).await;
        check(&answer, "x-request-timeout-ms", bad);
    }
}
