//! What an engine serves, whoever asks: the model's name and limits, and refusals.

use std::fmt::Write as _;
use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::ModelName;
use serde_json::{Value, json};

use crate::core::Overloaded;
use crate::engine::Stats;

/// What an engine that has no place asks a client to wait: about one short answer.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The model.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) model: ModelName,
    /// Tokens of prompt and answer together.
    pub(crate) context_tokens: u32,
    /// Tokens the engine may keep or hold.
    pub(crate) kv_tokens: u64,
}

// === impl Served ===

impl Served {
    pub(crate) fn check_model(&self, asked: &str) -> Result<(), Fault> {
        if asked == self.model.as_str() {
            return Ok(());
        }
        let message = format!("this engine serves model {}, not {asked}", self.model);
        Err(Fault::new(FaultCode::ModelNotFound, message).with_param("model"))
    }

    pub(crate) fn check_length(&self, prompt: u32, answer: u32) -> Result<(), Fault> {
        if prompt.saturating_add(answer) <= self.context_tokens {
            return Ok(());
        }
        let message = format!(
            "this model's context is {} tokens, but {prompt} of the prompt and {answer} of the answer were asked for",
            self.context_tokens
        );
        Err(Fault::new(FaultCode::ContextLengthExceeded, message).with_param("max_tokens"))
    }

    pub(crate) fn models(&self) -> Value {
        json!({"object": "list", "data": [{
            "id": self.model.as_str(), "object": "model", "created": 0, "owned_by": "phalanx",
            "max_model_len": self.context_tokens
        }]})
    }

    /// Prometheus text, under vLLM's names.
    pub(crate) fn metrics(&self, stats: &Stats) -> String {
        let totals = stats.totals;
        let model = self.model.as_str().replace('\\', "\\\\").replace('"', "\\\"");
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, value: f64| {
            let _ = writeln!(text, "# TYPE vllm:{name} {kind}");
            let _ = writeln!(text, "vllm:{name}{{model_name=\"{model}\"}} {value}");
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "metrics are floats; counts stay far below 2^53"
        )]
        let count = |count: u64| count as f64;
        let usage = count(stats.load.held_tokens) / count(self.kv_tokens.max(1));
        metric("num_requests_running", "gauge", f64::from(stats.load.running));
        metric("num_requests_waiting", "gauge", f64::from(stats.load.waiting));
        metric("kv_cache_usage_perc", "gauge", usage.min(1.0));
        metric("prompt_tokens_total", "counter", count(totals.prompt_tokens));
        metric("generation_tokens_total", "counter", count(totals.generated_tokens));
        metric("prefix_cache_queries_total", "counter", count(totals.prompt_tokens));
        metric("prefix_cache_hits_total", "counter", count(totals.cached_tokens));
        text
    }
}

/// The refusal of an engine whose queue is full.
pub(crate) fn overloaded(full: &Overloaded) -> Fault {
    Fault::new(FaultCode::Overloaded, full.to_string()).with_retry_after(RETRY_AFTER)
}

/// The answer to a request that fails on purpose.
pub(crate) fn failed_on_purpose() -> Fault {
    Fault::new(FaultCode::Internal, "failed on purpose")
}

/// The refusal of an engine that was told to refuse.
pub(crate) fn refused_on_purpose() -> Fault {
    Fault::new(FaultCode::Overloaded, "refused on purpose").with_retry_after(RETRY_AFTER)
}
