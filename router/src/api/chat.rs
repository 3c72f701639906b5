//! `POST /v1/chat/completions`.

use axum::extract::{Request, State};
use axum::response::Response;

use super::openai::chat_answer::ChatFormat;
use super::openai::chat_request;
use super::{Endpoint, Gateway};
use crate::error::RouterError;

const ENDPOINT: Endpoint = Endpoint { path: "/v1/chat/completions", read: chat_request::read };

/// Answers a conversation.
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    gateway.complete(request, ENDPOINT, ChatFormat).await
}
