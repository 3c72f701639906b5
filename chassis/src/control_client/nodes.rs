//! The nodes that a client may ask, and which of them a call goes to.
//!
//! ```text
//! call ──► the node that answered last ──► answer | a refusal that every node would give
//!                 └─ it cannot serve ──► the next one ──► ...
//! ```

use std::error::Error;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::wire::from_status;
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::patience::is_passing;

pub(super) type Stub = pb::control_client::ControlClient<Channel>;

/// A node that does not complete a connection in this time is taken for gone; within a data centre it takes
/// milliseconds.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Pings find a peer that vanished without closing its connection.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// A ping unanswered for this long ends the connection.
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Which setting a URL came from that leads to something else than a control node: such a fault names it.
pub(super) const CONTROL_PARAM: &str = "control";

/// A list of control URLs that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlUrlError {
    /// No URL at all.
    #[error("no control url is given, at least 1 is needed")]
    Empty,
    /// Not an absolute `http://` URL.
    #[error("control url {url:?} is not of the form http://HOST:PORT")]
    Malformed {
        /// As given.
        url: String,
    },
}

#[derive(Debug)]
pub(super) struct Nodes {
    /// Each with its URL.
    stubs: Vec<(String, Stub)>,
    /// The node that answered last.
    current: AtomicUsize,
}

// === impl Nodes ===

impl Nodes {
    pub(super) fn new<U>(
        urls: &[U],
        connect: impl Fn(&Endpoint) -> Channel,
    ) -> Result<Self, ControlUrlError>
    where
        U: AsRef<str>,
    {
        if urls.is_empty() {
            return Err(ControlUrlError::Empty);
        }
        let stub = |url: &U| {
            let channel = connect(&endpoint(url.as_ref())?);
            let stub = Stub::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok((url.as_ref().to_owned(), stub))
        };
        let stubs = urls.iter().map(stub).collect::<Result<_, _>>()?;
        Ok(Self { stubs, current: AtomicUsize::new(0) })
    }

    /// Makes the next call start at another node.
    pub(super) fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries each node once, for `wait_max`, beginning with the one that answered last.
    pub(super) async fn call_within<T, A, F>(
        &self,
        wait_max: Duration,
        attempt: A,
    ) -> Result<T, Fault>
    where
        A: Fn(Stub) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = Fault::new(FaultCode::Unavailable, "no control node was tried");
        for turn in 0..self.stubs.len() {
            let at = (first + turn) % self.stubs.len();
            let (url, stub) = &self.stubs[at];
            let answer = timeout(wait_max, attempt(stub.clone())).await;
            let fault = match answer {
                Ok(Ok(response)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => fault_of(url, &status),
                Err(_elapsed) => Fault::new(
                    FaultCode::DeadlineExceeded,
                    format!("{url} did not answer within {wait_max:?}"),
                ),
            };
            if !may_other_node_answer(fault.code) {
                self.current.store(at, Ordering::Relaxed);
                return Err(fault);
            }
            if turn == 0 || weight(&fault) >= weight(&last) {
                last = fault;
            }
        }
        Err(last)
    }
}

/// How much a fault tells: what a node said of its group more than that another one is gone, and that more than
/// that a URL is not of the group at all.
fn weight(fault: &Fault) -> u8 {
    match (fault.retry_after, is_passing(fault)) {
        (Some(_), _) => 2,
        (None, true) => 1,
        (None, false) => 0,
    }
}

/// What came of a call to `url`, in words for whoever gave that URL.
fn fault_of(url: &str, status: &Status) -> Fault {
    let fault = from_status(status);
    if !status.details().is_empty() {
        return fault;
    }
    // Not the node's word but the connection's, or that of something else.
    if is_foreign(status) {
        tracing::debug!(url, %status, "what answers is not a control node");
        let message = format!("{url} is not a control node");
        return Fault::new(FaultCode::Unavailable, message).with_param(CONTROL_PARAM);
    }
    if fault.code == FaultCode::Cancelled {
        // Nobody here cancels a call that it waits for: the connection went away under it.
        let message = format!("{url} closed the connection, as what is not a control node does");
        return Fault::new(FaultCode::Unavailable, message);
    }
    Fault { message: format!("{url}: {}", fault.message), ..fault }
}

/// Whether what answered does not speak as a control node does: another service, HTTP without gRPC, or not even
/// HTTP/2.
fn is_foreign(status: &Status) -> bool {
    match status.code() {
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => true,
        Code::Internal | Code::Unknown => {
            status.message().starts_with("protocol error") || breaks_http2(status)
        }
        _ => false,
    }
}

/// Whether the other side broke the rules of HTTP/2, as one does that speaks HTTP/1 only. The library tells it in
/// words alone.
fn breaks_http2(status: &Status) -> bool {
    const VIOLATIONS: [&str; 2] = ["frame with invalid size", "unspecific protocol error detected"];
    let causes = std::iter::successors(status.source(), |error| (*error).source());
    causes.map(ToString::to_string).any(|text| VIOLATIONS.iter().any(|it| text.contains(it)))
}

fn endpoint(url: &str) -> Result<Endpoint, ControlUrlError> {
    let malformed = || ControlUrlError::Malformed { url: url.to_owned() };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_invalid| malformed())?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().host().is_none() {
        return Err(malformed());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_WAIT_MAX)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WAIT_MAX)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

const fn may_other_node_answer(code: FaultCode) -> bool {
    matches!(
        code,
        FaultCode::Unavailable
            | FaultCode::DeadlineExceeded
            | FaultCode::Draining
            | FaultCode::Overloaded
            | FaultCode::Internal
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::control_client::ControlClient;

    #[tokio::test]
    async fn only_http_urls_are_taken() {
        for url in ["", "localhost:7000", "https://localhost:7000", "http://", "/path"] {
            let refusal =
                ControlClient::new(&[url]).map(|_client| ()).map_err(|error| error.to_string());
            assert_eq!(
                refusal,
                Err(format!("control url {url:?} is not of the form http://HOST:PORT"))
            );
        }
        assert!(matches!(ControlClient::new::<&str>(&[]), Err(ControlUrlError::Empty)));
        assert!(ControlClient::new(&["http://127.0.0.1:7000"]).is_ok());
    }

    #[tokio::test]
    async fn a_call_that_reaches_no_node_says_so() {
        // Nothing can listen on port 0.
        let client = ControlClient::new(&["http://127.0.0.1:0", "http://127.0.0.1:0"]).unwrap();
        let fault = client.status().await.unwrap_err();
        assert_eq!(fault.code, FaultCode::Unavailable);
        assert!(fault.message.starts_with("http://127.0.0.1:0: "), "{fault}");
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    /// A gRPC server without the service, as a worker is.
    async fn other_service() -> String {
        let (listener, url) = listen().await;
        let router = tonic::service::Routes::default();
        let server = tonic::transport::Server::builder().add_routes(router);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    /// Answers `greeting` to whatever is said.
    async fn raw(greeting: &'static [u8]) -> String {
        let (listener, url) = listen().await;
        tokio::spawn(async move {
            while let Ok((mut stream, _peer)) = listener.accept().await {
                let mut heard = [0; 1024];
                let _heard = stream.read(&mut heard).await;
                let _said = stream.write_all(greeting).await;
                // The answer is read before the connection ends.
                while stream.read(&mut heard).await.is_ok_and(|count| count > 0) {}
            }
        });
        url
    }

    #[tokio::test]
    async fn what_is_not_a_control_node_is_told_by_its_url() {
        let web = raw(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        let other = other_service().await;
        let client = ControlClient::new(&[&other]).unwrap();
        let expected = Fault::new(FaultCode::Unavailable, format!("{other} is not a control node"));
        assert_eq!(client.status().await, Err(expected.with_param(CONTROL_PARAM)));
        let fault = ControlClient::new(&[&web]).unwrap().status().await.unwrap_err();
        assert_eq!(fault.code, FaultCode::Unavailable);
        // That it broke a rule, or that it closed the connection over it: whichever is noticed first.
        let is_told =
            fault.message.starts_with(&web) && fault.message.contains("not a control node");
        assert!(is_told, "{fault}");
        // Of a node that is gone and a URL that is wrong, the one that may come back is told.
        let gone = "http://127.0.0.1:0".to_owned();
        for urls in [[gone.clone(), other_service().await], [other_service().await, gone]] {
            let fault = ControlClient::new(&urls).unwrap().status().await.unwrap_err();
            assert!(fault.message.starts_with("http://127.0.0.1:0: "), "{fault}");
        }
    }
}
