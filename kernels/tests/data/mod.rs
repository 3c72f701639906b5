//! Random matrices and exact references for the tests.
#![allow(dead_code, reason = "each test program uses its own part")]

use half::{bf16, f16};
use phalanx_kernels::Backend;
use phalanx_kernels::cpu::{Cpu, CpuPath, Tensor};
use phalanx_kernels::host::{Dtype, HostMatrix};

/// A device for each path that this processor has.
pub(crate) fn cpus(threads: usize) -> Vec<Cpu> {
    CpuPath::ALL
        .into_iter()
        .filter(|path| path.is_available())
        .map(|path| Cpu::new(threads, path))
        .collect()
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn f32_matrix(rows: usize, cols: usize, seed: u64) -> HostMatrix {
    let bytes = noise(rows * cols, seed).into_iter().flat_map(f32::to_le_bytes).collect();
    HostMatrix { dtype: Dtype::F32, rows, cols, bytes }
}

pub(crate) fn bf16_matrix(rows: usize, cols: usize, seed: u64) -> HostMatrix {
    let values = noise(rows * cols, seed).into_iter();
    let bytes = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
    HostMatrix { dtype: Dtype::Bf16, rows, cols, bytes }
}

pub(crate) fn f16_matrix(rows: usize, cols: usize, seed: u64) -> HostMatrix {
    let values = noise(rows * cols, seed).into_iter();
    let bytes = values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
    HostMatrix { dtype: Dtype::F16, rows, cols, bytes }
}

/// A matrix's elements as f32.
pub(crate) fn widen(matrix: &HostMatrix) -> Vec<f32> {
    match matrix.dtype {
        Dtype::F32 => matrix.bytes.as_chunks().0.iter().map(|&e| f32::from_le_bytes(e)).collect(),
        Dtype::Bf16 => {
            matrix.bytes.as_chunks().0.iter().map(|&e| bf16::from_le_bytes(e).to_f32()).collect()
        }
        Dtype::F16 => {
            matrix.bytes.as_chunks().0.iter().map(|&e| f16::from_le_bytes(e).to_f32()).collect()
        }
    }
}

/// Row `row` of rows of `cols`.
pub(crate) fn row_of(values: &[f32], row: usize, cols: usize) -> &[f32] {
    &values[row * cols..(row + 1) * cols]
}

/// A tensor of `rows` rows.
pub(crate) fn rows_tensor(cpu: &Cpu, values: &[f32], rows: usize) -> Tensor {
    let mut tensor = cpu.tensor(rows, values.len() / rows).expect("memory for a small tensor");
    cpu.write(&mut tensor, rows, values);
    tensor
}

/// The exact product, and the sum of its terms' sizes to measure an error by.
pub(crate) fn reference_product(x: &[f32], rows: usize, weight: &HostMatrix) -> Vec<(f64, f64)> {
    let elements = widen(weight);
    let mut result = Vec::new();
    for row in 0..rows {
        for output in 0..weight.rows {
            let terms =
                row_of(x, row, weight.cols).iter().zip(row_of(&elements, output, weight.cols));
            let terms = terms.map(|(&x, &w)| f64::from(x) * f64::from(w));
            result.push(terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs())));
        }
    }
    result
}
