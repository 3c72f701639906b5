//! `config.json` of a Hugging Face folder, checked: an unknown architecture, rope type or quantisation is an
//! error that names the key, never a silent default.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::rope::RopeScaling;
use crate::weights::LoadError;

/// Architectures this build can compute.
const ARCHITECTURES: [&str; 1] = ["LlamaForCausalLM"];

/// The shape of a Llama-family decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was trained for.
    pub context_tokens_max: usize,
    /// Added to the mean square before the root.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output matrix is the embedding table.
    pub tied_head: bool,
}

/// Reads values of one JSON file with errors that name file and key.
struct Reader<'a> {
    path: PathBuf,
    root: &'a Value,
}

// === impl ModelConfig ===

impl ModelConfig {
    /// Reads and checks `config.json` of `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, a missing key, or a value that this build cannot honour.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| LoadError::Io { path: path.clone(), source })?;
        let root: Value = serde_json::from_str(&text).map_err(|error| LoadError::Malformed {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Self::parse(&Reader { path, root: &root })
    }

    fn parse(reader: &Reader<'_>) -> Result<Self, LoadError> {
        reader.check_family()?;
        let hidden = reader.size("hidden_size")?;
        let heads = reader.size("num_attention_heads")?;
        let kv_heads = reader.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({heads})");
            return Err(reader.bad("num_key_value_heads", &kv_heads.into(), &expected));
        }
        let head_dim = reader.size_or("head_dim", hidden / heads)?;
        if !head_dim.is_multiple_of(2) {
            return Err(reader.bad("head_dim", &head_dim.into(), "an even number"));
        }
        let rope = reader.rope_parameters();
        let theta = rope.and_then(|rope| rope.get("rope_theta")).or(reader.get("rope_theta"));
        Ok(Self {
            hidden,
            intermediate: reader.size("intermediate_size")?,
            layers: reader.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab: reader.size("vocab_size")?,
            context_tokens_max: reader.size("max_position_embeddings")?,
            norm_epsilon: reader.epsilon()?,
            rope_theta: theta.and_then(Value::as_f64).unwrap_or(10_000.0),
            rope_scaling: reader.rope_scaling(rope)?,
            tied_head: reader.flag("tie_word_embeddings")?,
        })
    }

    /// Parameters beside the embedding tables: what a token's forward pass multiplies with, head excluded.
    pub const fn layer_parameters(&self) -> usize {
        let attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads);
        self.layers * (attention + 3 * self.hidden * self.intermediate)
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, value: &Value, expected: &str) -> LoadError {
        LoadError::Config {
            path: self.path.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        match self.get(key) {
            Some(value) => self.as_size(key, value),
            None => Err(self.bad(key, &Value::from("missing"), "a positive integer")),
        }
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        self.get(key).map_or(Ok(default), |value| self.as_size(key, value))
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize, LoadError> {
        /// Larger than any model's, and small enough that no product of three sizes overflows.
        const SIZE_MAX: u64 = 1 << 24;
        value
            .as_u64()
            .filter(|size| (1..=SIZE_MAX).contains(size))
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.bad(key, value, &format!("an integer from 1 to {SIZE_MAX}")))
    }

    fn flag(&self, key: &str) -> Result<bool, LoadError> {
        self.get(key).map_or(Ok(false), |value| {
            value.as_bool().ok_or_else(|| self.bad(key, value, "true or false"))
        })
    }

    fn epsilon(&self) -> Result<f32, LoadError> {
        let Some(value) = self.get("rms_norm_eps") else { return Ok(1e-6) };
        #[expect(clippy::cast_possible_truncation, reason = "f32 is what the norm computes in")]
        let epsilon = value.as_f64().unwrap_or(f64::NAN) as f32;
        if epsilon > 0.0 && epsilon < 1.0 {
            Ok(epsilon)
        } else {
            Err(self.bad("rms_norm_eps", value, "a number between 0 and 1"))
        }
    }

    /// Everything that would make the arithmetic another one than Llama's.
    fn check_family(&self) -> Result<(), LoadError> {
        let none = Value::Null;
        let architectures = self.get("architectures").unwrap_or(&none);
        let known = architectures.as_array().is_some_and(|names| {
            names.iter().filter_map(Value::as_str).any(|name| ARCHITECTURES.contains(&name))
        });
        if !known {
            let expected = format!("one of {}", ARCHITECTURES.join(", "));
            return Err(self.bad("architectures", architectures, &expected));
        }
        if let Some(value) = self.get("hidden_act").filter(|value| *value != "silu") {
            return Err(self.bad("hidden_act", value, "\"silu\""));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return Err(self.bad(key, &Value::from(true), "false"));
            }
        }
        if let Some(value) = self.get("quantization_config") {
            return Err(self.bad(
                "quantization_config",
                value,
                "none: weights in BF16, F16 or F32",
            ));
        }
        Ok(())
    }

    /// Transformers 5 gathers `rope_theta` and `rope_scaling` under `rope_parameters`.
    fn rope_parameters(&self) -> Option<&Value> {
        self.get("rope_parameters").or_else(|| self.get("rope_scaling"))
    }

    fn rope_scaling(&self, rope: Option<&Value>) -> Result<RopeScaling, LoadError> {
        let Some(rope) = rope else { return Ok(RopeScaling::None) };
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        let number = |key: &str| {
            let value = rope.get(key).unwrap_or(&Value::Null);
            value
                .as_f64()
                .filter(|number| *number > 0.0)
                .ok_or_else(|| self.bad(&format!("rope_scaling.{key}"), value, "a positive number"))
        };
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_frequency_factor: number("low_freq_factor")?,
                high_frequency_factor: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            }),
            Some(other) => {
                let expected = "one of \"default\", \"linear\", \"llama3\"";
                Err(self.bad("rope_scaling.rope_type", &Value::from(other), expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "hidden_act": "silu"
        })
    }

    fn parse(root: &Value) -> Result<ModelConfig, LoadError> {
        ModelConfig::parse(&Reader { path: "config.json".into(), root })
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let config = parse(&llama()).unwrap();
        assert_eq!((config.head_dim, config.tied_head), (16, false));
        assert_eq!((config.rope_theta, config.rope_scaling), (10_000.0, RopeScaling::None));
    }

    #[test]
    fn both_spellings_of_llama_3_rope_scaling_are_read() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500_000.0
        });
        let expected = RopeScaling::Llama3 {
            factor: 32.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        for key in ["rope_scaling", "rope_parameters"] {
            let mut root = llama();
            root[key] = scaling.clone();
            let config = parse(&root).unwrap();
            assert_eq!(config.rope_scaling, expected, "{key}");
            assert_eq!(config.rope_theta, 500_000.0, "{key}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_names_the_key_its_value_and_what_would_work() {
        for (key, value, message) in [
            ("architectures", json!(["GPT2LMHeadModel"]), "one of LlamaForCausalLM"),
            ("architectures", Value::Null, "one of LlamaForCausalLM"),
            ("hidden_size", json!(0), "hidden_size is 0, expected an integer from 1 to"),
            ("hidden_size", Value::Null, "hidden_size is \"missing\", expected a positive integer"),
            ("num_key_value_heads", json!(3), "a divisor of num_attention_heads (4)"),
            ("head_dim", json!(15), "an even number"),
            ("hidden_act", json!("gelu"), "expected \"silu\""),
            ("attention_bias", json!(true), "attention_bias is true, expected false"),
            ("rms_norm_eps", json!("x"), "a number between 0 and 1"),
            ("rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling.rope_type is \"yarn\""),
            ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor is null"),
            ("quantization_config", json!({"quant_method": "awq"}), "weights in BF16, F16 or F32"),
        ] {
            let mut root = llama();
            root[key] = value;
            let error = parse(&root).unwrap_err().to_string();
            assert!(error.starts_with("config.json: "), "{error}");
            assert!(error.contains(message), "{key}: {error}");
        }
    }
}
