//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::BytesMut;
use phalanx_proto::id::ModelName;

use super::openai::json;
use super::{Gateway, json_response};
use crate::dispatch::fleet::Listing;
use crate::error::RouterError;

/// Every model and alias.
pub(crate) async fn list(State(gateway): State<Gateway>) -> Response {
    let listings = gateway.dispatch.fleet().listings();
    let mut out = BytesMut::with_capacity(256);
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":");
    json::array(&mut out, &listings, |out, listing| write(out, listing, gateway.started));
    out.extend_from_slice(b"}");
    json_response(out)
}

/// One model or alias.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> Result<Response, RouterError> {
    let (fleet, name) = (gateway.dispatch.fleet(), ModelName::from(id));
    let listing = fleet.find(&name).ok_or_else(|| fleet.unknown(&name))?;
    let mut out = BytesMut::with_capacity(256);
    write(&mut out, &listing, gateway.started);
    Ok(json_response(out))
}

fn write(out: &mut BytesMut, listing: &Listing, created: u64) {
    out.extend_from_slice(b"{\"id\":");
    json::string(out, listing.name.as_str());
    out.extend_from_slice(b",\"object\":\"model\",\"created\":");
    json::number(out, created);
    out.extend_from_slice(b",\"owned_by\":\"phalanx\",\"max_model_len\":");
    match listing.context_tokens_max {
        Some(tokens) => json::number(out, tokens),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}");
}
