//! How fast the engine computes on this machine: decode and prefill of the demo model and of a synthetic
//! 1B-shape Llama in bf16, beside what the machine itself can read and multiply just before and just after,
//! as the speed of a shared machine drifts within a run.
//!
//! `cargo bench -p phalanx-worker --bench engine [-- --model demo|1b] [--out FILE]`
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say where")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use half::bf16;
use phalanx_kernels::collective::Solo;
use phalanx_kernels::cpu::{Cpu, CpuPath, probe};
use phalanx_kernels::host::{Dtype, HostMatrix};
use phalanx_proto::generate::Sampling;
use phalanx_worker::engine::{
    self, EngineConfig, EngineHandle, RawEngine, SequenceEvent, SequenceRequest, StepReport,
};
use phalanx_worker::load::{RankParts, place};
use phalanx_worker::model::ModelConfig;
use phalanx_worker::model::rope::RopeScaling;
use phalanx_worker::weights::safetensors::{Shard, Slice};
use phalanx_worker::weights::{LoadError, WeightSource, Weights};
use serde_json::{Value, json};

/// Tokens decoded per sequence.
const DECODE_TOKENS: u32 = 48;
/// Tokens of a prefilled prompt.
const PROMPT_TOKENS: u32 = 2048;
/// Tokens per step.
const STEP_TOKENS: u32 = 512;

/// Weights of the right shapes, made up on the spot.
#[derive(Debug)]
struct RandomWeights;

impl WeightSource for RandomWeights {
    fn matrix(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        slice: Slice,
    ) -> Result<HostMatrix, LoadError> {
        if let Slice::Rows(shard) | Slice::Columns(shard) = slice {
            assert_eq!(shard, Shard::SOLO, "the benchmark runs on one rank");
        }
        let seed = name.bytes().fold(1u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        let bytes = random_bf16(seed, rows * cols, 0.04);
        Ok(HostMatrix { dtype: Dtype::Bf16, rows, cols, bytes })
    }

    fn vector(&self, _name: &str, length: usize) -> Result<HostMatrix, LoadError> {
        let bytes = bf16::ONE.to_le_bytes().repeat(length);
        Ok(HostMatrix { dtype: Dtype::Bf16, rows: 1, cols: length, bytes })
    }

    fn config_path(&self) -> PathBuf {
        PathBuf::from("(random weights)")
    }
}

fn random_bf16(mut state: u32, count: usize, spread: f32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * count);
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        #[expect(clippy::cast_precision_loss, reason = "16 bits")]
        let unit = (state >> 16) as f32 / 65_536.0 - 0.5;
        bytes.extend_from_slice(&bf16::from_f32(unit * spread).to_le_bytes());
    }
    bytes
}

/// The shape of Llama-3.2-1B.
fn shape_1b() -> ModelConfig {
    ModelConfig {
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocab: 128_256,
        context_tokens_max: 4096,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        tied_head: true,
    }
}

/// A running engine and what its steps reported.
struct Subject {
    engine: EngineHandle,
    reports: Arc<Mutex<Vec<StepReport>>>,
}

impl Subject {
    fn start<S>(config: &ModelConfig, source: &S, threads: usize, path: CpuPath) -> Self
    where
        S: WeightSource,
    {
        let raw = RawEngine {
            step_tokens_max: Some(STEP_TOKENS),
            kv_blocks: Some(512),
            prefix_cache: Some(false),
            ..RawEngine::default()
        };
        let limits = EngineConfig::try_from(raw).unwrap();
        let solo =
            RankParts { backend: Cpu::new(threads, path), shard: Shard::SOLO, collective: Solo };
        let (rank, blocks) = place(config, source, solo, &limits, &mut |_, _| {}).unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reports);
        let observer = Box::new(move |report| sink.lock().unwrap().push(report));
        let blocks = u32::try_from(blocks).unwrap();
        let engine = engine::spawn(&limits, blocks, rank, observer).unwrap();
        Self { engine, reports }
    }

    /// Runs `batch` sequences side by side to their ends; the reports of their steps.
    async fn run(&self, batch: u32, prompt: u32, max_tokens: u32) -> Vec<StepReport> {
        self.reports.lock().unwrap().clear();
        let mut streams: Vec<_> = (0..batch)
            .map(|index| {
                let prompt: Arc<[u32]> =
                    (0..prompt).map(|at| 3 + (at * 7 + index) % 2000).collect();
                let request = SequenceRequest {
                    prompt,
                    generated: Arc::from([]),
                    sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                    max_tokens,
                    min_tokens: 0,
                    end_tokens: Arc::from([]),
                    top_logprobs: None,
                    cache_salt: Arc::from(""),
                    chunks: Arc::default(),
                };
                self.engine.submit(request).unwrap()
            })
            .collect();
        for stream in &mut streams {
            while let Some(event) = stream.next().await {
                assert!(!matches!(event, SequenceEvent::Failed(_)), "{event:?}");
            }
        }
        self.reports.lock().unwrap().clone()
    }
}

/// The median of the step times (and of their engine part) among `reports` that `pick` says are alike, in seconds.
fn medians(reports: &[StepReport], pick: impl Fn(&StepReport) -> bool) -> (f64, f64) {
    let alike: Vec<_> = reports.iter().filter(|report| pick(report)).collect();
    let median = |time: &dyn Fn(&StepReport) -> f64| {
        let mut times: Vec<f64> = alike.iter().map(|report| time(report)).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let whole = median(&|report| (report.executor + report.engine).as_secs_f64());
    (whole, median(&|report| report.engine.as_secs_f64()))
}

#[expect(clippy::cast_precision_loss, reason = "sizes in the billions lose nothing that matters")]
async fn measure(name: &str, config: &ModelConfig, subject: &Subject, threads: usize) -> Value {
    let head = config.vocab * config.hidden;
    let weight_bytes = 2.0 * (config.layer_parameters() + head) as f64;
    let mut rows = Vec::new();
    for batch in [1u32, 16] {
        let before = probe::read_gbps(threads).unwrap();
        let reports = subject.run(batch, 32, DECODE_TOKENS).await;
        let read = f64::midpoint(before, probe::read_gbps(threads).unwrap());
        let rows_wanted = batch as usize;
        let decodes =
            |report: &StepReport| report.rows == rows_wanted && report.draws == rows_wanted;
        let (step, engine) = medians(&reports, decodes);
        let (tokens, gigabytes) = (f64::from(batch) / step, weight_bytes / step / 1e9);
        println!(
            "{name:>5}  decode batch {batch:>2}   {tokens:>9.1} tok/s   {gigabytes:>7.1} GB/s of weights \
             = {:>5.1}% of a plain read   engine {:>6.1} us/step",
            100.0 * gigabytes / read,
            engine * 1e6
        );
        rows.push(json!({
            "phase": "decode", "batch": batch, "tokens_per_s": tokens, "weights_gb_per_s": gigabytes,
            "plain_read_gb_per_s": read, "share_of_plain_read": gigabytes / read, "engine_us_per_step": engine * 1e6,
        }));
    }
    let prompt = PROMPT_TOKENS.min(u32::try_from(config.context_tokens_max).unwrap() - 16);
    let plain_gemm = || probe::gemm_gflops(threads).unwrap().unwrap_or(f64::NAN);
    let before = plain_gemm();
    let reports = subject.run(1, prompt, 2).await;
    let gemm = f64::midpoint(before, plain_gemm());
    let (step, engine) = medians(&reports, |report| report.rows == STEP_TOKENS as usize);
    let tokens = f64::from(STEP_TOKENS) / step;
    let gflops = 2.0 * config.layer_parameters() as f64 * tokens / 1e9;
    println!(
        "{name:>5}  prefill {prompt} tokens {tokens:>9.1} tok/s   {gflops:>7.1} GFLOP/s \
         = {:>5.2}x a plain bf16 GEMM    engine {:>6.1} us/step",
        gflops / gemm,
        engine * 1e6
    );
    rows.push(json!({
        "phase": "prefill", "prompt_tokens": prompt, "tokens_per_s": tokens, "gflop_per_s": gflops,
        "plain_bf16_gemm_gflop_per_s": gemm, "ratio_to_plain_bf16_gemm": gflops / gemm, "engine_us_per_step": engine * 1e6,
    }));
    json!({ "model": name, "parameters": config.layer_parameters() + head, "rows": rows })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let only = option("--model");
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let path = option("--path").map_or_else(CpuPath::detect, |name| name.parse().unwrap());

    println!("{threads} threads, path {path}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut models = Vec::new();
    if wanted("demo") {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm");
        let config = ModelConfig::load(&folder).unwrap();
        let subject = Subject::start(&config, &Weights::open(&folder).unwrap(), threads, path);
        models.push(runtime.block_on(measure("demo", &config, &subject, threads)));
    }
    if wanted("1b") {
        let config = shape_1b();
        let subject = Subject::start(&config, &RandomWeights, threads, path);
        models.push(runtime.block_on(measure("1b", &config, &subject, threads)));
    }
    let report = json!({
        "command": "cargo bench -p phalanx-worker --bench engine",
        "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "threads": threads,
        "path": path.to_string(),
        "models": models,
    });
    if let Some(out) = option("--out") {
        std::fs::write(&out, format!("{report:#}\n")).unwrap();
        println!("written to {out}");
    }
}
