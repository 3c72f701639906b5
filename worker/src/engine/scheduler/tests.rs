//! The scheduler by example, and driven at random.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_proto::generate::Sampling;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::engine::config::RawEngine;

const END: u32 = 9;

fn config(step_tokens_max: u32, running_max: u32, waiting_max: u32) -> EngineConfig {
    EngineConfig::try_from(RawEngine {
        step_tokens_max: Some(step_tokens_max),
        running_max: Some(running_max),
        waiting_max: Some(waiting_max),
        ..RawEngine::default()
    })
    .unwrap()
}

fn request(prompt: Vec<u32>, max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        prompt: prompt.into(),
        generated: Arc::from([]),
        sampling: Sampling::default(),
        max_tokens,
        min_tokens: 0,
        end_tokens: Arc::from([END]),
        top_logprobs: None,
        cache_salt: Arc::from(""),
        chunks: Arc::default(),
    }
}

/// A prompt that shares no block with another sequence's.
fn own_prompt(id: u64, tokens: u32) -> Vec<u32> {
    let base = u32::try_from(id).unwrap() * 10_000 + 100;
    (base..base + tokens).collect()
}

fn draw(plan: &StepPlan, token: u32) -> Vec<Sampled> {
    plan.draw_rows.iter().map(|_| Sampled::Token { id: token, logprobs: None }).collect()
}

/// Runs prompts of the given lengths over `blocks` blocks, 64 tokens a step, and compares the first plans.
#[track_caller]
fn check(blocks: u32, prompts: &[u32], steps: &[&str]) {
    let mut scheduler = Scheduler::new(&config(64, 8, 8), blocks);
    for (id, &tokens) in (1..).zip(prompts) {
        scheduler.add(SequenceId(id), request(own_prompt(id, tokens), 20)).unwrap();
    }
    for (step, expected) in steps.iter().enumerate() {
        let plan = scheduler.step();
        assert_eq!(plan.to_string(), *expected, "step {step}");
        let drawn = draw(&plan, 1);
        scheduler.commit(&plan, drawn);
    }
}

#[test]
fn a_prompt_is_computed_and_then_decoded() {
    check(16, &[20], &["run 1:20", "run 1:1", "run 1:1"]);
}

#[test]
fn a_long_prompt_is_met_in_chunks_beside_a_live_stream() {
    check(16, &[16, 100], &["run 1:16 2:48", "run 1:1 2:52", "run 1:1 2:1"]);
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out() {
    // 32 + 20 tokens need four blocks each; five hold both prompts but not both answers.
    check(5, &[32, 32], &["run 1:32 2:32", "preempt 2; run 1:1", "run 1:1"]);
}

#[test]
fn a_prompt_that_does_not_fit_waits_and_keeps_its_turn() {
    check(4, &[40, 40, 16], &["run 1:40", "run 1:1", "run 1:1"]);
}

#[test]
fn a_prefix_computed_before_is_not_computed_again() {
    let mut scheduler = Scheduler::new(&config(64, 8, 8), 16);
    for id in [1, 2] {
        scheduler.add(SequenceId(id), request(own_prompt(1, 40), 1)).unwrap();
        let plan = scheduler.step();
        let expected = if id == 1 { "run 1:40" } else { "run 2:8" };
        assert_eq!(plan.to_string(), expected);
        assert_eq!(plan.started, [(SequenceId(id), if id == 1 { 0 } else { 32 })]);
        scheduler.commit(&plan, draw(&plan, 1));
        assert!(scheduler.is_idle());
    }
}

#[test]
fn a_sequence_that_can_never_fit_is_refused_with_the_numbers() {
    let mut scheduler = Scheduler::new(&config(64, 8, 8), 4);
    let fault = scheduler.add(SequenceId(1), request(own_prompt(1, 60), 5)).unwrap_err();
    assert_eq!(fault.code, FaultCode::ContextLengthExceeded);
    assert_eq!(fault.message, "prompt and output need 5 KV blocks, this worker has 4");
}

#[test]
fn a_full_engine_refuses() {
    // One may run, one may wait.
    let mut scheduler = Scheduler::new(&config(64, 1, 1), 16);
    for id in [1, 2] {
        scheduler.add(SequenceId(id), request(own_prompt(id, 4), 4)).unwrap();
    }
    let fault = scheduler.add(SequenceId(3), request(own_prompt(3, 4), 4)).unwrap_err();
    assert_eq!(fault.code, FaultCode::Overloaded);
    scheduler.cancel(SequenceId(1));
    scheduler.add(SequenceId(3), request(own_prompt(3, 4), 4)).unwrap();
}

#[test]
fn end_tokens_are_banned_until_the_least_number_of_tokens() {
    let mut scheduler = Scheduler::new(&config(64, 8, 8), 16);
    let request = SequenceRequest { min_tokens: 2, ..request(own_prompt(1, 4), 8) };
    scheduler.add(SequenceId(1), request).unwrap();
    let mut bans = Vec::new();
    for _ in 0..3 {
        let plan = scheduler.step();
        bans.push(plan.draws[0].banned.len());
        scheduler.commit(&plan, draw(&plan, 1));
    }
    assert_eq!(bans, [1, 1, 0]);
}

#[test]
fn a_row_that_cannot_be_drawn_ends_its_sequence_and_no_other() {
    let mut scheduler = Scheduler::new(&config(64, 8, 8), 16);
    for id in [1, 2] {
        scheduler.add(SequenceId(id), request(own_prompt(id, 4), 4)).unwrap();
    }
    let plan = scheduler.step();
    let drawn = vec![Sampled::Numerical, Sampled::Token { id: 1, logprobs: None }];
    let progress = scheduler.commit(&plan, drawn);
    assert_eq!(progress[0], (SequenceId(1), Progress::Numerical));
    assert_eq!(scheduler.step().to_string(), "run 2:1");
}

/// What a random driver may do between steps.
#[derive(Clone, Debug)]
enum Action {
    Add { prompt: u32, family: u64, max_tokens: u32 },
    Cancel(usize),
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (1u32..200, 1u64..4, 1u32..40).prop_map(|(prompt, family, max_tokens)| Action::Add {
            prompt,
            family,
            max_tokens
        }),
        any::<usize>().prop_map(Action::Cancel),
        proptest::strategy::Just(Action::Step),
        proptest::strategy::Just(Action::Step),
        proptest::strategy::Just(Action::Step),
    ]
}

/// The token a sequence draws after `tokens`: like a model's, a function of them alone.
fn next_token(tokens: &[u32]) -> u32 {
    tokens.iter().fold(17u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token)) % 50
}

/// Follows every sequence from outside: what was computed, in which order, what was drawn.
#[derive(Default)]
struct Follower {
    tokens: HashMap<SequenceId, Vec<u32>>,
    live: Vec<SequenceId>,
}

impl Follower {
    fn run_step(&mut self, scheduler: &mut Scheduler, step_max: usize) {
        let idle = scheduler.is_idle();
        let plan = scheduler.step();
        assert_eq!(plan.batch.rows() == 0, idle, "a step with work to do computes something");
        assert!(plan.batch.rows() <= step_max);
        let mut drawn = Vec::new();
        for (share, span) in plan.shares.iter().zip(&plan.batch.spans) {
            let tokens = &self.tokens[&share.sequence];
            assert_eq!(span.rows.len(), share.tokens);
            assert_eq!(
                plan.batch.tokens[span.rows.clone()],
                tokens[span.start..span.start + share.tokens]
            );
            assert!(plan.batch.table(span).len() * 16 >= span.start + share.tokens);
            if share.draws {
                assert_eq!(span.start + share.tokens, tokens.len());
                drawn.push(Sampled::Token { id: next_token(tokens), logprobs: None });
            }
        }
        for (id, progress) in scheduler.commit(&plan, drawn) {
            let Progress::Drew { token, finish, .. } = progress else {
                panic!("all rows can be drawn")
            };
            self.tokens.get_mut(&id).unwrap().push(token);
            if finish.is_some() {
                self.live.retain(|live| *live != id);
            }
        }
    }
}

proptest! {
    /// Whatever comes, blocks are conserved, every sequence computes its own tokens in order, and
    /// all finish: none is lost and none starves.
    #[test]
    fn no_block_leaks_and_everyone_finishes(
        actions in proptest::collection::vec(action(), 1..120),
        blocks in 16u32..40,
        step_max in 4u32..80,
    ) {
        let mut scheduler = Scheduler::new(&config(step_max, 4, 1000), blocks);
        let mut follower = Follower::default();
        let mut next_id = 0;
        for action in actions {
            match action {
                Action::Add { prompt, family, max_tokens } => {
                    next_id += 1;
                    let prompt = own_prompt(family, prompt);
                    scheduler.add(SequenceId(next_id), request(prompt.clone(), max_tokens)).unwrap();
                    follower.tokens.insert(SequenceId(next_id), prompt);
                    follower.live.push(SequenceId(next_id));
                }
                Action::Cancel(which) if !follower.live.is_empty() => {
                    let id = follower.live.remove(which % follower.live.len());
                    scheduler.cancel(id);
                }
                Action::Cancel(_) => {}
                Action::Step => follower.run_step(&mut scheduler, step_max as usize),
            }
        }
        let mut steps = 0;
        while !scheduler.is_idle() {
            follower.run_step(&mut scheduler, step_max as usize);
            steps += 1;
            prop_assert!(steps < 100_000, "the scheduler makes no progress");
        }
        prop_assert!(follower.live.is_empty());
        prop_assert_eq!(scheduler.load().kv_blocks_free, blocks);
    }
}
