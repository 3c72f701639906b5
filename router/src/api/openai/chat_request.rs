//! The body of `POST /v1/chat/completions`.

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Generate, Input, TOP_LOGPROBS_MAX};
use phalanx_proto::id::RequestId;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::messages;
use super::parameters::{Parameters, check_response_format};

/// Reads and checks the body: one generation.
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
    let generate = Generate {
        request_id: id.clone(),
        model: parameters.model.clone(),
        input: Input::Chat(messages::read(&fields)?),
        sampling: parameters.sampling.clone(),
        stopping: parameters.stopping.clone(),
        choices: parameters.choices,
        top_logprobs: top_logprobs(&fields)?,
        return_token_ids: parameters.return_token_ids,
        cache_salt: parameters.cache_salt.clone(),
        resume: Vec::new(),
    };
    generate.validate()?;
    Ok((vec![generate], parameters))
}

fn top_logprobs(fields: &Fields<'_>) -> Result<Option<u32>, Fault> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    if top.is_some() && !wanted {
        let message = "top_logprobs is only allowed when logprobs is true";
        return Err(fields.refuse("top_logprobs", message));
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}
