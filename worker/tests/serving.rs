//! A whole worker with the demo model, over loopback gRPC: what a router sees.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use futures::future::join_all;
use phalanx_chassis::drain::{self, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{
    Chat, Event, FinishReason, Generate, Input, Message, Sampling, SpeakerRole, Stopping, Usage,
};
use phalanx_proto::id::{Epoch, ModelName, RequestId};
use phalanx_proto::pb;
use phalanx_proto::pb::worker_client::WorkerClient;
use phalanx_proto::wire::to_status;
use phalanx_worker::{RawWorker, ServeError, Worker, WorkerMetrics};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

const EPOCH: u64 = 3;

/// A control node that takes every registration and loses nothing.
struct AgreeableControl;

#[tonic::async_trait]
impl pb::control_server::Control for AgreeableControl {
    type WatchStream = tokio_stream::Empty<Result<pb::WatchEvent, Status>>;

    async fn register(
        &self,
        _request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        Ok(Response::new(pb::RegisterResponse {
            member_id: 1,
            epoch: EPOCH,
            heartbeat_every_ms: 2000,
            ttl_ms: 6000,
        }))
    }

    async fn heartbeat(
        &self,
        _request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let state = pb::MemberState::Ready.into();
        Ok(Response::new(pb::HeartbeatResponse { state }))
    }

    async fn submit(
        &self,
        _request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        Ok(Response::new(pb::SubmitResponse { index: 1 }))
    }

    async fn watch(
        &self,
        _request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn read_view(
        &self,
        _request: Request<pb::ReadViewRequest>,
    ) -> Result<Response<pb::ReadViewResponse>, Status> {
        Err(to_status(&Fault::new(FaultCode::Internal, "nobody asks")))
    }

    async fn status(
        &self,
        _request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        Err(to_status(&Fault::new(FaultCode::Internal, "nobody asks")))
    }

    async fn change_group(
        &self,
        _request: Request<pb::ChangeGroupRequest>,
    ) -> Result<Response<pb::ChangeGroupResponse>, Status> {
        Err(to_status(&Fault::new(FaultCode::Internal, "nobody asks")))
    }

    type BackupStream = tokio_stream::Empty<Result<pb::BackupPart, Status>>;

    async fn backup(
        &self,
        _request: Request<pb::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(to_status(&Fault::new(FaultCode::Internal, "nobody asks")))
    }

    async fn restore(
        &self,
        _request: Request<tonic::Streaming<pb::BackupPart>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        Err(to_status(&Fault::new(FaultCode::Internal, "nobody asks")))
    }
}

/// A running worker and its client.
struct Running {
    client: WorkerClient<Channel>,
    drain: drain::DrainTrigger,
    worker: JoinHandle<Result<(), ServeError>>,
    metrics: Metrics,
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm")
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = format!("http://{}", listener.local_addr().unwrap());
    let service = pb::control_server::ControlServer::new(AgreeableControl);
    let serving = Server::builder().add_service(service);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let raw = RawWorker {
        control: vec![control],
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

fn greedy(input: Input, max_tokens: u32) -> Generate {
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
    }
}

fn chat(messages: &Value) -> Input {
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
struct Answer {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    reason: Option<FinishReason>,
    usage: Usage,
}

async fn ask(mut client: WorkerClient<Channel>, generate: Generate) -> Answer {
    let request = generate.into_wire(Epoch(EPOCH));
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let mut answer = Answer::default();
    while let Some(event) = stream.message().await.unwrap() {
        match Event::try_from(event).unwrap() {
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

fn ids(value: &Value) -> Vec<u32> {
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_golden_prompt_is_answered_to_the_token_all_at_once() {
    let running = start().await;
    let golden = std::fs::read(demo_folder().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let mut cases: Vec<(&Value, Generate)> = Vec::new();
    for case in golden["chats"].as_array().unwrap() {
        cases.push((case, greedy(chat(&case["messages"]), 220)));
    }
    for case in golden["completions"].as_array().unwrap() {
        let prompt = Input::Text(case["prompt"].as_str().unwrap().to_owned());
        cases.push((case, greedy(prompt, 64)));
    }
    let asked = cases.iter().map(|(_, generate)| ask(running.client.clone(), generate.clone()));
    let answers = join_all(asked).await;
    assert_eq!(answers.len(), 42);
    for ((case, _), answer) in cases.iter().zip(&answers) {
        assert_eq!(answer.prompt, ids(&case["prompt_token_ids"]));
        assert_eq!(answer.text, case["text"].as_str().unwrap());
        assert_eq!(answer.tokens, ids(&case["output_token_ids"]));
        let ends = answer.tokens.last().is_some_and(|id| [0, 2].contains(id));
        let reason = if ends { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(answer.reason, Some(reason));
        assert_eq!(answer.usage.completion_tokens as usize, answer.tokens.len());
    }
    running.drain.advance(Phase::Draining);
    running.worker.await.unwrap().unwrap();
    assert!(!running.metrics.encode().contains("worker=\""), "a worker that left has no series");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_prefix_is_computed_once_and_shared_by_choices_and_requests() {
    let running = start().await;
    let prefix: Vec<u32> = (0..1000).map(|position| 300 + position % 500).collect();
    let prompt = |last: u32| Input::Tokens([&prefix[..], &[last]].concat());
    let first = ask(running.client.clone(), greedy(prompt(400), 2)).await;
    assert_eq!(first.usage.cached_tokens, 0);
    let second = ask(running.client.clone(), greedy(prompt(401), 2)).await;
    assert!(second.usage.cached_tokens >= 992, "{:?}", second.usage);
    assert_eq!(second.usage.prompt_tokens, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_ends_its_streams_with_a_fault() {
    let mut running = start().await;
    let mut endless = greedy(Input::Text("The router".to_owned()), 1900);
    endless.stopping.ignore_eos = true;
    let request = endless.into_wire(Epoch(EPOCH));
    let mut stream = running.client.generate(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("it started");
    running.drain.advance(Phase::Stopping);
    let status = loop {
        match stream.message().await {
            Ok(event) => assert!(event.is_some(), "a cut stream must not look complete"),
            Err(status) => break status,
        }
    };
    assert_eq!(phalanx_proto::wire::from_status(&status).code, FaultCode::Draining);
    running.worker.await.unwrap().unwrap();
}
