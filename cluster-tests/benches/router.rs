//! What the router costs: its own CPU time per request and per streamed token, between real processes, in
//! front of a worker that answers at once.
//!
//! `cargo bench -p phalanx-cluster-tests --bench router [-- --out FILE]`
//!
//! CPU time is the router process' user and system time as the kernel accounts it, so that the load
//! generator beside it does not count. The cost of a token is the slope between short and long answers.
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say where")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use phalanx_chassis::control_client::ControlClient;
use phalanx_cluster_tests::process::Process;
use phalanx_cluster_tests::usage::{cpu_seconds, resident_mib};
use phalanx_proto::change::Registration;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::generate::{Delta, Event, FinishReason, Usage};
use phalanx_proto::id::{ModelName, Revision};
use phalanx_proto::pb;
use phalanx_proto::view::{Capacity, MemberRole, ServedModel};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status};

/// Connections that send requests, one after the other.
const CLIENTS: usize = 32;
/// Requests of one measurement.
const REQUESTS: usize = 20_000;
/// Streams of one measurement, and how long a long one is.
const STREAMS: usize = 400;
const STREAM_TOKENS: u32 = 257;
/// Between two tokens of a paced stream: a fast engine's step.
const PACE: Duration = Duration::from_millis(2);

/// A worker that answers `max_tokens` tokens without computing anything.
#[derive(Debug)]
struct InstantWorker {
    epoch: watch::Receiver<u64>,
    pace: watch::Receiver<Duration>,
}

#[tonic::async_trait]
impl pb::worker_server::Worker for InstantWorker {
    type GenerateStream = BoxStream<'static, Result<pb::GenerateEvent, Status>>;
    type EventsStream = BoxStream<'static, Result<pb::WorkerEvent, Status>>;

    async fn generate(
        &self,
        request: tonic::Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let stopping = request.into_inner().stopping.unwrap_or_default();
        let tokens = stopping.max_tokens.unwrap_or(1);
        let start = Event::Started { prompt_tokens: 8, cached_tokens: 0, prompt_token_ids: vec![] };
        let delta = |id| {
            let text = " token".to_owned();
            Event::Delta(Delta { choice: 0, text, token_ids: vec![id], logprobs: vec![] })
        };
        let usage = Usage { prompt_tokens: 8, cached_tokens: 0, completion_tokens: tokens };
        let end = Event::Finished { choice: 0, reason: FinishReason::Length, stopped_by: None };
        let pace = *self.pace.borrow();
        let events = std::iter::once(start)
            .chain((0..tokens).map(delta))
            .chain([end, Event::Usage(usage)])
            .map(|event| Ok(pb::GenerateEvent::from(event)));
        let events = futures::stream::iter(events);
        if pace.is_zero() {
            return Ok(Response::new(events.boxed()));
        }
        let events = events.then(move |event| async move {
            tokio::time::sleep(pace).await;
            event
        });
        Ok(Response::new(events.boxed()))
    }

    async fn tokenize(
        &self,
        _request: tonic::Request<pb::TokenizeRequest>,
    ) -> Result<Response<pb::TokenizeResponse>, Status> {
        Err(Status::unimplemented("not part of the benchmark"))
    }

    async fn detokenize(
        &self,
        _request: tonic::Request<pb::DetokenizeRequest>,
    ) -> Result<Response<pb::DetokenizeResponse>, Status> {
        Err(Status::unimplemented("not part of the benchmark"))
    }

    async fn events(
        &self,
        _request: tonic::Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let epoch = self.epoch.clone();
        let reports = futures::stream::unfold((epoch, 0), |(epoch, sequence)| async move {
            if sequence > 0 {
                tokio::time::sleep(phalanx_proto::REPORT_EVERY).await;
            }
            let event = pb::WorkerEvent {
                worker_epoch: *epoch.borrow(),
                sequence: sequence + 1,
                event: Some(pb::worker_event::Event::Load(pb::Load::default())),
            };
            Some((Ok(event), (epoch, sequence + 1)))
        });
        Ok(Response::new(reports.boxed()))
    }
}

/// Serves an [`InstantWorker`], registered as model `bench`, until the process ends.
async fn serve_worker(control: &str) -> watch::Sender<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let client = ControlClient::new(&[control]).unwrap();
    let registration = Registration {
        instance: "bench".into(),
        role: MemberRole::Worker,
        address,
        zone: String::new(),
        models: vec![ServedModel {
            name: ModelName::from("bench"),
            revision: Revision::from("0"),
            context_tokens_max: 1 << 20,
            kv_tokens_max: 1 << 20,
        }],
        capacity: Capacity::default(),
    };
    // A control node that has just started does not lead yet.
    let registered = loop {
        match client.register(registration.clone()).await {
            Ok(registered) => break registered,
            Err(fault) if fault.code == FaultCode::Unavailable => tokio::task::yield_now().await,
            Err(fault) => panic!("cannot register: {fault}"),
        }
    };
    let (pace, pace_seen) = watch::channel(Duration::ZERO);
    let (_epoch, epoch) = watch::channel(registered.epoch.0);
    let worker = pb::worker_server::WorkerServer::new(InstantWorker { epoch, pace: pace_seen });
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(worker)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(registered.heartbeat_every).await;
            client.heartbeat(registered.member_id, registered.epoch).await.unwrap();
        }
    });
    pace
}

/// Sends `count` requests over [`CLIENTS`] connections; the seconds it took.
async fn send(url: &str, count: usize, body: &Value) -> f64 {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let body = Bytes::from(body.to_string());
    let begun = Instant::now();
    let senders = (0..CLIENTS).map(|_| {
        let (client, body, url) =
            (client.clone(), body.clone(), format!("{url}/v1/chat/completions"));
        tokio::spawn(async move {
            for _ in 0..count / CLIENTS {
                let request = Request::post(&url)
                    .header("content-type", "application/json")
                    .body(Full::new(body.clone()))
                    .unwrap();
                let response = client.request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    frame.unwrap();
                }
            }
        })
    });
    for sender in futures::future::join_all(senders).await {
        sender.unwrap();
    }
    begun.elapsed().as_secs_f64()
}

fn chat(max_tokens: u32, stream: bool) -> Value {
    json!({
        "model": "bench", "messages": [{"role": "user", "content": "How much do you cost?"}],
        "max_tokens": max_tokens, "stream": stream, "temperature": 0
    })
}

/// Router CPU per streamed token, in microseconds: long answers less short ones.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
async fn token_cost(url: &str, router: u32) -> f64 {
    let mut cost = [0.0; 2];
    for (slot, tokens) in cost.iter_mut().zip([1, STREAM_TOKENS]) {
        let before = cpu_seconds(router).unwrap();
        send(url, STREAMS, &chat(tokens, true)).await;
        *slot = cpu_seconds(router).unwrap() - before;
    }
    let sent = STREAMS / CLIENTS * CLIENTS;
    (cost[1] - cost[0]) / (sent as f64 * f64::from(STREAM_TOKENS - 1)) * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
async fn run() -> Value {
    let folder = tempfile::tempdir().unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let data = folder.path().join("data").display().to_string();
    let listen = ["--listen", "127.0.0.1:0"];
    let arguments =
        words(&[&["control", "--bootstrap", "--data-dir", &data], &listen[..]].concat());
    let mut control = Process::start(folder.path(), "control", &arguments).unwrap();
    let control_url = control.addresses().await.unwrap()["listen"].as_str().unwrap().to_owned();
    let pace = serve_worker(&control_url).await;
    let arguments = words(&[&["router", "--control", &control_url], &listen[..]].concat());
    let mut router = Process::start(folder.path(), "router", &arguments).unwrap();
    let url = router.addresses().await.unwrap()["listen"].as_str().unwrap().to_owned();
    let ready = async || {
        let client = phalanx_cluster_tests::client::Client::new(&url);
        Ok(client.get("/health/ready").await?.status == 200)
    };
    phalanx_cluster_tests::check::eventually("the router is ready", Duration::from_secs(20), ready)
        .await
        .unwrap();

    send(&url, REQUESTS / 10, &chat(1, false)).await; // warms connections and allocators
    let before = cpu_seconds(router.id()).unwrap();
    let seconds = send(&url, REQUESTS, &chat(1, false)).await;
    let requests = (REQUESTS / CLIENTS * CLIENTS) as f64;
    let request_us = (cpu_seconds(router.id()).unwrap() - before) / requests * 1e6;
    let burst_us = token_cost(&url, router.id()).await;
    pace.send_replace(PACE);
    let paced_us = token_cost(&url, router.id()).await;
    let rate = requests / seconds;
    let resident = resident_mib(router.id()).unwrap();
    println!(
        "router, {CLIENTS} clients: {rate:.0} requests/s, {request_us:.1} us of CPU per request"
    );
    println!(
        "  per streamed token: {burst_us:.2} us in bursts, {paced_us:.2} us at {PACE:?} a token"
    );
    println!("  resident {resident:.0} MiB");
    json!({
        "command": "cargo bench -p phalanx-cluster-tests --bench router",
        "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "clients": CLIENTS, "requests_per_s": rate, "cpu_us_per_request": request_us,
        "cpu_us_per_streamed_token_burst": burst_us,
        "cpu_us_per_streamed_token_paced": paced_us,
        "pace_ms": PACE.as_secs_f64() * 1e3, "resident_mib": resident,
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = runtime.block_on(run());
    let out = arguments.iter().position(|argument| argument == "--out");
    if let Some(file) = out.and_then(|at| arguments.get(at + 1)) {
        std::fs::write(file, format!("{report:#}\n")).unwrap();
        println!("written to {file}");
    }
}
