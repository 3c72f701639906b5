//! Attention agrees with an f64 reference, and neither chunks, company, threads nor old contents of the
//! cache change a bit.

use super::*;
use crate::backend::Backend;
use crate::cpu::Cpu;

const SHAPES: [AttentionShape; 4] = [
    AttentionShape { heads: 8, kv_heads: 4, head_dim: 32, scale: 0.177 },
    AttentionShape { heads: 3, kv_heads: 1, head_dim: 16, scale: 0.25 },
    AttentionShape { heads: 2, kv_heads: 2, head_dim: 48, scale: 0.144 },
    AttentionShape { heads: 32, kv_heads: 8, head_dim: 64, scale: 0.125 },
];
const TOKENS: usize = 77;
const BLOCKS: usize = 12;

fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    CpuPath::ALL
        .into_iter()
        .filter(|path| path.is_available())
        .map(move |path| Cpu::new(threads, path))
}

fn noise(length: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn cols(shape: AttentionShape) -> usize {
    (shape.heads + 2 * shape.kv_heads) * shape.head_dim
}

fn angles(shape: AttentionShape) -> RopeTable {
    let half_dim = shape.head_dim / 2;
    let angle = |index: usize| (index / half_dim) as f32 * 0.5_f32.powf((index % half_dim) as f32);
    let table = |f: fn(f32) -> f32| (0..TOKENS * half_dim).map(|index| f(angle(index))).collect();
    RopeTable { half_dim, cos: table(f32::cos), sin: table(f32::sin) }
}

/// A sequence's projections and its block table.
struct Sequence {
    qkv: Vec<f32>,
    table: Vec<u32>,
}

impl Sequence {
    fn new(shape: AttentionShape, seed: u32) -> Self {
        let table = (0..5).map(|block| (block * 5 + seed * 7) % 12).collect();
        Self { qkv: noise(TOKENS * cols(shape), seed), table }
    }
}

/// One step over some tokens of each sequence; the result's rows.
fn step(
    cpu: &mut Cpu,
    shape: AttentionShape,
    kv: &mut Kv,
    parts: &[(&Sequence, std::ops::Range<usize>)],
) -> Vec<f32> {
    let mut batch = Batch::default();
    let mut values = Vec::new();
    for (sequence, tokens) in parts {
        let (rows, table) = (batch.tokens.len(), batch.block_tables.len());
        batch.tokens.extend(tokens.clone().map(|_| 0));
        batch.positions.extend(tokens.clone().map(|token| u32::try_from(token).unwrap()));
        batch.block_tables.extend(&sequence.table);
        batch.spans.push(Span {
            rows: rows..batch.tokens.len(),
            start: tokens.start,
            table: table..batch.block_tables.len(),
        });
        values.extend(&sequence.qkv[tokens.start * cols(shape)..tokens.end * cols(shape)]);
    }
    let rows = batch.rows();
    let mut qkv = cpu.tensor(rows, cols(shape)).unwrap();
    cpu.write(&mut qkv, rows, &values);
    let mut out = cpu.tensor(rows, shape.heads * shape.head_dim).unwrap();
    cpu.rope_kv(&mut qkv, &angles(shape), (kv, 1), shape, &batch);
    cpu.attention(&qkv, (kv, 1), shape, &batch, &mut out);
    cpu.read(&out)
}

/// A cache full of what must never be read.
fn garbage(cpu: &Cpu, shape: AttentionShape) -> Kv {
    let AttentionShape { kv_heads, head_dim, .. } = shape;
    let mut kv = cpu.kv(KvShape { layers: 2, kv_heads, head_dim, blocks: BLOCKS }).unwrap();
    kv.fill(f32::NAN);
    kv
}

/// All tokens of a sequence, in chunks.
fn in_chunks(cpu: &mut Cpu, shape: AttentionShape, chunk: usize) -> Vec<f32> {
    let sequence = Sequence::new(shape, 1);
    let mut kv = garbage(cpu, shape);
    let mut out = Vec::new();
    for start in (0..TOKENS).step_by(chunk) {
        let tokens = start..TOKENS.min(start + chunk);
        out.extend(step(cpu, shape, &mut kv, &[(&sequence, tokens)]));
    }
    out
}

/// The same in f64, straight from the definition.
fn reference(shape: AttentionShape, sequence: &Sequence) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim, scale } = shape;
    let rope = angles(shape);
    let head = |token: usize, head: usize| -> Vec<f64> {
        let from = &sequence.qkv[token * cols(shape) + head * head_dim..][..head_dim];
        let angle = |index: usize| token * head_dim / 2 + index % (head_dim / 2);
        let turn = |index: usize| {
            let (cos, sin) = (f64::from(rope.cos[angle(index)]), f64::from(rope.sin[angle(index)]));
            let other = f64::from(from[(index + head_dim / 2) % head_dim]);
            let sign = if index < head_dim / 2 { -1.0 } else { 1.0 };
            f64::from(from[index]) * cos + sign * other * sin
        };
        let rotated = head < heads + kv_heads;
        (0..head_dim).map(|i| if rotated { turn(i) } else { f64::from(from[i]) }).collect()
    };
    let mut out = Vec::new();
    for token in 0..TOKENS {
        for query_head in 0..heads {
            let query = head(token, query_head);
            let kv_head = heads + query_head / (heads / kv_heads);
            let weights: Vec<f64> = (0..=token)
                .map(|past| query.iter().zip(head(past, kv_head)).map(|(q, k)| q * k).sum::<f64>())
                .map(|score| (score * f64::from(scale)).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0.0; head_dim];
            for (past, weight) in weights.iter().enumerate() {
                for (sum, v) in sums.iter_mut().zip(head(past, kv_head + kv_heads)) {
                    *sum += weight / total * v;
                }
            }
            out.extend(sums);
        }
    }
    out
}

#[test]
fn attention_agrees_with_f64_and_ignores_what_the_cache_held_before() {
    for shape in SHAPES {
        let expected = reference(shape, &Sequence::new(shape, 1));
        for mut cpu in cpus(2) {
            for (value, expected) in in_chunks(&mut cpu, shape, TOKENS).iter().zip(&expected) {
                let error = (f64::from(*value) - expected).abs();
                assert!(error < 2e-6, "{} {shape:?}: {value}, not {expected}", cpu.path());
            }
        }
    }
}

#[test]
fn chunks_of_any_size_give_the_same_bits() {
    for shape in SHAPES {
        for mut cpu in cpus(2) {
            let whole = in_chunks(&mut cpu, shape, TOKENS);
            for chunk in [1, 2, 7, 16, 33] {
                assert_eq!(in_chunks(&mut cpu, shape, chunk), whole, "{} by {chunk}", cpu.path());
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for shape in SHAPES {
        for (mut one, mut three) in cpus(1).zip(cpus(3)) {
            let alone = in_chunks(&mut one, shape, 40);
            assert_eq!(alone, in_chunks(&mut three, shape, 40), "{}", one.path());
        }
    }
}

#[test]
fn company_in_the_batch_does_not_change_a_bit() {
    for shape in SHAPES {
        for mut cpu in cpus(2) {
            let [first, mut second] = [1, 2].map(|seed| Sequence::new(shape, seed));
            second.table = (0..12).filter(|id| !first.table.contains(id)).collect();
            let mut kv = garbage(&cpu, shape);
            let head = step(&mut cpu, shape, &mut kv, &[(&first, 0..30), (&second, 0..61)]);
            let tail = step(&mut cpu, shape, &mut kv, &[(&second, 61..62), (&first, 30..TOKENS)]);
            let width = shape.heads * shape.head_dim;
            let whole = in_chunks(&mut cpu, shape, TOKENS);
            assert_eq!(head[..30 * width], whole[..30 * width], "{}", cpu.path());
            assert_eq!(tail[width..], whole[30 * width..], "{}", cpu.path());
        }
    }
}

#[test]
fn a_head_size_that_is_no_whole_vector_is_refused() {
    let cpu = Cpu::new(1, CpuPath::Portable);
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 24, blocks: 1 };
    assert!(matches!(cpu.kv(shape), Err(DeviceError::Shape { what: "KV cache", .. })));
}
