//! The HTTP API: one endpoint a file, and what they share.

pub(crate) mod admin;
pub(crate) mod answers;
pub(crate) mod body;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod decisions;
pub(crate) mod health;
pub(crate) mod models;
pub(crate) mod openai;
pub(crate) mod pass;
pub(crate) mod sse;
pub(crate) mod tokenize;
pub(crate) mod whole;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use phalanx_chassis::drain::Drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Generate;
use phalanx_proto::id::{ModelName, RequestId};
use serde_json::{Map, Value};
use tower::ServiceExt;

use self::answers::Answers;
use self::openai::answer::{Format, Head, TokenIds};
use self::openai::parameters::{Delivery, Parameters};
use crate::ask::{Ask, Call, HttpForm, Standing};
use crate::config::RouterConfig;
use crate::dispatch::{Dispatch, affinity};
use crate::engine::Kinds;
use crate::engine::foreign::passed::PassedResponse;
use crate::engine::native::CallMetadata;
use crate::error::RouterError;
use crate::outline::Outline;
use crate::record::RequestRecord;
use crate::reply::{Placement, Reply};
use crate::stack::GenerateStack;
use crate::stream::TokenStream;

const X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const X_SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
const X_PHALANX_WORKER: HeaderName = HeaderName::from_static("x-phalanx-worker");
const X_PHALANX_MODEL: HeaderName = HeaderName::from_static("x-phalanx-model");

/// What every endpoint works with.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) config: Arc<RouterConfig>,
    pub(crate) generate: GenerateStack,
    pub(crate) dispatch: Dispatch,
    pub(crate) drain: Drain,
    pub(crate) metrics: Metrics,
    /// When this router started, in seconds since 1970: the `created` of its models.
    pub(crate) started: u64,
}

/// A request whose body has arrived.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) record: RequestRecord,
    pub(crate) body: Bytes,
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    /// The whole time from start to deadline, as the client was promised it.
    pub(crate) timeout: Duration,
    pub(crate) metadata: CallMetadata,
    standing: Standing,
    /// The client's name for the session that this request belongs to.
    session: Option<String>,
}

/// A kind of completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) path: &'static str,
    /// Reads a body for native workers, one generation a prompt, with this id and seed.
    pub(crate) read: ReadNative,
}

type ReadNative =
    fn(&Map<String, Value>, &RequestId, u64) -> Result<(Vec<Generate>, Parameters), Fault>;

/// A request as native workers take it, and how the client wants their answers laid out.
#[derive(Debug)]
struct Reading {
    generates: Vec<Generate>,
    layout: Layout,
}

#[derive(Debug)]
struct Layout {
    parameters: Parameters,
    has_logprobs: bool,
}

// === impl Gateway ===

impl Gateway {
    /// Reads a request's headers and body.
    pub(crate) async fn read(&self, request: Request) -> Result<Incoming, RouterError> {
        let (parts, body) = request.into_parts();
        let record = RequestRecord::of(&parts.extensions);
        let timeout = self.config.request_timeout(asked_timeout(&parts.headers)?);
        let deadline = record.started() + timeout;
        let standing = Standing::of(&parts.headers)?;
        let reading = body::read(&parts.headers, body, self.config.body_bytes_max());
        let reading = body::in_time(reading, body::READ_TIMEOUT, &self.drain);
        let body = tokio::time::timeout_at(deadline.into(), reading)
            .await
            .map_err(|_| RouterError::DeadlineExceeded { timeout })??;
        let received = Instant::now();
        let traceparent = parts
            .headers
            .get(TRACEPARENT)
            .and_then(|value| tonic::metadata::AsciiMetadataValue::try_from(value.as_bytes()).ok());
        // Workers keep the same deadline, so they are told what is left of it.
        let timeout_left = deadline.saturating_duration_since(received);
        let request_id = record.id().clone();
        let metadata = CallMetadata { request_id, timeout: timeout_left, traceparent };
        let session = parts.headers.get(X_SESSION_ID).and_then(|value| value.to_str().ok());
        let session = session.map(str::to_owned);
        Ok(Incoming { record, body, received, deadline, timeout, metadata, standing, session })
    }

    /// Answers a completion, in `F`'s layout if a native worker has it, else in the foreign engine's own words.
    pub(crate) async fn complete<F>(
        &self,
        request: Request,
        endpoint: Endpoint,
        format: F,
    ) -> Result<Response, RouterError>
    where
        F: Format + Send + Unpin + 'static,
    {
        let incoming = self.read(request).await?;
        let outline = Outline::read(&incoming.body);
        let kinds = outline.as_ref().map(|outline| self.dispatch.fleet().kinds(&outline.model));
        let (Some(outline), Some(Kinds { foreign: true, native })) = (outline, kinds) else {
            let reading = incoming.read_native(endpoint)?;
            return self.answer_native(incoming, reading, format).await;
        };
        let reading = if native {
            incoming.read_native(endpoint)
        } else {
            Err(Fault::new(FaultCode::Unavailable, "no native worker serves it"))
        };
        let is_foreign_up = || self.dispatch.fleet().is_served(&outline.model, Kinds::FOREIGN);
        let (native, layout) = match reading {
            Ok(reading) if reading.generates.len() > 1 && !is_foreign_up() => {
                return self.answer_native(incoming, reading, format).await;
            }
            Ok(Reading { mut generates, layout }) => {
                let last = generates.pop().filter(|_| generates.is_empty());
                // Several prompts are one request to a foreign engine, but several to native ones.
                let several = || Fault::new(FaultCode::Unavailable, "it has several prompts");
                (last.ok_or_else(several), Some(layout))
            }
            Err(fault) => (Err(fault), None),
        };
        let record = incoming.record.clone();
        let call = self.call(&incoming, endpoint.path, &outline, native);
        match (self.generate.clone().oneshot(call).await?, layout) {
            (Reply::Passed(response), _) => Ok(passed(response, record)),
            (Reply::Tokens(stream), Some(layout)) => {
                respond(record, vec![stream], layout, format).await
            }
            // No native worker is asked without a native form.
            (Reply::Tokens(_), None) => Err(RouterError::NoWorker { model: outline.model }),
        }
    }

    /// Passes a request on that only foreign engines can answer.
    pub(crate) async fn pass(
        &self,
        incoming: &Incoming,
        path: &'static str,
        outline: &Outline,
    ) -> Result<Response, RouterError> {
        let record = incoming.record.clone();
        let native = Err(Fault::new(FaultCode::Unavailable, "native workers do not serve this"));
        let call = self.call(incoming, path, outline, native);
        match self.generate.clone().oneshot(call).await? {
            Reply::Passed(response) => Ok(passed(response, record)),
            Reply::Tokens(_) => Err(RouterError::NoWorker { model: outline.model.clone() }),
        }
    }

    /// A call that foreign engines can take as its client sent it.
    fn call(
        &self,
        incoming: &Incoming,
        path: &'static str,
        outline: &Outline,
        native: Result<Generate, Fault>,
    ) -> Call {
        self.name_model(&incoming.record, &outline.model);
        let draw = incoming.draw(&outline.model, outline.user.as_deref());
        let form = HttpForm {
            path,
            body: incoming.body.clone(),
            model: outline.model.clone(),
            model_at: outline.model_at.clone(),
            is_streamed: outline.is_streamed,
        };
        incoming.call(Ask::http(form, outline, native), draw)
    }

    /// Runs all generations of `reading` at native workers and answers in `F`'s layout.
    async fn answer_native<F>(
        &self,
        incoming: Incoming,
        reading: Reading,
        format: F,
    ) -> Result<Response, RouterError>
    where
        F: Format + Send + Unpin + 'static,
    {
        let Reading { generates, layout } = reading;
        let record = incoming.record.clone();
        let model = &layout.parameters.model;
        self.name_model(&record, model);
        let draw = incoming.draw(model, layout.parameters.user.as_deref());
        let calls =
            generates.into_iter().map(|generate| incoming.call(Ask::native(generate), draw));
        let streams = try_join_all(calls.map(|call| {
            let service = self.generate.clone();
            async move {
                let model = call.ask.model.clone();
                match service.oneshot(call).await? {
                    Reply::Tokens(stream) => Ok(stream),
                    // No foreign engine is asked without a form for it.
                    Reply::Passed(_) => Err(RouterError::NoWorker { model }),
                }
            }
        }));
        let streams = streams.await?;
        respond(record, streams, layout, format).await
    }

    /// Labels the request's metrics with its model, if there is such a model.
    pub(crate) fn name_model(&self, record: &RequestRecord, model: &ModelName) {
        if self.dispatch.fleet().is_known(model) {
            record.name_model(model);
        }
    }
}

// === impl Incoming ===

impl Incoming {
    /// Reads the body for native workers.
    fn read_native(&self, endpoint: Endpoint) -> Result<Reading, Fault> {
        let body = body::parse(&self.body)?;
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let (generates, parameters) = (endpoint.read)(&body, self.record.id(), seed)?;
        let has_logprobs = generates.first().is_some_and(|first| first.top_logprobs.is_some());
        Ok(Reading { generates, layout: Layout { parameters, has_logprobs } })
    }

    /// Which part of the traffic of `alias` this is. A session stays in its part, and so does a `user` who names no
    /// session.
    pub(crate) fn draw(&self, alias: &ModelName, user: Option<&str>) -> u64 {
        let key = self.session.as_deref().or(user).filter(|key| !key.is_empty());
        affinity::draw(alias, key, uuid::Uuid::new_v4().as_u64_pair().0)
    }

    fn call(&self, ask: Ask, draw: u64) -> Call {
        Call {
            ask: Arc::new(ask),
            received: self.received,
            deadline: self.deadline,
            timeout: self.timeout,
            metadata: self.metadata.clone(),
            draw,
            standing: self.standing,
            excluded: Vec::new(),
            resume: None,
        }
    }
}

/// The answer of native workers, laid out as the client asked.
async fn respond<F>(
    record: RequestRecord,
    streams: Vec<TokenStream>,
    layout: Layout,
    format: F,
) -> Result<Response, RouterError>
where
    F: Format + Send + Unpin + 'static,
{
    let Layout { parameters, has_logprobs } = layout;
    let Some(placement) = streams.first().map(TokenStream::placement).cloned() else {
        return Err(RouterError::NoWorker { model: parameters.model });
    };
    record.place(placement.worker.clone());
    let revision = placement.revision.as_ref().map(phalanx_proto::id::Revision::as_str);
    let head = Head::new::<F>(parameters.model.as_str(), revision);
    let ids = if parameters.return_token_ids { TokenIds::Shown } else { TokenIds::Hidden };
    let answers = Answers::new(streams, parameters.choices);
    let response = match parameters.delivery {
        Delivery::Stream(usage) => {
            let style = sse::Style { head, usage, ids };
            sse::respond(sse::SseStream::new(answers, format, style, record))
        }
        Delivery::Whole => {
            let style = whole::Style { head, ids, has_logprobs };
            json_response(whole::collect(answers, format, &style).await?)
        }
    };
    Ok(with_placement(response, &placement))
}

/// The answer of a foreign engine, as it is.
fn passed(response: PassedResponse, record: RequestRecord) -> Response {
    let placement = response.placement().clone();
    record.place(placement.worker.clone());
    with_placement(response.into_response(record), &placement)
}

/// How long the client wants to wait, if it says.
fn asked_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Fault> {
    let Some(value) = headers.get(X_REQUEST_TIMEOUT_MS) else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
    match ms.filter(|&ms| ms > 0) {
        Some(ms) => Ok(Some(Duration::from_millis(ms))),
        None => {
            let message =
                format!("{X_REQUEST_TIMEOUT_MS} must be a whole number above 0, got {value:?}");
            Err(Fault::invalid(X_REQUEST_TIMEOUT_MS.as_str(), message))
        }
    }
}

/// Says who answers, and with what: an alias stands for several models.
fn with_placement(mut response: Response, placement: &Placement) -> Response {
    let Placement { worker, model, revision } = placement;
    let headers = response.headers_mut();
    let model = match revision {
        Some(revision) => format!("{model}@{revision}"),
        None => model.to_string(),
    };
    for (header, name) in [(X_PHALANX_WORKER, &*worker.name), (X_PHALANX_MODEL, &*model)] {
        // A name that no header can carry is left out.
        if let Ok(name) = HeaderValue::from_str(name) {
            headers.insert(header, name);
        }
    }
    response
}

/// A JSON body with status 200.
pub(crate) fn json_response(body: BytesMut) -> Response {
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (headers, body.freeze()).into_response()
}
