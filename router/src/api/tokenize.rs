//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes. Any worker of the model can answer.

use std::future::Future;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::BytesMut;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::ModelName;
use phalanx_proto::pb;
use phalanx_proto::prefix::Chunks;

use super::openai::fields::Fields;
use super::openai::{json, messages, parameters};
use super::{Gateway, Incoming, body, json_response};
use crate::dispatch::cost::Work;
use crate::dispatch::fleet::Eligible;
use crate::dispatch::{Choice, Wanted};
use crate::engine::native::{self, Native};
use crate::engine::{Engine, Kind, Kinds};
use crate::error::{Progress, RouterError};
use crate::retry::ATTEMPTS_MAX;

/// Text or messages to token ids.
pub(crate) async fn tokenize(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    let incoming = gateway.read(request).await?;
    if let Some(outline) = gateway.foreign_only(&incoming.body) {
        return gateway.pass(&incoming, "/tokenize", &outline).await;
    }
    let body = body::parse(&incoming.body)?;
    let fields = Fields::root(&body);
    let model = gateway.model_or_only(&fields)?;
    let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    let message = tokenize_message(&fields)?;
    let metadata = &incoming.metadata;
    let answer = gateway
        .ask(&incoming, (&model, fields.user()), async |Choice { engine, model, .. }| {
            let worker = native_worker(&engine)?;
            let message = pb::TokenizeRequest { model: model.to_string(), ..message.clone() };
            let answer = native::tokenize(worker, message, metadata.clone()).await;
            answer.map_err(|fault| failed(&engine, fault))
        })
        .await?;
    let mut out = BytesMut::with_capacity(64 + answer.ids.len() * 8);
    out.extend_from_slice(b"{\"count\":");
    json::number(&mut out, answer.ids.len() as u64);
    out.extend_from_slice(b",\"max_model_len\":");
    json::number(&mut out, answer.context_tokens_max);
    out.extend_from_slice(b",\"tokens\":");
    json::token_ids(&mut out, &answer.ids);
    out.extend_from_slice(b",\"token_strs\":");
    if with_texts {
        json::array(&mut out, &answer.tokens, |out, text| json::string(out, text));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b"}");
    Ok(json_response(out))
}

/// Token ids to text.
pub(crate) async fn detokenize(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    let incoming = gateway.read(request).await?;
    if let Some(outline) = gateway.foreign_only(&incoming.body) {
        return gateway.pass(&incoming, "/detokenize", &outline).await;
    }
    let body = body::parse(&incoming.body)?;
    let fields = Fields::root(&body);
    let model = gateway.model_or_only(&fields)?;
    let ids = fields.token_ids("tokens")?.ok_or_else(|| fields.missing("tokens"))?;
    let metadata = &incoming.metadata;
    let answer = gateway
        .ask(&incoming, (&model, fields.user()), async |Choice { engine, model, .. }| {
            let worker = native_worker(&engine)?;
            let message = pb::DetokenizeRequest { model: model.to_string(), ids: ids.clone() };
            let answer = native::detokenize(worker, message, metadata.clone()).await;
            answer.map_err(|fault| failed(&engine, fault))
        })
        .await?;
    let mut out = BytesMut::with_capacity(32 + answer.text.len());
    out.extend_from_slice(b"{\"prompt\":");
    json::string(&mut out, &answer.text);
    out.extend_from_slice(b"}");
    Ok(json_response(out))
}

/// The message for the worker, but for the model's name there.
fn tokenize_message(fields: &Fields<'_>) -> Result<pb::TokenizeRequest, Fault> {
    use pb::tokenize_request::Input;
    let prompt = fields.string("prompt")?;
    let special = fields.boolean("add_special_tokens")?;
    let (input, add_special_tokens) = match (prompt, fields.get("messages")) {
        (Some(_), Some(_)) => {
            return Err(fields.refuse("messages", "messages and prompt cannot both be given"));
        }
        (None, None) => return Err(fields.missing("prompt")),
        (Some(text), None) => (Input::Text(text.to_owned()), special.unwrap_or(true)),
        // A chat template writes the special tokens itself.
        (None, Some(_)) => (Input::Chat(messages::read(fields)?.into()), special.unwrap_or(false)),
    };
    Ok(pb::TokenizeRequest { model: String::new(), input: Some(input), add_special_tokens })
}

/// The worker that `engine` is, as only those are asked.
fn native_worker(engine: &Engine) -> Result<&Native, RouterError> {
    match &engine.kind {
        Kind::Native(worker) => Ok(worker),
        Kind::Foreign(_) => {
            Err(failed(engine, Fault::new(FaultCode::Internal, "it is no native worker")))
        }
    }
}

fn failed(engine: &Engine, fault: Fault) -> RouterError {
    RouterError::Worker { worker: engine.identity.clone(), progress: Progress::NotStarted, fault }
}

// === impl Gateway ===

impl Gateway {
    /// The model named, or the only one there is.
    fn model_or_only(&self, fields: &Fields<'_>) -> Result<ModelName, Fault> {
        if fields.get("model").is_none()
            && let [only] = self.dispatch.fleet().listings().as_slice()
        {
            return Ok(only.name.clone());
        }
        parameters::model(fields)
    }

    /// Asks engines of `model` until one answers, within the request's deadline.
    async fn ask<T, F>(
        &self,
        incoming: &Incoming,
        (model, user): (&ModelName, Option<&str>),
        ask: impl Fn(Choice) -> F,
    ) -> Result<T, RouterError>
    where
        F: Future<Output = Result<T, RouterError>>,
    {
        self.name_model(&incoming.record, model);
        let draw = incoming.draw(model, user);
        let chunks = Chunks::default();
        let wanted = Wanted { work: Work::default(), answers: None, chunks: &chunks };
        let attempts = async {
            let mut excluded = Vec::new();
            let mut last = None;
            while excluded.len() < ATTEMPTS_MAX {
                let eligible = Eligible { kinds: Kinds::NATIVE, excluded: &excluded };
                let choice = match self.dispatch.choose(model, draw, wanted, eligible) {
                    Ok(choice) => choice,
                    Err(error) => return Err(last.unwrap_or(error)),
                };
                let error = match ask(choice).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let Some(worker) = error.failed_worker() else { return Err(error) };
                excluded.push(worker);
                last = Some(error);
            }
            Err(last.unwrap_or_else(|| RouterError::NoWorker { model: model.clone() }))
        };
        let timeout = incoming.timeout;
        tokio::time::timeout_at(incoming.deadline.into(), attempts)
            .await
            .unwrap_or(Err(RouterError::DeadlineExceeded { timeout }))
    }
}
