//! From a model folder to a running engine.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use phalanx_kernels::Backend as _;
use phalanx_kernels::batch::BLOCK_TOKENS;
use phalanx_kernels::collective::Solo;
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_proto::id::Revision;
use xxhash_rust::xxh3::Xxh3;

use crate::engine::{self, EngineConfig, EngineHandle, KvSize, StepObserver};
use crate::executor::rank::Rank;
use crate::model::layer::Placement;
use crate::model::llama::{Activations, kv_shape};
use crate::model::{Llama, ModelConfig};
use crate::weights::safetensors::Shard;
use crate::weights::{LoadError, WeightSource, Weights};

/// What to load and how to run it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The Hugging Face folder.
    pub folder: PathBuf,
    /// The only revision to accept; none: whatever the folder holds.
    pub revision: Option<Revision>,
    /// The engine's limits.
    pub engine: EngineConfig,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set they use.
    pub cpu_path: CpuPath,
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Digest of everything that decides its output.
    pub revision: Revision,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Longest prompt and output together: the model's context, or what the KV cache holds if that is less.
    pub context_tokens_max: u32,
    /// Tokens the KV cache holds.
    pub kv_tokens_max: u64,
}

/// Files beside the weights that decide what a model answers.
const DIGESTED_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Loads a model and starts its engine; `progress` hears how many layers of how many are placed.
///
/// # Errors
/// Whatever is wrong with the folder, named by file, key and tensor.
pub fn load(
    options: &LoadOptions,
    observer: StepObserver,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(EngineHandle, ModelInfo), LoadError> {
    let folder = &options.folder;
    let config = ModelConfig::load(folder)?;
    let weights = Weights::open(folder)?;
    let revision = revision(folder, &weights)?;
    if let Some(wanted) = options.revision.as_ref().filter(|wanted| **wanted != revision) {
        let (folder, wanted) = (folder.clone(), wanted.clone());
        return Err(LoadError::Revision { folder, found: revision, wanted });
    }
    let backend = Cpu::new(options.threads, options.cpu_path);
    let solo = RankParts { backend, shard: Shard::SOLO, collective: Solo };
    let (rank, blocks) = place(&config, &weights, solo, &options.engine, progress)?;
    let kv_tokens_max = blocks * BLOCK_TOKENS;
    let info = ModelInfo {
        revision,
        vocab: as_u32(config.vocab),
        context_tokens_max: as_u32(config.context_tokens_max.min(kv_tokens_max)),
        kv_tokens_max: kv_tokens_max as u64,
    };
    let engine = engine::spawn(&options.engine, as_u32(blocks), rank, observer)
        .map_err(|source| LoadError::Io { path: folder.clone(), source })?;
    Ok((engine, info))
}

/// One rank's device, its share of the model and its way to the others.
#[derive(Debug)]
pub struct RankParts<C> {
    /// The device.
    pub backend: Cpu,
    /// The share.
    pub shard: Shard,
    /// The way.
    pub collective: C,
}

/// Puts a rank's share of a model on its device: the rank, and how many KV blocks it has.
///
/// # Errors
/// As [`load`].
pub fn place<S, C>(
    config: &ModelConfig,
    source: &S,
    parts: RankParts<C>,
    limits: &EngineConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Rank<Cpu, C>, usize), LoadError>
where
    S: WeightSource,
{
    let RankParts { backend, shard, collective } = parts;
    let placement = Placement { source, backend: &backend, shard };
    let model = Llama::load(config, &placement, progress)?;
    let blocks = kv_blocks(config, limits.kv_size());
    let device = |what: &str, source| LoadError::Device { what: what.to_owned(), source };
    let kv = backend
        .kv(kv_shape(config, shard, blocks))
        .map_err(|source| device("the KV cache", source))?;
    let sizes = (limits.step_tokens_max(), limits.running_max());
    let activations = Activations::new(&backend, config, shard, sizes)
        .map_err(|source| device("the activations", source))?;
    Ok((Rank { model, backend, collective, kv, activations }, blocks))
}

/// At least two blocks, so that the smallest pool still holds a prompt and an answer.
fn kv_blocks(config: &ModelConfig, size: KvSize) -> usize {
    match size {
        KvSize::Blocks(blocks) => blocks as usize,
        KvSize::MemoryMib(mib) => {
            let token_bytes =
                2 * config.layers * config.kv_heads * config.head_dim * size_of::<f32>();
            ((mib as usize) << 20).div_euclid(token_bytes * BLOCK_TOKENS).max(2)
        }
    }
}

/// A digest of the weights, the configuration, the tokenizer and the chat template.
fn revision(folder: &Path, weights: &Weights) -> Result<Revision, LoadError> {
    let others = DIGESTED_FILES.iter().map(|name| folder.join(name)).filter(|path| path.exists());
    let paths = weights.paths().map(Path::to_owned).chain(others);
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        let io = |source| LoadError::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        loop {
            let read = file.read(&mut buffer).map_err(io)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
        // A separator, so that bytes cannot move from one file to the next unseen.
        hash.update(&file.metadata().map_err(io)?.len().to_le_bytes());
    }
    Ok(Revision::from(format!("{:032x}", hash.digest128())))
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
