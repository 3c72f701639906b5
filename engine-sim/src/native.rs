//! The engine as a native worker: the `Worker` service over gRPC, as routers of ours speak it.

use std::collections::VecDeque;

use futures::stream::{self, BoxStream, StreamExt as _};
use phalanx_chassis::announce::Standing;
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Delta, Event, FinishReason, Generate, Usage};
use phalanx_proto::id::Epoch;
use phalanx_proto::view::MemberState;
use phalanx_proto::wire::{WireError, to_status};
use phalanx_proto::{MESSAGE_BYTES_MAX, REPORT_EVERY, pb};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::answer::{Answer, detokenize, token_id, tokenize, word};
use crate::core::{Progress, Work};
use crate::engine::{Open, Running, SimEngine};
use crate::faults::{Ending, Fate};
use crate::prompt::Prompt;
use crate::served::{RETRY_AFTER, Served, failed_on_purpose, overloaded, refused_on_purpose};

/// Tokens that a KV block holds, as native workers count.
const BLOCK_TOKENS: u64 = 16;

/// The service of one engine.
#[derive(Debug)]
pub(crate) struct NativeService {
    pub(crate) engine: SimEngine,
    pub(crate) served: Served,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) drain: Drain,
    /// Ends the reports, so that the server can end.
    pub(crate) closed: watch::Sender<bool>,
}

/// An answer under way; what is held is released with it.
struct Generation {
    answer: Answer,
    usage: Usage,
    reason: FinishReason,
    ending: Ending,
    /// None when nothing is left to produce.
    running: Option<Running>,
    /// Tokens that another engine told.
    resumed: u32,
    /// Tokens told so far, by whomever.
    seen: u32,
    /// Events that are due.
    due: VecDeque<Result<Event, Fault>>,
    is_over: bool,
    _open: Open,
}

// === impl NativeService ===

impl NativeService {
    /// Serves until the process drains and no request is open any more.
    ///
    /// # Errors
    /// When the listener fails.
    pub(crate) async fn run(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let (engine, drain, closed) =
            (self.engine.clone(), self.drain.clone(), self.closed.clone());
        let drained = async move {
            drain.reached(Phase::Draining).await;
            engine.idle().await;
            closed.send_replace(true);
        };
        let service = pb::worker_server::WorkerServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, drained).await
    }

    fn start(&self, request: pb::GenerateRequest) -> Result<Generation, Fault> {
        self.check_epoch(Epoch(request.worker_epoch))?;
        self.check_state()?;
        let ending = match self.engine.fate() {
            Fate::Fail => return Err(failed_on_purpose()),
            Fate::Refuse => return Err(refused_on_purpose()),
            Fate::Serve(ending) => ending,
        };
        let open = self.engine.open();
        let generate = Generate::try_from(request)?;
        self.served.check_model(generate.model.as_str())?;
        generate.validate()?;
        if generate.choices != 1 {
            let message = format!(
                "a simulated engine gives one answer, n must be 1, got {}",
                generate.choices
            );
            return Err(Fault::invalid("n", message));
        }
        let prompt = Prompt::of(&generate);
        let answer = Answer::new(prompt.digest, generate.sampling.seed);
        let (reason, answer_tokens) = match generate.stopping.max_tokens {
            Some(tokens) => (FinishReason::Length, tokens),
            None => (FinishReason::Stop, answer.default_length()),
        };
        self.served.check_length(prompt.tokens, answer_tokens)?;
        let told = generate.resume.first().map_or(&[][..], |choice| &choice.token_ids);
        let resumed = check_resumed(answer, answer_tokens, told)?;
        let usage = Usage {
            prompt_tokens: prompt.tokens,
            cached_tokens: 0,
            completion_tokens: answer_tokens,
        };
        let work = Work { prompt, resumed, answer_tokens };
        let running = (resumed < answer_tokens).then(|| self.engine.submit(work));
        let running = running.transpose().map_err(|full| overloaded(&full))?;
        Ok(Generation {
            answer,
            usage,
            reason,
            ending,
            running,
            resumed,
            seen: resumed,
            due: VecDeque::new(),
            is_over: false,
            _open: open,
        })
    }

    fn check_epoch(&self, routed_by: Epoch) -> Result<(), Fault> {
        let standing = *self.standing.borrow();
        if !standing.is_registered() {
            let message = "this engine is not registered yet";
            return Err(Fault::new(FaultCode::Unavailable, message).with_retry_after(RETRY_AFTER));
        }
        if routed_by == standing.epoch {
            return Ok(());
        }
        let message = format!(
            "the call was routed by epoch {routed_by}, the engine is at {}",
            standing.epoch
        );
        Err(Fault::new(FaultCode::StaleEpoch, message))
    }

    fn check_state(&self) -> Result<(), Fault> {
        if self.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "this engine is shutting down"));
        }
        Ok(())
    }

    fn is_draining(&self) -> bool {
        is_draining(&self.drain, &self.standing)
    }

    fn tokens_of(&self, request: pb::TokenizeRequest) -> Result<pb::TokenizeResponse, Fault> {
        use pb::tokenize_request::Input;
        self.served.check_model(&request.model)?;
        let text = match request.input.ok_or(WireError { field: "input" })? {
            Input::Chat(chat) => {
                chat.messages.into_iter().map(|message| message.content).collect::<String>()
            }
            Input::Text(text) => text,
        };
        let ids = tokenize(&text);
        let tokens = ids.iter().map(|&id| detokenize(&[id])).collect();
        let context_tokens_max = self.served.context_tokens;
        Ok(pb::TokenizeResponse { ids, tokens, context_tokens_max })
    }
}

/// How many tokens of `answer` were told by another engine. A token that is not the answer's was lost, repeated or
/// another's: going on from it would hide that.
fn check_resumed(answer: Answer, answer_tokens: u32, told: &[u32]) -> Result<u32, Fault> {
    let resumed = u32::try_from(told.len()).unwrap_or(u32::MAX);
    if resumed > answer_tokens {
        let message = format!("this answer has {answer_tokens} tokens, resume holds {resumed}");
        return Err(Fault::invalid("resume", message));
    }
    let is_own = |(index, id): (u32, &u32)| *id == token_id(word(answer.word(index)));
    match (0..).zip(told).find(|pair| !is_own(*pair)) {
        None => Ok(resumed),
        Some((index, id)) => {
            let message = format!("resume holds {id} as token {index}, which this answer has not");
            Err(Fault::invalid("resume", message))
        }
    }
}

fn is_draining(drain: &Drain, standing: &watch::Receiver<Standing>) -> bool {
    drain.phase() > Phase::Serving || standing.borrow().state == MemberState::Draining
}

#[tonic::async_trait]
impl pb::worker_server::Worker for NativeService {
    type GenerateStream = BoxStream<'static, Result<pb::GenerateEvent, Status>>;
    type EventsStream = BoxStream<'static, Result<pb::WorkerEvent, Status>>;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let generation = self.start(request.into_inner()).map_err(|fault| to_status(&fault))?;
        let events = stream::unfold(generation, |mut generation| async {
            let event = generation.next().await?;
            Some((event, generation))
        });
        let events = events.map(|event| match event {
            Ok(event) => Ok(event.into()),
            Err(fault) => Err(to_status(&fault)),
        });
        Ok(Response::new(events.boxed()))
    }

    async fn tokenize(
        &self,
        request: Request<pb::TokenizeRequest>,
    ) -> Result<Response<pb::TokenizeResponse>, Status> {
        let tokens = self.tokens_of(request.into_inner()).map_err(|fault| to_status(&fault))?;
        Ok(Response::new(tokens))
    }

    async fn detokenize(
        &self,
        request: Request<pb::DetokenizeRequest>,
    ) -> Result<Response<pb::DetokenizeResponse>, Status> {
        let pb::DetokenizeRequest { model, ids } = request.into_inner();
        self.served.check_model(&model).map_err(|fault| to_status(&fault))?;
        Ok(Response::new(pb::DetokenizeResponse { text: detokenize(&ids) }))
    }

    async fn events(
        &self,
        _request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let reporter = Reporter {
            engine: self.engine.clone(),
            blocks: self.served.kv_tokens / BLOCK_TOKENS,
            standing: self.standing.clone(),
            drain: self.drain.clone(),
            closed: self.closed.subscribe(),
            epoch: Epoch::default(),
            sequence: 0,
            changes: None,
            due: VecDeque::new(),
        };
        let reports = stream::unfold(reporter, |mut reporter| async {
            let report = reporter.next().await?;
            Some((Ok(report), reporter))
        });
        Ok(Response::new(reports.boxed()))
    }
}

// === impl Generation ===

impl Generation {
    async fn next(&mut self) -> Option<Result<Event, Fault>> {
        while self.due.is_empty() && !self.is_over {
            self.hear().await;
        }
        self.due.pop_front()
    }

    /// Waits for the engine's next tokens, and makes events of them.
    async fn hear(&mut self) {
        let Ending { die_after, stall_after } = self.ending;
        let told = self.seen - self.resumed;
        if die_after == Some(told) {
            self.is_over = true;
            let fault = Fault::new(FaultCode::Unavailable, "broken off on purpose");
            self.due.push_back(Err(fault));
            return;
        }
        if stall_after == Some(told) {
            return std::future::pending().await;
        }
        let progress = match &mut self.running {
            Some(running) => running.more_than(self.seen).await,
            None => Progress { cached_tokens: 0, produced: self.seen },
        };
        if told == 0 {
            self.usage.cached_tokens = progress.cached_tokens;
            self.due.push_back(Ok(Event::Started {
                prompt_tokens: self.usage.prompt_tokens,
                cached_tokens: progress.cached_tokens,
                prompt_token_ids: Vec::new(),
            }));
        }
        let limit = die_after.unwrap_or(u32::MAX).min(stall_after.unwrap_or(u32::MAX));
        let until = progress.produced.min(self.resumed.saturating_add(limit));
        for index in self.seen..until {
            let bytes = word(self.answer.word(index));
            self.due.push_back(Ok(Event::Delta(Delta {
                choice: 0,
                text: bytes.map(char::from).iter().collect(),
                token_ids: vec![token_id(bytes)],
                logprobs: Vec::new(),
            })));
        }
        self.seen = until;
        if until == self.usage.completion_tokens {
            self.is_over = true;
            let (choice, reason) = (0, self.reason);
            self.due.push_back(Ok(Event::Finished { choice, reason, stopped_by: None }));
            self.due.push_back(Ok(Event::Usage(self.usage)));
        }
    }
}

/// What one router is told of the engine's load.
struct Reporter {
    engine: SimEngine,
    blocks: u64,
    standing: watch::Receiver<Standing>,
    drain: Drain,
    closed: watch::Receiver<bool>,
    epoch: Epoch,
    sequence: u64,
    /// How many changes of the prefix cache were told; none: no snapshot was yet.
    changes: Option<u64>,
    /// What is told before the next look.
    due: VecDeque<pb::worker_event::Event>,
}

// === impl Reporter ===

impl Reporter {
    /// The load and the whole prefix cache at once, then the load twice as often as routers must hear it, and what
    /// changed in the cache; `None` when there will be no more.
    async fn next(&mut self) -> Option<pb::WorkerEvent> {
        if self.due.is_empty() {
            if self.changes.is_some() {
                let ended = self.closed.wait_for(|closed| *closed);
                if timeout(REPORT_EVERY / 2, ended).await.is_ok() {
                    return None;
                }
            }
            self.look();
        }
        let event = self.due.pop_front()?;
        self.sequence += 1;
        let (worker_epoch, sequence) = (self.epoch.0, self.sequence);
        Some(pb::WorkerEvent { worker_epoch, sequence, event: Some(event) })
    }

    /// The load, and what changed in the prefix cache.
    fn look(&mut self) {
        let epoch = self.standing.borrow().epoch;
        if epoch != self.epoch {
            self.epoch = epoch;
            self.sequence = 0;
        }
        let load = self.engine.load();
        let held = load.held_tokens.div_ceil(BLOCK_TOKENS).min(self.blocks);
        let count = |blocks: u64| u32::try_from(blocks).unwrap_or(u32::MAX);
        self.due.push_back(pb::worker_event::Event::Load(pb::Load {
            running: load.running,
            waiting: load.waiting,
            prefill_backlog_tokens: load.prefill_backlog_tokens,
            kv_blocks_free: count(self.blocks - held),
            kv_blocks_total: count(self.blocks),
            draining: is_draining(&self.drain, &self.standing),
        }));
        let news = self.engine.chunks().news(self.changes);
        self.changes = Some(news.until);
        self.due.extend(news.messages().into_iter().map(pb::worker_event::Event::Prefix));
    }
}
