//! A server that speaks OpenAI's API and does what the test tells it to, call by call.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::{PATIENCE, eventually};

type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;
type Answer = Response<StreamBody<Pieces>>;

/// A server process, as far as its sockets are concerned: it has a runtime of its own, to be killed whole.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Received>,
    says: Arc<Mutex<Says>>,
    runtime: Option<Runtime>,
}

/// What it says of itself.
#[derive(Clone)]
pub(crate) struct Says {
    /// None: it has no such endpoint.
    pub(crate) models: Option<String>,
    pub(crate) metrics: Option<String>,
    pub(crate) health: StatusCode,
}

/// A request that arrived and waits for its script.
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    reply: oneshot::Sender<Answer>,
}

/// An answer in progress.
pub(crate) struct Streaming(mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>);

// === impl FakeServer ===

impl FakeServer {
    /// One that lists model `demo`, as native workers of tests do.
    pub(crate) fn start() -> Self {
        Self::saying(Says {
            models: Some(r#"{"object":"list","data":[{"id":"demo","max_model_len":4096}]}"#.into()),
            metrics: None,
            health: StatusCode::OK,
        })
    }

    pub(crate) fn saying(says: Says) -> Self {
        Self::on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), says)
    }

    fn on(listener: std::net::TcpListener, says: Says) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let says = Arc::new(Mutex::new(says));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let said = Arc::clone(&says);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, said) = (sender.clone(), Arc::clone(&said));
                let service = service_fn(move |request| {
                    let (sender, said) = (sender.clone(), Arc::clone(&said));
                    async move { Ok::<_, Infallible>(serve(request, &sender, &said).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    let _ = connection.await; // a script may end it in the middle
                });
            }
        });
        Self { url: format!("http://{address}"), address, calls, says, runtime: Some(runtime) }
    }

    /// The next request that arrives.
    pub(crate) async fn call(&mut self) -> Received {
        let next = self.calls.recv();
        tokio::time::timeout(PATIENCE, next).await.expect("no request came").unwrap()
    }

    /// Whether a request has arrived that nobody looked at.
    pub(crate) fn has_call(&mut self) -> bool {
        !self.calls.is_empty()
    }

    /// From now on it says something else of itself.
    pub(crate) fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    /// Ends the process: listener, connections and answers.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Ends the process, and begins another at its address as soon as that is free.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let says = self.says.lock().unwrap().clone();
        let mut listener = None;
        eventually(async || {
            listener = std::net::TcpListener::bind(self.address).ok();
            listener.is_some()
        })
        .await;
        *self = Self::on(listener.unwrap(), says);
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(
    request: Request<Incoming>,
    calls: &mpsc::UnboundedSender<Received>,
    says: &Mutex<Says>,
) -> Answer {
    if request.method() == Method::GET {
        let says = says.lock().unwrap().clone();
        return match (request.uri().path(), says) {
            ("/v1/models", Says { models: Some(models), .. }) => plain(StatusCode::OK, models),
            ("/metrics", Says { metrics: Some(metrics), .. }) => plain(StatusCode::OK, metrics),
            ("/health", Says { health, .. }) => plain(health, String::new()),
            _ => plain(StatusCode::NOT_FOUND, String::new()),
        };
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (reply, script) = oneshot::channel();
    let path = parts.uri.path().to_owned();
    let _ = calls.send(Received { path, headers: parts.headers, body, reply });
    match script.await {
        Ok(answer) => answer,
        // The test dropped the request: the connection breaks.
        Err(_) => std::future::pending().await,
    }
}

fn plain(status: StatusCode, text: String) -> Answer {
    let full = Full::new(Bytes::from(text)).into_data_stream();
    let pieces: Pieces = Box::pin(full.map(|piece| Ok(Frame::data(piece.unwrap()))));
    let mut answer = Response::new(StreamBody::new(pieces));
    *answer.status_mut() = status;
    answer
}

// === impl Received ===

impl Received {
    /// Answers in one piece.
    pub(crate) fn answer(self, status: u16, headers: &[(&str, &str)], body: &str) {
        let mut answer = plain(StatusCode::from_u16(status).unwrap(), body.to_owned());
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        let _ = self.reply.send(answer);
    }

    /// Answers with a JSON object and status 200.
    pub(crate) fn answer_json(self, body: &str) {
        self.answer(200, &[("content-type", "application/json")], body);
    }

    /// Sends the head of a stream.
    pub(crate) fn stream(self) -> Streaming {
        self.begin("text/event-stream; charset=utf-8")
    }

    /// Sends the head of an answer of this kind.
    pub(crate) fn begin(self, kind: &str) -> Streaming {
        let (sender, receiver) = mpsc::channel(64);
        let pieces: Pieces = Box::pin(ReceiverStream::new(receiver));
        let mut answer = Response::new(StreamBody::new(pieces));
        answer.headers_mut().insert("content-type", kind.parse().unwrap());
        let _ = self.reply.send(answer);
        Streaming(sender)
    }

    /// Resolves once the router has given up on the request before its answer began.
    pub(crate) async fn abandoned(mut self) {
        let closed = self.reply.closed();
        tokio::time::timeout(PATIENCE, closed).await.expect("never cancelled");
    }
}

// === impl Streaming ===

impl Streaming {
    pub(crate) async fn send(&self, text: &str) {
        let frame = Frame::data(Bytes::copy_from_slice(text.as_bytes()));
        self.0.send(Ok(frame)).await.expect("the router hung up");
    }

    /// Breaks the connection.
    pub(crate) async fn die(self) {
        let _ = self.0.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
    }

    /// Resolves once the router has cancelled the request.
    pub(crate) async fn cancelled(&self) {
        let closed = self.0.closed();
        tokio::time::timeout(PATIENCE, closed).await.expect("never cancelled");
    }
}
