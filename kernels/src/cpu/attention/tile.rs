//! Queries that share a KV head, tiled to share its loads.
//!
//! A query meets its tokens in segments of absolute order, each of a few blocks, with an online softmax
//! from segment to segment. Its arithmetic is the same in a tile of any size, and a segment in which it
//! sees nothing leaves its sums as they are. Tokens beyond a row's position are never multiplied.
//!
//! Vectors go through plain loops only: what closures take would leave the registers.
#![expect(clippy::needless_range_loop, reason = "queries index several arrays at once")]

use std::array::from_fn;

use crate::backend::AttentionShape;
use crate::batch::{BLOCK_TOKENS, Batch, Span};
use crate::cpu::memory::Disjoint;
use crate::cpu::simd::{Kernel, LANES, Lanes};
use crate::cpu::tensor::Tensor;

/// Queries of the largest tile: with two vectors of scores each, 24 of 32 registers.
pub(super) const TILE_QUERIES: usize = 12;
/// Blocks whose scores share one step of the softmax.
const SEGMENT_BLOCKS: usize = 4;
const SEGMENT_TOKENS: usize = SEGMENT_BLOCKS * BLOCK_TOKENS;

/// The queries of one sequence that share a KV head: query i is of row `i / group`, head `i % group`.
pub(super) struct Queries<'a> {
    pub(super) qkv: &'a Tensor,
    pub(super) kv: &'a [f32],
    /// Where the sequence's blocks begin, of this layer and head.
    pub(super) offsets: &'a [usize],
    pub(super) shape: AttentionShape,
    pub(super) batch: &'a Batch,
    pub(super) span: &'a Span,
    pub(super) kv_head: usize,
}

/// Some queries.
pub(super) struct Tiles<'a> {
    pub(super) queries: Queries<'a>,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) out: &'a Disjoint<'a, f32>,
}

/// The queries of a tile on their way through the segments.
struct Progress<'a, L, const N: usize> {
    /// Element by element, scaled.
    queries: Vec<[f32; N]>,
    /// Tokens that each sees: its position and all before.
    tokens: [usize; N],
    max: [f32; N],
    /// The sums of weights so far, by the token's place in its block.
    sum: [L; N],
    out: [&'a mut [f32]; N],
}

/// What a segment's scores make of its tokens.
struct Weights<const N: usize> {
    /// Tokens of the segment that each query sees.
    visible: [usize; N],
    /// What is left of the earlier segments' sums.
    shrink: [f32; N],
    weights: [[f32; SEGMENT_TOKENS]; N],
}

// === impl Tiles ===

impl Kernel for Tiles<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut query = self.first;
        while L::WIDE && query + TILE_QUERIES <= self.last {
            self.tile::<L, TILE_QUERIES, 2>(query);
            query += TILE_QUERIES;
        }
        while query + 4 <= self.last {
            if L::WIDE {
                self.tile::<L, 4, 4>(query);
            } else {
                self.tile::<L, 4, 1>(query);
            }
            query += 4;
        }
        while query + 2 <= self.last {
            self.tile::<L, 2, 2>(query);
            query += 2;
        }
        while query < self.last {
            self.tile::<L, 1, 4>(query);
            query += 1;
        }
    }
}

impl Tiles<'_> {
    /// `N` queries from `first` on, with `VECTORS` sums each in registers.
    #[inline(always)]
    fn tile<L: Lanes, const N: usize, const VECTORS: usize>(&self, first: usize) {
        let mut tile: Progress<'_, L, N> = self.start(first);
        let tokens = tile.tokens.into_iter().max().unwrap_or(0);
        for segment in 0..tokens.div_ceil(SEGMENT_TOKENS) {
            let weights = self.weigh::<L, N, VECTORS>(&mut tile, segment);
            self.add_values::<L, N, VECTORS>(&mut tile, segment, &weights);
        }
        for index in 0..N {
            let sum = tile.sum[index].sum();
            for value in &mut *tile.out[index] {
                *value /= sum;
            }
        }
    }

    #[inline(always)]
    fn start<L: Lanes, const N: usize>(&self, first: usize) -> Progress<'_, L, N> {
        let Queries { qkv, shape, batch, span, kv_head, .. } = &self.queries;
        let AttentionShape { heads, head_dim, scale, .. } = *shape;
        let group = heads / shape.kv_heads;
        let row = |index: usize| span.rows.start + (first + index) / group;
        let column = |index: usize| (kv_head * group + (first + index) % group) * head_dim;
        let rows: [&[f32]; N] = from_fn(|index| &qkv.row(row(index))[column(index)..][..head_dim]);
        let out = from_fn(|index| {
            let start = row(index) * heads * head_dim + column(index);
            // SAFETY: each query belongs to one tile.
            let out = unsafe { self.out.part(start, head_dim) };
            out.fill(0.0);
            out
        });
        Progress {
            queries: (0..head_dim).map(|element| rows.map(|row| row[element] * scale)).collect(),
            tokens: from_fn(|index| batch.positions[row(index)] as usize + 1),
            max: [f32::NEG_INFINITY; N],
            sum: [L::splat(0.0); N],
            out,
        }
    }

    /// The K and V of a block.
    #[inline(always)]
    fn block(&self, block: usize) -> (&[f32], &[f32]) {
        let length = BLOCK_TOKENS * self.queries.shape.head_dim;
        self.queries.kv[self.queries.offsets[block]..][..2 * length].split_at(length)
    }

    /// Turns a segment's scores into weights relative to each query's largest so far.
    #[inline(always)]
    fn weigh<L: Lanes, const N: usize, const VECTORS: usize>(
        &self,
        tile: &mut Progress<'_, L, N>,
        segment: usize,
    ) -> Weights<N> {
        let begin = segment * SEGMENT_TOKENS;
        let visible = tile.tokens.map(|tokens| tokens.saturating_sub(begin).min(SEGMENT_TOKENS));
        let blocks = visible.into_iter().max().unwrap_or(0).div_ceil(BLOCK_TOKENS);
        let mut scores = [[L::splat(f32::NEG_INFINITY); SEGMENT_BLOCKS]; N];
        let mut block = 0;
        while block + VECTORS <= blocks {
            let first = segment * SEGMENT_BLOCKS + block;
            let some = self.scores::<L, N, VECTORS>(&tile.queries, first);
            for index in 0..N {
                scores[index][block..block + VECTORS].copy_from_slice(&some[index]);
            }
            block += VECTORS;
        }
        while block < blocks {
            let one = self.scores::<L, N, 1>(&tile.queries, segment * SEGMENT_BLOCKS + block);
            for index in 0..N {
                scores[index][block] = one[index][0];
            }
            block += 1;
        }
        let mut weights = [[0.0; SEGMENT_TOKENS]; N];
        let mut shrink = [0.0; LANES];
        for index in 0..N {
            let seen = |block: usize| visible[index].saturating_sub(block * BLOCK_TOKENS);
            let hidden = L::splat(f32::NEG_INFINITY);
            let mut largest = hidden;
            for block in 0..SEGMENT_BLOCKS {
                scores[index][block] = scores[index][block].first(seen(block), hidden);
                largest = scores[index][block].max(largest);
            }
            let largest = largest.largest();
            let max = if tile.max[index] > largest { tile.max[index] } else { largest };
            shrink[index] = tile.max[index] - max;
            tile.max[index] = max;
            for block in 0..SEGMENT_BLOCKS {
                let weight = scores[index][block].sub(L::splat(max)).exp();
                scores[index][block] = weight.first(seen(block), L::splat(0.0));
                let to = &mut weights[index][block * LANES..][..LANES];
                scores[index][block].write_part(to);
            }
        }
        let shrink = L::from_array(&shrink).exp().to_array();
        for index in 0..N {
            let mut sum = tile.sum[index].mul_add(L::splat(shrink[index]), scores[index][0]);
            for block in 1..SEGMENT_BLOCKS {
                sum = sum.add(scores[index][block]);
            }
            tile.sum[index] = sum;
        }
        Weights { visible, shrink: from_fn(|index| shrink[index]), weights }
    }

    /// The scores of `BLOCKS` blocks, each a chain over the elements.
    #[inline(always)]
    fn scores<L: Lanes, const N: usize, const BLOCKS: usize>(
        &self,
        queries: &[[f32; N]],
        first: usize,
    ) -> [[L; BLOCKS]; N] {
        let mut from = [std::ptr::null(); BLOCKS];
        for block in 0..BLOCKS {
            from[block] = self.block(first + block).0[..queries.len() * LANES].as_ptr();
        }
        let mut scores = [[L::splat(0.0); BLOCKS]; N];
        for (element, query) in queries.iter().enumerate() {
            let mut k = [L::splat(0.0); BLOCKS];
            for block in 0..BLOCKS {
                let from = from[block].wrapping_add(element * LANES);
                // SAFETY: a block's K has a vector for each of a query's elements, see above.
                k[block] = unsafe { L::load(from) };
            }
            for index in 0..N {
                let value = L::splat(query[index]);
                for block in 0..BLOCKS {
                    scores[index][block] = k[block].mul_add(value, scores[index][block]);
                }
            }
        }
        scores
    }

    /// Adds a segment's weighted V to the output.
    #[inline(always)]
    fn add_values<L: Lanes, const N: usize, const VECTORS: usize>(
        &self,
        tile: &mut Progress<'_, L, N>,
        segment: usize,
        weights: &Weights<N>,
    ) {
        let head_dim = self.queries.shape.head_dim;
        let mut column = 0;
        while column + VECTORS * LANES <= head_dim {
            self.add_columns::<L, N, VECTORS>(tile, (segment, column), weights);
            column += VECTORS * LANES;
        }
        while column < head_dim {
            self.add_columns::<L, N, 1>(tile, (segment, column), weights);
            column += LANES;
        }
    }

    /// Some columns: first the tokens that all queries see, then each query's others.
    #[inline(always)]
    fn add_columns<L: Lanes, const N: usize, const VECTORS: usize>(
        &self,
        tile: &mut Progress<'_, L, N>,
        (segment, column): (usize, usize),
        weights: &Weights<N>,
    ) {
        let shared = weights.visible.into_iter().min().unwrap_or(0);
        let mut sums = [[L::splat(0.0); VECTORS]; N];
        for index in 0..N {
            let out = &tile.out[index][column..][..VECTORS * LANES];
            for vector in 0..VECTORS {
                let sum = L::from_part(&out[vector * LANES..][..LANES]);
                sums[index][vector] = sum.mul(L::splat(weights.shrink[index]));
            }
        }
        for begin in (0..shared).step_by(BLOCK_TOKENS) {
            let values = self.values(segment, begin, column);
            for token in begin..shared.min(begin + BLOCK_TOKENS) {
                let v: [L; VECTORS] = values.token(token - begin);
                for index in 0..N {
                    // SAFETY: the token is one of the segment's.
                    let weight = unsafe { *weights.weights[index].get_unchecked(token) };
                    for vector in 0..VECTORS {
                        sums[index][vector] =
                            v[vector].mul_add(L::splat(weight), sums[index][vector]);
                    }
                }
            }
        }
        for index in 0..N {
            for token in shared..weights.visible[index] {
                let values = self.values(segment, token, column);
                let v: [L; VECTORS] = values.token(token % BLOCK_TOKENS);
                let weight = L::splat(weights.weights[index][token]);
                for vector in 0..VECTORS {
                    sums[index][vector] = v[vector].mul_add(weight, sums[index][vector]);
                }
            }
            let out = &mut tile.out[index][column..][..VECTORS * LANES];
            for vector in 0..VECTORS {
                sums[index][vector].write_part(&mut out[vector * LANES..][..LANES]);
            }
        }
    }

    /// The V of the block that holds a segment's token, from a column on.
    #[inline(always)]
    fn values(&self, segment: usize, token: usize, column: usize) -> Values<'_> {
        let (_, v) = self.block(segment * SEGMENT_BLOCKS + token / BLOCK_TOKENS);
        Values { v, head_dim: self.queries.shape.head_dim, column }
    }
}

/// The V of one block, from a column on.
struct Values<'a> {
    v: &'a [f32],
    head_dim: usize,
    column: usize,
}

// === impl Values ===

impl Values<'_> {
    #[inline(always)]
    fn token<L: Lanes, const VECTORS: usize>(&self, token: usize) -> [L; VECTORS] {
        let from = &self.v[token * self.head_dim + self.column..][..VECTORS * LANES];
        let mut v = [L::splat(0.0); VECTORS];
        for vector in 0..VECTORS {
            v[vector] = L::from_part(&from[vector * LANES..][..LANES]);
        }
        v
    }
}
