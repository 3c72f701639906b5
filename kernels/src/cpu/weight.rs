//! Weights, packed once for streaming.
//!
//! Sixteen outputs make a panel. Within a panel the inputs of one shard follow each other in pairs, each
//! pair holding its 16 outputs: `[panel][shard][input / 2][output][2]` for bf16, `[..][input / 2][2][output]`
//! for f32. So a product reads memory once, in order, and 32 inputs of bf16 are just an AMX tile. Outputs
//! are padded to whole panels and each shard's inputs to whole tiles, with zeros.

use half::{bf16, f16};

use super::memory::{Aligned, Disjoint, Zeroable};
use super::pool::Pool;
use super::simd::LANES;
use crate::backend::DeviceError;
use crate::host::{Dtype, HostMatrix, Summation, VIRTUAL_SHARDS};

/// Inputs of a bf16 tile; a shard is padded to a multiple.
pub(super) const TILE_INPUTS: usize = 32;

/// A weight matrix `[outputs, inputs]`.
#[derive(Debug)]
pub struct Weight {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) shards: usize,
    pub(super) elements: Elements,
}

#[derive(Debug)]
pub(super) enum Elements {
    Bf16(Aligned<bf16>),
    F32(Aligned<f32>),
}

// SAFETY: a plain number.
unsafe impl Zeroable for bf16 {}

// === impl Weight ===

impl Weight {
    pub(super) fn pack(
        parts: &[HostMatrix],
        summation: Summation,
        pool: &Pool,
    ) -> Result<Self, DeviceError> {
        let shards = match summation {
            Summation::Chain => 1,
            Summation::Shards(shards) => shards,
        };
        let inputs = check(parts, shards)?;
        let rows: Vec<&[u8]> = parts
            .iter()
            .flat_map(|part| part.bytes.chunks_exact(inputs * part.dtype.bytes()))
            .collect();
        let packing = Packing { rows: &rows, shards, shard_inputs: inputs / shards, pool };
        let elements = match parts[0].dtype {
            Dtype::Bf16 => Elements::Bf16(packing.pack(bf16::from_le_bytes)?),
            Dtype::F32 => Elements::F32(packing.pack(f32::from_le_bytes)?),
            Dtype::F16 => Elements::F32(packing.pack(|bytes| f16::from_le_bytes(bytes).to_f32())?),
        };
        Ok(Self { outputs: rows.len(), inputs, shards, elements })
    }

    /// Inputs of one shard, without and with padding.
    pub(super) fn shard_inputs(&self) -> (usize, usize) {
        let inputs = self.inputs / self.shards;
        (inputs, inputs.next_multiple_of(TILE_INPUTS))
    }

    /// Panels of [`LANES`] outputs.
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Elements of a packed panel.
    pub(super) fn panel_length(&self) -> usize {
        self.shards * self.shard_inputs().1 * LANES
    }

    /// Copies the weights of one output, widened.
    pub(super) fn copy_output(&self, output: usize, to: &mut [f32]) {
        assert!(output < self.outputs, "row {output} of a table of {}", self.outputs);
        assert_eq!(to.len(), self.inputs, "a table's rows have {} elements", self.inputs);
        let start = output / LANES * self.panel_length();
        let (inputs, padded) = self.shard_inputs();
        for (shard, to) in to.chunks_exact_mut(inputs).enumerate() {
            let from = start + shard * padded * LANES..;
            match &self.elements {
                Elements::Bf16(elements) => copy(&elements[from], output % LANES, to),
                Elements::F32(elements) => copy(&elements[from], output % LANES, to),
            }
        }
    }
}

/// Checks that the parts make one matrix; its inputs.
fn check(parts: &[HostMatrix], shards: usize) -> Result<usize, DeviceError> {
    let refuse = |part: &HostMatrix, expected: String| DeviceError::Shape {
        what: "weight",
        rows: part.rows,
        cols: part.cols,
        expected,
    };
    let nothing = HostMatrix { dtype: Dtype::F32, rows: 0, cols: 0, bytes: Vec::new() };
    let first = parts.first().unwrap_or(&nothing);
    for part in parts {
        if part.cols != first.cols || part.dtype != first.dtype {
            let expected = format!("{} columns of {:?} in every part", first.cols, first.dtype);
            return Err(refuse(part, expected));
        }
        check_bytes(part, "weight")?;
    }
    if parts.iter().map(|part| part.rows * part.cols).sum::<usize>() == 0 {
        return Err(refuse(first, "at least one element".to_owned()));
    }
    if !shards.is_power_of_two() || shards > VIRTUAL_SHARDS || !first.cols.is_multiple_of(shards) {
        let expected =
            format!("columns that {shards} shards, a power of two up to {VIRTUAL_SHARDS}, divide");
        return Err(refuse(first, expected));
    }
    Ok(first.cols)
}

/// Checks that a matrix has as many bytes as its shape says.
pub(super) fn check_bytes(matrix: &HostMatrix, what: &'static str) -> Result<(), DeviceError> {
    let elements = matrix.rows.checked_mul(matrix.cols);
    let bytes = elements.and_then(|elements| elements.checked_mul(matrix.dtype.bytes()));
    if bytes == Some(matrix.bytes.len()) {
        return Ok(());
    }
    let expected = format!("a shape of {} bytes of {:?}", matrix.bytes.len(), matrix.dtype);
    Err(DeviceError::Shape { what, rows: matrix.rows, cols: matrix.cols, expected })
}

fn copy<T: PackedElement>(shard: &[T], output: usize, to: &mut [f32]) {
    for (input, to) in to.iter_mut().enumerate() {
        *to = shard[T::place(input, output)].widen();
    }
}

// === impl PackedElement ===

/// An element type of packed weights.
trait PackedElement: Zeroable + Send + Sync {
    /// Where in a shard of a panel the weight of an input and an output lies.
    fn place(input: usize, output: usize) -> usize;
    fn widen(self) -> f32;
}

impl PackedElement for bf16 {
    fn place(input: usize, output: usize) -> usize {
        (input / 2 * LANES + output) * 2 + input % 2
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl PackedElement for f32 {
    fn place(input: usize, output: usize) -> usize {
        input * LANES + output
    }

    fn widen(self) -> f32 {
        self
    }
}

// === impl Packing ===

struct Packing<'a> {
    /// Bytes of each output's weights.
    rows: &'a [&'a [u8]],
    shards: usize,
    shard_inputs: usize,
    pool: &'a Pool,
}

impl Packing<'_> {
    fn pack<T: PackedElement, const BYTES: usize>(
        &self,
        decode: impl Fn([u8; BYTES]) -> T + Sync,
    ) -> Result<Aligned<T>, DeviceError> {
        let shard_length = self.shard_inputs.next_multiple_of(TILE_INPUTS) * LANES;
        let panel_length = self.shards * shard_length;
        let panels = self.rows.len().div_ceil(LANES);
        let mut packed = Aligned::zeroed(panels.saturating_mul(panel_length))?;
        let shared = Disjoint::new(&mut packed);
        self.pool.run(panels, &|panel| {
            // SAFETY: each panel is the part of one task.
            let to = unsafe { shared.part(panel * panel_length, panel_length) };
            let rows = &self.rows[panel * LANES..self.rows.len().min((panel + 1) * LANES)];
            for (shard, to) in to.chunks_exact_mut(shard_length).enumerate() {
                let first = shard * self.shard_inputs;
                for (output, row) in rows.iter().enumerate() {
                    let elements = row.as_chunks::<BYTES>().0;
                    let elements = &elements[first..first + self.shard_inputs];
                    for (input, &element) in elements.iter().enumerate() {
                        to[T::place(input, output)] = decode(element);
                    }
                }
            }
        });
        Ok(packed)
    }
}
