//! What a worker answers, and how it leaves.

use futures::future::join_all;
use phalanx_chassis::drain::Phase;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::generate::{FinishReason, Generate, Input};
use phalanx_proto::id::Epoch;
use serde_json::Value;

use crate::worker::{EPOCH, ask, chat, demo_folder, greedy, ids, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_golden_prompt_is_answered_to_the_token_all_at_once() {
    let running = start().await;
    let golden = std::fs::read(demo_folder().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let mut cases: Vec<(&Value, Generate)> = Vec::new();
    for case in golden["chats"].as_array().unwrap() {
        cases.push((case, greedy(chat(&case["messages"]), 220)));
    }
    for case in golden["completions"].as_array().unwrap() {
        let prompt = Input::Text(case["prompt"].as_str().unwrap().to_owned());
        cases.push((case, greedy(prompt, 64)));
    }
    let asked = cases.iter().map(|(_, generate)| ask(running.client.clone(), generate.clone()));
    let answers = join_all(asked).await;
    assert_eq!(answers.len(), 42);
    for ((case, _), answer) in cases.iter().zip(&answers) {
        assert_eq!(answer.prompt, ids(&case["prompt_token_ids"]));
        assert_eq!(answer.text, case["text"].as_str().unwrap());
        assert_eq!(answer.tokens, ids(&case["output_token_ids"]));
        let ends = answer.tokens.last().is_some_and(|id| [0, 2].contains(id));
        let reason = if ends { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(answer.reason, Some(reason));
        assert_eq!(answer.usage.completion_tokens as usize, answer.tokens.len());
    }
    running.drain.advance(Phase::Draining);
    running.worker.await.unwrap().unwrap();
    assert!(!running.metrics.encode().contains("worker=\""), "a worker that left has no series");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_prefix_is_computed_once_and_shared_by_choices_and_requests() {
    let running = start().await;
    let prefix: Vec<u32> = (0..1000).map(|position| 300 + position % 500).collect();
    let prompt = |last: u32| Input::Tokens([&prefix[..], &[last]].concat());
    let first = ask(running.client.clone(), greedy(prompt(400), 2)).await;
    assert_eq!(first.usage.cached_tokens, 0);
    let second = ask(running.client.clone(), greedy(prompt(401), 2)).await;
    assert!(second.usage.cached_tokens >= 992, "{:?}", second.usage);
    assert_eq!(second.usage.prompt_tokens, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_ends_its_streams_with_a_fault() {
    let mut running = start().await;
    let mut endless = greedy(Input::Text("The router".to_owned()), 1900);
    endless.stopping.ignore_eos = true;
    let request = endless.into_wire(Epoch(EPOCH));
    let mut stream = running.client.generate(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("it started");
    running.drain.advance(Phase::Stopping);
    let status = loop {
        match stream.message().await {
            Ok(event) => assert!(event.is_some(), "a cut stream must not look complete"),
            Err(status) => break status,
        }
    };
    assert_eq!(phalanx_proto::wire::from_status(&status).code, FaultCode::Draining);
    running.worker.await.unwrap().unwrap();
}
