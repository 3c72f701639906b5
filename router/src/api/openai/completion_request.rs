//! The body of `POST /v1/completions`.

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Generate, Input, TOP_LOGPROBS_MAX};
use phalanx_proto::id::RequestId;
use serde_json::{Map, Value};

use super::fields::{self, Fields, mismatch};
use super::parameters::{Parameters, check_response_format};

/// Most prompts of one request; each is a generation of its own.
const PROMPTS_MAX: usize = 128;
/// Most choices over all prompts: beyond, one request would crowd out all others.
const CHOICES_TOTAL_MAX: usize = 1024;
const PROMPT_KINDS: &str = "a string, an array of strings, or an array of token ids";

/// Reads and checks the body: one generation per prompt.
///
/// # Errors
/// The first field that is missing, mistyped or out of range.
pub(crate) fn read(
    body: &Map<String, Value>,
    id: &RequestId,
    drawn_seed: u64,
) -> Result<(Vec<Generate>, Parameters), Fault> {
    let fields = Fields::root(body);
    let parameters = Parameters::read(&fields, drawn_seed)?;
    check_response_format(&fields)?;
    refuse_unsupported(&fields, parameters.choices)?;
    let inputs = prompts(&fields)?;
    let choices = inputs.len() * parameters.choices as usize;
    if choices > CHOICES_TOTAL_MAX {
        let message = format!("prompts times n must be at most {CHOICES_TOTAL_MAX}, got {choices}");
        return Err(fields.refuse("n", message));
    }
    let top_logprobs = fields.count("logprobs", 0, TOP_LOGPROBS_MAX)?;
    let several = inputs.len() > 1;
    let generate = |(index, input)| {
        let request_id =
            if several { RequestId::from(format!("{id}-{index}")) } else { id.clone() };
        let generate = Generate {
            request_id,
            model: parameters.model.clone(),
            input,
            sampling: parameters.sampling.clone(),
            stopping: parameters.stopping.clone(),
            choices: parameters.choices,
            top_logprobs,
            return_token_ids: parameters.return_token_ids,
            cache_salt: parameters.cache_salt.clone(),
            resume: Vec::new(),
        };
        generate.validate()?;
        Ok(generate)
    };
    let generates = inputs.into_iter().enumerate().map(generate).collect::<Result<_, Fault>>()?;
    Ok((generates, parameters))
}

fn refuse_unsupported(fields: &Fields<'_>, choices: u32) -> Result<(), Fault> {
    if fields.boolean("echo")?.unwrap_or(false) {
        return Err(fields.refuse("echo", "echo is not supported"));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.refuse("suffix", "suffix is not supported"));
    }
    let best_of = fields.integer("best_of", i64::MIN, i64::MAX)?;
    if best_of.is_some_and(|best_of| best_of != i64::from(choices)) {
        let message = format!("best_of is not supported unless it equals n ({choices})");
        return Err(fields.refuse("best_of", message));
    }
    Ok(())
}

fn prompts(fields: &Fields<'_>) -> Result<Vec<Input>, Fault> {
    let items = match fields.get("prompt") {
        None => return Err(fields.missing("prompt")),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text.clone())]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mismatch("prompt", PROMPT_KINDS, other)),
    };
    if items.is_empty() {
        return Err(fields.refuse("prompt", "prompt must not be empty"));
    }
    if matches!(items[0], Value::Number(_)) {
        return Ok(vec![Input::Tokens(fields::token_ids(items, "prompt")?)]);
    }
    if items.len() > PROMPTS_MAX {
        let length = items.len();
        let message = format!("prompt must hold at most {PROMPTS_MAX} prompts, got {length}");
        return Err(fields.refuse("prompt", message));
    }
    items
        .iter()
        .enumerate()
        .map(|(index, item)| prompt(item, &format!("prompt.[{index}]")))
        .collect()
}

fn prompt(item: &Value, path: &str) -> Result<Input, Fault> {
    match item {
        Value::String(text) => Ok(Input::Text(text.clone())),
        Value::Array(ids) if ids.is_empty() => {
            Err(Fault::invalid(path, format!("{path} must hold at least one token")))
        }
        Value::Array(ids) => fields::token_ids(ids, path).map(Input::Tokens),
        other => Err(mismatch(path, "a string or an array of token ids", other)),
    }
}
