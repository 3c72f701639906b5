//! Products with the shapes of a 1B Llama, beside what the machine does at best in the same run.
//! Arguments: the numbers of rows to measure; all without.
#![expect(clippy::print_stdout, reason = "a benchmark's table")]

use std::time::Instant;

use phalanx_kernels::cpu::{Cpu, CpuPath, Tensor, Weight, probe};
use phalanx_kernels::host::{Dtype, HostMatrix, Summation};
use phalanx_kernels::{Backend, DeviceError};

/// Layers whose weights take turns: together far more than a cache holds, as in a real step.
const LAYERS: usize = 5;
/// Passes; the best counts.
const REPEATS: usize = 8;
/// Where a pass takes seconds.
const MANY_ROWS: usize = 64;
const REPEATS_OF_MANY_ROWS: usize = 2;
const ROWS: [usize; 5] = [1, 4, 16, 64, 512];
const SHAPES: [Shape; 5] = [
    Shape { name: "qkv", outputs: 3072, inputs: 2048, summation: Summation::Chain, copies: LAYERS },
    Shape {
        name: "o",
        outputs: 2048,
        inputs: 2048,
        summation: Summation::Shards(8),
        copies: LAYERS,
    },
    Shape {
        name: "gate up",
        outputs: 16384,
        inputs: 2048,
        summation: Summation::Chain,
        copies: LAYERS,
    },
    Shape {
        name: "down",
        outputs: 2048,
        inputs: 8192,
        summation: Summation::Shards(8),
        copies: LAYERS,
    },
    Shape {
        name: "output",
        outputs: 128_256,
        inputs: 2048,
        summation: Summation::Chain,
        copies: 1,
    },
];

struct Shape {
    name: &'static str,
    outputs: usize,
    inputs: usize,
    summation: Summation,
    copies: usize,
}

/// One product of a step.
struct Product {
    shape: &'static Shape,
    weight: Weight,
    x: Tensor,
    out: Tensor,
}

impl Shape {
    fn weight(&self, cpu: &Cpu) -> Result<Weight, DeviceError> {
        let mut state = 1_u32;
        let mut bytes = Vec::with_capacity(self.outputs * self.inputs * 2);
        for _ in 0..self.outputs * self.inputs {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Sign and mantissa at random, an exponent about 2^-6.
            let bits = (state >> 16 & 0x807f) | 0x3c80;
            bytes.extend_from_slice(&bits.to_le_bytes()[..2]);
        }
        let (rows, cols) = (self.outputs, self.inputs);
        cpu.weight(vec![HostMatrix { dtype: Dtype::Bf16, rows, cols, bytes }], self.summation)
    }

    fn flops(&self, rows: usize) -> f64 {
        2.0 * (self.outputs * self.inputs * rows) as f64
    }

    fn bytes(&self) -> f64 {
        2.0 * (self.outputs * self.inputs) as f64
    }
}

/// The best time of one pass over all layers, by path and shape. Paths take turns, so that a neighbour on
/// the machine slows them alike.
fn measure(cpus: &mut [Cpu], products: &mut [Product], rows: usize) -> Vec<Vec<f64>> {
    let repeats = if rows < MANY_ROWS { REPEATS } else { REPEATS_OF_MANY_ROWS };
    let mut best = vec![vec![f64::INFINITY; SHAPES.len()]; cpus.len()];
    for _ in 0..repeats {
        for (cpu, best) in cpus.iter_mut().zip(&mut best) {
            let mut times = vec![0.0; SHAPES.len()];
            for Product { shape, weight, x, out } in products.iter_mut() {
                cpu.write(x, rows, &vec![0.5; rows * shape.inputs]);
                let start = Instant::now();
                cpu.linear(x, weight, out);
                let place = SHAPES.iter().position(|other| other.name == shape.name).unwrap_or(0);
                times[place] += start.elapsed().as_secs_f64();
            }
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time);
            }
        }
    }
    best
}

fn main() -> Result<(), DeviceError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let read = probe::read_gbps(threads)?;
    println!("{threads} threads; plain read {read:.1} GB/s");
    if let Some(gflops) = probe::gemm_gflops(threads)? {
        println!("plain bf16 product {gflops:.0} GFLOP/s");
    }
    let packer = Cpu::new(threads, CpuPath::detect());
    let mut products = Vec::new();
    for layer in 0..LAYERS {
        for shape in SHAPES.iter().filter(|shape| layer < shape.copies) {
            products.push(Product {
                shape,
                weight: shape.weight(&packer)?,
                x: packer.tensor(512, shape.inputs)?,
                out: packer.tensor(512, shape.outputs)?,
            });
        }
    }
    println!(
        "{:8} {:8} {:>5} {:>9} {:>7} {:>9} {:>7}",
        "path", "product", "rows", "ms", "GB/s", "GFLOP/s", "of read"
    );
    let asked: Vec<usize> = std::env::args().filter_map(|rows| rows.parse().ok()).collect();
    let fast = [CpuPath::Avx2, CpuPath::Avx512, CpuPath::Amx];
    let fast = fast.into_iter().filter(|path| path.is_available());
    let mut cpus: Vec<Cpu> = fast.map(|path| Cpu::new(threads, path)).collect();
    for rows in ROWS.into_iter().filter(|rows| asked.is_empty() || asked.contains(rows)) {
        let times = measure(&mut cpus, &mut products, rows);
        for (cpu, times) in cpus.iter().zip(times) {
            let mut total = (0.0, 0.0, 0.0);
            for (shape, time) in SHAPES.iter().zip(times) {
                let copies = shape.copies as f64;
                let figures = (time, copies * shape.bytes(), copies * shape.flops(rows));
                print_line(cpu.path(), (shape.name, rows), figures, read);
                total = (total.0 + figures.0, total.1 + figures.1, total.2 + figures.2);
            }
            print_line(cpu.path(), ("all", rows), total, read);
        }
    }
    let again = probe::read_gbps(threads)?;
    println!("plain read at the end {again:.1} GB/s");
    Ok(())
}

fn print_line(path: CpuPath, (name, rows): (&str, usize), figures: (f64, f64, f64), read: f64) {
    let (time, bytes, flops) = figures;
    let (gbps, gflops) = (bytes / time / 1e9, flops / time / 1e9);
    let share = gbps / read * 100.0;
    let milliseconds = time * 1e3;
    println!(
        "{:8} {name:8} {rows:5} {milliseconds:9.2} {gbps:7.2} {gflops:9.1} {share:6.0}%",
        path.name()
    );
}
