//! Activations and vectors in memory.

use super::memory::Aligned;
use crate::backend::DeviceError;

/// Activations `[rows, cols]`, row-major, with room for more rows.
#[derive(Debug)]
pub struct Tensor {
    values: Aligned<f32>,
    rows: usize,
    rows_max: usize,
    cols: usize,
}

/// A vector of f32: norm gains, biases.
#[derive(Debug)]
pub struct Vector {
    pub(super) values: Vec<f32>,
}

// === impl Tensor ===

impl Tensor {
    /// Zeros.
    pub(super) fn zeroed(rows_max: usize, cols: usize) -> Result<Self, DeviceError> {
        let values = Aligned::zeroed(rows_max.saturating_mul(cols))?;
        Ok(Self { values, rows: rows_max, rows_max, cols })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.cols]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        let length = self.rows * self.cols;
        &mut self.values[..length]
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.cols..][..self.cols]
    }

    /// Makes it `[rows, cols]`, where `cols` is what the operation produces.
    pub(super) fn shape(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        assert_eq!(self.cols, cols, "the output tensor has {} columns, needs {cols}", self.cols);
        assert!(rows <= self.rows_max, "{rows} rows in a tensor of at most {}", self.rows_max);
        self.rows = rows;
        self.values_mut()
    }
}
