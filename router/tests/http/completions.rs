//! `POST /v1/completions`.

use phalanx_proto::pb::generate_request::Input;
use serde_json::json;

use crate::chat::chunks;
use crate::cluster::Cluster;
use crate::worker::{FakeWorker, delta, finished, score, scored, started, usage};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let body = r#"{"model":"demo","prompt":[1,2,3]}"#;
    let (answer, ()) = tokio::join!(cluster.post(PATH, body), async {
        let call = worker.call().await;
        let Some(Input::Tokens(tokens)) = &call.request.input else { panic!("not tokens") };
        assert_eq!(tokens.ids, [1, 2, 3]);
        call.answer(&["Hel", "lo"]).await;
    });
    let settled = answer.settled();
    let expected = concat!(
        r#"{"id":"cmpl","object":"text_completion","created":0,"model":"demo","system_fingerprint":"fp_0123456789ab","#,
        r#""choices":[{"index":0,"text":"Hello","logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":{"#,
    );
    assert!(settled.starts_with(expected), "{settled}");
}

#[tokio::test]
async fn a_stream_is_exact_to_the_byte() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let body = r#"{"model":"demo","prompt":"x","stream":true}"#;
    let (answer, ()) = tokio::join!(cluster.post(PATH, body), async {
        worker.call().await.answer(&["Hel", "lo"]).await;
    });
    let head = r#"data: {"id":"cmpl","object":"text_completion","created":0,"model":"demo","system_fingerprint":"fp_0123456789ab","choices":[{"index":0,"#;
    let expected = [
        r#""text":"Hel","logprobs":null,"finish_reason":null}]}"#,
        r#""text":"lo","logprobs":null,"finish_reason":null}]}"#,
        r#""text":"","logprobs":null,"finish_reason":"stop","stop_reason":null}]}"#,
    ]
    .map(|chunk| format!("{head}{chunk}\n\n"))
    .concat();
    assert_eq!(answer.settled(), format!("{expected}data: [DONE]\n\n"));
}

#[tokio::test]
async fn each_prompt_is_a_generation_and_choices_are_numbered_over_all() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let body = r#"{"model":"demo","prompt":["p0","p1"],"n":2}"#;
    let (answer, ()) = tokio::join!(cluster.post(PATH, body), async {
        for _ in 0..2 {
            let call = worker.call().await;
            let Some(Input::Text(prompt)) = call.request.input.clone() else { panic!("not text") };
            let answering = call.accept();
            answering.send(started()).await;
            for choice in [1, 0] {
                answering.send(delta(choice, &format!("{prompt}c{choice}"), 1)).await;
                answering.send(finished(choice)).await;
            }
            answering.send(usage(2)).await;
        }
    });
    let body = answer.json();
    let choices = body["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["p0c0", "p0c1", "p1c0", "p1c1"]);
    assert_eq!(choices[3]["index"], 3);
    assert_eq!(body["usage"]["prompt_tokens"], 10);
    assert_eq!(body["usage"]["total_tokens"], 14);
    cluster.assert_idle().await;
}

#[tokio::test]
async fn log_probabilities_carry_offsets_in_characters() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    for stream in [false, true] {
        let body = format!(r#"{{"model":"demo","prompt":"x","logprobs":1,"stream":{stream}}}"#);
        let (answer, ()) = tokio::join!(cluster.post(PATH, body), async {
            let answering = worker.call().await.accept();
            answering.send(started()).await;
            let top = vec![score(2, "é".as_bytes(), -0.5)];
            answering.send(scored("é", score(2, "é".as_bytes(), -0.5), top)).await;
            let top = vec![score(4, b"C", -0.25)];
            answering.send(scored("B", score(3, b"B", -1.5), top)).await;
            answering.send(finished(0)).await;
            answering.send(usage(2)).await;
        });
        let expected = [
            json!({"tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"é": -0.5}], "text_offset": [0]}),
            json!({"tokens": ["B"], "token_logprobs": [-1.5], "top_logprobs": [{"B": -1.5, "C": -0.25}], "text_offset": [1]}),
        ];
        if stream {
            let chunks = chunks(&answer.text);
            for (chunk, expected) in chunks.iter().zip(&expected) {
                assert_eq!(chunk["choices"][0]["logprobs"], *expected);
            }
        } else {
            let logprobs = answer.json()["choices"][0]["logprobs"].clone();
            assert_eq!(logprobs["tokens"], json!(["é", "B"]));
            assert_eq!(logprobs["text_offset"], json!([0, 1]));
            assert_eq!(logprobs["top_logprobs"][1], expected[1]["top_logprobs"][0]);
        }
    }
}

#[tokio::test]
async fn one_failed_prompt_fails_the_request_and_cancels_the_others() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start(&[&worker]).await;
    let body = r#"{"model":"demo","prompt":["a","b"]}"#;
    let (answer, ()) = tokio::join!(cluster.post(PATH, body), async {
        let survivor = worker.call().await.accept();
        survivor.send(started()).await;
        let failing = worker.call().await.accept();
        failing.send(started()).await;
        let fault = phalanx_proto::fault::Fault::new(
            phalanx_proto::fault::FaultCode::Numerical,
            "logits are not finite",
        );
        failing.fail(phalanx_proto::wire::to_status(&fault)).await;
        survivor.cancelled().await;
    });
    answer.assert_error(502, "numerical");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    cluster.assert_idle().await;
}
