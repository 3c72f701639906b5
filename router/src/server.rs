//! Listens, serves connections, and leaves in good order.
//!
//! ```text
//! Serving ── drain ──► no new connections, new requests 503 ── streams done or timeout ──► Stopping
//! Stopping: live streams end with an error; connections are closed.
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use phalanx_chassis::drain::{self, Drain, DrainTrigger, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::view::ClusterView;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::api::Gateway;
use crate::config::RouterConfig;
use crate::dispatch::fleet::Fleet;
use crate::dispatch::{Dispatch, follow, listen};
use crate::engine::foreign::Foreign;
use crate::metrics::{RouterMetrics, register_staleness};
use crate::queue::{self, Queue};
use crate::stack::{Admission, generate_stack, http_stack};

/// A client sends its headers at once; one that does not holds a connection for nothing.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What ended streams and closed connections may take to reach their clients.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a process that is to stop at once: enough for a last event to leave the socket.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait when the system has no descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client that takes no byte of its answer for this long is given up, and with it the work done for it:
/// a body that nobody reads is not polled, so its own deadline could not end it.
#[cfg(target_os = "linux")]
const CLIENT_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent HTTP/2 client is gone after this and [`H2_KEEP_ALIVE_TIMEOUT`].
const H2_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const H2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a router cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, not ours, or not an address.
    #[error("cannot listen on {listen}")]
    Listen {
        /// As configured.
        listen: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A router that listens and is ready to run.
#[derive(Debug)]
pub struct Router {
    config: Arc<RouterConfig>,
    listener: TcpListener,
    local_addr: SocketAddr,
    app: axum::Router,
    view: watch::Receiver<Arc<ClusterView>>,
    foreign: Vec<Arc<Foreign>>,
    fleet: Arc<ArcSwap<Fleet>>,
    dispatch: Dispatch,
    metrics: Metrics,
    permits: Arc<Semaphore>,
    drain: Drain,
    /// Ends this router's own streams, at the latest when the drain's time is up.
    stop: DrainTrigger,
}

// === impl Router ===

impl Router {
    /// Listens for clients; `view` says which workers there are beside the foreign engines, `drain` when to leave.
    ///
    /// # Errors
    /// [`StartError`] when the address cannot be listened on.
    pub async fn bind(
        config: RouterConfig,
        view: watch::Receiver<Arc<ClusterView>>,
        metrics: &Metrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { listen: config.listen().to_owned(), source };
        let listener = TcpListener::bind(config.listen()).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let config = Arc::new(config);
        let around = config.surroundings();
        let foreign = (0..)
            .zip(config.engines())
            .map(|(index, engine)| Arc::new(Foreign::new(index, engine.clone(), &around)));
        let foreign: Vec<_> = foreign.collect();
        let room = Arc::clone(&around.room);
        let fleet = Arc::new(ArcSwap::from_pointee(Fleet::new(around)));
        let router_metrics = RouterMetrics::new(metrics, Arc::clone(&fleet));
        let queue = Queue::new(room, config.queue_max(), router_metrics.clone());
        let dispatch = Dispatch::new(Arc::clone(&fleet), queue, router_metrics.clone())
            .with_ttft_target(config.ttft_target());
        let (stop, own_drain) = drain::channel();
        let permits = Arc::new(Semaphore::new(config.concurrency_max()));
        let gateway = Gateway {
            config: Arc::clone(&config),
            generate: generate_stack(
                dispatch.clone(),
                config.retry(),
                router_metrics.clone(),
                own_drain,
            ),
            dispatch: dispatch.clone(),
            drain: drain.clone(),
            metrics: metrics.clone(),
            // A clock before 1970 is broken; 0 says so.
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        };
        let admission = Admission {
            metrics: router_metrics,
            drain: drain.clone(),
            permits: Arc::clone(&permits),
            concurrency_max: config.concurrency_max(),
        };
        let app = http_stack(gateway, admission);
        let metrics = metrics.clone();
        Ok(Self {
            config,
            listener,
            local_addr,
            app,
            view,
            foreign,
            fleet,
            dispatch,
            metrics,
            permits,
            drain,
            stop,
        })
    }

    /// Reports the age of the cluster view, read from `staleness`, among the metrics.
    #[must_use]
    pub fn with_staleness<F>(self, staleness: F) -> Self
    where
        F: Fn() -> Duration + Send + Sync + 'static,
    {
        register_staleness(&self.metrics, staleness);
        self
    }

    /// Where clients connect.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until drained.
    pub async fn run(self) {
        let Self { config, listener, app, view, foreign, fleet, dispatch, .. } = self;
        let (permits, drain, stop) = (self.permits, self.drain, self.stop);
        let graceful = GracefulShutdown::new();
        let closed = CancellationToken::new();
        let _closed = closed.clone().drop_guard();
        let listener_of_workers = tokio::spawn(listen::listen(Arc::clone(&fleet)));
        let _listener_of_workers = AbortOnDrop(listener_of_workers.abort_handle());
        let queue = tokio::spawn(queue::serve(dispatch));
        let _queue = AbortOnDrop(queue.abort_handle());
        let follower = tokio::spawn(follow::follow(view, foreign, fleet));
        let _follower = AbortOnDrop(follower.abort_handle());
        let acceptor = Acceptor {
            builder: connection_builder(),
            app,
            graceful,
            closed,
            connections: Arc::new(Semaphore::new(config.connections_max())),
        };
        tokio::select! {
            () = accept(&listener, &acceptor) => {}
            () = drain.reached(Phase::Draining) => {}
        }
        drop(listener);
        tracing::info!(timeout = ?config.drain_timeout(), "draining: finishing live requests");
        let all = u32::try_from(config.concurrency_max()).unwrap_or(u32::MAX);
        tokio::select! {
            _ = permits.acquire_many(all) => {}
            () = drain.reached(Phase::Stopping) => {}
            () = tokio::time::sleep(config.drain_timeout()) => {}
        }
        stop.advance(Phase::Stopping);
        tokio::select! {
            () = acceptor.graceful.shutdown() => {}
            timeout = goodbye_over(&drain) => {
                tracing::warn!(?timeout, "connections did not close in time and are dropped");
            }
        }
    }
}

/// Resolves when connections have had the time to close that this phase leaves them.
async fn goodbye_over(drain: &Drain) -> Duration {
    let stopped = async {
        drain.reached(Phase::Stopping).await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        () = stopped => STOP_TIMEOUT,
        () = tokio::time::sleep(GOODBYE_TIMEOUT) => GOODBYE_TIMEOUT,
    }
}

/// Stops a task when its owner ends, however it ends.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Turns sockets into served connections.
struct Acceptor {
    builder: auto::Builder<TokioExecutor>,
    app: axum::Router,
    graceful: GracefulShutdown,
    /// Drops what is still open when the router has run its course.
    closed: CancellationToken,
    connections: Arc<Semaphore>,
}

async fn accept(listener: &TcpListener, acceptor: &Acceptor) {
    loop {
        // The semaphore is never closed; were it, nothing more could be served.
        let connections = Arc::clone(&acceptor.connections);
        let Ok(permit) = connections.acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => acceptor.serve(stream, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Acceptor {
    fn serve(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // Tokens are small writes that must leave at once; a socket that refuses this is about to close.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(CLIENT_STALL_TIMEOUT));
        let app = self.app.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let mut app = app.clone();
            let request: Request = request.map(axum::body::Body::new);
            // An axum router is always ready.
            async move { app.call(request).await }
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = self.graceful.watch(connection);
        let closed = self.closed.clone();
        tokio::spawn(async move {
            if let Some(Err(error)) = closed.run_until_cancelled(connection).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(H2_KEEP_ALIVE_TIMEOUT);
    builder
}
