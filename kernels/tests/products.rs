//! Products agree with an f64 reference on every path, and a row's bits depend on nothing but the row.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod data;

use data::{
    bf16_matrix, cpus, f16_matrix, f32_matrix, noise, reference_product, row_of, rows_tensor,
};
use phalanx_kernels::Backend;
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_kernels::host::{HostMatrix, Summation};

/// `[outputs, inputs, shards]`; 88 * 8 inputs are a small model's inner width: shards that are no whole tiles.
const SHAPES: [[usize; 3]; 7] = [
    [64, 64, 1],
    [33, 88 * 8, 8],
    [256, 256, 1],
    [17, 31, 1],
    [1, 2, 2],
    [130, 1100, 4],
    [48, 2048 + 96, 1],
];
const ROWS: [usize; 8] = [1, 2, 5, 16, 17, 61, 128, 300];

fn product(cpu: &mut Cpu, x: &[f32], rows: usize, weight: (&HostMatrix, Summation)) -> Vec<f32> {
    let (matrix, summation) = weight;
    let x = rows_tensor(cpu, x, rows);
    let mut out = cpu.tensor(rows, matrix.rows).unwrap();
    let weight = cpu.weight(vec![matrix.clone()], summation).unwrap();
    cpu.linear(&x, &weight, &mut out);
    cpu.read(&out)
}

fn summation(shards: usize) -> Summation {
    if shards == 1 { Summation::Chain } else { Summation::Shards(shards) }
}

#[test]
fn products_agree_with_f64_on_every_path() {
    for mut cpu in cpus(2) {
        for [outputs, inputs, shards] in SHAPES {
            for matrix in [
                bf16_matrix(outputs, inputs, 1),
                f32_matrix(outputs, inputs, 2),
                f16_matrix(outputs, inputs, 3),
            ] {
                for rows in ROWS {
                    let x = noise(rows * inputs, 7);
                    let result = product(&mut cpu, &x, rows, (&matrix, summation(shards)));
                    let exact = reference_product(&x, rows, &matrix);
                    for (index, (value, (exact, size))) in result.iter().zip(exact).enumerate() {
                        let error = (f64::from(*value) - exact).abs();
                        assert!(
                            error <= 2e-5 * size,
                            "{} {outputs}x{inputs} {:?}, {rows} rows, element {index}: {value}, not {exact}",
                            cpu.path(),
                            matrix.dtype,
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    for mut cpu in cpus(2) {
        for [outputs, inputs, shards] in SHAPES {
            for matrix in [bf16_matrix(outputs, inputs, 1), f32_matrix(outputs, inputs, 2)] {
                let x = noise(300 * inputs, 9);
                let weight = (&matrix, summation(shards));
                let together = product(&mut cpu, &x, 300, weight);
                for row in [0, 1, 15, 16, 60, 255, 256, 299] {
                    let alone = product(&mut cpu, row_of(&x, row, inputs), 1, weight);
                    assert_eq!(alone, row_of(&together, row, outputs), "{} row {row}", cpu.path());
                }
                for rows in ROWS {
                    let fewer = product(&mut cpu, &x[..rows * inputs], rows, weight);
                    assert_eq!(fewer, together[..rows * outputs], "{} {rows} rows", cpu.path());
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for path in CpuPath::ALL.into_iter().filter(|path| path.is_available()) {
        for [outputs, inputs, shards] in SHAPES {
            let matrix = bf16_matrix(outputs, inputs, 4);
            let x = noise(61 * inputs, 11);
            let [one, two, three] = [1, 2, 3].map(|threads| {
                product(&mut Cpu::new(threads, path), &x, 61, (&matrix, summation(shards)))
            });
            assert_eq!(one, two, "{path}");
            assert_eq!(one, three, "{path}");
        }
    }
}

#[test]
fn stacked_parts_are_one_weight_and_its_rows_can_be_embedded() {
    for mut cpu in cpus(2) {
        let parts = [bf16_matrix(20, 44, 1), bf16_matrix(3, 44, 2), bf16_matrix(32, 44, 3)];
        let x = noise(2 * 44, 5);
        let weight = cpu.weight(parts.to_vec(), Summation::Chain).unwrap();
        let x_tensor = rows_tensor(&cpu, &x, 2);
        let mut out = cpu.tensor(2, 55).unwrap();
        cpu.linear(&x_tensor, &weight, &mut out);
        let out = cpu.read(&out);
        let apart: Vec<Vec<f32>> =
            parts.iter().map(|part| product(&mut cpu, &x, 2, (part, Summation::Chain))).collect();
        for row in 0..2 {
            let expected: Vec<f32> = apart
                .iter()
                .zip(&parts)
                .flat_map(|(values, part)| row_of(values, row, part.rows).to_vec())
                .collect();
            assert_eq!(row_of(&out, row, 55), expected);
        }
        let mut embedded = cpu.tensor(3, 44).unwrap();
        cpu.embed(&weight, &[54, 0, 21], &mut embedded);
        let expected = [(&parts[2], 31), (&parts[0], 0), (&parts[1], 1)]
            .map(|(part, row)| row_of(&data::widen(part), row, 44).to_vec())
            .concat();
        assert_eq!(cpu.read(&embedded), expected);
    }
}

#[test]
fn weights_of_the_wrong_shape_are_refused_at_load() {
    let cpu = Cpu::new(1, CpuPath::Portable);
    let refusals = [
        (vec![], Summation::Chain),
        (vec![bf16_matrix(2, 4, 0), bf16_matrix(2, 6, 0)], Summation::Chain),
        (vec![bf16_matrix(2, 4, 0), f32_matrix(2, 4, 0)], Summation::Chain),
        (vec![bf16_matrix(2, 12, 0)], Summation::Shards(8)),
        (vec![bf16_matrix(2, 12, 0)], Summation::Shards(3)),
        (vec![bf16_matrix(2, 32, 0)], Summation::Shards(16)),
        (vec![HostMatrix { rows: 3, ..bf16_matrix(2, 4, 0) }], Summation::Chain),
    ];
    for (parts, summation) in refusals {
        let shapes: Vec<_> = parts.iter().map(|part| (part.rows, part.cols)).collect();
        assert!(cpu.weight(parts, summation).is_err(), "{shapes:?} {summation:?}");
    }
}
