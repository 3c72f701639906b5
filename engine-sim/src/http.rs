//! The engine over HTTP: OpenAI's API, what monitoring asks for, and the simulator's own switches.
//!
//! ```text
//! accept ─► hyper ─► route ─► fate (faults) ─► request ─► engine ─► body
//!                                                  └─ instant: no engine at all
//! ```
//! hyper directly, and answers made beforehand: an instant engine must not be what a router's overhead is made of.

mod body;
mod frames;
mod request;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::fault::{Fault, FaultCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};
use xxhash_rust::xxh3::xxh3_64;

use self::body::{AnswerBody, BrokenOff, Script};
use self::frames::{Endpoint, Frames, Reason, Usage};
use self::request::Options;
use crate::answer::{Answer, TOKEN_BYTES};
use crate::core::Work;
use crate::engine::SimEngine;
use crate::faults::{Ending, Fate, Faults};
use crate::served::{Served, failed_on_purpose, overloaded, refused_on_purpose};

/// Largest body that is read: twice what a router of ours lets through.
const BODY_BYTES_MAX: usize = 16 << 20;
/// How long to wait after the system refused to accept (out of descriptors), before asking again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// One engine's HTTP side.
#[derive(Debug)]
pub(crate) struct HttpServer {
    engine: SimEngine,
    served: Served,
    instant: bool,
    drain: Drain,
    chat: Arc<Frames>,
    completions: Arc<Frames>,
}

/// How one request came, and how it ends.
#[derive(Clone, Copy, Debug)]
struct Asked {
    endpoint: Endpoint,
    ending: Ending,
}

// === impl HttpServer ===

impl HttpServer {
    pub(crate) fn new(engine: SimEngine, served: Served, instant: bool, drain: Drain) -> Self {
        let frames = |endpoint| Arc::new(Frames::new(endpoint, served.model.as_str()));
        let (chat, completions) = (frames(Endpoint::Chat), frames(Endpoint::Completions));
        Self { engine, served, instant, drain, chat, completions }
    }

    /// Answers until `ended`, and then what is still open.
    pub(crate) async fn run(self, listener: TcpListener, ended: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let connections = GracefulShutdown::new();
        tokio::pin!(ended);
        loop {
            let accepted = tokio::select! {
                () = &mut ended => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => server.serve(stream, &connections),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(listener);
        connections.shutdown().await;
    }

    fn serve(self: &Arc<Self>, stream: TcpStream, connections: &GracefulShutdown) {
        // Tokens are small and must not wait for one another.
        let _ = stream.set_nodelay(true);
        let server = Arc::clone(self);
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { server.respond(request).await }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection broke");
            }
        });
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<AnswerBody>, BrokenOff> {
        let (parts, body) = request.into_parts();
        let endpoint = match (&parts.method, parts.uri.path()) {
            (&Method::POST, "/v1/chat/completions") => Endpoint::Chat,
            (&Method::POST, "/v1/completions") => Endpoint::Completions,
            (method, path) => return Ok(self.other(method, path, body).await),
        };
        let ending = match self.engine.fate() {
            Fate::Fail => return Ok(refusal(&failed_on_purpose())),
            Fate::Refuse => return Ok(too_many(&refused_on_purpose())),
            Fate::Serve(ending) => ending,
        };
        let asked = Asked { endpoint, ending };
        let answered = match read(body).await {
            Ok(body) if self.instant => self.instantly(asked, &body),
            Ok(body) => Box::pin(self.generate(asked, &body)).await?,
            Err(fault) => Err(fault),
        };
        Ok(answered.unwrap_or_else(|fault| refusal(&fault)))
    }

    /// Answers as fast as it can be read.
    fn instantly(&self, asked: Asked, body: &[u8]) -> Result<Response<AnswerBody>, Fault> {
        let options = Options::parse(body)?;
        self.check(&options)?;
        self.engine.count_instant();
        let answer = Answer::new(xxh3_64(body), options.seed());
        let tokens = body.len().div_ceil(TOKEN_BYTES);
        let usage = Usage {
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
            completion_tokens: 0,
        };
        let script = self.script(asked, &options, answer, usage);
        if options.stream {
            return Ok(streamed(script.instant()));
        }
        Ok(json_answer(StatusCode::OK, script.whole()))
    }

    /// Answers at the engine's pace. The connection breaks off when the fault says so.
    async fn generate(
        &self,
        asked: Asked,
        body: &[u8],
    ) -> Result<Result<Response<AnswerBody>, Fault>, BrokenOff> {
        let Asked { ending, .. } = asked;
        let open = self.engine.open();
        let (options, mut script, work) = match self.prepare(asked, body) {
            Ok(prepared) => prepared,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut running = match self.engine.submit(work) {
            Ok(running) => running,
            Err(full) => return Ok(Err(overloaded(&full))),
        };
        if ending.stall_after == Some(0) {
            return std::future::pending().await;
        }
        if options.stream {
            return Ok(Ok(streamed(script.paced(running, open))));
        }
        if ending.die_after.is_some() {
            return Err(BrokenOff);
        }
        let progress = running.more_than(running.answer_tokens() - 1).await;
        if ending.stall_after.is_some() {
            return std::future::pending().await;
        }
        script.usage.cached_tokens = progress.cached_tokens;
        Ok(Ok(json_answer(StatusCode::OK, script.whole())))
    }

    fn prepare<'a>(
        &self,
        asked: Asked,
        body: &'a [u8],
    ) -> Result<(Options<'a>, Script, Work), Fault> {
        let options = Options::parse(body)?;
        self.check(&options)?;
        let prompt = request::prompt(body)?;
        let answer = Answer::new(prompt.digest, options.seed());
        let usage = Usage { prompt_tokens: prompt.tokens, cached_tokens: 0, completion_tokens: 0 };
        let script = self.script(asked, &options, answer, usage);
        let answer_tokens = script.usage.completion_tokens;
        self.served.check_length(prompt.tokens, answer_tokens)?;
        Ok((options, script, Work { prompt, resumed: 0, answer_tokens }))
    }

    fn check(&self, options: &Options<'_>) -> Result<(), Fault> {
        if self.drain.phase() > Phase::Serving {
            return Err(Fault::new(FaultCode::Draining, "this engine is shutting down"));
        }
        self.served.check_model(&options.model)
    }

    fn script(&self, asked: Asked, options: &Options<'_>, answer: Answer, usage: Usage) -> Script {
        let (reason, tokens) = match options.max_tokens() {
            Some(tokens) => (Reason::Length, tokens),
            None => (Reason::Stop, answer.default_length()),
        };
        Script {
            frames: Arc::clone(match asked.endpoint {
                Endpoint::Chat => &self.chat,
                Endpoint::Completions => &self.completions,
            }),
            answer,
            usage: Usage { completion_tokens: tokens, ..usage },
            reason,
            includes_usage: options.includes_usage(),
            ending: asked.ending,
        }
    }

    /// Everything but generation.
    async fn other(&self, method: &Method, path: &str, body: Incoming) -> Response<AnswerBody> {
        match (method, path) {
            (&Method::GET, "/health") if self.drain.phase() > Phase::Serving => {
                refusal(&Fault::new(FaultCode::Draining, "this engine is shutting down"))
            }
            (&Method::GET, "/health") => json_answer(StatusCode::OK, Bytes::from_static(b"{}")),
            (&Method::GET, "/v1/models") => good(&self.served.models()),
            (&Method::GET, "/metrics") => {
                let text = self.served.metrics(&self.engine.stats());
                answer(StatusCode::OK, "text/plain; version=0.0.4", Bytes::from(text).into())
            }
            (&Method::GET, "/sim/stats") => good(&json!(self.engine.stats())),
            (&Method::GET, "/sim/faults") => good(&json!(self.engine.faults())),
            (&Method::POST, "/sim/faults") => match self.set_faults(body).await {
                Ok(()) => good(&json!(self.engine.faults())),
                Err(fault) => refusal(&fault),
            },
            (_, path) => {
                let body = json!({"error": {
                    "message": format!("there is no {method} {path} here"),
                    "type": "invalid_request_error", "param": null, "code": "not_found"
                }});
                json_answer(StatusCode::NOT_FOUND, Bytes::from(body.to_string()))
            }
        }
    }

    async fn set_faults(&self, body: Incoming) -> Result<(), Fault> {
        let body = read(body).await?;
        let invalid = |message| Fault::new(FaultCode::InvalidRequest, message);
        let faults: Faults =
            serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        self.engine.set_faults(faults).map_err(|error| invalid(error.to_string()))
    }
}

async fn read(body: Incoming) -> Result<Bytes, Fault> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect().await;
    whole.map(|body| body.to_bytes()).map_err(|error| {
        Fault::new(FaultCode::InvalidRequest, format!("the body cannot be read: {error}"))
    })
}

fn answer(status: StatusCode, kind: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn json_answer(status: StatusCode, body: Bytes) -> Response<AnswerBody> {
    answer(status, "application/json", body.into())
}

fn good(body: &Value) -> Response<AnswerBody> {
    json_answer(StatusCode::OK, Bytes::from(body.to_string()))
}

fn streamed(body: AnswerBody) -> Response<AnswerBody> {
    answer(StatusCode::OK, "text/event-stream", body)
}

/// A refusal in OpenAI's envelope.
fn refusal(fault: &Fault) -> Response<AnswerBody> {
    let (status, kind) = match fault.code {
        FaultCode::InvalidRequest | FaultCode::ContextLengthExceeded => {
            (StatusCode::BAD_REQUEST, "invalid_request_error")
        }
        FaultCode::ModelNotFound => (StatusCode::NOT_FOUND, "invalid_request_error"),
        FaultCode::Overloaded | FaultCode::Draining | FaultCode::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "server_error")
        }
        FaultCode::StaleEpoch
        | FaultCode::DeadlineExceeded
        | FaultCode::Cancelled
        | FaultCode::Numerical
        | FaultCode::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
    };
    enveloped(status, kind, fault)
}

/// The refusal of an engine that limits its clients.
fn too_many(fault: &Fault) -> Response<AnswerBody> {
    enveloped(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", fault)
}

fn enveloped(status: StatusCode, kind: &str, fault: &Fault) -> Response<AnswerBody> {
    let body = json!({"error": {
        "message": fault.message, "type": kind, "param": fault.param, "code": fault.code.as_str()
    }});
    let mut response = json_answer(status, Bytes::from(body.to_string()));
    if let Some(after) = fault.retry_after {
        let seconds = header::HeaderValue::from(after.as_secs().max(1));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}
