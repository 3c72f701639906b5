//! A worker that does what the test tells it to, call by call.

use std::pin::Pin;

use futures::Stream;
use phalanx_proto::generate::{Delta, Event, FinishReason, TokenLogprob, TokenScore, Usage};
use phalanx_proto::pb::worker_server::{Worker, WorkerServer};
use phalanx_proto::{REPORT_EVERY, pb};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

type Events = Pin<Box<dyn Stream<Item = Result<pb::GenerateEvent, Status>> + Send>>;
type Loads = Pin<Box<dyn Stream<Item = Result<pb::WorkerEvent, Status>> + Send>>;

/// A worker process, as far as its sockets are concerned: it has a runtime of its own, to be killed whole.
pub(crate) struct FakeWorker {
    pub(crate) address: String,
    pub(crate) epoch: u64,
    calls: mpsc::UnboundedReceiver<Call>,
    load: watch::Sender<pb::Load>,
    silent: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

/// A generation that arrived and waits for its script.
pub(crate) struct Call {
    pub(crate) request: pb::GenerateRequest,
    pub(crate) metadata: tonic::metadata::MetadataMap,
    reply: oneshot::Sender<Result<mpsc::Receiver<Result<pb::GenerateEvent, Status>>, Status>>,
}

/// A generation in progress.
pub(crate) struct Answering(mpsc::Sender<Result<pb::GenerateEvent, Status>>);

struct Service {
    epoch: u64,
    calls: mpsc::UnboundedSender<Call>,
    load: watch::Receiver<pb::Load>,
    silent: watch::Receiver<bool>,
}

// === impl FakeWorker ===

impl FakeWorker {
    pub(crate) fn start(epoch: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, calls) = mpsc::unbounded_channel();
        let (load, loads) = watch::channel(pb::Load::default());
        let silent = watch::Sender::new(false);
        let heard = silent.subscribe();
        let service = Service { epoch, calls: sender, load: loads, silent: heard };
        let service = WorkerServer::new(service);
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { address, epoch, calls, load, silent, runtime: Some(runtime) }
    }

    /// The next generation that arrives.
    pub(crate) async fn call(&mut self) -> Call {
        let next = self.calls.recv();
        tokio::time::timeout(super::cluster::PATIENCE, next).await.expect("no call came").unwrap()
    }

    /// Whether a generation has arrived that nobody looked at.
    pub(crate) fn has_call(&mut self) -> bool {
        !self.calls.is_empty()
    }

    pub(crate) fn report(&self, load: pb::Load) {
        self.load.send_replace(load);
    }

    /// Stops its reports, or takes them up again, as when the process is stopped or cut off.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.silent.send_replace(is_silent);
    }

    /// Ends the process: listener, connections and streams.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Call ===

impl Call {
    pub(crate) fn refuse(self, status: Status) {
        let _ = self.reply.send(Err(status));
    }

    pub(crate) fn accept(self) -> Answering {
        let (sender, receiver) = mpsc::channel(64);
        let _ = self.reply.send(Ok(receiver));
        Answering(sender)
    }

    /// Plays the usual answer: `Started`, `text` token by token, the end.
    pub(crate) async fn answer(self, tokens: &[&str]) {
        let answering = self.accept();
        answering.send(started()).await;
        for (id, text) in (10..).zip(tokens) {
            answering.send(delta(0, text, id)).await;
        }
        answering.send(finished(0)).await;
        let completion_tokens = u32::try_from(tokens.len()).unwrap();
        answering.send(usage(completion_tokens)).await;
    }

    pub(crate) fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(|value| value.to_str().unwrap())
    }
}

// === impl Answering ===

impl Answering {
    pub(crate) async fn send(&self, event: Event) {
        self.0.send(Ok(event.into())).await.expect("the router hung up");
    }

    /// The same, for who may have hung up.
    pub(crate) async fn offer(&self, event: Event) {
        let _ = self.0.send(Ok(event.into())).await;
    }

    pub(crate) async fn fail(self, status: Status) {
        self.0.send(Err(status)).await.expect("the router hung up");
    }

    /// Resolves once the router has cancelled the call.
    pub(crate) async fn cancelled(&self) {
        let closed = self.0.closed();
        tokio::time::timeout(super::cluster::PATIENCE, closed).await.expect("never cancelled");
    }
}

// === the usual events ===

pub(crate) fn started() -> Event {
    Event::Started { prompt_tokens: 5, cached_tokens: 2, prompt_token_ids: Vec::new() }
}

pub(crate) fn delta(choice: u32, text: &str, id: u32) -> Event {
    let logprobs = Vec::new();
    Event::Delta(Delta { choice, text: text.to_owned(), token_ids: vec![id], logprobs })
}

pub(crate) fn score(token_id: u32, token: &[u8], logprob: f32) -> TokenScore {
    TokenScore { token_id, token: token.to_vec(), logprob }
}

pub(crate) fn scored(text: &str, chosen: TokenScore, top: Vec<TokenScore>) -> Event {
    Event::Delta(Delta {
        choice: 0,
        text: text.to_owned(),
        token_ids: vec![chosen.token_id],
        logprobs: vec![TokenLogprob { chosen, top }],
    })
}

pub(crate) fn finished(choice: u32) -> Event {
    Event::Finished { choice, reason: FinishReason::Stop, stopped_by: None }
}

pub(crate) fn usage(completion_tokens: u32) -> Event {
    Event::Usage(Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens })
}

// === impl Service ===

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = Events;
    type EventsStream = Loads;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        let (reply, script) = oneshot::channel();
        let (metadata, _, request) = request.into_parts();
        let _ = self.calls.send(Call { request, metadata, reply });
        let events = script.await.map_err(|_| Status::internal("the test dropped the call"))??;
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn tokenize(
        &self,
        request: Request<pb::TokenizeRequest>,
    ) -> Result<Response<pb::TokenizeResponse>, Status> {
        let request = request.into_inner();
        let text = match request.input {
            Some(pb::tokenize_request::Input::Text(text)) => text,
            Some(pb::tokenize_request::Input::Chat(chat)) => chat.messages[0].content.clone(),
            None => return Err(Status::invalid_argument("no input")),
        };
        let first = request.add_special_tokens.then_some(1);
        let ids = first.into_iter().chain(text.bytes().map(u32::from)).collect::<Vec<_>>();
        let tokens = ids.iter().map(|id| format!("<{id}>")).collect();
        Ok(Response::new(pb::TokenizeResponse { ids, tokens, context_tokens_max: 512 }))
    }

    async fn detokenize(
        &self,
        request: Request<pb::DetokenizeRequest>,
    ) -> Result<Response<pb::DetokenizeResponse>, Status> {
        let text = request.into_inner().ids.into_iter().filter_map(char::from_u32).collect();
        Ok(Response::new(pb::DetokenizeResponse { text }))
    }

    async fn events(&self, _: Request<pb::EventsRequest>) -> Result<Response<Loads>, Status> {
        let worker_epoch = self.epoch;
        let mut load = self.load.clone();
        load.mark_changed(); // the first report comes at once
        let reports =
            futures::stream::unfold((load, self.silent.clone()), async |(load, silent)| {
                let (mut load, mut silent) = (load, silent);
                silent.wait_for(|silent| !silent).await.ok()?;
                if let Ok(changed) = tokio::time::timeout(REPORT_EVERY, load.changed()).await {
                    changed.ok()?;
                }
                let report = *load.borrow_and_update();
                Some((report, (load, silent)))
            });
        let events = reports.map(move |load| {
            let event = Some(pb::worker_event::Event::Load(load));
            Ok(pb::WorkerEvent { worker_epoch, sequence: 1, event })
        });
        Ok(Response::new(Box::pin(events)))
    }
}
