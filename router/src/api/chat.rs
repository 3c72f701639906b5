//! `POST /v1/chat/completions`.

use axum::extract::{Request, State};
use axum::response::Response;

use super::Gateway;
use super::openai::chat_answer::ChatFormat;
use super::openai::chat_request;
use crate::error::RouterError;

/// Answers a conversation.
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    let incoming = gateway.read(request).await?;
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let (generate, parameters) = chat_request::read(&incoming.body, incoming.record.id(), seed)?;
    gateway.answer(incoming, vec![generate], &parameters, ChatFormat).await
}
