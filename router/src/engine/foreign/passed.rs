//! The answer of a foreign engine on its way to the client: its own bytes, and what they teach.
//!
//! Of a stream only whole events are passed on, so that an error can follow them: an engine that dies between two
//! halves of one leaves the client with neither.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Usage;
use serde::Deserialize;

use super::Foreign;
use super::events::Events;
use super::exchange::{self, Begun, BegunBody, Framing, Open, broken};
use crate::ask::HttpForm;
use crate::deadline::Cutoff;
use crate::engine::native::CallMetadata;
use crate::error::{Progress, RouterError};
use crate::meter::Meter;
use crate::outline::last_value;
use crate::record::RequestRecord;
use crate::reply::Placement;

/// Most of an event that is held back until its end comes. One that is longer is passed on in pieces.
const HELD_BYTES_MAX: usize = 1 << 20;

/// An answer that is passed on.
#[derive(Debug)]
pub(crate) struct PassedResponse {
    placement: Placement,
    status: StatusCode,
    headers: HeaderMap,
    body: PassedBody,
}

/// Its body. Dropping it closes the connection to the engine, and so cancels the work.
#[derive(Debug)]
pub(crate) struct PassedBody {
    state: State,
    /// Where an error inside the stream is noted.
    record: Option<RequestRecord>,
}

#[derive(Debug)]
enum State {
    Whole(Bytes),
    Open(Box<Passing>),
    /// Credit, connection and timers are released.
    Ended,
}

/// A body that is still coming.
#[derive(Debug)]
struct Passing {
    engine: Arc<Foreign>,
    open: Box<Open>,
    events: Events,
    /// The beginning of an event whose end has not come.
    held: BytesMut,
    meter: Meter,
    cutoff: Option<Cutoff>,
}

/// What an answer says that it used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UsageForm {
    prompt_tokens: u32,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

/// Sends `form` to `engine` and returns its answer, begun.
pub(crate) async fn pass(
    engine: Arc<Foreign>,
    form: &HttpForm,
    metadata: &CallMetadata,
    placement: Placement,
    mut meter: Meter,
) -> Result<PassedResponse, RouterError> {
    let begun = exchange::begin(&engine, form, &placement.model, metadata).await;
    let Begun { status, headers, body } = begun.inspect_err(|error| match error {
        RouterError::Worker { fault, .. } => meter.failed(fault),
        // It is spared for as long as it asks for.
        RouterError::Busy(refusal) => meter.failed(&refusal.fault()),
        _ => {}
    })?;
    let state = match body {
        BegunBody::Whole(bytes) => {
            meter.passed_all(usage_of(&bytes), Instant::now());
            State::Whole(bytes)
        }
        BegunBody::Open(open) => State::Open(Box::new(Passing {
            engine,
            open,
            events: Events::default(),
            held: BytesMut::new(),
            meter,
            cutoff: None,
        })),
    };
    let body = PassedBody { state, record: None };
    Ok(PassedResponse { placement, status, headers, body })
}

fn usage_of(body: &[u8]) -> Option<Usage> {
    let form: UsageForm = serde_json::from_slice(last_value(body, "usage")?).ok()?;
    let cached = form.prompt_tokens_details.and_then(|details| details.cached_tokens);
    Some(Usage {
        prompt_tokens: form.prompt_tokens,
        cached_tokens: cached.unwrap_or(0),
        completion_tokens: form.completion_tokens.unwrap_or(0),
    })
}

// === impl PassedResponse ===

impl PassedResponse {
    pub(crate) const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The same answer, ended with an error once `cutoff` resolves.
    pub(crate) fn until(mut self, cutoff: Cutoff) -> Self {
        if let State::Open(passing) = &mut self.body.state {
            passing.cutoff = Some(cutoff);
        }
        self
    }

    /// The response for the client; an error inside it is noted in `record`.
    pub(crate) fn into_response(self, record: RequestRecord) -> Response {
        let body = PassedBody { record: Some(record), ..self.body };
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    /// Only the answer's bytes.
    pub(crate) fn into_body(self) -> PassedBody {
        self.body
    }
}

// === impl PassedBody ===

impl PassedBody {
    /// The end of the body after `error`: a stream can say it, anything else can only break off.
    fn fail(&mut self, error: RouterError) -> Result<Bytes, RouterError> {
        let State::Open(passing) = std::mem::replace(&mut self.state, State::Ended) else {
            return Err(error);
        };
        if let Some(record) = &self.record {
            record.fail(error.clone());
        }
        if passing.open.framing == Framing::Opaque {
            return Err(error);
        }
        let mut frame = BytesMut::with_capacity(256);
        frame.extend_from_slice(b"data: ");
        error.write_envelope(&mut frame);
        frame.extend_from_slice(b"\n\n");
        Ok(frame.freeze())
    }
}

impl HttpBody for PassedBody {
    type Data = Bytes;
    type Error = RouterError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RouterError>>> {
        let this = &mut *self;
        let piece = match &mut this.state {
            State::Ended => return Poll::Ready(None),
            State::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.state = State::Ended;
                return Poll::Ready((!bytes.is_empty()).then_some(Ok(Frame::data(bytes))));
            }
            State::Open(passing) => std::task::ready!(passing.poll(cx)),
        };
        let piece = match piece {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => this.fail(error),
            None => {
                if let State::Open(passing) = std::mem::replace(&mut this.state, State::Ended) {
                    let Passing { engine, open, .. } = *passing;
                    engine.pool.keep(open.connection);
                }
                return Poll::Ready(None);
            }
        };
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Whole(bytes) => bytes.is_empty(),
            State::Open(_) => false,
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            State::Open(_) => SizeHint::default(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

// === impl Passing ===

impl Passing {
    /// What can be passed on next.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RouterError>>> {
        loop {
            let first = std::mem::take(&mut self.open.first);
            let piece = if first.is_empty() {
                let Open { connection, incoming, .. } = &mut *self.open;
                match connection.poll_piece(incoming, cx) {
                    Poll::Ready(piece) => piece,
                    Poll::Pending => return self.poll_cutoff(cx),
                }
            } else {
                Some(Ok(first))
            };
            match piece {
                Some(Ok(piece)) => {
                    if let Some(bytes) = self.observe(piece) {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.lost(broken(&error))))),
                None => return Poll::Ready(self.end()),
            }
        }
    }

    fn poll_cutoff(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RouterError>>> {
        match &mut self.cutoff {
            Some(cutoff) => Pin::new(cutoff).poll(cx).map(|error| Some(Err(error))),
            None => Poll::Pending,
        }
    }

    /// What of `piece`, and of what was held before it, can be passed on.
    fn observe(&mut self, mut piece: Bytes) -> Option<Bytes> {
        if self.open.framing == Framing::Opaque {
            return Some(piece);
        }
        let seen = self.events.observe(&piece);
        if seen.events > 0 {
            self.meter.passed(seen.events, Instant::now());
        }
        let complete = piece.split_to(seen.complete);
        if complete.is_empty() && self.held.len() + piece.len() <= HELD_BYTES_MAX {
            self.held.extend_from_slice(&piece);
            return None;
        }
        let mut held = std::mem::take(&mut self.held);
        if complete.is_empty() {
            held.extend_from_slice(&piece);
            return Some(held.freeze());
        }
        self.held.extend_from_slice(&piece);
        if held.is_empty() {
            return Some(complete);
        }
        held.extend_from_slice(&complete);
        Some(held.freeze())
    }

    /// The end of the body, if it is one.
    fn end(&mut self) -> Option<Result<Bytes, RouterError>> {
        let is_framed = self.open.framing != Framing::EventsUntilClosed;
        if !is_framed && self.events.verdict().is_none() {
            let fault = Fault::new(FaultCode::Unavailable, "closed the stream early");
            return Some(Err(self.lost(fault)));
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            return Some(Ok(held.freeze()));
        }
        self.meter.passed_all(usage_of(&self.events.take_usage()), Instant::now());
        None
    }

    fn lost(&mut self, fault: Fault) -> RouterError {
        self.meter.failed(&fault);
        let worker = self.engine.identity.clone();
        RouterError::Worker { worker, progress: Progress::Started, fault }
    }
}
