//! A running router with its view, its drain, and a client to talk to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use phalanx_chassis::drain::{self, DrainTrigger};
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::id::{Epoch, Lineage, MemberId};
use phalanx_proto::view::{
    Capacity, ClusterView, Member, MemberRole, MemberState, ServedModel, ViewOp,
};
use phalanx_router::{RawRouter, Router, RouterConfig};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::FakeServer;
use crate::worker::FakeWorker;

/// How long a test waits for what must happen; far longer than it ever takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) base: String,
    pub(crate) drain: DrainTrigger,
    pub(crate) running: JoinHandle<()>,
    view: watch::Sender<Arc<ClusterView>>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// An answer whose body is still coming.
pub(crate) struct Live {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    text: String,
}

// === impl Cluster ===

impl Cluster {
    /// A router with these workers, all of them up.
    pub(crate) async fn start(workers: &[&FakeWorker]) -> Self {
        Self::start_with(RawRouter::default(), workers).await
    }

    pub(crate) async fn start_with(raw: RawRouter, workers: &[&FakeWorker]) -> Self {
        let raw = RawRouter { listen: Some("127.0.0.1:0".to_owned()), ..raw };
        let (view, views) = watch::channel(Arc::new(ClusterView::default()));
        let (trigger, drain) = drain::channel();
        let config = RouterConfig::try_from(raw).unwrap();
        let router = Router::bind(config, views, &Metrics::default(), drain)
            .await
            .unwrap()
            .with_staleness(|| Duration::from_millis(1500));
        let base = format!("http://{}", router.local_addr());
        let client = Client::builder(TokioExecutor::new()).build_http();
        let running = tokio::spawn(router.run());
        let cluster = Self { base, drain: trigger, running, view, client };
        for (id, worker) in (1..).zip(workers) {
            cluster.put(id, worker);
        }
        cluster.until_up(workers.len()).await;
        cluster
    }

    /// A router with these workers and these foreign engines, named `one`, `two` and so on, all of them up.
    pub(crate) async fn with_servers(workers: &[&FakeWorker], servers: &[&FakeServer]) -> Self {
        let named = ["one", "two", "three"].iter().zip(servers);
        let engine = named.map(|(name, server)| format!("{name}={}", server.url)).collect();
        let cluster = Self::start_with(RawRouter { engine, ..RawRouter::default() }, workers).await;
        cluster.until_servers_up(servers.len()).await;
        cluster
    }

    pub(crate) async fn until_servers_up(&self, servers: usize) {
        let line = format!("phalanx_foreign_engines_up {servers}\n");
        eventually(async || self.get("/metrics").await.text.contains(&line)).await;
    }

    /// Registers `worker` as member `id`, serving model `demo`.
    pub(crate) fn put(&self, id: u64, worker: &FakeWorker) {
        self.put_at_revision(id, worker, "0123456789abcdef");
    }

    pub(crate) fn put_at_revision(&self, id: u64, worker: &FakeWorker, revision: &str) {
        let served = ServedModel {
            name: "demo".into(),
            revision: revision.into(),
            context_tokens_max: 512,
            kv_tokens_max: 4096,
        };
        self.change(ViewOp::PutMember(Member {
            id: MemberId(id),
            role: MemberRole::Worker,
            address: worker.address.clone(),
            zone: String::new(),
            epoch: Epoch(worker.epoch),
            state: MemberState::Ready,
            models: vec![served],
            capacity: Capacity::default(),
        }));
    }

    pub(crate) fn change(&self, op: ViewOp) {
        self.view.send_modify(|view| {
            let mut next = ClusterView::clone(view);
            next.lineage = Lineage(1);
            next.index.0 += 1;
            next.apply_op(op);
            *view = Arc::new(next);
        });
    }

    pub(crate) async fn until_up(&self, workers: usize) {
        let line = format!("phalanx_workers_up {workers}\n");
        eventually(async || self.get("/metrics").await.text.contains(&line)).await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, &[], body).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.open(method, path, headers, body).await.finish().await
    }

    /// Sends a request and returns as soon as the answer's head is here.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Live {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = tokio::time::timeout(PATIENCE, self.client.request(request));
        let response = response.await.expect("no answer came").unwrap();
        let (parts, body) = response.into_parts();
        Live { status: parts.status, headers: parts.headers, body, text: String::new() }
    }

    pub(crate) async fn chat(&self, extra: &str) -> Answer {
        self.post("/v1/chat/completions", chat_body(extra)).await
    }

    pub(crate) async fn open_chat(&self, extra: &str) -> Live {
        self.open(Method::POST, "/v1/chat/completions", &[], chat_body(extra)).await
    }

    /// Nothing is in progress any more, here or at workers.
    pub(crate) async fn assert_idle(&self) {
        eventually(async || {
            let text = self.get("/metrics").await.text;
            text.contains("phalanx_inflight_requests 0\n")
                && text.contains("phalanx_dispatched_requests 0\n")
        })
        .await;
    }
}

pub(crate) fn chat_body(extra: &str) -> String {
    let comma = if extra.is_empty() { "" } else { "," };
    format!(r#"{{"model":"demo","messages":[{{"role":"user","content":"hi"}}]{comma}{extra}}}"#)
}

// === impl Live ===

impl Live {
    /// Reads on until `text` was seen.
    pub(crate) async fn until(&mut self, text: &str) {
        while !self.text.contains(text) {
            assert!(self.read().await, "the body ended as {:?} without {text:?}", self.text);
        }
    }

    pub(crate) async fn finish(mut self) -> Answer {
        while self.read().await {}
        Answer { status: self.status, headers: self.headers, text: self.text }
    }

    async fn read(&mut self) -> bool {
        let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("body stalled");
        let Some(frame) = frame else { return false };
        if let Ok(data) = frame.unwrap().into_data() {
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
        true
    }
}

// === impl Answer ===

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.json()["error"]["code"], code, "{}", self.text);
    }

    /// The text with its random id and time replaced.
    pub(crate) fn settled(&self) -> String {
        let mut parts = self.text.split("\"id\":\"");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (id, rest) = part.split_once('"').unwrap();
            let (kind, random) = id.split_once('-').unwrap();
            assert_eq!(random.len(), 32);
            text.push_str(&format!("\"id\":\"{kind}\"{rest}"));
        }
        let mut parts = text.split("\"created\":");
        let mut settled = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            settled.push_str("\"created\":0");
            settled.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
        }
        settled
    }
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        while !condition().await {
            pace.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it never came true");
}
