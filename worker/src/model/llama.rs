//! The Llama decoder (Touvron et al., 2023; grouped-query attention as in Llama 2 and 3): pre-norm residual
//! layers of rotary attention and a SwiGLU feed-forward.
//!
//! ```text
//! x = embed(tokens)
//! per layer:  x += output(attention(rope(qkv(norm(x)))))        x += down(silu(gate(norm(x))) * up(norm(x)))
//! logits = head(norm(x))
//! ```

use phalanx_kernels::backend::AttentionShape;
use phalanx_kernels::batch::Batch;
use phalanx_kernels::collective::{Collective, CollectiveError};
use phalanx_kernels::host::VIRTUAL_SHARDS;
use phalanx_kernels::{Backend, DeviceError, KvShape};

use super::config::ModelConfig;
use super::layer::{ColumnParallel, Placement, RowParallel};
use super::rope;
use crate::weights::safetensors::Shard;
use crate::weights::{LoadError, WeightSource};

/// One rank's share of a model.
#[derive(Debug)]
pub struct Llama<B: Backend> {
    attention: AttentionShape,
    epsilon: f32,
    embedding: B::Weight,
    rope: B::Rope,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// Absent: the embedding table is the head.
    head: Option<B::Weight>,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    attention_norm: B::Vector,
    qkv: ColumnParallel<B>,
    output: RowParallel<B>,
    mlp_norm: B::Vector,
    gate_up: ColumnParallel<B>,
    down: RowParallel<B>,
}

/// The tensors that one step needs, allocated once for the largest.
#[derive(Debug)]
pub struct Activations<B: Backend> {
    /// The residual stream.
    x: B::Tensor,
    normed: B::Tensor,
    qkv: B::Tensor,
    attended: B::Tensor,
    /// What a sublayer adds to the stream; added when the next norm reads it.
    delta: B::Tensor,
    gate_up: B::Tensor,
    gated: B::Tensor,
    last_x: B::Tensor,
    last_delta: B::Tensor,
    last_normed: B::Tensor,
    /// One row per drawn token.
    pub logits: B::Tensor,
}

// === impl Llama ===

impl<B> Llama<B>
where
    B: Backend,
{
    /// Reads, checks and places all weights; `progress` hears how many of the layers are done.
    ///
    /// # Errors
    /// The first tensor that is missing, misshapen or refused, or a shape that cannot be sharded.
    pub fn load<S>(
        config: &ModelConfig,
        placement: &Placement<'_, B, S>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, LoadError>
    where
        S: WeightSource,
    {
        check_shards(config, placement)?;
        let world = placement.shard.world;
        let table = (config.vocab, config.hidden);
        let embedding = placement.replicated("model.embed_tokens.weight", table)?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::load(config, placement, index)?);
            progress(index + 1, config.layers);
        }
        let head = if config.tied_head {
            None
        } else {
            Some(placement.replicated("lm_head.weight", table)?)
        };
        let rope = rope::table(
            config.context_tokens_max,
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
        );
        let rope = placement
            .backend
            .rope(rope)
            .map_err(|source| LoadError::Device { what: "the rotary table".to_owned(), source })?;
        #[expect(clippy::cast_precision_loss, reason = "head sizes are far below 2^24")]
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        Ok(Self {
            attention: AttentionShape {
                heads: config.heads / world,
                kv_heads: config.kv_heads / world,
                head_dim: config.head_dim,
                scale,
            },
            epsilon: config.norm_epsilon,
            embedding,
            rope,
            layers,
            norm: placement.vector("model.norm.weight", config.hidden)?,
            head,
        })
    }

    /// The logits of `rows` after computing `batch`, one row each, in `a.logits`.
    ///
    /// # Errors
    /// When the group is broken.
    pub fn forward<C>(
        &self,
        (backend, collective): (&mut B, &mut C),
        kv: &mut B::Kv,
        (batch, rows): (&Batch, &[usize]),
        a: &mut Activations<B>,
    ) -> Result<(), CollectiveError>
    where
        C: Collective<B>,
    {
        backend.embed(&self.embedding, &batch.tokens, &mut a.x);
        for (index, layer) in self.layers.iter().enumerate() {
            if index == 0 {
                backend.rms_norm(&a.x, &layer.attention_norm, self.epsilon, &mut a.normed);
            } else {
                let norm = (&layer.attention_norm, self.epsilon);
                backend.add_rms_norm(&mut a.x, &a.delta, norm, &mut a.normed);
            }
            layer.qkv.forward(backend, &a.normed, &mut a.qkv);
            backend.rope_kv(&mut a.qkv, &self.rope, (&mut *kv, index), self.attention, batch);
            backend.attention(&a.qkv, (&*kv, index), self.attention, batch, &mut a.attended);
            layer.output.forward((&mut *backend, &mut *collective), &a.attended, &mut a.delta)?;

            let norm = (&layer.mlp_norm, self.epsilon);
            backend.add_rms_norm(&mut a.x, &a.delta, norm, &mut a.normed);
            layer.gate_up.forward(backend, &a.normed, &mut a.gate_up);
            backend.silu_mul(&a.gate_up, &mut a.gated);
            layer.down.forward((&mut *backend, &mut *collective), &a.gated, &mut a.delta)?;
        }
        if !rows.is_empty() {
            backend.gather_rows(&a.x, rows, &mut a.last_x);
            backend.gather_rows(&a.delta, rows, &mut a.last_delta);
            let norm = (&self.norm, self.epsilon);
            backend.add_rms_norm(&mut a.last_x, &a.last_delta, norm, &mut a.last_normed);
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            backend.linear(&a.last_normed, head, &mut a.logits);
        }
        Ok(())
    }
}

// === impl Layer ===

impl<B> Layer<B>
where
    B: Backend,
{
    fn load<S>(
        config: &ModelConfig,
        placement: &Placement<'_, B, S>,
        index: usize,
    ) -> Result<Self, LoadError>
    where
        S: WeightSource,
    {
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, .. } = *config;
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        Ok(Self {
            attention_norm: placement.vector(&name("input_layernorm"), hidden)?,
            qkv: placement.column_parallel(&[
                (name("self_attn.q_proj"), (heads * head_dim, hidden)),
                (name("self_attn.k_proj"), (kv_heads * head_dim, hidden)),
                (name("self_attn.v_proj"), (kv_heads * head_dim, hidden)),
            ])?,
            output: placement
                .row_parallel(&name("self_attn.o_proj"), (hidden, heads * head_dim))?,
            mlp_norm: placement.vector(&name("post_attention_layernorm"), hidden)?,
            gate_up: placement.column_parallel(&[
                (name("mlp.gate_proj"), (intermediate, hidden)),
                (name("mlp.up_proj"), (intermediate, hidden)),
            ])?,
            down: placement.row_parallel(&name("mlp.down_proj"), (hidden, intermediate))?,
        })
    }
}

/// Refuses shapes that do not divide evenly over ranks and virtual shards.
fn check_shards<B, S>(
    config: &ModelConfig,
    placement: &Placement<'_, B, S>,
) -> Result<(), LoadError>
where
    S: WeightSource,
{
    let world = placement.shard.world;
    for (key, value, divisor) in [
        ("num_attention_heads", config.heads, world),
        ("num_key_value_heads", config.kv_heads, world),
        ("head_dim * num_attention_heads", config.heads * config.head_dim, VIRTUAL_SHARDS),
        ("intermediate_size", config.intermediate, VIRTUAL_SHARDS),
    ] {
        if !value.is_multiple_of(divisor) {
            return Err(LoadError::Config {
                path: placement.source.config_path(),
                key: key.to_owned(),
                value: value.to_string(),
                expected: format!("a multiple of {divisor}"),
            });
        }
    }
    Ok(())
}

// === impl Activations ===

impl<B> Activations<B>
where
    B: Backend,
{
    /// Tensors for steps of up to `rows_max` rows of which up to `draws_max` are drawn from.
    ///
    /// # Errors
    /// When the device's memory runs out.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        shard: Shard,
        (rows_max, draws_max): (usize, usize),
    ) -> Result<Self, DeviceError> {
        let heads = (config.heads / shard.world, config.kv_heads / shard.world);
        let attended = heads.0 * config.head_dim;
        let qkv = attended + 2 * heads.1 * config.head_dim;
        let gated = config.intermediate / shard.world;
        Ok(Self {
            x: backend.tensor(rows_max, config.hidden)?,
            normed: backend.tensor(rows_max, config.hidden)?,
            qkv: backend.tensor(rows_max, qkv)?,
            attended: backend.tensor(rows_max, attended)?,
            delta: backend.tensor(rows_max, config.hidden)?,
            gate_up: backend.tensor(rows_max, 2 * gated)?,
            gated: backend.tensor(rows_max, gated)?,
            last_x: backend.tensor(draws_max, config.hidden)?,
            last_delta: backend.tensor(draws_max, config.hidden)?,
            last_normed: backend.tensor(draws_max, config.hidden)?,
            logits: backend.tensor(draws_max, config.vocab)?,
        })
    }
}

/// The KV cache that one rank needs for `blocks` blocks.
pub const fn kv_shape(config: &ModelConfig, shard: Shard, blocks: usize) -> KvShape {
    KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads / shard.world,
        head_dim: config.head_dim,
        blocks,
    }
}
