//! The answers of the reference implementation, token for token.

use phalanx_kernels::cpu::CpuPath;
use phalanx_worker::engine::{RawEngine, SequenceRequest};
use serde_json::Value;

use crate::harness::{Harness, available_paths, demo_folder, greedy};

/// A golden prompt with what should come of it.
struct Golden {
    prompt: Vec<u32>,
    output: Vec<u32>,
    /// The ten best logits of the first step: (token, logit).
    top: Vec<(usize, f32)>,
}

fn golden() -> Vec<Golden> {
    let text = std::fs::read_to_string(demo_folder().join("golden.json")).unwrap();
    let root: Value = serde_json::from_str(&text).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    ["chats", "completions"]
        .iter()
        .flat_map(|part| root[part].as_array().unwrap())
        .map(|case| Golden {
            prompt: ids(&case["prompt_token_ids"]),
            output: ids(&case["output_token_ids"]),
            top: case["first_step_top10"].as_array().map_or(Vec::new(), |top| {
                let logit = |entry: &Value| entry["logit"].as_f64().unwrap() as f32;
                let id = |entry: &Value| entry["id"].as_u64().unwrap() as usize;
                top.iter().map(|entry| (id(entry), logit(entry))).collect()
            }),
        })
        .collect()
}

fn requests(cases: &[Golden]) -> Vec<SequenceRequest> {
    let length = |case: &Golden| u32::try_from(case.output.len()).unwrap();
    cases.iter().map(|case| greedy(&case.prompt, length(case))).collect()
}

#[track_caller]
fn check_outputs(harness: &mut Harness, cases: &[Golden]) {
    for (case, answer) in cases.iter().zip(harness.run(requests(cases))) {
        assert_eq!(answer.tokens, case.output);
    }
}

#[test]
fn every_path_draws_the_golden_tokens_from_the_golden_logits() {
    for path in available_paths() {
        let cases = golden();
        let mut harness = Harness::new(path, 2, RawEngine::default());
        let mut compared = 0;
        for (case, request) in cases.iter().zip(requests(&cases)) {
            let answer = harness.run(vec![request]).remove(0);
            assert_eq!(answer.tokens, case.output, "{path}");
            for &(token, expected) in &case.top {
                let logit = f32::from_bits(answer.logits[0][token]);
                let relative = (logit - expected).abs() / expected.abs();
                assert!(relative < 2e-3, "{path}: token {token} has logit {logit}, not {expected}");
                compared += 1;
            }
        }
        assert_eq!(compared, 50, "five golden chats carry ten logits each");
    }
}

#[test]
fn all_prompts_at_once_draw_the_golden_tokens() {
    let mut harness = Harness::new(CpuPath::detect(), 2, RawEngine::default());
    check_outputs(&mut harness, &golden());
}

#[test]
fn prompts_met_in_chunks_draw_the_golden_tokens() {
    let raw = RawEngine { step_tokens_max: Some(7), ..RawEngine::default() };
    let mut harness = Harness::new(CpuPath::detect(), 2, raw);
    check_outputs(&mut harness, &golden());
}

#[test]
fn preempted_and_recomputed_sequences_draw_the_golden_tokens() {
    let raw = RawEngine { kv_blocks: Some(48), ..RawEngine::default() };
    let mut harness = Harness::new(CpuPath::detect(), 2, raw);
    check_outputs(&mut harness, &golden());
    assert!(harness.preemptions > 0, "the pool was meant to be too small");
}
