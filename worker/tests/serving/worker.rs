//! A worker that runs, and what came of a request.

use std::path::{Path, PathBuf};

use phalanx_chassis::drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::generate::{
    Chat, Event, FinishReason, Generate, Input, Message, Sampling, SpeakerRole, Stopping, Usage,
};
use phalanx_proto::id::{Epoch, ModelName, RequestId};
use phalanx_proto::pb;
use phalanx_proto::pb::worker_client::WorkerClient;
use phalanx_worker::{RawWorker, ServeError, Worker, WorkerMetrics};
use serde_json::{Map, Value};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::mock_control::{Script, serve};

pub(crate) const EPOCH: u64 = 3;

/// A control node that takes every registration and loses nothing.
struct AgreeableControl;

impl Script for AgreeableControl {
    fn register(&self, _request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        let (heartbeat_every_ms, ttl_ms) = (2000, 6000);
        Ok(pb::RegisterResponse { member_id: 1, epoch: EPOCH, heartbeat_every_ms, ttl_ms })
    }

    fn heartbeat(&self, _request: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        Ok(pb::HeartbeatResponse { state: pb::MemberState::Ready.into() })
    }

    fn submit(&self, _request: pb::SubmitRequest) -> Result<pb::SubmitResponse, Status> {
        Ok(pb::SubmitResponse { index: 1 })
    }
}

/// A running worker and its client.
pub(crate) struct Running {
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) drain: drain::DrainTrigger,
    pub(crate) worker: JoinHandle<Result<(), ServeError>>,
    pub(crate) metrics: Metrics,
}

pub(crate) fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm")
}

pub(crate) async fn start() -> Running {
    let raw = RawWorker {
        control: vec![serve(AgreeableControl).await],
        listen: Some("127.0.0.1:0".to_owned()),
        model: Some(demo_folder()),
        kv_blocks: Some(1024),
        ..RawWorker::default()
    };
    let (trigger, drain) = drain::channel();
    let metrics = Metrics::default();
    let families = WorkerMetrics::register(&metrics);
    let worker = Worker::bind(raw.validate().unwrap(), &families, drain).await.unwrap();
    assert_eq!(worker.models()[0].name.as_str(), "demo-llm");
    let url = format!("http://{}", worker.local_addr());
    let worker = tokio::spawn(worker.run());
    let mut client = WorkerClient::connect(url).await.unwrap();
    // Requests are taken once the registration is known.
    let mut feed = client.events(pb::EventsRequest {}).await.unwrap().into_inner();
    while feed.message().await.unwrap().expect("the feed goes on").worker_epoch != EPOCH {}
    Running { client, drain: trigger, worker, metrics }
}

pub(crate) fn greedy(input: Input, max_tokens: u32) -> Generate {
    Generate {
        request_id: RequestId::from("golden"),
        model: ModelName::from("demo-llm"),
        input,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stopping: Stopping { max_tokens: Some(max_tokens), ..Stopping::default() },
        choices: 1,
        top_logprobs: None,
        return_token_ids: true,
        cache_salt: String::new(),
        resume: Vec::new(),
    }
}

pub(crate) fn chat(messages: &Value) -> Input {
    let message = |message: &Value| Message {
        role: SpeakerRole::parse(message["role"].as_str().unwrap()).unwrap(),
        content: message["content"].as_str().unwrap().to_owned(),
        name: None,
        tool_call_id: None,
        tool_calls: Vec::new(),
    };
    Input::Chat(Chat {
        messages: messages.as_array().unwrap().iter().map(message).collect(),
        tools: Vec::new(),
        add_generation_prompt: true,
        continue_final_message: false,
        template_kwargs: Map::new(),
    })
}

/// All that came of a request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) usage: Usage,
}

/// Every event of a request, to a good end.
pub(crate) async fn events(mut client: WorkerClient<Channel>, generate: Generate) -> Vec<Event> {
    let request = generate.into_wire(Epoch(EPOCH));
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(Event::try_from(event).unwrap());
    }
    events
}

pub(crate) async fn ask(client: WorkerClient<Channel>, generate: Generate) -> Answer {
    let mut answer = Answer::default();
    for event in events(client, generate).await {
        match event {
            Event::Started { prompt_token_ids, .. } => answer.prompt = prompt_token_ids,
            Event::Delta(delta) => {
                answer.tokens.extend(delta.token_ids);
                answer.text.push_str(&delta.text);
            }
            Event::Finished { reason, .. } => answer.reason = Some(reason),
            Event::Usage(usage) => answer.usage = usage,
        }
    }
    answer
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(id).collect()
}
