//! Over real loopback gRPC, with an engine that does as each test says.

mod answers;
mod conversions;
mod endings;
mod refusals;
mod reports;
mod resume;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use futures::StreamExt as _;
use phalanx_chassis::drain::{self, DrainTrigger};
use phalanx_kernels::sample::Logprobs;
use phalanx_proto::generate::{Event, FinishReason, Sampling, StoppedBy, Stopping, Usage};
use phalanx_proto::id::RequestId;
use phalanx_proto::pb::worker_client::WorkerClient;
use phalanx_proto::wire::from_status;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::transport::Channel;

use super::*;
use crate::engine::handle::Mail;
use crate::engine::{EngineHandle, EngineLoad, SequenceEvent, SequenceRequest, TokenFinish};

const CONTEXT: u32 = 64;
const EPOCH: u64 = 5;

/// A sequence that the engine was handed, and the way to answer it.
struct Submitted {
    request: SequenceRequest,
    events: UnboundedSender<SequenceEvent>,
}

impl Submitted {
    fn start(&self, cached_tokens: u32) {
        self.events.send(SequenceEvent::Started { cached_tokens }).unwrap();
    }

    fn token(&self, id: u32, finish: Option<TokenFinish>) {
        self.events.send(SequenceEvent::Token { id, logprobs: None, finish }).unwrap();
    }
}

/// A worker with a scripted engine.
struct Scene {
    client: WorkerClient<Channel>,
    submitted: UnboundedReceiver<Submitted>,
    text: Arc<Text>,
    seat: Seat,
    load: watch::Sender<EngineLoad>,
    standing: watch::Sender<Standing>,
    drain: DrainTrigger,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Sequences the scripted engine has room for.
const PLACES: u32 = 64;

fn parts() -> (ServiceParts, UnboundedReceiver<Submitted>, Handles) {
    let (mail, mailbox) = sync_channel(16);
    let (submissions, submitted) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(mail) = mailbox.recv() {
            match mail {
                Mail::Submit(request, events) => {
                    let _ = submissions.send(Submitted { request, events });
                }
                Mail::Nudge => {}
                Mail::Stop => return,
            }
        }
    });
    let (load, load_seen) = watch::channel(EngineLoad::default());
    let (trigger, drain) = drain::channel();
    let standing = Standing { epoch: Epoch(EPOCH), state: MemberState::Ready };
    let standing = watch::Sender::new(standing);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm");
    let text = Arc::new(Text::load(&folder).unwrap());
    let engine = EngineHandle::new(mail, load_seen, Arc::default(), PLACES);
    let name = ModelName::from("demo");
    let served = Served { name, context_tokens_max: CONTEXT, vocabulary: 3072 };
    let seat = Seat::default();
    seat.take(Seated::new(Arc::clone(&text), engine, served));
    let parts = ServiceParts { seat, standing: standing.subscribe(), drain };
    (parts, submitted, (text, load, standing, trigger))
}

type Handles = (Arc<Text>, watch::Sender<EngineLoad>, watch::Sender<Standing>, DrainTrigger);

async fn scene() -> Scene {
    let (parts, submitted, (text, load, standing, drain)) = parts();
    let seat = parts.seat.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(listener, parts));
    let client = WorkerClient::connect(url).await.unwrap();
    Scene { client, submitted, text, seat, load, standing, drain, server }
}

fn request(prompt: &str) -> Generate {
    Generate {
        request_id: RequestId::from("r"),
        model: ModelName::from("demo"),
        input: Input::Text(prompt.to_owned()),
        sampling: Sampling::default(),
        stopping: Stopping::default(),
        choices: 1,
        top_logprobs: None,
        return_token_ids: false,
        cache_salt: String::new(),
        resume: Vec::new(),
    }
}

impl Scene {
    async fn call(&mut self, generate: Generate) -> Streaming<pb::GenerateEvent> {
        let request = generate.into_wire(Epoch(EPOCH));
        self.client.generate(request).await.unwrap().into_inner()
    }

    async fn refusal(&mut self, request: pb::GenerateRequest) -> Fault {
        match self.client.generate(request).await {
            Ok(_) => panic!("the request was taken"),
            Err(status) => from_status(&status),
        }
    }

    async fn submitted(&mut self) -> Submitted {
        self.submitted.recv().await.expect("the engine is there")
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.text.encode(text, false).unwrap()
    }
}

async fn next(stream: &mut Streaming<pb::GenerateEvent>) -> Event {
    Event::try_from(stream.message().await.unwrap().expect("one more event")).unwrap()
}

/// Everything up to the end of a good stream: the text and the tokens of each choice, and the last events.
async fn rest(stream: Streaming<pb::GenerateEvent>) -> (Vec<String>, Vec<Event>) {
    let mut texts = vec![String::new(); 4];
    let mut others = Vec::new();
    let mut stream = stream;
    while let Some(event) = stream.message().await.unwrap() {
        match Event::try_from(event).unwrap() {
            Event::Delta(delta) => texts[delta.choice as usize].push_str(&delta.text),
            other => others.push(other),
        }
    }
    texts.retain(|text| !text.is_empty());
    (texts, others)
}
