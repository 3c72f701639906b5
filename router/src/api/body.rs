//! A request's body: bounded, then JSON, then an object.

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::fault::{Fault, FaultCode};
use serde_json::{Map, Value};

use crate::error::RouterError;

/// Most bytes of an oversized body that are read and thrown away: a client that writes all before it reads
/// would otherwise see a reset connection instead of the refusal. Eight times the limit meets every honest
/// mistake, and reading costs no memory.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
/// How long that may take: on a busy machine, megabytes a second.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a body may take to arrive: the largest one does at 280 KB/s, and a client that sends nothing holds
/// its place among the requests in progress no longer.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Gives a body that is being read up after `timeout`, or once the process drains: whoever still sends has
/// been promised nothing.
pub(crate) async fn in_time<F>(
    reading: F,
    timeout: Duration,
    drain: &Drain,
) -> Result<Bytes, RouterError>
where
    F: Future<Output = Result<Bytes, RouterError>>,
{
    tokio::select! {
        biased;
        read = reading => read,
        () = drain.reached(Phase::Draining) => Err(RouterError::Draining),
        () = tokio::time::sleep(timeout) => Err(RouterError::BodyTimeout { timeout }),
    }
}

/// Reads at most `limit` bytes; a body announced as larger is not kept at all.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
) -> Result<Bytes, RouterError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    let is_too_large = if announced.is_some_and(|length| length > limit as u64) {
        true
    } else {
        match Limited::new(&mut body, limit).collect().await {
            Ok(collected) => return Ok(collected.to_bytes()),
            Err(error) => error.is::<LengthLimitError>(),
        }
    };
    if !is_too_large {
        return Err(RouterError::BodyIncomplete);
    }
    // A client that asked for leave to send has sent nothing yet, and reading would grant it.
    if !headers.contains_key(header::EXPECT) {
        let rest = Limited::new(body, DISCARDED_BYTES_MAX);
        // Whatever becomes of the rest, the answer is the same.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard(rest)).await;
    }
    Err(RouterError::BodyTooLarge { limit })
}

async fn discard(mut body: Limited<Body>) {
    while let Some(Ok(_)) = body.frame().await {}
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use phalanx_chassis::drain;

    use super::*;

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up_after_its_time() {
        let (_trigger, drain) = drain::channel();
        let timeout = Duration::from_millis(1);
        let error = in_time(pending(), timeout, &drain).await.unwrap_err();
        assert_eq!(error.to_string(), "request body did not arrive within 1 ms");
        assert_eq!(error.status(), 408);
    }

    #[tokio::test]
    async fn a_body_that_is_here_is_read_even_while_the_process_drains() {
        let (trigger, drain) = drain::channel();
        trigger.advance(Phase::Draining);
        let body = async { Ok(Bytes::from_static(b"{}")) };
        assert_eq!(in_time(body, READ_TIMEOUT, &drain).await.unwrap(), "{}");
        let error = in_time(pending(), READ_TIMEOUT, &drain).await.unwrap_err();
        assert_eq!(error.status(), 503);
    }
}
