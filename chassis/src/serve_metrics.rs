//! `/metrics` and `/health` for processes that serve no other HTTP: control and worker.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::drain::{Drain, Phase};
use crate::metrics::Metrics;

/// Scrapers and probes are few; more connections than this are not theirs.
const CONNECTIONS_MAX: usize = 64;
/// A scrape that takes longer has no reader.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
/// How long to wait after the system refused to accept (out of descriptors), before asking again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The metrics endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}")]
pub struct MetricsBindError {
    /// Where.
    pub address: String,
    /// Why.
    pub source: std::io::Error,
}

/// Says why the process cannot do its work, if it cannot. Asked by each probe, so it must not wait.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// A listener for scrapers and probes. Ends when the process stops, so that a drain can be watched.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    sources: Sources,
}

/// What answers are made from.
#[derive(Clone)]
struct Sources {
    metrics: Metrics,
    drain: Drain,
    readiness: Readiness,
}

// === impl MetricsServer ===

impl MetricsServer {
    /// Listens on `address`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        address: &str,
        metrics: Metrics,
        drain: Drain,
    ) -> Result<Self, MetricsBindError> {
        let refused = |source| MetricsBindError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let local_addr = listener.local_addr().map_err(refused)?;
        let sources = Sources { metrics, drain, readiness: Arc::new(|| Ok(())) };
        Ok(Self { listener, local_addr, sources })
    }

    /// Calls the process ready only while `readiness` does; without this, it is whenever it does not drain.
    #[must_use]
    pub fn ready_when(mut self, readiness: Readiness) -> Self {
        self.sources.readiness = readiness;
        self
    }

    /// The bound address.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until the process stops.
    pub async fn run(self) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let stop = self.sources.drain.clone();
        loop {
            let accepted = tokio::select! {
                () = stop.reached(Phase::Stopping) => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&permits).try_acquire_owned() {
                    Ok(permit) => {
                        let answer = serve(stream, self.sources.clone());
                        tokio::spawn(async move {
                            let _held = permit;
                            answer.await;
                        });
                    }
                    Err(_) => debug!(max = CONNECTIONS_MAX, "metrics connection refused"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept a metrics connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, sources: Sources) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &sources);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "metrics connection ended early"),
    }
}

fn respond(method: &Method, path: &str, sources: &Sources) -> Response<Full<Bytes>> {
    const JSON: &str = "application/json";
    let (status, content_type, body) = match (method, path) {
        (&Method::GET, "/metrics") => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            sources.metrics.encode(),
        ),
        (&Method::GET, "/health" | "/health/live") => {
            (StatusCode::OK, JSON, r#"{"status":"ok"}"#.to_owned())
        }
        (&Method::GET, "/health/ready") => match sources.ready() {
            Ok(()) => (StatusCode::OK, JSON, r#"{"status":"ready"}"#.to_owned()),
            Err(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, JSON, format!(r#"{{"status":"{reason}"}}"#))
            }
        },
        _ => (StatusCode::NOT_FOUND, JSON, r#"{"status":"no such route"}"#.to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

// === impl Sources ===

impl Sources {
    fn ready(&self) -> Result<(), &'static str> {
        if self.drain.phase() > Phase::Serving {
            return Err("draining");
        }
        (self.readiness)()
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("drain", &self.drain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::drain;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn scrapers_and_probes_are_answered_until_the_process_stops() {
        let (trigger, drain) = drain::channel();
        let server = MetricsServer::bind("127.0.0.1:0", Metrics::default(), drain).await.unwrap();
        let address = server.local_addr();
        let running = tokio::spawn(server.run());
        assert!(get(address, "/metrics").await.contains("# EOF"));
        assert!(get(address, "/health/ready").await.starts_with("HTTP/1.1 200"));
        trigger.advance(Phase::Draining);
        assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/health/ready").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));
        trigger.advance(Phase::Stopping);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_is_ready_when_its_role_says_so() {
        let (trigger, drain) = drain::channel();
        let is_ready = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_ready);
        let server = MetricsServer::bind("127.0.0.1:0", Metrics::default(), drain).await.unwrap();
        let server = server.ready_when(Arc::new(move || {
            if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("not registered") }
        }));
        let address = server.local_addr();
        let running = tokio::spawn(server.run());
        let answer = get(address, "/health/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with(r#"{"status":"not registered"}"#), "{answer}");
        is_ready.store(true, Ordering::Relaxed);
        assert!(get(address, "/health/ready").await.starts_with("HTTP/1.1 200"));
        trigger.advance(Phase::Stopping);
        running.await.unwrap();
    }
}
