//! `out = x * weight^T` with f32 arithmetic in vectors.
//!
//! Each element of the result is a chain of multiply-adds over the inputs of a shard in their order; a
//! shard's chain is one lane of an accumulator from beginning to end, so neither the tile's size nor its
//! place changes a bit. A row-parallel weight's shards are then summed by a fixed binary tree.

use half::bf16;

use super::memory::Disjoint;
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Element, Kernel, LANES, Lanes};
use super::tensor::Tensor;
use super::weight::{Elements, Weight};
use crate::host::VIRTUAL_SHARDS;

/// Panels per task at most: enough work to hide the claim, few enough to share out evenly.
const TASK_PANELS_MAX: usize = 16;
/// Tasks per thread, so that a thread that is held up does not hold up the rest.
const TASKS_PER_THREAD: usize = 8;
/// How far ahead of its use a weight is asked for, in elements of a panel.
const PREFETCH_ELEMENTS: usize = 1024;
/// One more than the depth of the tree over the shards.
pub(super) const SHARD_LEVELS: usize = VIRTUAL_SHARDS.trailing_zeros() as usize + 1;

/// `out = x * weight^T`.
pub(super) fn linear(pool: &Pool, path: CpuPath, x: &Tensor, weight: &Weight, out: &mut Tensor) {
    let out = out.shape(x.rows(), weight.outputs);
    match &weight.elements {
        Elements::Bf16(elements) => Product::<bf16> { x, weight, elements }.run(pool, path, out),
        Elements::F32(elements) => Product::<f32> { x, weight, elements }.run(pool, path, out),
    }
}

/// How many panels a task takes.
pub(super) fn task_panels(pool: &Pool, panels: usize, least: usize) -> usize {
    let even = panels.div_ceil(pool.threads() * TASKS_PER_THREAD);
    even.next_multiple_of(least).min(TASK_PANELS_MAX)
}

struct Product<'a, E> {
    x: &'a Tensor,
    weight: &'a Weight,
    elements: &'a [E],
}

/// Some panels of a product.
struct Panels<'a, E> {
    product: &'a Product<'a, E>,
    first: usize,
    last: usize,
    out: &'a Disjoint<'a, f32>,
}

// === impl Product ===

impl<E: Element> Product<'_, E> {
    fn run(&self, pool: &Pool, path: CpuPath, out: &mut [f32]) {
        let panels = self.weight.panels();
        let step = task_panels(pool, panels, 4);
        let out = &Disjoint::new(out);
        pool.run(panels.div_ceil(step), &|task| {
            let first = task * step;
            let last = panels.min(first + step);
            simd::run(path, Panels { product: self, first, last, out });
        });
    }
}

// === impl Panels ===

impl<E: Element> Kernel for Panels<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self.product.x.rows();
        // A wide path holds 24 accumulators and the pair of weights in its 32 registers.
        match (L::WIDE, rows) {
            (true, 12..) => self.columns::<L, 12, 2>(),
            (true, 4..) => self.columns::<L, 4, 4>(),
            (false, 4..) => self.columns::<L, 4, 1>(),
            (_, _) => self.columns::<L, 1, 4>(),
        }
    }
}

impl<E: Element> Panels<'_, E> {
    /// All rows of all panels, in tiles of at most `ROWS` by `PANELS`.
    #[inline(always)]
    fn columns<L: Lanes, const ROWS: usize, const PANELS: usize>(&self) {
        let mut panel = self.first;
        while panel + PANELS <= self.last {
            self.rows::<L, ROWS, PANELS>(panel);
            panel += PANELS;
        }
        while panel < self.last {
            self.rows::<L, ROWS, 1>(panel);
            panel += 1;
        }
    }

    #[inline(always)]
    fn rows<L: Lanes, const ROWS: usize, const PANELS: usize>(&self, panel: usize) {
        let rows = self.product.x.rows();
        let mut row = 0;
        while row + ROWS <= rows {
            self.shards::<L, ROWS, PANELS>(row, panel);
            row += ROWS;
        }
        while ROWS > 4 && row + 4 <= rows {
            self.shards::<L, 4, PANELS>(row, panel);
            row += 4;
        }
        while row < rows {
            self.shards::<L, 1, PANELS>(row, panel);
            row += 1;
        }
    }

    /// One tile of the result: its shards' chains, summed by a binary tree.
    #[inline(always)]
    fn shards<L: Lanes, const ROWS: usize, const PANELS: usize>(&self, row: usize, panel: usize) {
        let shards = self.product.weight.shards;
        if shards == 1 {
            let tile = self.chain::<L, ROWS, PANELS>(row, panel, 0);
            return self.write(row, panel, &tile);
        }
        // As a binary counter: level i holds the sum of 2^i neighbouring shards.
        let mut levels = [[[L::splat(0.0); PANELS]; ROWS]; SHARD_LEVELS];
        for shard in 0..shards {
            let mut tile = self.chain::<L, ROWS, PANELS>(row, panel, shard);
            let mut level = 0;
            while shard >> level & 1 == 1 {
                for (sums, earlier) in tile.iter_mut().zip(&levels[level]) {
                    for (sum, earlier) in sums.iter_mut().zip(earlier) {
                        *sum = earlier.add(*sum);
                    }
                }
                level += 1;
            }
            levels[level] = tile;
        }
        self.write(row, panel, &levels[shards.trailing_zeros() as usize]);
    }

    #[expect(clippy::needless_range_loop, reason = "rows and panels index several arrays at once")]
    #[inline(always)]
    fn chain<L: Lanes, const ROWS: usize, const PANELS: usize>(
        &self,
        row: usize,
        panel: usize,
        shard: usize,
    ) -> [[L; PANELS]; ROWS] {
        let Product { x, weight, elements } = self.product;
        let (inputs, padded) = weight.shard_inputs();
        let panel_length = weight.panel_length();
        let cols = x.cols();
        let x = &x.values()[row * cols..(row + ROWS) * cols][shard * inputs..];
        let elements = &elements[panel * panel_length..(panel + PANELS) * panel_length];
        let elements = elements[shard * padded * LANES..].as_ptr();
        let mut sums = [[L::splat(0.0); PANELS]; ROWS];
        for pair in 0..inputs / 2 {
            let place = pair * 2 * LANES;
            let mut first = [L::splat(0.0); PANELS];
            let mut second = [L::splat(0.0); PANELS];
            for panel in 0..PANELS {
                let from = elements.wrapping_add(panel * panel_length + place);
                L::prefetch(from.wrapping_add(PREFETCH_ELEMENTS));
                // SAFETY: within the panel's shard, since the pair is within its inputs.
                (first[panel], second[panel]) = unsafe { E::pair(from) };
            }
            for row in 0..ROWS {
                // SAFETY: row and input are within the slice of ROWS rows.
                let values = unsafe { x.get_unchecked(row * cols + pair * 2..) };
                // SAFETY: the pair has a first input.
                let value = L::splat(unsafe { *values.get_unchecked(0) });
                for panel in 0..PANELS {
                    sums[row][panel] = first[panel].mul_add(value, sums[row][panel]);
                }
                // SAFETY: the pair has a second input.
                let value = L::splat(unsafe { *values.get_unchecked(1) });
                for panel in 0..PANELS {
                    sums[row][panel] = second[panel].mul_add(value, sums[row][panel]);
                }
            }
        }
        if inputs % 2 == 1 {
            for panel in 0..PANELS {
                let from = elements.wrapping_add(panel * panel_length + (inputs - 1) * LANES);
                // SAFETY: the padded shard has a whole pair here.
                let (first, _) = unsafe { E::pair::<L>(from) };
                for row in 0..ROWS {
                    let value = L::splat(x[row * cols + inputs - 1]);
                    sums[row][panel] = first.mul_add(value, sums[row][panel]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn write<L: Lanes, const ROWS: usize, const PANELS: usize>(
        &self,
        row: usize,
        panel: usize,
        tile: &[[L; PANELS]; ROWS],
    ) {
        let outputs = self.product.weight.outputs;
        for (index, sums) in tile.iter().enumerate() {
            for (offset, sums) in sums.iter().enumerate() {
                let output = (panel + offset) * LANES;
                let width = LANES.min(outputs - output);
                // SAFETY: a panel's columns of a row belong to one task.
                let to = unsafe { self.out.part((row + index) * outputs + output, width) };
                to.copy_from_slice(&sums.to_array()[..width]);
            }
        }
    }
}
