//! A request's body: bounded, then JSON, then an object.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use phalanx_proto::fault::{Fault, FaultCode};
use serde_json::{Map, Value};

use crate::error::RouterError;

/// Reads at most `limit` bytes; a body announced as larger is not read at all.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Bytes, RouterError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(RouterError::BodyTooLarge { limit });
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(RouterError::BodyTooLarge { limit }),
        Err(_) => Err(RouterError::BodyIncomplete),
    }
}

/// The JSON object that `bytes` must be, whatever the content type says.
pub(crate) fn parse(bytes: &[u8]) -> Result<Map<String, Value>, Fault> {
    let refuse = |message: String| Fault::new(FaultCode::InvalidRequest, message);
    if bytes.is_empty() {
        return Err(refuse("request body is empty, must be a JSON object".to_owned()));
    }
    let value = serde_json::from_slice(bytes)
        .map_err(|error| refuse(format!("request body is not valid JSON: {error}")))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(refuse("request body must be a JSON object".to_owned())),
    }
}
