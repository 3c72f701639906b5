//! Draws: which tokens may come, how often, and what is refused.

mod data;

use data::{cpus, rows_tensor};
use phalanx_kernels::Backend;
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_kernels::sample::{Logprobs, Penalties, SampleRow, Sampled};
use proptest::prelude::*;

fn greedy() -> SampleRow {
    SampleRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.0,
        bias: Vec::new(),
        banned: Vec::new(),
        penalties: None,
        top_logprobs: None,
    }
}

fn random() -> SampleRow {
    SampleRow { temperature: 1.0, ..greedy() }
}

fn draw(cpu: &mut Cpu, logits: &[f32], rows: &[SampleRow]) -> Vec<Sampled> {
    let repeated = logits.repeat(rows.len());
    let mut tensor = rows_tensor(cpu, &repeated, rows.len());
    cpu.sample(&mut tensor, rows)
}

fn id(sampled: &Sampled) -> u32 {
    match sampled {
        Sampled::Token { id, .. } => *id,
        Sampled::Numerical => panic!("a token was expected"),
    }
}

fn draw_one(logits: &[f32], row: SampleRow) -> u32 {
    id(&draw(&mut Cpu::new(1, CpuPath::detect()), logits, &[row])[0])
}

/// How often each token comes when the uniforms cover [0, 1) evenly.
fn frequencies(cpu: &mut Cpu, logits: &[f32], row: &SampleRow) -> Vec<f64> {
    const DRAWS: usize = 2_000;
    let rows: Vec<SampleRow> = (0..DRAWS)
        .map(|index| SampleRow { uniform: (index as f32 + 0.5) / DRAWS as f32, ..row.clone() })
        .collect();
    let mut counts = vec![0.0; logits.len()];
    for sampled in draw(cpu, logits, &rows) {
        counts[id(&sampled) as usize] += 1.0 / DRAWS as f64;
    }
    counts
}

/// The distribution by the definition, in f64: sort, cut by top-k, min-p, top-p, renormalise.
fn expected(logits: &[f32], row: &SampleRow) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let max = f64::from(logits[order[0]]);
    let weight = |id: usize| ((f64::from(logits[id]) - max) / f64::from(row.temperature)).exp();
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    order.retain(|&id| weight(id) >= f64::from(row.min_p));
    let mass: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut kept = 0.0;
    let mut count = 0;
    while count < order.len()
        && (row.top_p >= 1.0 || count == 0 || kept < f64::from(row.top_p) * mass)
    {
        kept += weight(order[count]);
        count += 1;
    }
    let mut distribution = vec![0.0; logits.len()];
    for &id in &order[..count] {
        distribution[id] = weight(id) / kept;
    }
    distribution
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tokens_come_as_often_as_top_k_min_p_and_top_p_leave_them(
        logits in prop::collection::vec(-4.0_f32..4.0, 1..60),
        temperature in 0.3_f32..2.0,
        top_k in 0_u32..20,
        top_p in prop_oneof![Just(1.0_f32), 0.05_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.5],
    ) {
        let row = SampleRow { temperature, top_k, top_p, min_p, ..random() };
        let expected = expected(&logits, &row);
        for mut cpu in cpus(2) {
            let frequencies = frequencies(&mut cpu, &logits, &row);
            for (token, (seen, expected)) in frequencies.iter().zip(&expected).enumerate() {
                prop_assert!((seen - expected).abs() < 0.002, "token {token}: {seen}, not {expected}");
                prop_assert!(*expected > 0.0 || *seen == 0.0, "token {token} was cut");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(
        logits in prop::collection::vec((-3_i32..3).prop_map(|value| value as f32), 1..200),
    ) {
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let first = logits.iter().position(|&logit| logit == largest).unwrap();
        for mut cpu in cpus(1) {
            prop_assert_eq!(id(&draw(&mut cpu, &logits, &[greedy()])[0]) as usize, first);
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_logits(
        logits in prop::collection::vec(-20.0_f32..20.0, 1..100),
        count in 0_u32..12,
    ) {
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let exact = |id: u32| f64::from(logits[id as usize] - max) - sum.ln();
        let banned = vec![logits.iter().position(|&logit| logit == max).unwrap()];
        let banned = if logits.len() > 1 { banned } else { Vec::new() };
        let banned = banned.into_iter().map(|id| u32::try_from(id).unwrap()).collect();
        let row = SampleRow { banned, top_logprobs: Some(count), ..greedy() };
        for mut cpu in cpus(1) {
            let drawn = draw(&mut cpu, &logits, std::slice::from_ref(&row)).remove(0);
            let Sampled::Token { id, logprobs: Some(Logprobs { chosen, top }) } = drawn else {
                return Err(TestCaseError::fail("no log probabilities"));
            };
            prop_assert!(row.banned.iter().all(|&banned| banned != id));
            prop_assert!((f64::from(chosen) - exact(id)).abs() < 1e-4);
            prop_assert_eq!(top.len(), logits.len().min(count as usize));
            prop_assert!(top.is_sorted_by(|a, b| a.1 >= b.1));
            for (id, logprob) in top {
                prop_assert!((f64::from(logprob) - exact(id)).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn a_flat_vocabulary_is_drawn_to_its_last_token() {
    let logits = vec![0.5; 10_000];
    let drawn = |uniform| draw_one(&logits, SampleRow { uniform, ..random() });
    assert_eq!(drawn(0.0), 0);
    assert_eq!(drawn(0.500_05), 5_000);
    assert_eq!(drawn(0.999_99), 9_999);
}

#[test]
fn penalties_and_bias_change_logits_as_documented() {
    let penalties = |presence, frequency, repetition| {
        let (generated, prompt) = (vec![(0, 3)], vec![0, 1]);
        Some(Penalties { presence, frequency, repetition, generated, prompt })
    };
    let row = |penalties| SampleRow { penalties, ..greedy() };
    // Token 0 was generated thrice, token 1 stood in the prompt.
    assert_eq!(draw_one(&[2.0, 1.5, 1.0], row(penalties(0.4, 0.0, 1.0))), 0);
    assert_eq!(draw_one(&[2.0, 1.5, 1.0], row(penalties(0.6, 0.0, 1.0))), 1);
    assert_eq!(draw_one(&[2.0, 1.5, 1.0], row(penalties(0.0, 0.2, 1.0))), 1);
    assert_eq!(draw_one(&[2.0, 1.9, 1.5], row(penalties(0.0, 0.0, 1.5))), 2);
    assert_eq!(draw_one(&[-1.0, -1.0, -1.5], row(penalties(0.0, 0.0, 2.0))), 2);
    let bias = SampleRow { bias: vec![(2, 1.5), (999, 50.0)], ..greedy() };
    assert_eq!(draw_one(&[2.0, 1.5, 1.0], bias), 2);
}

#[test]
fn broken_rows_are_reported_and_their_neighbours_are_not() {
    let nan = [0.0, f32::NAN, 1.0];
    let infinite = [0.0, f32::INFINITY, 1.0];
    let closed = [f32::NEG_INFINITY; 3];
    let fine = [0.0, 2.0, f32::NEG_INFINITY];
    for mut cpu in cpus(2) {
        let mut logits = rows_tensor(&cpu, &[nan, infinite, closed, fine, fine].concat(), 5);
        let all_banned = SampleRow { banned: vec![0, 1], ..greedy() };
        let drawn = cpu.sample(&mut logits, &[greedy(), random(), random(), greedy(), all_banned]);
        let broken: Vec<bool> = drawn.iter().map(|row| *row == Sampled::Numerical).collect();
        assert_eq!(broken, [true, true, true, false, true]);
        assert_eq!(id(&drawn[3]), 1);
    }
}
