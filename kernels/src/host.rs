//! Tensors in host memory, on their way to a device.

/// Element types found in weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision; widened to f32 on load, which loses nothing.
    F16,
}

impl Dtype {
    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A row-major matrix `[rows, cols]` of little-endian elements.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    /// Element type.
    pub dtype: Dtype,
    /// For a weight: outputs.
    pub rows: usize,
    /// For a weight: inputs.
    pub cols: usize,
    /// `rows * cols * dtype.bytes()` bytes.
    pub bytes: Vec<u8>,
}

/// How a weight takes part in tensor parallelism, and so in which order its products are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summation {
    /// One chain over all inputs: replicated and column-parallel weights.
    Chain,
    /// The inputs are cut into this many equal virtual shards, each summed as a chain, the shards by a
    /// fixed binary tree: row-parallel weights. A rank of `w` holds `8 / w` neighbouring shards, so its
    /// own tree and the tree over ranks make the same sum whatever `w` is.
    Shards(usize),
}

/// Virtual shards of a row-parallel weight over the whole group: the largest tensor-parallel degree whose
/// results are bit for bit those of one rank.
pub const VIRTUAL_SHARDS: usize = 8;
