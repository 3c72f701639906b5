//! One request to a foreign engine, up to where its answer begins: from there on nothing may be repeated.
//!
//! ```text
//! head 429, 503 ──► busy: another engine, else the client gets the answer as it is
//! head 5xx, or no head ──► failed: another engine
//! head else ── an event stream ──► begins with its first event
//!           └─ anything else ────► whole, or begins once it is too long to be held
//! ```

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::ModelName;

use super::Foreign;
use super::pool::{ConnectError, Connection};
use crate::api::openai::json;
use crate::ask::HttpForm;
use crate::engine::native::CallMetadata;
use crate::error::{Progress, Refusal, RouterError};
use crate::record::X_REQUEST_ID;

/// Answers up to this size are held until they are complete: an engine that dies meanwhile costs the client nothing.
const WHOLE_BYTES_MAX: usize = 1 << 20;
/// How much of a failure's body an error message shows.
const SHOWN_CHARS_MAX: usize = 200;
/// What belongs to one connection, and what this router says itself.
const HEADERS_DROPPED: [http::HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::DATE,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::UPGRADE,
    http::HeaderName::from_static("keep-alive"),
    X_REQUEST_ID,
];

/// An answer that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: BegunBody,
}

/// What follows its head.
#[derive(Debug)]
pub(super) enum BegunBody {
    Whole(Bytes),
    Open(Box<Open>),
}

/// A body that is still coming.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) connection: Connection,
    pub(super) incoming: Incoming,
    /// What came already.
    pub(super) first: Bytes,
    pub(super) framing: Framing,
}

/// How a body's end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Events, and the connection would tell if they were cut.
    Events,
    /// Events, and the connection closes behind them, cut or not.
    EventsUntilClosed,
    /// Anything else.
    Opaque,
}

/// Sends `form` to `engine`, where the model is called `model`, and returns where its answer begins.
pub(super) async fn begin(
    engine: &Foreign,
    form: &HttpForm,
    model: &ModelName,
    metadata: &CallMetadata,
) -> Result<Begun, RouterError> {
    let failed = |fault| failed(engine, fault);
    let (mut connection, parts, mut incoming) =
        send(engine, form, model, metadata).await.map_err(failed)?;
    let framing = framing(&parts.headers);
    let first = match framing {
        Framing::Opaque => whole(&mut connection, &mut incoming).await,
        Framing::Events | Framing::EventsUntilClosed => first(&mut connection, &mut incoming).await,
    };
    let (first, is_complete) = first.map_err(failed)?;
    if is_refusal(parts.status) {
        engine.pool.keep(connection);
        return Err(refused(engine, &parts, first));
    }
    let Parts { status, mut headers, .. } = parts;
    for name in &HEADERS_DROPPED {
        headers.remove(name);
    }
    let body = if is_complete {
        engine.pool.keep(connection);
        BegunBody::Whole(first)
    } else {
        BegunBody::Open(Box::new(Open { connection, incoming, first, framing }))
    };
    Ok(Begun { status, headers, body })
}

async fn send(
    engine: &Foreign,
    form: &HttpForm,
    model: &ModelName,
    metadata: &CallMetadata,
) -> Result<(Connection, Parts, Incoming), Fault> {
    let unreachable = |error: ConnectError| {
        let code = match error {
            ConnectError::Full => FaultCode::Overloaded,
            ConnectError::Refused(_) | ConnectError::Timeout | ConnectError::Handshake(_) => {
                engine.suspect();
                FaultCode::Unavailable
            }
        };
        Fault::new(code, error.to_string())
    };
    let mut connection = engine.pool.take().await.map_err(unreachable)?;
    let mut sent = connection.send(request(engine, form, model, metadata)).await;
    if sent.is_err() && connection.is_reused() {
        // The engine closed it as the request was on its way: nothing says that it is not well.
        connection = engine.pool.connect().await.map_err(unreachable)?;
        sent = connection.send(request(engine, form, model, metadata)).await;
    }
    let (parts, incoming) = sent.map_err(|error| broken(&error))?.into_parts();
    Ok((connection, parts, incoming))
}

fn request(
    engine: &Foreign,
    form: &HttpForm,
    model: &ModelName,
    metadata: &CallMetadata,
) -> Request<Full<Bytes>> {
    let body = if form.model == *model { form.body.clone() } else { renamed(form, model) };
    let mut request = engine.request(Method::POST, form.path, body);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(metadata.request_id.as_str()) {
        headers.insert(X_REQUEST_ID, id);
    }
    let trace = metadata.traceparent.as_ref();
    if let Some(trace) = trace.and_then(|trace| HeaderValue::from_bytes(trace.as_bytes()).ok()) {
        headers.insert("traceparent", trace);
    }
    request
}

/// The body with another model's name in it, and every other byte as it was.
fn renamed(form: &HttpForm, model: &ModelName) -> Bytes {
    let mut body = BytesMut::with_capacity(form.body.len() + model.as_str().len() + 2);
    body.extend_from_slice(&form.body[..form.model_at.start]);
    json::string(&mut body, model.as_str());
    body.extend_from_slice(&form.body[form.model_at.end..]);
    body.freeze()
}

fn framing(headers: &HeaderMap) -> Framing {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_framed = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.contains_key(header::CONTENT_LENGTH);
    match (kind.starts_with(b"text/event-stream"), is_framed) {
        (false, _) => Framing::Opaque,
        (true, true) => Framing::Events,
        (true, false) => Framing::EventsUntilClosed,
    }
}

/// The first piece of a stream, which is not complete with it: its end is yet to be seen.
async fn first(
    connection: &mut Connection,
    incoming: &mut Incoming,
) -> Result<(Bytes, bool), Fault> {
    loop {
        match std::future::poll_fn(|cx| connection.poll_piece(incoming, cx)).await {
            Some(Ok(piece)) if piece.is_empty() => {}
            Some(Ok(piece)) => return Ok((piece, false)),
            Some(Err(error)) => return Err(broken(&error)),
            None => return Err(Fault::new(FaultCode::Unavailable, "answered without an event")),
        }
    }
}

/// An answer up to [`WHOLE_BYTES_MAX`], and whether that is all of it.
async fn whole(
    connection: &mut Connection,
    incoming: &mut Incoming,
) -> Result<(Bytes, bool), Fault> {
    let mut pieces = Vec::new();
    let mut bytes = 0;
    while bytes < WHOLE_BYTES_MAX {
        match std::future::poll_fn(|cx| connection.poll_piece(incoming, cx)).await {
            Some(Ok(piece)) => {
                bytes += piece.len();
                pieces.push(piece);
            }
            Some(Err(error)) => return Err(broken(&error)),
            None => return Ok((joined(pieces), true)),
        }
    }
    Ok((joined(pieces), false))
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat().into(),
    }
}

/// Whether the status says that another engine may do better.
fn is_refusal(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || !(status.is_success() || status.is_client_error())
}

fn refused(engine: &Foreign, parts: &Parts, body: Bytes) -> RouterError {
    let Parts { status, headers, .. } = parts;
    if matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return RouterError::Busy(Arc::new(Refusal {
            worker: engine.identity.clone(),
            status: *status,
            content_type: headers.get(header::CONTENT_TYPE).cloned(),
            retry_after: headers.get(header::RETRY_AFTER).cloned(),
            body,
        }));
    }
    let text: String = String::from_utf8_lossy(&body).chars().take(SHOWN_CHARS_MAX).collect();
    failed(
        engine,
        Fault::new(FaultCode::Internal, format!("answered with status {status}: {text}")),
    )
}

pub(super) fn broken(error: &hyper::Error) -> Fault {
    let cause =
        std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    Fault::new(FaultCode::Unavailable, format!("{error}{cause}"))
}

fn failed(engine: &Foreign, fault: Fault) -> RouterError {
    let worker = engine.identity.clone();
    RouterError::Worker { worker, progress: Progress::NotStarted, fault }
}
