//! Endpoints that only foreign engines answer: what is asked there is passed on as it is.

use axum::extract::Request;
use axum::response::Response;
use http::Method;

use super::openai::fields::Fields;
use super::openai::parameters;
use super::{Gateway, body};
use crate::engine::Kinds;
use crate::error::RouterError;
use crate::outline::Outline;

/// Their paths: those of OpenAI's API and of its servers' common extensions.
pub(crate) const PATHS: [&str; 5] =
    ["/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/responses", "/v1/messages"];

/// Passes a request for `path` to a foreign engine that serves its model.
pub(crate) async fn create(
    gateway: Gateway,
    path: &'static str,
    request: Request,
) -> Result<Response, RouterError> {
    let incoming = gateway.read(request).await?;
    let outline = Outline::read(&incoming.body);
    if let Some(outline) = &outline
        && gateway.dispatch.fleet().kinds(&outline.model).foreign
    {
        return gateway.pass(&incoming, path, outline).await;
    }
    let object = body::parse(&incoming.body)?;
    let model = parameters::model(&Fields::root(&object))?;
    let fleet = gateway.dispatch.fleet();
    if !fleet.is_known(&model) {
        return Err(fleet.unknown(&model));
    }
    // The engines that serve the model have no such endpoint.
    let (method, path) = (Method::POST.to_string(), path.to_owned());
    Err(RouterError::RouteUnknown { method, path })
}

// === impl Gateway ===

impl Gateway {
    /// What `body` asks, if only foreign engines serve its model.
    pub(super) fn foreign_only(&self, body: &[u8]) -> Option<Outline> {
        let outline = Outline::read(body)?;
        (self.dispatch.fleet().kinds(&outline.model) == Kinds::FOREIGN).then_some(outline)
    }
}
