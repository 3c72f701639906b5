//! The CPU.
//!
//! ```text
//! Cpu ── pool: threads share an operation's tasks
//!     ├─ weight, linear, amx: products; amx only with bf16 weights on a processor that has it
//!     ├─ attention: the KV cache, rotary embedding into it, attention over it
//!     ├─ elementwise, sample
//!     └─ simd: sixteen lanes on each CpuPath
//! ```

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod elementwise;
mod linear;
mod memory;
mod path;
mod pool;
pub mod probe;
mod sample;
mod simd;
mod tensor;
mod weight;

pub use self::attention::Kv;
pub use self::path::{CpuPath, UnknownPath};
pub use self::tensor::{Tensor, Vector};
pub use self::weight::Weight;

use half::{bf16, f16};

use self::pool::Pool;
use self::weight::Elements;
use crate::backend::{AttentionShape, Backend, DeviceError, KvShape, RopeTable};
use crate::batch::Batch;
use crate::host::{Dtype, HostMatrix, Summation};
use crate::sample::{SampleRow, Sampled};

/// The CPU as a device.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    path: CpuPath,
    /// Room for a product's activations, kept between products.
    #[cfg(target_arch = "x86_64")]
    activations: amx::Activations,
}

// === impl Cpu ===

impl Cpu {
    /// A device of `threads` threads, the caller's among them, using the instructions of `path`; the
    /// portable ones if this processor lacks them.
    pub fn new(threads: usize, path: CpuPath) -> Self {
        let path = if path.is_available() { path } else { CpuPath::Portable };
        Self {
            pool: Pool::new(threads.max(1)),
            path,
            #[cfg(target_arch = "x86_64")]
            activations: amx::Activations::default(),
        }
    }

    /// The instructions in use.
    pub fn path(&self) -> CpuPath {
        self.path
    }

    /// Threads in use, the caller's among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn context(&self) -> (&Pool, CpuPath) {
        (&self.pool, self.path)
    }
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Weight = Weight;
    type Vector = Vector;
    type Kv = Kv;
    type Rope = RopeTable;

    fn tensor(&self, rows_max: usize, cols: usize) -> Result<Tensor, DeviceError> {
        Tensor::zeroed(rows_max, cols)
    }

    fn weight(&self, parts: Vec<HostMatrix>, summation: Summation) -> Result<Weight, DeviceError> {
        Weight::pack(&parts, summation, &self.pool)
    }

    fn vector(&self, host: &HostMatrix) -> Result<Vector, DeviceError> {
        weight::check_bytes(host, "vector")?;
        let values = match host.dtype {
            Dtype::F32 => widen(&host.bytes, f32::from_le_bytes),
            Dtype::Bf16 => widen(&host.bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => widen(&host.bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        };
        Ok(Vector { values })
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, DeviceError> {
        Kv::new(shape)
    }

    fn rope(&self, table: RopeTable) -> Result<RopeTable, DeviceError> {
        if table.half_dim > 0
            && table.cos.len() == table.sin.len()
            && table.cos.len().is_multiple_of(table.half_dim)
        {
            return Ok(table);
        }
        Err(DeviceError::Shape {
            what: "rotary table",
            rows: table.cos.len(),
            cols: table.half_dim,
            expected: "as many sines as cosines, in whole rows".to_owned(),
        })
    }

    fn embed(&mut self, table: &Weight, ids: &[u32], out: &mut Tensor) {
        let cols = table.inputs;
        let rows = out.shape(ids.len(), cols);
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(cols)) {
            table.copy_output(id as usize, row);
        }
    }

    fn rms_norm(&mut self, x: &Tensor, gain: &Vector, epsilon: f32, out: &mut Tensor) {
        elementwise::rms_norm(self.context(), x, (gain, epsilon), out);
    }

    fn add_rms_norm(
        &mut self,
        x: &mut Tensor,
        delta: &Tensor,
        norm: (&Vector, f32),
        out: &mut Tensor,
    ) {
        elementwise::add_rms_norm(self.context(), x, delta, norm, out);
    }

    fn linear(&mut self, x: &Tensor, weight: &Weight, out: &mut Tensor) {
        assert_eq!(x.cols(), weight.inputs, "columns times {} inputs", weight.inputs);
        #[cfg(target_arch = "x86_64")]
        if let (CpuPath::Amx, Elements::Bf16(elements)) = (self.path, &weight.elements) {
            amx::linear(&self.pool, &mut self.activations, x, (weight, elements), out);
            return;
        }
        linear::linear(&self.pool, self.path, x, weight, out);
    }

    fn rope_kv(
        &mut self,
        qkv: &mut Tensor,
        rope: &RopeTable,
        kv: (&mut Kv, usize),
        shape: AttentionShape,
        batch: &Batch,
    ) {
        attention::rope_kv(self.context(), qkv, rope, kv, (shape, batch));
    }

    fn attention(
        &mut self,
        qkv: &Tensor,
        kv: (&Kv, usize),
        shape: AttentionShape,
        batch: &Batch,
        out: &mut Tensor,
    ) {
        attention::attention(self.context(), qkv, kv, (shape, batch), out);
    }

    fn silu_mul(&mut self, gate_up: &Tensor, out: &mut Tensor) {
        elementwise::silu_mul(self.context(), gate_up, out);
    }

    fn gather_rows(&mut self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        let cols = x.cols();
        let to = out.shape(rows.len(), cols);
        for (&row, to) in rows.iter().zip(to.chunks_exact_mut(cols)) {
            to.copy_from_slice(x.row(row));
        }
    }

    fn sample(&mut self, logits: &mut Tensor, rows: &[SampleRow]) -> Vec<Sampled> {
        sample::sample(self.context(), logits, rows)
    }

    fn rows(&self, x: &Tensor) -> usize {
        x.rows()
    }

    fn read(&self, x: &Tensor) -> Vec<f32> {
        x.values().to_vec()
    }

    fn write(&self, x: &mut Tensor, rows: usize, values: &[f32]) {
        let cols = x.cols();
        let to = x.shape(rows, cols);
        assert_eq!(to.len(), values.len(), "values of {rows} rows of {cols}");
        to.copy_from_slice(values);
    }
}

fn widen<const BYTES: usize>(bytes: &[u8], decode: impl Fn([u8; BYTES]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<BYTES>().0.iter().map(|&element| decode(element)).collect()
}
