//! Over real loopback gRPC, with an engine that does as each test says.

use std::path::Path;
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
use crate::engine::{EngineLoad, SequenceEvent, SequenceRequest, TokenFinish};

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
    load: watch::Sender<EngineLoad>,
    epoch: watch::Sender<Epoch>,
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
    let epoch = watch::Sender::new(Epoch(EPOCH));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm");
    let parts = ServiceParts {
        text: Arc::new(Text::load(&folder).unwrap()),
        engine: EngineHandle::new(mail, load_seen, PLACES),
        served: Served {
            name: ModelName::from("demo"),
            context_tokens_max: CONTEXT,
            vocabulary: 3072,
        },
        epoch: epoch.subscribe(),
        drain,
    };
    (parts, submitted, (load, epoch, trigger))
}

type Handles = (watch::Sender<EngineLoad>, watch::Sender<Epoch>, DrainTrigger);

async fn scene() -> Scene {
    let (parts, submitted, (load, epoch, drain)) = parts();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let text = Arc::clone(&parts.text);
    let server = tokio::spawn(serve(listener, parts));
    let client = WorkerClient::connect(url).await.unwrap();
    Scene { client, submitted, text, load, epoch, drain, server }
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

#[tokio::test]
async fn a_request_is_answered_in_order_and_the_end_token_has_no_text() {
    let mut scene = scene().await;
    let ids = scene.ids("Hello there");
    let mut stream = scene
        .call(Generate { return_token_ids: true, top_logprobs: Some(1), ..request("Say hello") })
        .await;
    let sequence = scene.submitted().await;
    let prompt = scene.ids("Say hello");
    assert_eq!(sequence.request.prompt.as_ref(), prompt);
    assert_eq!(sequence.request.end_tokens.as_ref(), [2, 0]);
    let prompt_tokens = u32::try_from(prompt.len()).unwrap();
    assert_eq!(sequence.request.max_tokens, CONTEXT - prompt_tokens);
    sequence.start(1);
    let started = Event::Started { prompt_tokens, cached_tokens: 1, prompt_token_ids: prompt };
    assert_eq!(next(&mut stream).await, started);
    let mut text = String::new();
    for &id in &ids {
        let logprobs = Some(Logprobs { chosen: -0.5, top: vec![(2, -0.25)] });
        sequence.events.send(SequenceEvent::Token { id, logprobs, finish: None }).unwrap();
        let Event::Delta(delta) = next(&mut stream).await else { panic!("a token is a delta") };
        assert_eq!(delta.token_ids, [id]);
        assert_eq!(delta.logprobs[0].chosen.token, scene.text.token_bytes(id));
        assert_eq!(delta.logprobs[0].top[0].token, b"<|im_end|>");
        text.push_str(&delta.text);
    }
    assert_eq!(text, "Hello there");
    sequence.token(2, Some(TokenFinish::EndToken));
    let Event::Delta(last) = next(&mut stream).await else { panic!("the end token is a delta") };
    assert_eq!((last.text.as_str(), last.token_ids), ("", vec![2]));
    let finished = Event::Finished { choice: 0, reason: FinishReason::Stop, stopped_by: None };
    assert_eq!(next(&mut stream).await, finished);
    let completion_tokens = u32::try_from(ids.len()).unwrap() + 1;
    let usage = Usage { prompt_tokens, cached_tokens: 1, completion_tokens };
    assert_eq!(next(&mut stream).await, Event::Usage(usage));
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_choice_and_cancels_its_sequence() {
    let mut scene = scene().await;
    let stopping = Stopping { strings: vec!["x\nUser:".to_owned()], ..Stopping::default() };
    let stream = scene.call(Generate { stopping, ..request("Go") }).await;
    let sequence = scene.submitted().await;
    sequence.start(0);
    let ids = scene.ids("six\nUser: more");
    let answer = tokio::spawn(rest(stream));
    for &id in &ids {
        // The choice may be over already: then nobody hears the rest.
        let _ = sequence.events.send(SequenceEvent::Token { id, logprobs: None, finish: None });
    }
    sequence.events.closed().await;
    let (texts, events) = answer.await.unwrap();
    assert_eq!(texts, ["si"]);
    let stopped_by = Some(StoppedBy::Text("x\nUser:".to_owned()));
    assert_eq!(events[1], Event::Finished { choice: 0, reason: FinishReason::Stop, stopped_by });
    let Event::Usage(usage) = events[2] else { panic!("usage is last: {events:?}") };
    let until_stop = u32::try_from(scene.ids("six\nUser:").len()).unwrap();
    assert_eq!(usage.completion_tokens, until_stop);
}

#[tokio::test]
async fn a_stop_token_of_the_client_is_named_and_the_length_is_a_reason() {
    let mut scene = scene().await;
    let id = scene.ids(" there")[0];
    for (finish, reason, stopped_by) in [
        (TokenFinish::EndToken, FinishReason::Stop, Some(StoppedBy::Token(id))),
        (TokenFinish::Length, FinishReason::Length, None),
    ] {
        let stopping = Stopping { token_ids: vec![id], ignore_eos: true, ..Stopping::default() };
        let stream = scene.call(Generate { stopping, ..request("Go") }).await;
        let sequence = scene.submitted().await;
        assert_eq!(sequence.request.end_tokens.as_ref(), [id]);
        sequence.start(0);
        sequence.token(id, Some(finish));
        let (_, events) = rest(stream).await;
        assert_eq!(events[1], Event::Finished { choice: 0, reason, stopped_by });
    }
}

#[tokio::test]
async fn further_choices_wait_for_the_first_token_and_have_seeds_of_their_own() {
    let mut scene = scene().await;
    let sampling = Sampling { seed: 42, ..Sampling::default() };
    let stream = scene.call(Generate { choices: 3, sampling, ..request("Go") }).await;
    let answer = tokio::spawn(rest(stream));
    let first = scene.submitted().await;
    first.start(0);
    assert!(scene.submitted.try_recv().is_err(), "the prefix is not computed yet");
    let id = scene.ids("a")[0];
    first.token(id, None);
    let (second, third) = (scene.submitted().await, scene.submitted().await);
    let mut seeds: Vec<u64> =
        [&first, &second, &third].map(|sequence| sequence.request.sampling.seed).to_vec();
    assert_eq!(seeds[0], 42);
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 3);
    for sequence in [&third, &second] {
        sequence.start(9);
        sequence.token(id, Some(TokenFinish::Length));
    }
    first.token(id, Some(TokenFinish::Length));
    let (texts, events) = answer.await.unwrap();
    assert_eq!(texts, ["aa", "a", "a"]);
    let started = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    assert_eq!(started, 1);
    let Some(Event::Usage(usage)) = events.last() else { panic!("usage is last: {events:?}") };
    assert_eq!((usage.cached_tokens, usage.completion_tokens), (0, 4));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_every_choice() {
    let mut scene = scene().await;
    let mut stream = scene.call(Generate { choices: 2, ..request("Go") }).await;
    let first = scene.submitted().await;
    first.start(0);
    first.token(scene.ids("a")[0], None);
    next(&mut stream).await;
    next(&mut stream).await;
    let second = scene.submitted().await;
    drop(stream);
    first.events.closed().await;
    second.events.closed().await;
}

#[tokio::test]
async fn calls_routed_by_another_registration_are_refused() {
    let mut scene = scene().await;
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH - 1))).await;
    assert_eq!(fault.code, FaultCode::StaleEpoch);
    assert_eq!(fault.message, "the call was routed by epoch 4, the worker is at 5");
    scene.epoch.send_replace(Epoch::default());
    let fault = scene.refusal(request("Go").into_wire(Epoch(0))).await;
    assert_eq!(fault.code, FaultCode::Unavailable);
    assert!(fault.retry_after.is_some());
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_by_field() {
    let mut scene = scene().await;
    let long = scene.ids(&"a b ".repeat(40));
    let tokens = |count: usize| Input::Tokens(long[..count].to_vec());
    let max_tokens = |max: u32| Stopping { max_tokens: Some(max), ..Stopping::default() };
    let biased = Sampling { logit_bias: vec![(3072, 1.0)], ..Sampling::default() };
    let stop_ids = Stopping { token_ids: vec![9999], ..Stopping::default() };
    let too_long = FaultCode::ContextLengthExceeded;
    let invalid = FaultCode::InvalidRequest;
    let base = request("Go");
    for (case, code, param) in [
        (Generate { input: tokens(64), ..base.clone() }, too_long, "prompt"),
        (Generate { input: Input::Text("a b ".repeat(90)), ..base.clone() }, too_long, "prompt"),
        (Generate { input: Input::Text("a".repeat(1 << 20)), ..base.clone() }, too_long, "prompt"),
        (
            Generate { input: tokens(60), stopping: max_tokens(5), ..base.clone() },
            too_long,
            "max_tokens",
        ),
        (Generate { input: Input::Tokens(vec![9999]), ..base.clone() }, invalid, "prompt"),
        (Generate { input: Input::Text(String::new()), ..base.clone() }, invalid, "prompt"),
        (Generate { choices: 0, ..base.clone() }, invalid, "n"),
        (Generate { sampling: biased, ..base.clone() }, invalid, "logit_bias"),
        (Generate { stopping: stop_ids, ..base.clone() }, invalid, "stop_token_ids"),
        (
            Generate { model: ModelName::from("other"), ..base.clone() },
            FaultCode::ModelNotFound,
            "model",
        ),
    ] {
        let fault = scene.refusal(case.into_wire(Epoch(EPOCH))).await;
        assert_eq!((fault.code, fault.param.as_deref()), (code, Some(param)), "{fault}");
    }
    let fits = Generate { input: tokens(60), stopping: max_tokens(4), ..base };
    let _stream = scene.call(fits).await;
    assert_eq!(scene.submitted().await.request.max_tokens, 4);
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_refuses_the_rest_and_ends() {
    let mut scene = scene().await;
    let mut stream = scene.call(request("Go")).await;
    let sequence = scene.submitted().await;
    let mut feed = scene.client.events(pb::EventsRequest {}).await.unwrap().into_inner();
    feed.message().await.unwrap().expect("the load now");
    sequence.start(0);
    next(&mut stream).await;
    scene.drain.advance(Phase::Draining);
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Draining);
    let report = feed.message().await.unwrap().expect("the feed says so");
    let Some(pb::worker_event::Event::Load(load)) = report.event else { panic!("no load") };
    assert!(load.draining);
    sequence.token(2, Some(TokenFinish::EndToken));
    let (_, events) = rest(stream).await;
    assert!(matches!(events.last(), Some(Event::Usage(_))), "{events:?}");
    while feed.message().await.unwrap().is_some() {}
    scene.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_request_and_cancels_its_sequence() {
    let mut scene = scene().await;
    let mut request = Request::new(request("Go").into_wire(Epoch(EPOCH)));
    request.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    let mut stream = scene.client.generate(request).await.unwrap().into_inner();
    let sequence = scene.submitted().await;
    let fault = from_status(&stream.message().await.unwrap_err());
    assert_eq!(fault.code, FaultCode::DeadlineExceeded);
    sequence.events.closed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_outlive_its_deadline() {
    use phalanx_proto::pb::worker_server::Worker as _;
    let (parts, mut submitted, _handles) = parts();
    let service = WorkerService::new(parts);
    let mut request = Request::new(request("Go").into_wire(Epoch(EPOCH)));
    request.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    let unread = service.generate(request).await.unwrap().into_inner();
    let sequence = submitted.recv().await.unwrap();
    sequence.start(0);
    for _ in 0..500 {
        sequence.token(300, None);
    }
    sequence.events.closed().await;
    let heard: Vec<_> = unread.collect().await;
    let Some((Err(status), events)) = heard.split_last() else { panic!("a fault is last") };
    assert_eq!(from_status(status).code, FaultCode::DeadlineExceeded);
    assert!(events.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_the_engine_refuses_reaches_the_client_as_it_is() {
    let mut scene = scene().await;
    let fault = Fault::new(FaultCode::Overloaded, "1024 sequences wait, the limit")
        .with_retry_after(Duration::from_secs(2));
    for is_told in [true, false] {
        let mut stream = scene.call(request("Go")).await;
        let sequence = scene.submitted().await;
        if is_told {
            sequence.events.send(SequenceEvent::Failed(fault.clone())).unwrap();
        }
        drop(sequence);
        let heard = from_status(&stream.message().await.unwrap_err());
        let gone = Fault::new(FaultCode::Unavailable, "the engine has stopped");
        assert_eq!(heard, if is_told { fault.clone() } else { gone });
    }
}

#[tokio::test]
async fn open_requests_are_bounded() {
    use phalanx_proto::pb::worker_server::Worker as _;
    let (parts, _submitted, _handles) = parts();
    let service = WorkerService::new(parts);
    let wire = request("Go").into_wire(Epoch(EPOCH));
    let all_but_one = service.open.acquire_many(OPEN_REQUESTS_MAX - 1).await.unwrap();
    let last = service.generate(Request::new(wire.clone())).await.unwrap();
    let Err(status) = service.generate(Request::new(wire.clone())).await else {
        panic!("one more than the bound was taken")
    };
    let fault = from_status(&status);
    assert_eq!(fault.code, FaultCode::Overloaded);
    assert_eq!(fault.retry_after, Some(RETRY_AFTER));
    drop(last);
    // Its place is free once its task has seen that nobody listens.
    drop(service.open.acquire().await.unwrap());
    assert!(service.generate(Request::new(wire)).await.is_ok());
    drop(all_but_one);
}

#[tokio::test]
async fn a_request_gets_places_for_all_its_choices_or_is_refused_before_it_begins() {
    let mut scene = scene().await;
    let stream = scene.call(Generate { choices: PLACES - 1, ..request("Go") }).await;
    let first = scene.submitted().await;
    let two = Generate { choices: 2, ..request("Go") };
    let fault = scene.refusal(two.clone().into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Overloaded);
    let fault = scene
        .refusal(Generate { choices: PLACES + 1, ..request("Go") }.into_wire(Epoch(EPOCH)))
        .await;
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("n")));
    drop(stream);
    first.events.closed().await;
    let _stream = scene.call(two).await;
    scene.submitted().await;
}

#[tokio::test]
async fn texts_and_tokens_that_would_not_fit_a_message_are_refused() {
    let mut scene = scene().await;
    let request = pb::TokenizeRequest {
        model: "demo".to_owned(),
        input: Some(pb::tokenize_request::Input::Text("a".repeat(TOKENIZED_BYTES_MAX + 1))),
        add_special_tokens: true,
    };
    let fault = from_status(&scene.client.tokenize(request).await.unwrap_err());
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("prompt")));
    let longest = (0..3072).max_by_key(|id| scene.text.token_bytes(*id).len()).unwrap();
    for count in [DETOKENIZED_IDS_MAX + 1, DETOKENIZED_IDS_MAX] {
        let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: vec![longest; count] };
        let fault = from_status(&scene.client.detokenize(request).await.unwrap_err());
        assert_eq!(
            (fault.code, fault.param.as_deref()),
            (FaultCode::InvalidRequest, Some("tokens"))
        );
    }
}

#[tokio::test]
async fn load_reports_are_numbered_within_an_epoch_and_come_without_news_too() {
    let (parts, _submitted, (load, epoch, _drain)) = parts();
    tokio::time::pause();
    let closed = watch::Sender::new(false);
    let feed = LoadFeed {
        load: parts.engine.load(),
        epoch: parts.epoch.clone(),
        drain: parts.drain.clone(),
        closed: closed.subscribe(),
    };
    let mut reports = Box::pin(feed.into_events());
    let started = Instant::now();
    let mut seen = Vec::new();
    for step in 1..=4u32 {
        let report = reports.next().await.unwrap();
        let Some(pb::worker_event::Event::Load(shown)) = report.event else { panic!("no load") };
        let elapsed = (started.elapsed().as_millis() / 50) * 50;
        seen.push((report.worker_epoch, report.sequence, shown.running, elapsed));
        match step {
            1 => {
                // Many changes, one report.
                for running in 1..=3 {
                    load.send_replace(EngineLoad { running, ..EngineLoad::default() });
                }
            }
            2 => {}
            _ => {
                epoch.send_replace(Epoch(9));
            }
        }
    }
    // At once; the change after the gap; no news for 100 ms; the new epoch, numbered from 1.
    assert_eq!(seen, [(5, 1, 0, 0), (5, 2, 3, 50), (5, 3, 3, 150), (9, 1, 3, 200)]);
    closed.send_replace(true);
    assert!(reports.next().await.is_none());
}

#[tokio::test]
async fn text_is_tokenised_and_back_for_the_router() {
    let mut scene = scene().await;
    let long = "Hello world. ".repeat(2000);
    for text in ["Hello world", long.as_str()] {
        let request = pb::TokenizeRequest {
            model: "demo".to_owned(),
            input: Some(pb::tokenize_request::Input::Text(text.to_owned())),
            add_special_tokens: true,
        };
        let tokenized = scene.client.tokenize(request).await.unwrap().into_inner();
        assert_eq!(tokenized.ids, scene.ids(text));
        assert_eq!(tokenized.ids.len(), tokenized.tokens.len());
        assert_eq!(tokenized.tokens.concat().replace('Ġ', " "), text);
        assert_eq!(tokenized.context_tokens_max, CONTEXT);
        let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: tokenized.ids };
        let back = scene.client.detokenize(request).await.unwrap().into_inner();
        assert_eq!(back.text, text);
    }
    let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: vec![9999] };
    let fault = from_status(&scene.client.detokenize(request).await.unwrap_err());
    assert_eq!(fault.param.as_deref(), Some("tokens"));
    scene.load.send_replace(EngineLoad::default());
}
