//! `POST /v1/completions`.

use axum::extract::{Request, State};
use axum::response::Response;

use super::Gateway;
use super::openai::completion_answer::CompletionFormat;
use super::openai::completion_request;
use crate::error::RouterError;

/// Continues one or more prompts.
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    let incoming = gateway.read(request).await?;
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let (generates, parameters) =
        completion_request::read(&incoming.body, incoming.record.id(), seed)?;
    gateway.answer(incoming, generates, &parameters, CompletionFormat::default()).await
}
