//! A scheduler and a rank, driven by hand, so that every logit can be looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use phalanx_kernels::Backend as _;
use phalanx_kernels::collective::{Collective, Solo};
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_proto::generate::Sampling;
use phalanx_worker::engine::scheduler::{Progress, Scheduler};
use phalanx_worker::engine::sequence::SequenceId;
use phalanx_worker::engine::{EngineConfig, RawEngine, SequenceRequest};
use phalanx_worker::executor::Executor as _;
use phalanx_worker::executor::rank::Rank;
use phalanx_worker::load::{RankParts, place};
use phalanx_worker::model::ModelConfig;
use phalanx_worker::weights::Weights;
use phalanx_worker::weights::safetensors::Shard;

/// The demo model's folder.
pub(crate) fn demo_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm")
}

/// What a sequence came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    /// The logits each token was drawn from, as bits.
    pub(crate) logits: Vec<Vec<u32>>,
    pub(crate) cached: usize,
}

pub(crate) struct Harness<C = Solo> {
    rank: Rank<Cpu, C>,
    scheduler: Scheduler,
    vocab: usize,
    next_id: u64,
    pub(crate) preemptions: u64,
    pub(crate) steps: u64,
}

impl Harness {
    /// A group of one rank.
    pub(crate) fn new(path: CpuPath, threads: usize, raw: RawEngine) -> Self {
        Self::of_rank(Cpu::new(threads, path), (Shard::SOLO, Solo), raw)
    }
}

impl<C> Harness<C>
where
    C: Collective<Cpu> + 'static,
{
    /// One rank of a group.
    pub(crate) fn of_rank(backend: Cpu, (shard, collective): (Shard, C), raw: RawEngine) -> Self {
        let folder = demo_folder();
        let config = ModelConfig::load(&folder).unwrap();
        let limits = EngineConfig::try_from(raw).unwrap();
        let weights = Weights::open(&folder).unwrap();
        let parts = RankParts { backend, shard, collective };
        let (rank, blocks) = place(&config, &weights, parts, &limits, &mut |_, _| {}).unwrap();
        let scheduler = Scheduler::new(&limits, u32::try_from(blocks).unwrap());
        Self { rank, scheduler, vocab: config.vocab, next_id: 0, preemptions: 0, steps: 0 }
    }

    /// Runs all requests side by side to their ends.
    pub(crate) fn run(&mut self, requests: Vec<SequenceRequest>) -> Vec<Answer> {
        let mut answers = BTreeMap::new();
        for request in requests {
            self.next_id += 1;
            let id = SequenceId(self.next_id);
            self.scheduler.add(id, request).unwrap();
            answers.insert(id, Answer::default());
        }
        while !self.scheduler.is_idle() {
            let plan = self.scheduler.step();
            let drawn = self.rank.run_keeping_logits(&plan);
            for (id, cached) in &plan.started {
                answers.get_mut(id).unwrap().cached = *cached;
            }
            let drawing = plan.shares.iter().filter(|share| share.draws);
            for (share, logits) in drawing.zip(drawn.1.chunks(self.vocab)) {
                let bits = logits.iter().map(|logit| logit.to_bits()).collect();
                answers.get_mut(&share.sequence).unwrap().logits.push(bits);
            }
            for (id, progress) in self.scheduler.commit(&plan, drawn.0) {
                let Progress::Drew { token, .. } = progress else { panic!("{id:?}: {progress:?}") };
                answers.get_mut(&id).unwrap().tokens.push(token);
            }
        }
        let load = self.scheduler.load();
        assert_eq!(load.kv_blocks_free, load.kv_blocks_total);
        (self.preemptions, self.steps) = (load.preemptions_total, load.steps_total);
        answers.into_values().collect()
    }
}

/// Runs a plan and looks at the logits before they are drawn from.
trait KeepLogits {
    fn run_keeping_logits(
        &mut self,
        plan: &phalanx_worker::engine::plan::StepPlan,
    ) -> (Vec<phalanx_kernels::sample::Sampled>, Vec<f32>);
}

impl<C> KeepLogits for Rank<Cpu, C>
where
    C: Collective<Cpu> + 'static,
{
    fn run_keeping_logits(
        &mut self,
        plan: &phalanx_worker::engine::plan::StepPlan,
    ) -> (Vec<phalanx_kernels::sample::Sampled>, Vec<f32>) {
        let blind = phalanx_worker::engine::plan::StepPlan { draws: Vec::new(), ..plan.clone() };
        assert!(self.run(&blind).unwrap().is_empty());
        if plan.draws.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let logits = self.backend.read(&self.activations.logits);
        (self.backend.sample(&mut self.activations.logits, &plan.draws), logits)
    }
}

/// A greedy request that runs until the model ends it or `max_tokens`.
pub(crate) fn greedy(prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        prompt: prompt.into(),
        generated: Arc::from([]),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens,
        min_tokens: 0,
        end_tokens: Arc::from([2, 0]),
        top_logprobs: None,
        cache_salt: Arc::from(""),
        chunks: Arc::default(),
    }
}

/// Every instruction path that this machine has.
pub(crate) fn available_paths() -> impl Iterator<Item = CpuPath> {
    CpuPath::ALL.into_iter().filter(|path| path.is_available())
}
