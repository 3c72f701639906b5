//! Parameters that chat and plain completions share.

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{CHOICES_MAX, LOGIT_BIAS_MAX, STOP_STRINGS_MAX, Sampling, Stopping};
use phalanx_proto::id::ModelName;
use serde_json::Value;

use super::fields::{Fields, mismatch};
use crate::ask::MODEL_NAME_BYTES_MAX;

/// What both kinds of completion say beside their prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) model: ModelName,
    pub(crate) sampling: Sampling,
    pub(crate) stopping: Stopping,
    pub(crate) choices: u32,
    pub(crate) delivery: Delivery,
    pub(crate) return_token_ids: bool,
    pub(crate) cache_salt: String,
    /// Who asks, as far as the client says.
    pub(crate) user: Option<String>,
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// As one JSON object.
    Whole,
    /// As server-sent events.
    Stream(StreamUsage),
}

/// Whether a stream says how many tokens it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamUsage {
    /// In a last chunk without choices.
    Included,
    /// Not at all.
    Omitted,
}

// === impl Parameters ===

impl Parameters {
    /// Reads everything but the prompt. Without a seed, `drawn_seed` is used, so that any worker could
    /// continue what another began.
    pub(crate) fn read(fields: &Fields<'_>, drawn_seed: u64) -> Result<Self, Fault> {
        let salt = fields.string("cache_salt")?;
        if salt == Some("") {
            return Err(fields.refuse("cache_salt", "cache_salt must not be empty"));
        }
        Ok(Self {
            model: model(fields)?,
            sampling: sampling(fields, drawn_seed)?,
            stopping: stopping(fields)?,
            choices: fields.count("n", 1, CHOICES_MAX)?.unwrap_or(1),
            delivery: delivery(fields)?,
            return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            cache_salt: salt.unwrap_or_default().to_owned(),
            user: fields.user().map(str::to_owned),
        })
    }
}

/// The model's name, which must be given.
pub(crate) fn model(fields: &Fields<'_>) -> Result<ModelName, Fault> {
    let name = fields.string("model")?.ok_or_else(|| fields.missing("model"))?;
    if name.is_empty() || name.len() > MODEL_NAME_BYTES_MAX {
        let length = name.len();
        let message = format!("model must be 1 to {MODEL_NAME_BYTES_MAX} bytes long, got {length}");
        return Err(fields.refuse("model", message));
    }
    Ok(ModelName::from(name))
}

fn sampling(fields: &Fields<'_>, drawn_seed: u64) -> Result<Sampling, Fault> {
    let default = Sampling::default();
    // vLLM's clients switch top_k off with -1.
    let top_k = fields.integer("top_k", -1, i32::MAX.into())?.unwrap_or(0);
    let seed = fields.integer("seed", i64::MIN, i64::MAX)?;
    Ok(Sampling {
        temperature: fields.number("temperature")?.unwrap_or(default.temperature),
        top_p: fields.number("top_p")?.unwrap_or(default.top_p),
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p: fields.number("min_p")?.unwrap_or(default.min_p),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(default.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(default.frequency_penalty),
        repetition_penalty: fields
            .number("repetition_penalty")?
            .unwrap_or(default.repetition_penalty),
        logit_bias: logit_bias(fields)?,
        seed: seed.map_or(drawn_seed, i64::cast_unsigned),
    })
}

/// Its faults name the field and not the token, as OpenAI's do; the message says which.
fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, Fault> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if biases.map().len() > LOGIT_BIAS_MAX {
        let length = biases.map().len();
        let message = format!("logit_bias must hold at most {LOGIT_BIAS_MAX} tokens, got {length}");
        return Err(fields.refuse("logit_bias", message));
    }
    let bias = |token: &String| {
        let path = biases.path(token);
        let id = token.parse::<u32>().map_err(|_| {
            Fault::invalid(&path, format!("logit_bias keys must be token ids, got {token:?}"))
        })?;
        let bias =
            biases.number(token)?.ok_or_else(|| mismatch(&path, "a number", &Value::Null))?;
        if !(-100.0..=100.0).contains(&bias) {
            let message = format!("{path} must be between -100 and 100, got {bias}");
            return Err(Fault::invalid(&path, message));
        }
        Ok((id, bias))
    };
    let biases: Result<_, Fault> = biases.map().keys().map(bias).collect();
    biases.map_err(|fault| fault.with_param("logit_bias"))
}

fn stopping(fields: &Fields<'_>) -> Result<Stopping, Fault> {
    let legacy = fields.count("max_tokens", 1, u32::MAX)?;
    let current = fields.count("max_completion_tokens", 1, u32::MAX)?;
    Ok(Stopping {
        max_tokens: current.or(legacy),
        min_tokens: fields.count("min_tokens", 0, u32::MAX)?.unwrap_or(0),
        strings: stop_strings(fields)?,
        token_ids: fields.token_ids("stop_token_ids")?.unwrap_or_default(),
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
    })
}

fn stop_strings(fields: &Fields<'_>) -> Result<Vec<String>, Fault> {
    let items = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => return Ok(vec![text.clone()]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mismatch("stop", "a string or an array of strings", other)),
    };
    if items.len() > STOP_STRINGS_MAX {
        let length = items.len();
        let message = format!("stop must hold at most {STOP_STRINGS_MAX} strings, got {length}");
        return Err(fields.refuse("stop", message));
    }
    let text = |(index, item): (usize, &Value)| match item {
        Value::String(text) => Ok(text.clone()),
        other => Err(mismatch(&format!("stop.[{index}]"), "a string", other)),
    };
    items.iter().enumerate().map(text).collect()
}

fn delivery(fields: &Fields<'_>) -> Result<Delivery, Fault> {
    let options = fields.object("stream_options")?;
    if !fields.boolean("stream")?.unwrap_or(false) {
        if options.is_some() {
            let message = "stream_options is only allowed when stream is true";
            return Err(fields.refuse("stream_options", message));
        }
        return Ok(Delivery::Whole);
    }
    let included = match options {
        Some(options) => options.boolean("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(Delivery::Stream(if included { StreamUsage::Included } else { StreamUsage::Omitted }))
}

/// Refuses output formats that no engine can promise yet.
pub(crate) fn check_response_format(fields: &Fields<'_>) -> Result<(), Fault> {
    let Some(format) = fields.object("response_format")? else { return Ok(()) };
    let kind = format.string("type")?.ok_or_else(|| format.missing("type"))?;
    match kind {
        "text" => Ok(()),
        "json_object" | "json_schema" => Err(format.refuse(
            "type",
            format!("response_format.type {kind:?} is not available: structured output is not supported, only \"text\""),
        )),
        _ => Err(format.refuse(
            "type",
            format!("response_format.type must be \"text\", \"json_object\" or \"json_schema\", got {kind:?}"),
        )),
    }
}
