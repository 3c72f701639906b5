//! A request's logits are the same bits alone or in a batch, in one chunk or many, with a cold or a warm
//! prefix, on one thread or several, preempted or not.

use phalanx_kernels::cpu::CpuPath;
use phalanx_proto::generate::Sampling;
use phalanx_worker::engine::{RawEngine, SequenceRequest};

use crate::harness::{Answer, Harness, available_paths, greedy};

fn prompt(length: u32, salt: u32) -> Vec<u32> {
    (0..length).map(|at| 3 + (at * 37 + salt * 101) % 3000).collect()
}

fn seeded(prompt: &[u32], seed: u64) -> SequenceRequest {
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed, ..Sampling::default() };
    SequenceRequest { sampling, ..greedy(prompt, 24) }
}

fn subject() -> SequenceRequest {
    seeded(&prompt(150, 0), 7)
}

/// Others of all lengths, greedy and seeded, some sharing the subject's prefix.
fn company() -> Vec<SequenceRequest> {
    (1..12)
        .map(|index| match index % 3 {
            0 => seeded(&prompt(20 * index, index), u64::from(index)),
            1 => greedy(&prompt(33 * index, index), 30),
            _ => seeded(&prompt(10 * index, 0), u64::from(index)),
        })
        .collect()
}

fn alone(path: CpuPath, threads: usize, raw: RawEngine) -> Answer {
    Harness::new(path, threads, raw).run(vec![subject()]).remove(0)
}

#[track_caller]
fn assert_same_bits(actual: &Answer, expected: &Answer, how: &str) {
    assert_eq!(actual.tokens, expected.tokens, "{how}");
    assert_eq!(actual.logits.len(), expected.logits.len(), "{how}");
    for (step, (left, right)) in actual.logits.iter().zip(&expected.logits).enumerate() {
        assert!(left == right, "{how}: the logits of step {step} differ");
    }
}

#[test]
fn logits_are_the_same_bits_in_any_company() {
    for path in available_paths() {
        let expected = alone(path, 2, RawEngine::default());

        let mut harness = Harness::new(path, 2, RawEngine::default());
        let mut requests = company();
        requests.insert(5, subject());
        let batched = harness.run(requests).remove(5);
        assert_same_bits(&batched, &expected, &format!("{path}: in a batch"));

        let warm = harness.run(vec![subject()]).remove(0);
        assert!(warm.cached > 100, "only {} tokens were cached", warm.cached);
        assert_same_bits(&warm, &expected, &format!("{path}: with a warm prefix"));

        for chunk in [1, 5, 64] {
            let raw = RawEngine { step_tokens_max: Some(chunk), ..RawEngine::default() };
            let chunked = alone(path, 2, raw);
            assert_same_bits(&chunked, &expected, &format!("{path}: in chunks of {chunk}"));
        }
        for threads in [1, 3] {
            let other = alone(path, threads, RawEngine::default());
            assert_same_bits(&other, &expected, &format!("{path}: on {threads} threads"));
        }
    }
}

#[test]
fn logits_are_the_same_bits_after_preemption() {
    let path = CpuPath::detect();
    let expected = alone(path, 2, RawEngine::default());
    let raw = RawEngine { kv_blocks: Some(30), ..RawEngine::default() };
    let mut harness = Harness::new(path, 2, raw);
    let mut requests = company();
    requests.push(subject());
    let answer = harness.run(requests).pop().unwrap();
    assert!(harness.preemptions > 0, "the pool was meant to be too small");
    assert_same_bits(&answer, &expected, "preempted");
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_seed_others() {
    let mut harness = Harness::new(CpuPath::detect(), 2, RawEngine::default());
    let text = prompt(40, 3);
    let answers = harness.run(vec![seeded(&text, 1), seeded(&text, 1), seeded(&text, 2)]);
    assert_eq!(answers[0].tokens, answers[1].tokens);
    assert_ne!(answers[0].tokens, answers[2].tokens);
}
