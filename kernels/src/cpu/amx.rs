//! `out = x * weight^T` for bf16 weights with AMX tiles.
//!
//! An activation becomes the sum of two bf16, its rounding and the rest, which keeps 16 bits of its
//! mantissa; both are multiplied with the weight's tile, the rest first, and added to one f32 tile of sums
//! over the inputs in their order. A row of a tile is computed by itself, so its bits depend neither on
//! how many rows a tile holds nor on the shape of the block of tiles: one row of a decode has the same
//! bits as the same row in a prefill.

mod tile;

use std::cell::RefCell;

use half::bf16;

use self::tile::{Line, TILE_ROWS, Tiles};
use super::elementwise::by_rows;
use super::linear::{SHARD_LEVELS, task_panels};
use super::memory::Disjoint;
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Kernel, LANES, Lanes};
use super::tensor::Tensor;
use super::weight::{TILE_INPUTS, Weight};

/// Tiles of inputs that are worked through at once: with [`ROW_TILES_MAX`] rows, 1 MiB of activations,
/// which stay in the second-level cache while the weights pass by.
const STEPS_MAX: usize = 32;
/// Tiles of rows that share one pass over the weights.
const ROW_TILES_MAX: usize = 16;
/// Tiles of sums that are in registers at once.
const BLOCK_TILES: usize = 4;
/// Elements of a tile of sums.
const TILE_SUMS: usize = TILE_ROWS * LANES;

thread_local! {
    /// The sums of a thread's task, kept between tasks: for each level of the tree over shards, all blocks.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Activations as tiles: `[row tile][step][rounding, rest][row]`, a line holding 32 inputs of a row.
#[derive(Debug, Default)]
pub(super) struct Activations {
    lines: Vec<Line>,
}

/// `out = x * weight^T`.
pub(super) fn linear(
    pool: &Pool,
    activations: &mut Activations,
    x: &Tensor,
    (weight, elements): (&Weight, &[bf16]),
    out: &mut Tensor,
) {
    let rows = x.rows();
    let out = out.shape(rows, weight.outputs);
    activations.split(pool, x, weight);
    let row_tiles = row_tiles(rows);
    let product = Product { lines: &activations.lines, rows, weight, elements };
    let panels = weight.panels();
    let step = task_panels(pool, panels, BLOCK_TILES);
    let row_blocks = row_tiles.div_ceil(ROW_TILES_MAX);
    let out = &Disjoint::new(out);
    pool.run(panels.div_ceil(step) * row_blocks, &|task| {
        // Neighbouring tasks share the weights, which then come from a cache.
        let (chunk, row_block) = (task / row_blocks, task % row_blocks);
        let part = Part {
            product: &product,
            panels: (chunk * step, panels.min((chunk + 1) * step)),
            row_tiles: (row_block * ROW_TILES_MAX, row_tiles.min((row_block + 1) * ROW_TILES_MAX)),
        };
        SUMS.with_borrow_mut(|sums| part.run(sums, out));
    });
}

/// One tile of up to 16 rows, else an even number of tiles.
fn row_tiles(rows: usize) -> usize {
    if rows <= TILE_ROWS { 1 } else { rows.div_ceil(2 * TILE_ROWS) * 2 }
}

struct Product<'a> {
    lines: &'a [Line],
    rows: usize,
    weight: &'a Weight,
    elements: &'a [bf16],
}

/// Some panels for some rows: one task.
struct Part<'a> {
    product: &'a Product<'a>,
    panels: (usize, usize),
    row_tiles: (usize, usize),
}

/// Inputs in one piece: steps of one shard.
#[derive(Clone, Copy)]
struct Segment {
    first_step: usize,
    steps: usize,
}

// === impl Activations ===

impl Activations {
    /// Splits `x` for a product with `weight`.
    fn split(&mut self, pool: &Pool, x: &Tensor, weight: &Weight) {
        let (rows, cols) = (x.rows(), x.cols());
        let (inputs, padded) = weight.shard_inputs();
        let steps = weight.shards * padded / TILE_INPUTS;
        let tile_lines = steps * 2 * TILE_ROWS;
        self.lines.resize(row_tiles(rows) * tile_lines, Line::ZERO);
        let lines = Disjoint::new(&mut self.lines);
        by_rows(pool, row_tiles(rows) * TILE_ROWS, cols, &|first, last| {
            for row in first..last {
                let x = if row < rows { x.row(row) } else { &[] };
                for step in 0..steps {
                    let shard = step * TILE_INPUTS / padded;
                    let begin = shard * inputs + step * TILE_INPUTS % padded;
                    let end = ((shard + 1) * inputs).min(begin + TILE_INPUTS);
                    let values = x.get(begin..end).unwrap_or(&[]);
                    let place =
                        row / TILE_ROWS * tile_lines + step * 2 * TILE_ROWS + row % TILE_ROWS;
                    // SAFETY: each row has lines of its own.
                    let rounded = unsafe { lines.part(place, 1) };
                    // SAFETY: each row has lines of its own.
                    let rest = unsafe { lines.part(place + TILE_ROWS, 1) };
                    let kernel = Split { values, rounded: &mut rounded[0], rest: &mut rest[0] };
                    simd::run(CpuPath::Amx, kernel);
                }
            }
        });
    }
}

struct Split<'a> {
    values: &'a [f32],
    rounded: &'a mut Line,
    rest: &'a mut Line,
}

impl Kernel for Split<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut values = [0.0; TILE_INPUTS];
        values[..self.values.len()].copy_from_slice(self.values);
        for (index, value) in values.into_iter().enumerate() {
            let rounded = round(value);
            self.rounded.0[index] = rounded;
            self.rest.0[index] = round(value - f32::from_bits(u32::from(rounded) << 16));
        }
    }
}

/// The nearest bf16's bits, to even at halves. Unlike a conversion of `half`, it compiles to vectors.
#[inline(always)]
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if value.is_nan() { bits | 0x0040_0000 } else { rounded } >> 16) as u16
}

// === impl Part ===

impl Part<'_> {
    fn run(&self, sums: &mut Vec<f32>, out: &Disjoint<'_, f32>) {
        let weight = self.product.weight;
        let shard_steps = weight.shard_inputs().1 / TILE_INPUTS;
        let level_length = self.blocks() * BLOCK_TILES * TILE_SUMS;
        if sums.len() < level_length * SHARD_LEVELS {
            sums.resize(level_length * SHARD_LEVELS, 0.0);
        }
        let tiles = Tiles::configure(self.product.rows.min(TILE_ROWS));
        // As a binary counter: the levels in use are the ones of the number of finished shards.
        for shard in 0..weight.shards {
            let mut level = shard.count_ones() as usize;
            let level_sums = &mut sums[level * level_length..(level + 1) * level_length];
            level_sums.fill(0.0);
            for step in (0..shard_steps).step_by(STEPS_MAX) {
                let first_step = shard * shard_steps + step;
                let segment = Segment { first_step, steps: STEPS_MAX.min(shard_steps - step) };
                self.multiply(&tiles, segment, level_sums);
            }
            for _ in 0..shard.trailing_ones() {
                let (earlier, later) = sums.split_at_mut(level * level_length);
                let earlier = &mut earlier[(level - 1) * level_length..];
                simd::run(CpuPath::Amx, AddTo { earlier, later: &later[..level_length] });
                level -= 1;
            }
        }
        drop(tiles);
        self.write(&sums[..level_length], out);
    }

    /// Whether the rows fit one tile, so that a block is one row of four tiles, not two rows of two.
    fn is_flat(&self) -> bool {
        self.product.rows <= TILE_ROWS
    }

    fn panels_per_block(&self) -> usize {
        if self.is_flat() { BLOCK_TILES } else { BLOCK_TILES / 2 }
    }

    fn row_tiles_per_block(&self) -> usize {
        BLOCK_TILES / self.panels_per_block()
    }

    fn blocks(&self) -> usize {
        let panels = self.panels.1 - self.panels.0;
        let row_tiles = self.row_tiles.1 - self.row_tiles.0;
        panels.div_ceil(self.panels_per_block()) * (row_tiles / self.row_tiles_per_block())
    }

    /// Adds a segment's products to all blocks.
    fn multiply(&self, tiles: &Tiles, segment: Segment, sums: &mut [f32]) {
        let mut blocks = sums.as_chunks_mut::<{ BLOCK_TILES * TILE_SUMS }>().0.iter_mut();
        for panel in (self.panels.0..self.panels.1).step_by(self.panels_per_block()) {
            let from = |offset: usize| self.panel(panel + offset, segment);
            if self.is_flat() {
                let weights = [from(0), from(1), from(2), from(3)];
                if let Some(block) = blocks.next() {
                    let lines = self.row_tile(self.row_tiles.0, segment);
                    tiles.multiply_flat(lines, weights, block);
                }
                continue;
            }
            let next = [from(2), from(3)];
            let mut ahead = 0;
            for row_tile in (self.row_tiles.0..self.row_tiles.1).step_by(2) {
                let Some(block) = blocks.next() else { return };
                let lines =
                    [self.row_tile(row_tile, segment), self.row_tile(row_tile + 1, segment)];
                let part = segment.steps * tile::AHEAD_ELEMENTS;
                let ahead_of = next.map(|next| &next[ahead.min(next.len())..]);
                tiles.multiply_square(lines, [from(0), from(1)], ahead_of, block);
                ahead += part;
            }
        }
    }

    /// A segment of a panel; beyond the last panel, of the last.
    fn panel(&self, panel: usize, segment: Segment) -> &[bf16] {
        let weight = self.product.weight;
        let start = panel.min(self.panels.1 - 1) * weight.panel_length();
        let start = start + segment.first_step * TILE_INPUTS * LANES;
        &self.product.elements[start..start + segment.steps * TILE_INPUTS * LANES]
    }

    /// A segment of a tile of rows.
    fn row_tile(&self, row_tile: usize, segment: Segment) -> &[Line] {
        let weight = self.product.weight;
        let steps = weight.shards * weight.shard_inputs().1 / TILE_INPUTS;
        let start = (row_tile * steps + segment.first_step) * 2 * TILE_ROWS;
        &self.product.lines[start..start + segment.steps * 2 * TILE_ROWS]
    }

    /// Copies the sums of real rows and outputs to the result.
    fn write(&self, sums: &[f32], out: &Disjoint<'_, f32>) {
        let outputs = self.product.weight.outputs;
        let row_blocks = (self.row_tiles.1 - self.row_tiles.0) / self.row_tiles_per_block();
        for (index, tile) in sums.as_chunks::<TILE_SUMS>().0.iter().enumerate() {
            let (block, tile_index) = (index / BLOCK_TILES, index % BLOCK_TILES);
            let panels = self.panels_per_block();
            let panel = self.panels.0 + block / row_blocks * panels + tile_index % panels;
            let row_tile = self.row_tiles.0
                + block % row_blocks * self.row_tiles_per_block()
                + tile_index / panels;
            let first = row_tile * TILE_ROWS;
            let last = self.product.rows.min(first + TILE_ROWS);
            if panel >= self.panels.1 || first >= last {
                continue;
            }
            let output = panel * LANES;
            let width = LANES.min(outputs - output);
            for (row, sums) in (first..last).zip(tile.as_chunks::<LANES>().0) {
                // SAFETY: a panel's columns of a row belong to one task.
                let to = unsafe { out.part(row * outputs + output, width) };
                // A whole vector is copied in place, without a call.
                if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
                    *to = *sums;
                } else {
                    to.copy_from_slice(&sums[..width]);
                }
            }
        }
    }
}

struct AddTo<'a> {
    earlier: &'a mut [f32],
    later: &'a [f32],
}

impl Kernel for AddTo<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (earlier, later) in self.earlier.iter_mut().zip(self.later) {
            *earlier += later;
        }
    }
}
