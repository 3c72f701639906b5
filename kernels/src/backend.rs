//! The operations a device offers.

use std::fmt;

use crate::batch::Batch;
use crate::host::{HostMatrix, Summation};
use crate::sample::{SampleRow, Sampled};

/// What a device can refuse.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A tensor does not have the shape that the operation needs.
    #[error("{what} has shape [{rows}, {cols}], expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// What it should have been.
        expected: String,
    },
    /// Memory ran out.
    #[error("the device cannot hold {bytes} bytes more")]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
    },
}

/// The KV cache of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// KV heads on this rank.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Blocks of [`crate::batch::BLOCK_TOKENS`] tokens.
    pub blocks: usize,
}

/// Rotary embedding angles, `[positions, head_dim / 2]` each: computed by the model (plain, Llama-3 scaled).
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Half of the head size.
    pub half_dim: usize,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// The shape of one attention layer on one rank. A row of the fused projection is `[q heads | k heads | v heads]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Multiplies scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// A device: owns memory, runs operations in order. One per rank, driven by one thread.
///
/// Tensors are row-major activations of f32, allocated once for the largest step; an operation sets its
/// output's row count. Operations do not fail: shapes are checked when weights are loaded, and a mismatch
/// afterwards is a bug that panics.
pub trait Backend: Send + 'static {
    /// Activations `[rows <= rows_max, cols]`.
    type Tensor: Send + fmt::Debug;
    /// A weight matrix, packed for this device.
    type Weight: Send + Sync + fmt::Debug;
    /// A vector of f32 (norm gains, biases).
    type Vector: Send + Sync + fmt::Debug;
    /// The paged KV cache of all layers.
    type Kv: Send + fmt::Debug;
    /// Rotary angles on the device.
    type Rope: Send + Sync + fmt::Debug;

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When memory runs out.
    fn tensor(&self, rows_max: usize, cols: usize) -> Result<Self::Tensor, DeviceError>;

    /// Packs a weight `[outputs, inputs]`; `parts` are stacked along the outputs (fused projections).
    ///
    /// # Errors
    /// When parts disagree in inputs or element type, shards do not divide the inputs, or memory runs out.
    fn weight(
        &self,
        parts: Vec<HostMatrix>,
        summation: Summation,
    ) -> Result<Self::Weight, DeviceError>;

    /// Uploads a vector (any dtype, widened to f32).
    ///
    /// # Errors
    /// When memory runs out.
    fn vector(&self, host: &HostMatrix) -> Result<Self::Vector, DeviceError>;

    /// A KV cache; contents are undefined until written.
    ///
    /// # Errors
    /// When memory runs out.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, DeviceError>;

    /// Uploads rotary angles.
    ///
    /// # Errors
    /// When memory runs out.
    fn rope(&self, table: RopeTable) -> Result<Self::Rope, DeviceError>;

    /// `out[r] = table[ids[r]]`. The table may be the (tied) output weight. Ids are within the table.
    fn embed(&mut self, table: &Self::Weight, ids: &[u32], out: &mut Self::Tensor);

    /// `out = x / sqrt(mean(x^2) + epsilon) * gain`, row by row.
    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        gain: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Tensor,
    );

    /// `x += delta; out = rms_norm(x)`: the residual stream's two steps in one pass.
    fn add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        delta: &Self::Tensor,
        norm: (&Self::Vector, f32),
        out: &mut Self::Tensor,
    );

    /// `out = x * weight^T`, summed as the weight says (see [`Summation`]).
    fn linear(&mut self, x: &Self::Tensor, weight: &Self::Weight, out: &mut Self::Tensor);

    /// Rotates q and k of the fused projection in place (halves layout, as Hugging Face's Llama) and writes
    /// k and v to the KV cache at the batch's positions.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands, of distinct types")]
    fn rope_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        rope: &Self::Rope,
        kv: (&mut Self::Kv, usize),
        shape: AttentionShape,
        batch: &Batch,
    );

    /// Causal attention of each row over its sequence's cache, positions `0..=position`; `out` is `[rows, heads * head_dim]`.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands, of distinct types")]
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        kv: (&Self::Kv, usize),
        shape: AttentionShape,
        batch: &Batch,
        out: &mut Self::Tensor,
    );

    /// `out = silu(gate) * up` where a row of `gate_up` is `[gate | up]`.
    fn silu_mul(&mut self, gate_up: &Self::Tensor, out: &mut Self::Tensor);

    /// `out[i] = x[rows[i]]`.
    fn gather_rows(&mut self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor);

    /// Draws one token per row; may overwrite the logits.
    fn sample(&mut self, logits: &mut Self::Tensor, rows: &[SampleRow]) -> Vec<Sampled>;

    /// Rows that `x` holds now.
    fn rows(&self, x: &Self::Tensor) -> usize;

    /// Copies a tensor's rows to the host, for collectives over host memory and for tests.
    fn read(&self, x: &Self::Tensor) -> Vec<f32>;

    /// Replaces a tensor's rows by `rows` rows from the host.
    fn write(&self, x: &mut Self::Tensor, rows: usize, values: &[f32]);
}
