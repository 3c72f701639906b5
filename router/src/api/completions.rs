//! `POST /v1/completions`.

use axum::extract::{Request, State};
use axum::response::Response;

use super::openai::completion_answer::CompletionFormat;
use super::openai::completion_request;
use super::{Endpoint, Gateway};
use crate::error::RouterError;

const ENDPOINT: Endpoint = Endpoint { path: "/v1/completions", read: completion_request::read };

/// Continues one or more prompts.
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, RouterError> {
    gateway.complete(request, ENDPOINT, CompletionFormat::default()).await
}
