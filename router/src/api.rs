//! The HTTP API: one endpoint a file, and what they share.

pub(crate) mod answers;
pub(crate) mod body;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod health;
pub(crate) mod models;
pub(crate) mod openai;
pub(crate) mod sse;
pub(crate) mod tokenize;
pub(crate) mod whole;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::future::try_join_all;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use phalanx_chassis::drain::Drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::fault::Fault;
use phalanx_proto::generate::Generate;
use phalanx_proto::id::ModelName;
use serde_json::{Map, Value};
use tower::{Service, ServiceExt};

use self::answers::Answers;
use self::openai::answer::{Format, Head, TokenIds};
use self::openai::parameters::{Delivery, Parameters};
use crate::ask::{Ask, Call, Standing};
use crate::config::RouterConfig;
use crate::dispatch::{Dispatch, affinity};
use crate::engine::native::CallMetadata;
use crate::error::RouterError;
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

/// A request whose body has arrived and is a JSON object.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) record: RequestRecord,
    pub(crate) body: Map<String, Value>,
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    /// The whole time from start to deadline, as the client was promised it.
    pub(crate) timeout: Duration,
    pub(crate) metadata: CallMetadata,
    standing: Standing,
    /// The client's name for the session that this request belongs to.
    session: Option<String>,
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
        let bytes = tokio::time::timeout_at(deadline.into(), reading)
            .await
            .map_err(|_| RouterError::DeadlineExceeded { timeout })??;
        let received = Instant::now();
        let body = body::parse(&bytes)?;
        let traceparent = parts
            .headers
            .get(TRACEPARENT)
            .and_then(|value| tonic::metadata::AsciiMetadataValue::try_from(value.as_bytes()).ok());
        // Workers keep the same deadline, so they are told what is left of it.
        let metadata =
            CallMetadata { timeout: deadline.saturating_duration_since(received), traceparent };
        let session = parts.headers.get(X_SESSION_ID).and_then(|value| value.to_str().ok());
        let session = session.map(str::to_owned);
        Ok(Incoming { record, body, received, deadline, timeout, metadata, standing, session })
    }

    /// Runs `generates` (one per prompt) and answers in `F`'s layout.
    pub(crate) async fn answer<F>(
        &self,
        incoming: Incoming,
        generates: Vec<Generate>,
        parameters: &Parameters,
        format: F,
    ) -> Result<Response, RouterError>
    where
        F: Format + Send + Unpin + 'static,
    {
        let record = incoming.record.clone();
        self.name_model(&record, &parameters.model);
        let has_logprobs = generates.first().is_some_and(|first| first.top_logprobs.is_some());
        let streams = self.start(incoming, generates).await?;
        let Some(placement) = streams.first().map(TokenStream::placement).cloned() else {
            return Err(RouterError::NoWorker { model: parameters.model.clone() });
        };
        record.place(placement.worker.clone());
        let revision = placement.revision.as_ref().map(phalanx_proto::id::Revision::as_str);
        let head = Head::new::<F>(parameters.model.as_str(), revision);
        let ids = if parameters.return_token_ids { TokenIds::Shown } else { TokenIds::Hidden };
        let answers = Answers::new(streams, parameters.choices);
        let response = match parameters.delivery {
            Delivery::Stream(usage) => sse::respond(sse::SseStream::new(
                answers,
                format,
                sse::Style { head, usage, ids },
                record,
            )),
            Delivery::Whole => {
                let style = whole::Style { head, ids, has_logprobs };
                let body = whole::collect(answers, format, &style).await?;
                json_response(body)
            }
        };
        Ok(with_placement(response, &placement))
    }

    async fn start(
        &self,
        incoming: Incoming,
        generates: Vec<Generate>,
    ) -> Result<Vec<TokenStream>, RouterError> {
        let draw = generates.first().map_or(0, |first| incoming.draw(&first.model));
        let Incoming { received, deadline, timeout, metadata, standing, .. } = incoming;
        try_join_all(generates.into_iter().map(|generate| {
            let mut service = self.generate.clone();
            let call = Call {
                ask: Arc::new(Ask::native(generate)),
                received,
                deadline,
                timeout,
                metadata: metadata.clone(),
                draw,
                standing,
                excluded: Vec::new(),
                resume: None,
            };
            async move {
                let Reply::Tokens(stream) = service.ready().await?.call(call).await?;
                Ok(stream)
            }
        }))
        .await
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
    /// Which part of the traffic of `alias` this is. A session stays in its part, and so does a user who names no
    /// session.
    pub(crate) fn draw(&self, alias: &ModelName) -> u64 {
        let user = || self.body.get("user").and_then(Value::as_str);
        let key = self.session.as_deref().or_else(user).filter(|key| !key.is_empty());
        affinity::draw(alias, key, uuid::Uuid::new_v4().as_u64_pair().0)
    }
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
