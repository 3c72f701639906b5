//! gRPC to engine events and back: the `Worker` service. It decides nothing but whether to take a request.
//!
//! ```text
//! Generate ─ epoch, drain, model, ranges ─ text (tokens) ─ admission (context) ─► generation ─► choice × n
//! ```

mod admission;
mod choice;
mod deadline;
mod generation;
mod load_feed;
mod seat;
mod text_jobs;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use phalanx_chassis::announce::Standing;
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Chat, Generate, Input};
use phalanx_proto::id::{Epoch, ModelName};
use phalanx_proto::prefix::{ChunkHash, ModelKey};
use phalanx_proto::view::MemberState;
use phalanx_proto::wire::{WireError, to_status};
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use self::admission::Admitted;
pub use self::admission::Served;
use self::choice::Beginning;
use self::deadline::timeout_of;
use self::generation::{Deadline, Generation};
use self::load_feed::LoadFeed;
use self::seat::OpenRequest;
pub use self::seat::{Seat, Seated};
use crate::engine::block_pool::ChunkEnd;
use crate::text::{Prompt, Text};

/// Requests open at once. Above the engine's default queue and batch together, so that the engine's refusal,
/// which knows more, comes first; an open request costs a few KiB besides its prompt.
const OPEN_REQUESTS_MAX: u32 = 2048;
/// Streams one router may have open: all requests, and some for load reports and tokenising.
const CONNECTION_STREAMS_MAX: u32 = OPEN_REQUESTS_MAX + 64;
/// Longest text that is tokenised on request, in bytes: with its token ids and strings it fits a message.
const TOKENIZED_BYTES_MAX: usize = 1 << 20;
/// Most token ids that are turned into text at once: more than any context.
const DETOKENIZED_IDS_MAX: usize = 1 << 20;
/// Longest text they may come to, in bytes: it fits a message.
const DETOKENIZED_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
/// Text that a token usually stands for, in bytes: how much work it is to take tokens into an answer again.
const TOKEN_BYTES_USUAL: usize = 4;
/// A router that vanished without a word is noticed, and its requests dropped, after this and the next.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long a router has to answer a ping.
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(5);
/// What an overloaded worker asks a client to wait: about one short answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a worker service is made of.
#[derive(Clone, Debug)]
pub struct ServiceParts {
    /// What is served.
    pub seat: Seat,
    /// The current registration, and whether control has others send it work.
    pub standing: watch::Receiver<Standing>,
    /// When to stop taking requests.
    pub drain: Drain,
}

/// The `Worker` service.
#[derive(Debug)]
pub struct WorkerService {
    parts: ServiceParts,
    /// Ends the load feeds.
    closed: watch::Sender<bool>,
}

/// Serves on `listener` until the process drains and the last request is over.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    parts: ServiceParts,
) -> Result<(), tonic::transport::Error> {
    let service = WorkerService::new(parts);
    let drained = service.drained();
    let service = pb::worker_server::WorkerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT_MAX))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), drained)
        .await
}

// === impl WorkerService ===

impl WorkerService {
    fn new(parts: ServiceParts) -> Self {
        Self { parts, closed: watch::Sender::new(false) }
    }

    /// Resolves when the process drains and no request is open any more.
    fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let ServiceParts { seat, drain, .. } = self.parts.clone();
        let closed = self.closed.clone();
        async move {
            drain.reached(Phase::Draining).await;
            seat.idle().await;
            closed.send_replace(true);
        }
    }

    async fn start(&self, request: Request<pb::GenerateRequest>) -> Result<Generation, Fault> {
        let deadline = timeout_of(request.metadata())
            .and_then(|after| Some(Deadline { at: Instant::now().checked_add(after)?, after }));
        let request = request.into_inner();
        self.check_epoch(Epoch(request.worker_epoch))?;
        let open = self.open_request()?;
        let generate = Generate::try_from(request)?;
        let Seated { text, engine, served, .. } = open.seated.as_ref();
        served.check_model(&generate.model)?;
        generate.validate()?;
        let (generate, prompt, chunks) = tokenized(&open.seated, generate).await?;
        let admitted = Admitted::new(generate, prompt, served, text)?.in_chunks(chunks);
        // For all choices at once: a stream that has begun is not refused for want of a place.
        let places = engine.reserve(admitted.sequences())?;
        let (admitted, choices) = beginnings(&open.seated, admitted).await?;
        Generation::start(open, admitted, deadline, places, choices)
    }

    fn check_epoch(&self, routed_by: Epoch) -> Result<(), Fault> {
        let standing = *self.parts.standing.borrow();
        if !standing.is_registered() {
            let message = "this worker is not registered yet";
            return Err(Fault::new(FaultCode::Unavailable, message).with_retry_after(RETRY_AFTER));
        }
        let current = standing.epoch;
        if routed_by == current {
            return Ok(());
        }
        let message =
            format!("the call was routed by epoch {routed_by}, the worker is at {current}");
        Err(Fault::new(FaultCode::StaleEpoch, message))
    }

    /// A place among the open requests, to be held until the request is over.
    fn open_request(&self) -> Result<OpenRequest, Fault> {
        if self.parts.drain.phase() > Phase::Serving {
            return Err(Fault::new(FaultCode::Draining, "this worker is shutting down"));
        }
        if self.parts.standing.borrow().state == MemberState::Draining {
            return Err(Fault::new(FaultCode::Draining, "this worker was told to drain"));
        }
        self.parts.seat.open()
    }

    /// As [`Self::open_request`], for a request that names its model.
    fn open_for(&self, model: String) -> Result<OpenRequest, Fault> {
        let open = self.open_request()?;
        open.seated.served.check_model(&ModelName::from(model))?;
        Ok(open)
    }

    async fn tokens_of(&self, request: pb::TokenizeRequest) -> Result<Tokenized, Fault> {
        use pb::tokenize_request::Input as Wire;
        let open = self.open_for(request.model)?;
        let add_special_tokens = request.add_special_tokens;
        let input = match request.input.ok_or(WireError { field: "input" })? {
            Wire::Chat(chat) => Input::Chat(Chat::try_from(chat)?),
            Wire::Text(text) => Input::Text(text),
        };
        let context_tokens_max = open.seated.served.context_tokens_max;
        let tokenize = move |text: &Text| {
            let ids = match &input {
                Input::Chat(chat) => {
                    let rendered = text.render(chat)?;
                    check_size("messages", rendered.len())?;
                    text.encode(&rendered, add_special_tokens)?
                }
                Input::Text(plain) => {
                    check_size("prompt", plain.len())?;
                    text.encode(plain, add_special_tokens)?
                }
                Input::Tokens(ids) => ids.clone(),
            };
            let tokens = ids.iter().map(|&id| text.token(id)).collect();
            Ok(Tokenized { ids, tokens, context_tokens_max })
        };
        // The size of a chat's tools is not known beforehand: treat every chat as long.
        open.seated.conversions.run(usize::MAX, tokenize).await
    }

    async fn text_of(&self, request: pb::DetokenizeRequest) -> Result<String, Fault> {
        let pb::DetokenizeRequest { model, ids } = request;
        let open = self.open_for(model)?;
        if ids.len() > DETOKENIZED_IDS_MAX {
            let message =
                format!("at most {DETOKENIZED_IDS_MAX} tokens are detokenized, got {}", ids.len());
            return Err(Fault::invalid("tokens", message));
        }
        let decode = move |text: &Text| {
            let text = text.decode(&ids)?;
            if text.len() <= DETOKENIZED_BYTES_MAX {
                return Ok(text);
            }
            let message = format!(
                "the tokens come to {} bytes of text, at most {DETOKENIZED_BYTES_MAX} are returned",
                text.len()
            );
            Err(Fault::invalid("tokens", message))
        };
        open.seated.conversions.run(usize::MAX, decode).await
    }
}

/// A request, the tokens of its prompt, and where in them its chunks end.
type TokenizedPrompt = (Generate, Vec<u32>, Vec<ChunkEnd>);

async fn tokenized(seated: &Seated, generate: Generate) -> Result<TokenizedPrompt, Fault> {
    let bytes = text_bytes(&generate.input);
    let context = seated.served.context_tokens_max;
    let prompt = move |text: &Text| {
        let Prompt { ids, chunks } = text.prompt_in_chunks(&generate, context)?;
        let key = ModelKey::new(&generate.model);
        let end = |(hash, tokens): (ChunkHash, u32)| ChunkEnd { hash: hash.under(key), tokens };
        Ok((generate, ids, chunks.into_iter().map(end).collect()))
    };
    seated.prompts.run(bytes, prompt).await
}

/// The choices that are not finished yet, with what was generated of them elsewhere taken in.
async fn beginnings(
    seated: &Seated,
    admitted: Admitted,
) -> Result<(Admitted, Vec<Beginning>), Fault> {
    let bytes = admitted.resumed_tokens() as usize * TOKEN_BYTES_USUAL;
    let text = Arc::clone(&seated.text);
    let begin = move |_: &Text| {
        let choices = admitted.open_choices();
        let begun = choices.map(|choice| Beginning::new(choice, &admitted, Arc::clone(&text)));
        let begun = begun.collect::<Result<_, Fault>>()?;
        Ok((admitted, begun))
    };
    seated.prompts.run(bytes, begin).await
}

fn check_size(param: &str, bytes: usize) -> Result<(), Fault> {
    if bytes <= TOKENIZED_BYTES_MAX {
        return Ok(());
    }
    let message = format!("at most {TOKENIZED_BYTES_MAX} bytes are tokenized, got {bytes}");
    Err(Fault::invalid(param, message))
}

/// Text cut into tokens.
struct Tokenized {
    ids: Vec<u32>,
    tokens: Vec<String>,
    context_tokens_max: u32,
}

/// About how much text there is to tokenise. Tools and template variables have no size of their own; with
/// them a chat counts as long.
fn text_bytes(input: &Input) -> usize {
    match input {
        Input::Chat(chat) if chat.tools.is_empty() && chat.template_kwargs.is_empty() => {
            chat.messages.iter().map(|message| message.content.len()).sum()
        }
        Input::Chat(_) => usize::MAX,
        Input::Text(text) => text.len(),
        Input::Tokens(_) => 0,
    }
}

#[tonic::async_trait]
impl pb::worker_server::Worker for WorkerService {
    type GenerateStream = BoxStream<'static, Result<pb::GenerateEvent, Status>>;
    type EventsStream = BoxStream<'static, Result<pb::WorkerEvent, Status>>;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let generation = self.start(request).await.map_err(|fault| to_status(&fault))?;
        let events = generation.spawn().map(|event| match event {
            Ok(event) => Ok(event.into()),
            Err(fault) => Err(to_status(&fault)),
        });
        Ok(Response::new(events.boxed()))
    }

    async fn tokenize(
        &self,
        request: Request<pb::TokenizeRequest>,
    ) -> Result<Response<pb::TokenizeResponse>, Status> {
        let Tokenized { ids, tokens, context_tokens_max } =
            self.tokens_of(request.into_inner()).await.map_err(|fault| to_status(&fault))?;
        Ok(Response::new(pb::TokenizeResponse { ids, tokens, context_tokens_max }))
    }

    async fn detokenize(
        &self,
        request: Request<pb::DetokenizeRequest>,
    ) -> Result<Response<pb::DetokenizeResponse>, Status> {
        let text = self.text_of(request.into_inner()).await.map_err(|fault| to_status(&fault))?;
        Ok(Response::new(pb::DetokenizeResponse { text }))
    }

    async fn events(
        &self,
        _request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let feed = LoadFeed {
            load: self.parts.seat.load(),
            chunks: self.parts.seat.chunks(),
            standing: self.parts.standing.clone(),
            drain: self.parts.drain.clone(),
            closed: self.closed.subscribe(),
        };
        Ok(Response::new(feed.into_events().map(Ok).boxed()))
    }
}

#[cfg(test)]
mod tests;
