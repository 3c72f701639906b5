//! Drawing tokens from logits.

use std::cmp::Ordering;

use super::memory::Disjoint;
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Kernel, LANES, Lanes};
use super::tensor::Tensor;
use crate::sample::{Logprobs, Penalties, SampleRow, Sampled};

/// Candidates that are put in order first; most draws end among them.
const SORTED_FIRST: usize = 256;
/// Each further portion is this many times what is in order already.
const SORTED_GROWTH: usize = 4;

/// Draws one token per row.
pub(super) fn sample(
    (pool, path): (&Pool, CpuPath),
    logits: &mut Tensor,
    rows: &[SampleRow],
) -> Vec<Sampled> {
    assert_eq!(logits.rows(), rows.len(), "one row of logits per draw");
    let cols = logits.cols();
    let mut drawn = vec![Sampled::Numerical; rows.len()];
    let results = Disjoint::new(&mut drawn);
    let values = Disjoint::new(logits.values_mut());
    pool.run(rows.len(), &|row| {
        // SAFETY: each row is drawn by one task.
        let logits = unsafe { values.part(row * cols, cols) };
        // SAFETY: each row is drawn by one task.
        let result = unsafe { results.part(row, 1) };
        if let Some(token) = draw_row(path, logits, &rows[row]) {
            result[0] = token;
        }
    });
    drawn
}

/// A logit and its token.
type Candidate = (f32, u32);

/// The likelier first, the lowest id among equals.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

/// None when the row is numerically broken.
fn draw_row(path: CpuPath, logits: &mut [f32], row: &SampleRow) -> Option<Sampled> {
    let raw_max = largest(path, logits)?;
    let raw = row.top_logprobs.map(|_| logits.to_vec());
    let changed = adjust(logits, row);
    let max = if changed { largest(path, logits)? } else { raw_max };
    if !max.is_finite() {
        return None;
    }
    let id =
        if row.temperature > 0.0 { draw(path, logits, row, max) } else { first_of(logits, max) };
    let logprobs = match (raw, row.top_logprobs) {
        (Some(raw), Some(count)) => Some(log_probabilities(path, &raw, raw_max, (id, count))),
        _ => None,
    };
    Some(Sampled::Token { id, logprobs })
}

/// The largest logit; None if any is NaN.
fn largest(path: CpuPath, logits: &[f32]) -> Option<f32> {
    let mut result = None;
    simd::run(path, Largest { logits, result: &mut result });
    result
}

fn first_of(logits: &[f32], value: f32) -> u32 {
    index(logits.iter().position(|&logit| logit == value).unwrap_or(0))
}

/// A place in the vocabulary as an id.
fn index(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// Applies bias, penalties and bans; whether there were any.
fn adjust(logits: &mut [f32], row: &SampleRow) -> bool {
    for &(id, bias) in &row.bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    if let Some(penalties) = &row.penalties {
        penalise(logits, penalties);
    }
    for &id in &row.banned {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    !row.bias.is_empty() || row.penalties.is_some() || !row.banned.is_empty()
}

fn penalise(logits: &mut [f32], penalties: &Penalties) {
    let Penalties { presence, frequency, repetition, generated, prompt } = penalties;
    let repeat = |logit: f32| if logit > 0.0 { logit / repetition } else { logit * repetition };
    if *repetition != 1.0 {
        let mut seen: Vec<u32> = generated.iter().map(|&(id, _)| id).collect();
        seen.extend(prompt);
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = repeat(*logit);
            }
        }
    }
    for &(id, count) in generated {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= presence + frequency * count as f32;
        }
    }
}

/// Draws from the distribution that temperature, top-k, min-p and top-p leave.
fn draw(path: CpuPath, logits: &[f32], row: &SampleRow, max: f32) -> u32 {
    let SampleRow { temperature, top_k, top_p, min_p, uniform, .. } = *row;
    let weight = |logit: f32| f64::from((logit - max) / temperature).exp();
    // A logit keeps at least min_p of the largest's weight.
    let share_log = if min_p > 0.0 { min_p.min(1.0).ln() } else { f32::NEG_INFINITY };
    let kept = |logit: f32| logit > f32::NEG_INFINITY && (logit - max) / temperature >= share_log;
    let candidates: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .filter(|&(_, &logit)| kept(logit))
        .map(|(place, &logit)| (logit, index(place)))
        .collect();
    let mut ranking = Ranking { candidates, sorted: 0 };
    // Dropping by min-p before top-k keeps the same tokens: both keep the likeliest.
    let mut mass = if top_k > 0 && (top_k as usize) < ranking.candidates.len() {
        ranking.sort(top_k as usize);
        ranking.candidates.truncate(top_k as usize);
        ranking.candidates.iter().map(|&(logit, _)| weight(logit)).sum()
    } else if min_p > 0.0 {
        ranking.candidates.iter().map(|&(logit, _)| weight(logit)).sum()
    } else {
        mass(path, logits, max, temperature)
    };
    if top_p < 1.0 {
        let (mut kept, mut count) = (0.0, 0);
        while let Some((logit, _)) = ranking.get(count) {
            kept += weight(logit);
            count += 1;
            if kept >= f64::from(top_p) * mass {
                break;
            }
        }
        ranking.candidates.truncate(count);
        mass = kept;
    }
    let target = f64::from(uniform) * mass;
    let (mut sum, mut place, mut chosen) = (0.0, 0, 0);
    while let Some((logit, id)) = ranking.get(place) {
        sum += weight(logit);
        place += 1;
        chosen = id;
        if sum > target {
            break;
        }
    }
    chosen
}

/// The sum of all weights.
fn mass(path: CpuPath, logits: &[f32], max: f32, temperature: f32) -> f64 {
    let mut mass = 0.0;
    simd::run(path, Mass { logits, max, temperature, mass: &mut mass });
    mass
}

/// Log probabilities of the chosen token and the best, by the raw logits.
fn log_probabilities(path: CpuPath, raw: &[f32], max: f32, (id, count): (u32, u32)) -> Logprobs {
    let log_sum = f64::from(max) + mass(path, raw, max, 1.0).ln();
    #[expect(clippy::cast_possible_truncation, reason = "rounded to the type of the answer")]
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let count = raw.len().min(count as usize);
    let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
    for (place, &logit) in raw.iter().enumerate() {
        if best.len() < count || best.last().is_some_and(|&(least, _)| logit > least) {
            let at = best.partition_point(|&(better, _)| better >= logit);
            best.insert(at, (logit, index(place)));
            best.truncate(count);
        }
    }
    let top = best.into_iter().map(|(logit, id)| (id, logprob(logit))).collect();
    Logprobs { chosen: logprob(raw[id as usize]), top }
}

/// Candidates, put in order only as far as they are looked at.
struct Ranking {
    candidates: Vec<Candidate>,
    sorted: usize,
}

// === impl Ranking ===

impl Ranking {
    fn get(&mut self, place: usize) -> Option<Candidate> {
        if place >= self.sorted {
            self.sort(SORTED_FIRST.max(self.sorted * SORTED_GROWTH));
        }
        self.candidates.get(place).copied()
    }

    /// Puts `count` more candidates in order.
    fn sort(&mut self, count: usize) {
        let rest = &mut self.candidates[self.sorted..];
        let count = count.min(rest.len());
        if count == 0 {
            return;
        }
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, by_likelihood);
        }
        rest[..count].sort_unstable_by(by_likelihood);
        self.sorted += count;
    }
}

struct Largest<'a> {
    logits: &'a [f32],
    result: &'a mut Option<f32>,
}

struct Mass<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    mass: &'a mut f64,
}

// === impl Kernel ===

impl Kernel for Largest<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut lanes = L::splat(f32::NEG_INFINITY);
        let mut broken = false;
        let (vectors, tail) = self.logits.as_chunks::<LANES>();
        for vector in vectors {
            lanes = L::from_array(vector).max(lanes);
            for value in vector {
                broken |= value.is_nan();
            }
        }
        let mut largest = lanes.largest();
        for &value in tail {
            broken |= value.is_nan();
            largest = largest.max(value);
        }
        *self.result = (!broken).then_some(largest);
    }
}

impl Kernel for Mass<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (max, temperature) = (L::splat(self.max), L::splat(self.temperature));
        // f32 within a piece, f64 over the pieces: the error does not grow with the vocabulary.
        for piece in self.logits.chunks(16 * LANES) {
            let mut sum = L::splat(0.0);
            for vector in piece.chunks(LANES) {
                let weights = L::from_part(vector).sub(max).div(temperature).exp();
                sum = sum.add(weights.first(vector.len(), L::splat(0.0)));
            }
            *self.mass += f64::from(sum.sum());
        }
    }
}
