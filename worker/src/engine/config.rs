//! The engine's limits, validated once.

use phalanx_kernels::batch::BLOCK_TOKENS;

/// Limits as written by the user; what is absent takes its default.
#[derive(Clone, Debug, Default)]
pub struct RawEngine {
    /// KV blocks of 16 tokens; absent: as many as `kv_memory_mib` holds.
    pub kv_blocks: Option<u32>,
    /// Memory for the KV cache.
    pub kv_memory_mib: Option<u32>,
    /// Most tokens computed in one step.
    pub step_tokens_max: Option<u32>,
    /// Most sequences computed in one step.
    pub running_max: Option<u32>,
    /// Most sequences waiting for a place.
    pub waiting_max: Option<u32>,
    /// Whether prefixes are kept for later requests.
    pub prefix_cache: Option<bool>,
}

/// Memory for the KV cache unless told otherwise: 65,536 tokens of the demo model, a few chats of a 1B one.
pub const KV_MEMORY_MIB_DEFAULT: u32 = 512;
/// Tokens per step unless told otherwise: large enough to fill the matrix units of two cores, small enough
/// that a stream beside a long prompt still gets several tokens per second.
pub const STEP_TOKENS_DEFAULT: u32 = 512;
/// Running sequences unless told otherwise.
pub const RUNNING_DEFAULT: u32 = 64;
/// Waiting sequences unless told otherwise: beyond this, minutes of queue, an honest refusal is better.
pub const WAITING_DEFAULT: u32 = 1024;

/// A limit out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be between {min} and {max}, got {value}")]
pub struct EngineConfigError {
    /// Which.
    pub key: &'static str,
    /// What it was set to.
    pub value: u32,
    /// Least allowed.
    pub min: u32,
    /// Most allowed.
    pub max: u32,
}

/// Whether computed prefixes are kept for later requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCaching {
    /// Full blocks stay findable until their memory is needed.
    On,
    /// Every prompt is computed anew.
    Off,
}

/// How the size of the KV cache is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// Blocks of 16 tokens.
    Blocks(u32),
    /// Mebibytes.
    MemoryMib(u32),
}

/// The engine's limits. To hold one is to know it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    kv_size: KvSize,
    step_tokens_max: usize,
    running_max: usize,
    waiting_max: usize,
    prefix_caching: PrefixCaching,
}

// === impl EngineConfig ===

impl EngineConfig {
    /// How large the KV cache is.
    pub const fn kv_size(&self) -> KvSize {
        self.kv_size
    }

    /// Most tokens computed in one step; at least `running_max`, so that every stream moves in every step.
    pub const fn step_tokens_max(&self) -> usize {
        self.step_tokens_max
    }

    /// Most sequences computed in one step.
    pub const fn running_max(&self) -> usize {
        self.running_max
    }

    /// Most sequences on hand, running and waiting.
    pub fn sequences_max(&self) -> u32 {
        u32::try_from(self.running_max + self.waiting_max).unwrap_or(u32::MAX)
    }

    /// Whether prefixes are kept.
    pub const fn prefix_caching(&self) -> PrefixCaching {
        self.prefix_caching
    }
}

impl TryFrom<RawEngine> for EngineConfig {
    type Error = EngineConfigError;

    fn try_from(raw: RawEngine) -> Result<Self, EngineConfigError> {
        let step_default = STEP_TOKENS_DEFAULT;
        let step = within("step_tokens_max", raw.step_tokens_max, step_default, (1, 65_536))?;
        let running = within("running_max", raw.running_max, RUNNING_DEFAULT.min(step), (1, step))?;
        let waiting = within("waiting_max", raw.waiting_max, WAITING_DEFAULT, (1, 1 << 20))?;
        let memory =
            within("kv_memory_mib", raw.kv_memory_mib, KV_MEMORY_MIB_DEFAULT, (1, 1 << 24))?;
        let kv_size = match raw.kv_blocks {
            Some(blocks) => KvSize::Blocks(within("kv_blocks", Some(blocks), 0, (2, 1 << 26))?),
            None => KvSize::MemoryMib(memory),
        };
        let prefix_caching =
            if raw.prefix_cache.unwrap_or(true) { PrefixCaching::On } else { PrefixCaching::Off };
        Ok(Self {
            kv_size,
            step_tokens_max: step as usize,
            running_max: running as usize,
            waiting_max: waiting as usize,
            prefix_caching,
        })
    }
}

fn within(
    key: &'static str,
    value: Option<u32>,
    default: u32,
    (min, max): (u32, u32),
) -> Result<u32, EngineConfigError> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(EngineConfigError { key, value, min, max })
    }
}

/// Blocks that hold `tokens` tokens.
pub(crate) const fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_fits_in_a_step() {
        let raw = RawEngine { step_tokens_max: Some(16), ..RawEngine::default() };
        assert_eq!(EngineConfig::try_from(raw).unwrap().running_max(), 16);
        let raw =
            RawEngine { step_tokens_max: Some(16), running_max: Some(17), ..RawEngine::default() };
        let error = EngineConfig::try_from(raw).unwrap_err();
        assert_eq!(error.to_string(), "running_max must be between 1 and 16, got 17");
    }
}
