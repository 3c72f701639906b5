//! Norms, the gated activation, gathers: against f64, and row by row the same bits in any batch.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod data;

use data::{cpus, f32_matrix, noise, row_of, rows_tensor, widen};
use phalanx_kernels::Backend;
use phalanx_kernels::cpu::{Cpu, CpuPath};

const COLS: [usize; 5] = [1, 16, 100, 704, 2048];
const ROWS: usize = 61;
const EPSILON: f32 = 1e-5;

fn norm(cpu: &mut Cpu, x: &[f32], cols: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let gain = cpu.vector(&f32_matrix(1, cols, 3)).unwrap();
    let mut out = cpu.tensor(rows, cols).unwrap();
    cpu.rms_norm(&rows_tensor(cpu, x, rows), &gain, EPSILON, &mut out);
    cpu.read(&out)
}

fn silu(cpu: &mut Cpu, gate_up: &[f32], cols: usize) -> Vec<f32> {
    let rows = gate_up.len() / (2 * cols);
    let mut out = cpu.tensor(rows, cols).unwrap();
    cpu.silu_mul(&rows_tensor(cpu, gate_up, rows), &mut out);
    cpu.read(&out)
}

#[track_caller]
fn assert_near(path: CpuPath, values: &[f32], expected: impl Iterator<Item = f64>) {
    for (value, expected) in values.iter().zip(expected) {
        let error = (f64::from(*value) - expected).abs();
        assert!(error <= 1e-6 * expected.abs().max(1e-3), "{path}: {value}, not {expected}");
    }
}

#[test]
fn norms_agree_with_f64() {
    for mut cpu in cpus(2) {
        for cols in COLS {
            let x = noise(ROWS * cols, 1);
            let gain = widen(&f32_matrix(1, cols, 3));
            let expected = x.chunks_exact(cols).flat_map(|row| {
                let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let factor = 1.0 / (squares / cols as f64 + f64::from(EPSILON)).sqrt();
                let pairs = row.iter().zip(&gain);
                pairs.map(|(&x, &gain)| f64::from(x) * factor * f64::from(gain)).collect::<Vec<_>>()
            });
            let path = cpu.path();
            assert_near(path, &norm(&mut cpu, &x, cols), expected);
        }
    }
}

#[test]
fn the_gated_activation_agrees_with_f64() {
    for mut cpu in cpus(2) {
        for cols in COLS {
            let gate_up: Vec<f32> = noise(ROWS * 2 * cols, 2).iter().map(|x| x * 20.0).collect();
            let expected = gate_up.chunks_exact(2 * cols).flat_map(|row| {
                let (gate, up) = row.split_at(cols);
                let wide = gate.iter().zip(up).map(|(&g, &u)| (f64::from(g), f64::from(u)));
                wide.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect::<Vec<_>>()
            });
            let path = cpu.path();
            assert_near(path, &silu(&mut cpu, &gate_up, cols), expected);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch_and_with_any_threads() {
    for threads in [1, 3] {
        for (mut cpu, mut other) in cpus(threads).into_iter().zip(cpus(2)) {
            for cols in COLS {
                let x = noise(ROWS * 2 * cols, 4);
                let (norms, gated) = (norm(&mut cpu, &x, cols), silu(&mut cpu, &x, cols));
                for row in [0, 30, ROWS - 1] {
                    let alone = norm(&mut other, row_of(&x, row, cols), cols);
                    assert_eq!(alone, row_of(&norms, row, cols), "{}", cpu.path());
                    let alone = silu(&mut other, row_of(&x, row, 2 * cols), cols);
                    assert_eq!(alone, row_of(&gated, row, cols), "{}", cpu.path());
                }
            }
        }
    }
}

#[test]
fn adding_and_norming_in_one_pass_is_the_two_steps() {
    for mut cpu in cpus(2) {
        for cols in COLS {
            let (x, delta) = (noise(ROWS * cols, 5), noise(ROWS * cols, 6));
            let sums: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
            let gain = cpu.vector(&f32_matrix(1, cols, 3)).unwrap();
            let mut stream = rows_tensor(&cpu, &x, ROWS);
            let delta = rows_tensor(&cpu, &delta, ROWS);
            let mut out = cpu.tensor(ROWS, cols).unwrap();
            cpu.add_rms_norm(&mut stream, &delta, (&gain, EPSILON), &mut out);
            assert_eq!(cpu.read(&stream), sums);
            assert_eq!(cpu.read(&out), norm(&mut cpu, &sums, cols));
        }
    }
}

#[test]
fn gathered_rows_are_copies_and_set_the_row_count() {
    let mut cpu = Cpu::new(1, CpuPath::Portable);
    let x = rows_tensor(&cpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
    let mut out = cpu.tensor(8, 2).unwrap();
    cpu.gather_rows(&x, &[2, 0], &mut out);
    assert_eq!((out.rows(), out.cols()), (2, 2));
    assert_eq!(cpu.read(&out), [5.0, 6.0, 1.0, 2.0]);
}
