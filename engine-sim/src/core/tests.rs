//! The engine under hand-made and random loads.

use std::collections::BTreeMap;

use phalanx_proto::prefix::PromptKind;
use proptest::prelude::*;

use super::*;
use crate::prompt::Canonical;

const MS: Duration = Duration::from_millis(1);

fn pace() -> Pace {
    Pace {
        prefill_rate: 1000.0,
        decode_base: 8 * MS,
        decode_per_sequence: MS,
        step_tokens_max: 256,
        batch_max: 4,
        waiting_max: 2,
        cache_tokens: 1024,
        speed: 1.0,
    }
}

fn work(text: &str, answer_tokens: u32) -> Work {
    let mut canonical = Canonical::new(PromptKind::Text, "");
    canonical.text(text);
    Work { prompt: canonical.prompt(), resumed: 0, answer_tokens }
}

/// Runs the engine until it has nothing to do; the times at which sequences came to what.
fn run(engine: &mut Engine) -> Vec<(Duration, SequenceId, Progress)> {
    let mut seen = Vec::new();
    while let Some(at) = engine.wake_at() {
        engine.advance(at);
        seen.extend(engine.take_news().into_iter().map(|(id, progress)| (at, id, progress)));
    }
    seen
}

#[test]
fn a_prompt_is_computed_at_its_rate_and_the_answer_step_by_step() {
    let mut engine = Engine::new(pace());
    // 300 tokens in two steps of 256 and 44, then two decodes of 9 ms.
    engine.submit(Duration::ZERO, work(&"x".repeat(1200), 3)).unwrap();
    let times: Vec<Duration> = run(&mut engine).into_iter().map(|(at, ..)| at).collect();
    assert_eq!(times, [300 * MS, 309 * MS, 318 * MS]);
    assert_eq!(engine.totals().busy_us, 318_000);
}

#[test]
fn a_prefix_is_computed_once() {
    let mut engine = Engine::new(pace());
    let shared = "s".repeat(2048);
    engine.submit(Duration::ZERO, work(&shared, 1)).unwrap();
    run(&mut engine);
    let begun = Duration::from_secs(10);
    engine.submit(begun, work(&format!("{shared} and more"), 1)).unwrap();
    let seen = run(&mut engine);
    // " and more" is three tokens.
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, begun + 3 * MS);
    assert_eq!(seen[0].2, Progress { cached_tokens: 512, produced: 1 });
    assert_eq!(engine.totals().cached_tokens, 512);
}

#[test]
fn a_resumed_answer_goes_on_where_it_was() {
    let mut engine = Engine::new(pace());
    let resumed = Work { resumed: 5, ..work("abcd", 7) };
    engine.submit(Duration::ZERO, resumed).unwrap();
    let produced: Vec<u32> = run(&mut engine).into_iter().map(|(.., it)| it.produced).collect();
    assert_eq!(produced, [6, 7]);
}

#[test]
fn a_full_queue_refuses_and_an_abort_makes_room() {
    let mut engine = Engine::new(Pace { batch_max: 1, ..pace() });
    let submit = |engine: &mut Engine| engine.submit(Duration::ZERO, work("abcd", 2));
    let first = submit(&mut engine).unwrap();
    let second = submit(&mut engine).unwrap();
    submit(&mut engine).unwrap();
    assert_eq!(submit(&mut engine), Err(Overloaded { waiting_max: 2 }));
    assert_eq!(engine.abort(second), Some(Phase::Waiting));
    submit(&mut engine).unwrap();
    assert_eq!(engine.abort(first), Some(Phase::Prefill));
    assert_eq!(engine.abort(first), None);
    run(&mut engine);
    let Totals { requests, refused, finished, aborted, .. } = engine.totals();
    assert_eq!((requests, refused, finished, aborted), (4, 1, 2, 2));
}

#[test]
fn a_slow_engine_takes_longer_and_a_fast_one_less() {
    for (speed, slowness, expected) in [(2.0, 1.0, 2), (1.0, 10.0, 40), (1.0, 1.0, 4)] {
        let mut engine = Engine::new(Pace { speed, ..pace() });
        engine.slow_down(slowness);
        engine.submit(Duration::ZERO, work(&"x".repeat(16), 1)).unwrap();
        assert_eq!(run(&mut engine)[0].0, expected * MS);
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Submit { prompt: usize, words: usize, answer: u32, resumed: u32 },
    Abort(u64),
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0_usize..4, 0_usize..2000, 1_u32..6, 0_u32..3).prop_map(
            |(prompt, words, answer, resumed)| Happening::Submit { prompt, words, answer, resumed }
        ),
        1 => (1_u64..40).prop_map(Happening::Abort),
        2 => (0_u64..200).prop_map(Happening::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every sequence ends exactly once, token by token, within all bounds, and nothing is held afterwards.
    #[test]
    fn nothing_is_lost_and_no_bound_is_passed(
        happenings in proptest::collection::vec(happening(), 1..80),
    ) {
        let pace = pace();
        let mut engine = Engine::new(pace.clone());
        let mut now = Duration::ZERO;
        let mut open: BTreeMap<SequenceId, (u32, u32)> = BTreeMap::new();
        for happening in happenings {
            match happening {
                Happening::Submit { prompt, words, answer, resumed } => {
                    let text = ["a", "b", "c", "d"][prompt].repeat(words);
                    let work = Work { resumed, ..work(&text, answer + resumed) };
                    if let Ok(id) = engine.submit(now, work) {
                        open.insert(id, (resumed, answer + resumed));
                    }
                }
                Happening::Abort(id) => {
                    // What was produced before is heard before.
                    hear(&mut engine, &mut open)?;
                    let id = SequenceId(id);
                    prop_assert_eq!(engine.abort(id).is_some(), open.remove(&id).is_some());
                }
                Happening::Wait(ms) => now += Duration::from_millis(ms),
            }
            engine.advance(now);
            hear(&mut engine, &mut open)?;
            let (load, totals) = (engine.load(), engine.totals());
            prop_assert!(load.running as usize <= pace.batch_max);
            prop_assert!(load.waiting as usize <= pace.waiting_max);
            prop_assert!(engine.cache_tokens() <= pace.cache_tokens);
            prop_assert!(totals.cached_tokens <= totals.prompt_tokens);
            prop_assert_eq!(u64::from(load.running + load.waiting), open.len() as u64);
            prop_assert_eq!(totals.requests, totals.finished + totals.aborted + open.len() as u64);
            // Whoever waits, waits for a step under way.
            prop_assert!(open.is_empty() || engine.wake_at().is_some());
        }
        while let Some(at) = engine.wake_at() {
            engine.advance(at);
        }
        hear(&mut engine, &mut open)?;
        prop_assert!(open.is_empty(), "{open:?} never ended");
        prop_assert_eq!(engine.load(), Load::default());
    }
}

/// Checks that sequences come on one token at a time, and forgets those that are complete.
fn hear(
    engine: &mut Engine,
    open: &mut BTreeMap<SequenceId, (u32, u32)>,
) -> Result<(), TestCaseError> {
    for (id, progress) in engine.take_news() {
        let (produced, answer) = open.get_mut(&id).expect("news of a sequence that is over");
        prop_assert_eq!(progress.produced, *produced + 1);
        *produced += 1;
        if *produced == *answer {
            open.remove(&id);
        }
    }
    Ok(())
}
