//! Norms, the gated activation and rotary embedding: work on each row by itself.

use super::memory::Disjoint;
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Kernel, LANES, Lanes};
use super::tensor::{Tensor, Vector};

/// Elements below which a job costs more to share than to do.
const TASK_ELEMENTS_MIN: usize = 16 * 1024;

/// Runs `work(first row, last row)` over all rows, in shares worth sharing.
pub(super) fn by_rows(pool: &Pool, rows: usize, cols: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let step = TASK_ELEMENTS_MIN.div_ceil(cols.max(1));
    pool.run(rows.div_ceil(step), &|task| work(task * step, rows.min((task + 1) * step)));
}

/// `out = x / sqrt(mean(x^2) + epsilon) * gain`.
pub(super) fn rms_norm(
    (pool, path): (&Pool, CpuPath),
    x: &Tensor,
    (gain, epsilon): (&Vector, f32),
    out: &mut Tensor,
) {
    let cols = x.cols();
    assert_eq!(
        gain.values.len(),
        cols,
        "a norm of {cols} columns with {} gains",
        gain.values.len()
    );
    let out = Disjoint::new(out.shape(x.rows(), cols));
    by_rows(pool, x.rows(), cols, &|first, last| {
        for row in first..last {
            // SAFETY: each row is written by one task.
            let out = unsafe { out.part(row * cols, cols) };
            simd::run(path, RmsNorm { x: x.row(row), gain: &gain.values, epsilon, out });
        }
    });
}

/// `x += delta`, then its norm.
pub(super) fn add_rms_norm(
    (pool, path): (&Pool, CpuPath),
    x: &mut Tensor,
    delta: &Tensor,
    (gain, epsilon): (&Vector, f32),
    out: &mut Tensor,
) {
    let (rows, cols) = (x.rows(), x.cols());
    assert_eq!((delta.rows(), delta.cols()), (rows, cols), "a sum of unequal tensors");
    assert_eq!(
        gain.values.len(),
        cols,
        "a norm of {cols} columns with {} gains",
        gain.values.len()
    );
    let out = Disjoint::new(out.shape(rows, cols));
    let sums = Disjoint::new(x.values_mut());
    by_rows(pool, rows, cols, &|first, last| {
        for row in first..last {
            // SAFETY: each row is written by one task.
            let x = unsafe { sums.part(row * cols, cols) };
            // SAFETY: each row is written by one task.
            let out = unsafe { out.part(row * cols, cols) };
            simd::run(path, Add { x, delta: delta.row(row) });
            simd::run(path, RmsNorm { x, gain: &gain.values, epsilon, out });
        }
    });
}

/// `out = silu(gate) * up`.
pub(super) fn silu_mul((pool, path): (&Pool, CpuPath), gate_up: &Tensor, out: &mut Tensor) {
    let cols = gate_up.cols() / 2;
    assert_eq!(gate_up.cols(), cols * 2, "gate and up have unequal columns");
    let out = Disjoint::new(out.shape(gate_up.rows(), cols));
    by_rows(pool, gate_up.rows(), cols, &|first, last| {
        for row in first..last {
            // SAFETY: each row is written by one task.
            let out = unsafe { out.part(row * cols, cols) };
            let (gate, up) = gate_up.row(row).split_at(cols);
            simd::run(path, SiluMul { gate, up, out });
        }
    });
}

/// Rotates one head in place: element i goes with element i + half.
pub(super) struct Rotate<'a> {
    pub(super) head: &'a mut [f32],
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

struct RmsNorm<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

struct Add<'a> {
    x: &'a mut [f32],
    delta: &'a [f32],
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

// === impl Kernel ===

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut squares = L::splat(0.0);
        let (vectors, tail) = self.x.as_chunks::<LANES>();
        for vector in vectors {
            let vector = L::from_array(vector);
            squares = vector.mul_add(vector, squares);
        }
        let tail = L::from_part(tail);
        squares = tail.mul_add(tail, squares);
        let mean = squares.sum() / self.x.len() as f32;
        let factor = 1.0 / (mean + self.epsilon).sqrt();
        for ((out, x), gain) in self.out.iter_mut().zip(self.x).zip(self.gain) {
            *out = x * factor * gain;
        }
    }
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, delta) in self.x.iter_mut().zip(self.delta) {
            *x += delta;
        }
    }
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let parts = self.out.chunks_mut(LANES).zip(self.gate.chunks(LANES));
        for ((out, gate), up) in parts.zip(self.up.chunks(LANES)) {
            let gate = L::from_part(gate);
            let one = L::splat(1.0);
            let sigmoid_inverse = one.add(L::splat(0.0).sub(gate).exp());
            let product = gate.div(sigmoid_inverse).mul(L::from_part(up));
            product.write_part(out);
        }
    }
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (lower, upper) = self.head.split_at_mut(self.cos.len());
        let angles = self.cos.iter().zip(self.sin);
        for ((a, b), (cos, sin)) in lower.iter_mut().zip(upper).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
