//! Connections to one engine, kept for the next request when an answer is read to its end.
//!
//! A connection has no task of its own: whoever waits for its answer drives it. That saves two wake-ups a token, and
//! a request that is dropped closes its socket in the same moment, which is how engines hear of it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in progress at one engine, each of which has a connection: far more than an engine computes at once, and
/// few enough that all engines together stay within a process' descriptors.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections kept without a request: what a burst leaves behind beyond this is closed.
const IDLE_MAX: usize = 512;
/// The server that most engines are built on closes a connection that was idle for 5 s.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);
/// An engine answers a SYN within a round trip, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What one read takes at most: some hundred events, and 400 KB in all for 50 streams.
const READ_BYTES_MAX: usize = 64 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{CONNECTIONS_MAX} requests are in progress there")]
    Full,
    #[error("cannot connect: {0}")]
    Refused(#[source] std::io::Error),
    #[error("cannot connect within {} ms", CONNECT_TIMEOUT.as_millis())]
    Timeout,
    #[error("cannot speak HTTP: {0}")]
    Handshake(#[source] hyper::Error),
}

/// The connections to one engine that no request uses.
#[derive(Debug)]
pub(super) struct Pool {
    host: String,
    port: u16,
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection that serves one request at a time. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once the connection is closed.
    driver: Option<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>,
    is_reused: bool,
    _permit: OwnedSemaphorePermit,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(host: String, port: u16) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { host, port, idle: Mutex::default(), permits }
    }

    /// A connection that was kept, or a new one.
    pub(super) async fn take(&self) -> Result<Connection, ConnectError> {
        loop {
            let Some(idle) = self.idle.lock().pop() else { return self.connect().await };
            let Idle { mut connection, since } = idle;
            if since.elapsed() < IDLE_TIME_MAX && connection.is_usable() {
                connection.is_reused = true;
                return Ok(connection);
            }
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        let permit =
            Arc::clone(&self.permits).try_acquire_owned().map_err(|_| ConnectError::Full)?;
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Refused)?;
        // Requests are written at once; a socket that refuses this is about to close.
        let _ = stream.set_nodelay(true);
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(READ_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Handshake)?;
        Ok(Connection { sender, driver: Some(driver), is_reused: false, _permit: permit })
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, connection: Connection) {
        if connection.driver.is_none() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes what was idle for too long.
    pub(super) fn sweep(&self) {
        self.idle.lock().retain(|idle| idle.since.elapsed() < IDLE_TIME_MAX);
    }
}

// === impl Connection ===

impl Connection {
    /// Whether it served a request before, so that its end may have been on its way when this one was sent.
    pub(super) const fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut response = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        std::future::poll_fn(|cx| {
            drive(driver, cx);
            response.as_mut().poll(cx)
        })
        .await
    }

    /// The next piece of the answer that `body` is.
    pub(super) fn poll_piece(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Bytes>>> {
        if let Poll::Ready(piece) = poll_data(body, cx) {
            return Poll::Ready(piece);
        }
        drive(&mut self.driver, cx);
        poll_data(body, cx)
    }

    /// Whether it waits for another request.
    fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        drive(&mut self.driver, &mut cx);
        self.driver.is_some() && matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }
}

/// Lets the connection read and write. Why it closes, its request is told.
fn drive(
    driver: &mut Option<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>,
    cx: &mut Context<'_>,
) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(cx).is_ready()
    {
        *driver = None;
    }
}

/// The next data; trailers say nothing that is passed on.
fn poll_data(body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Bytes>>> {
    loop {
        match std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }
}
