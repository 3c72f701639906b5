//! What this machine can do at best, to hold the operations' figures against.

use std::hint::black_box;
use std::time::Instant;

use super::memory::{Aligned, Disjoint};
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Kernel, LANES, Lanes};
use crate::backend::DeviceError;

/// Bytes read per pass: several times what even a large shared cache holds of one process.
const READ_BYTES: usize = 1 << 30;
/// Passes; the best counts, since neighbours on the machine only ever slow one down.
const PASSES: usize = 8;
/// Bytes per task of a pass.
const READ_TASK_BYTES: usize = 8 << 20;
/// How far ahead lines are asked for.
const READ_AHEAD_ELEMENTS: usize = 1024;

/// Plain reading with `threads` threads, in 10^9 bytes per second.
///
/// # Errors
/// When there is no memory for the buffer.
pub fn read_gbps(threads: usize) -> Result<f64, DeviceError> {
    let (pool, path) = (Pool::new(threads), CpuPath::detect());
    let mut buffer = Aligned::<f32>::zeroed(READ_BYTES / 4)?;
    // Written once: zeroed pages are not memory yet.
    buffer.fill(1.0);
    let tasks: Vec<&[f32]> = buffer.chunks(READ_TASK_BYTES / 4).collect();
    let seconds = best_of(PASSES, || {
        pool.run(tasks.len(), &|task| simd::run(path, Read { values: tasks[task] }));
    });
    Ok(READ_BYTES as f64 / seconds / 1e9)
}

/// The shortest of several runs, in seconds.
fn best_of(passes: usize, mut run: impl FnMut()) -> f64 {
    let times = (0..passes).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Sums a slice with the widest vectors there are, and asks for lines ahead of their use.
struct Read<'a> {
    values: &'a [f32],
}

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut sums = [L::splat(0.0); 4];
        for chunk in self.values.as_chunks::<{ 4 * LANES }>().0 {
            for (sum, vector) in sums.iter_mut().zip(chunk.as_chunks::<LANES>().0) {
                L::prefetch(vector.as_ptr().wrapping_add(READ_AHEAD_ELEMENTS));
                *sum = sum.add(L::from_array(vector));
            }
        }
        black_box(sums.map(L::sum));
    }
}

/// A straightforward product of bf16 matrices with `threads` threads, `[512, 4096] x [4096, 4096]`, by
/// AVX-512's own instruction for it, in 10^9 operations per second. None where the processor lacks it.
///
/// # Errors
/// When there is no memory for the matrices.
pub fn gemm_gflops(threads: usize) -> Result<Option<f64>, DeviceError> {
    const ROWS: usize = 512;
    const SIDE: usize = 4096;
    const PANEL_OUTPUTS: usize = 32;
    if !dense::is_available() {
        return Ok(None);
    }
    let pool = Pool::new(threads);
    let mut x = Aligned::<u16>::zeroed(ROWS * SIDE)?;
    x.fill(0x3f80);
    let mut weight = Aligned::<u16>::zeroed(SIDE * SIDE)?;
    weight.fill(0x3c00);
    let mut out = Aligned::<f32>::zeroed(ROWS * SIDE)?;
    let seconds = best_of(PASSES, || {
        let out = Disjoint::new(&mut out);
        pool.run(SIDE / PANEL_OUTPUTS, &|task| {
            let panel = &weight[task * PANEL_OUTPUTS * SIDE..][..PANEL_OUTPUTS * SIDE];
            for row in (0..ROWS).step_by(dense::TILE_ROWS) {
                // The last tile overlaps the one before it, with equal results.
                let row = row.min(ROWS - dense::TILE_ROWS);
                let sums = dense::tile(&x[row * SIDE..][..dense::TILE_ROWS * SIDE], panel);
                for (index, sums) in sums.iter().enumerate() {
                    let start = (row + index) * SIDE + task * PANEL_OUTPUTS;
                    // SAFETY: the columns of a panel belong to one task.
                    unsafe { out.part(start, PANEL_OUTPUTS) }.copy_from_slice(sums);
                }
            }
        });
    });
    Ok(Some(2.0 * (ROWS * SIDE * SIDE) as f64 / seconds / 1e9))
}

#[cfg(target_arch = "x86_64")]
mod dense {
    //! Tiles of 12 rows and 32 outputs by `vdpbf16ps`.

    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    pub(super) const TILE_ROWS: usize = 12;

    pub(super) fn is_available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    /// `x` holds 12 rows, `panel` the inputs in pairs, `[input / 2][output][2]`, first of 16 outputs, then of 16 more.
    pub(super) fn tile(x: &[u16], panel: &[u16]) -> [[f32; 32]; TILE_ROWS] {
        // SAFETY: called only where `is_available` says so.
        unsafe { tile_inner(x, panel) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tile_inner(x: &[u16], panel: &[u16]) -> [[f32; 32]; TILE_ROWS] {
        let cols = x.len() / TILE_ROWS;
        assert_eq!(panel.len(), cols * 32, "a panel of 32 outputs");
        let mut sums = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
        for pair in 0..cols / 2 {
            let weights = [0, 16 * cols].map(|half| {
                let from = panel[half + pair * 32..].as_ptr();
                // SAFETY: a pair has 32 elements.
                let bits = unsafe { _mm512_loadu_si512(from.cast()) };
                // SAFETY: both are 512 bits.
                unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a row has `cols` elements, and the pair is among them.
                let from = unsafe { x.as_ptr().add(row * cols + pair * 2) };
                // SAFETY: as above; a pair is 32 bits.
                let value = unsafe { from.cast::<i32>().read_unaligned() };
                let value = _mm512_set1_epi32(value);
                // SAFETY: both are 512 bits.
                let value = unsafe { std::mem::transmute::<__m512i, __m512bh>(value) };
                sums[0] = _mm512_dpbf16_ps(sums[0], value, weights[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, weights[1]);
            }
        }
        let mut tile = [[0.0; 32]; TILE_ROWS];
        for (tile, sums) in tile.iter_mut().zip(sums) {
            let (low, high) = tile.split_at_mut(16);
            // SAFETY: 16 elements.
            unsafe { _mm512_storeu_ps(low.as_mut_ptr(), sums[0]) };
            // SAFETY: 16 elements.
            unsafe { _mm512_storeu_ps(high.as_mut_ptr(), sums[1]) };
        }
        tile
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod dense {
    //! No instruction for products of bf16.

    pub(super) const TILE_ROWS: usize = 12;

    pub(super) fn is_available() -> bool {
        false
    }

    pub(super) fn tile(_x: &[u16], _panel: &[u16]) -> [[f32; 32]; TILE_ROWS] {
        [[0.0; 32]; TILE_ROWS]
    }
}
