//! The client of the control plane, for workers, routers and operators: any node answers, so a call goes
//! to the node that answered last and moves on to the next one when that node cannot serve.
//!
//! Every call may be repeated: registrations are named by their instance, commands by client and
//! sequence, and the rest only reads or renews.

mod archive;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phalanx_proto::change::{Change, GroupChange, Registration, WatchEvent};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId, ViewIndex};
use phalanx_proto::view::{ClusterView, MemberState};
use phalanx_proto::wire::{WireError, from_status};
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::backoff::Backoff;

type Stub = pb::control_client::ControlClient<Channel>;

/// A node that does not complete a connection in this time is taken for gone; within a data centre it takes
/// milliseconds.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long one node may take to answer. A write waits for one durable commit, at worst behind an election.
const CALL_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long one node may take to answer a heartbeat, which writes nothing. A third of the least time to live:
/// with a node that swallows it, another one is asked before the member is taken for dead.
const HEARTBEAT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Pings find a peer that vanished without closing its connection.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// A ping unanswered for this long ends the connection.
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between the first two rounds of a call that is asked again.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(100);

/// Between later ones: what nodes without a leader ask for.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// A client of the control plane. Cheap to clone; connects when first used.
#[derive(Clone, Debug)]
pub struct ControlClient(Arc<Nodes>);

#[derive(Debug)]
struct Nodes {
    /// Each with its URL.
    stubs: Vec<(String, Stub)>,
    /// The node that answered last.
    current: AtomicUsize,
}

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

/// A registration that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Who the process is now.
    pub member_id: MemberId,
    /// Its fencing token.
    pub epoch: Epoch,
    /// How often to send heartbeats.
    pub heartbeat_every: Duration,
    /// Silence after which the member is fenced.
    pub ttl: Duration,
}

/// The view, as one node gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewReading {
    /// The view.
    pub view: ClusterView,
    /// Whose it is: the leader's, or for a stale reading the node's that was asked.
    pub node_id: NodeId,
}

/// One open watch.
#[derive(Debug)]
pub struct WatchStream(tonic::Streaming<pb::WatchEvent>);

// === impl ControlClient ===

impl ControlClient {
    /// A client of the nodes at `urls`.
    ///
    /// # Errors
    /// [`ControlUrlError`] when there is no URL, or one that is not `http://HOST:PORT`.
    pub fn new<U>(urls: &[U]) -> Result<Self, ControlUrlError>
    where
        U: AsRef<str>,
    {
        Self::with_connect(urls, Endpoint::connect_lazy)
    }

    /// As [`ControlClient::new`], over another network: `connect` makes a channel that connects when first
    /// used.
    ///
    /// # Errors
    /// As [`ControlClient::new`].
    pub fn with_connect<U>(
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
        Ok(Self(Arc::new(Nodes { stubs, current: AtomicUsize::new(0) })))
    }

    /// Registers this process. To be repeated with the same instance when the answer was lost, and with
    /// the same instance again after the member was fenced.
    ///
    /// # Errors
    /// [`FaultCode::InvalidRequest`] for a registration that no node will take; otherwise as the last
    /// node that was tried answered.
    pub async fn register(&self, registration: Registration) -> Result<Registered, Fault> {
        let request = pb::RegisterRequest::from(registration);
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.register(request).await }
            })
            .await?;
        Ok(Registered {
            member_id: MemberId(response.member_id),
            epoch: Epoch(response.epoch),
            heartbeat_every: Duration::from_millis(response.heartbeat_every_ms),
            ttl: Duration::from_millis(response.ttl_ms),
        })
    }

    /// Keeps a registration alive and learns whether the member should take work.
    ///
    /// # Errors
    /// [`FaultCode::StaleEpoch`] when the member was fenced: it must register anew. Otherwise as the last
    /// node that was tried answered.
    pub async fn heartbeat(&self, member_id: MemberId, epoch: Epoch) -> Result<MemberState, Fault> {
        let request = pb::HeartbeatRequest { member_id: member_id.0, epoch: epoch.0 };
        let beat = |mut stub: Stub| async move { stub.heartbeat(request).await };
        let response = self.call_within(HEARTBEAT_WAIT_MAX, beat).await?;
        Ok(response.state().try_into()?)
    }

    /// Applies `change` exactly once: `client` and `sequence` name it, whatever the retries. The sequence
    /// of one client only grows.
    ///
    /// # Errors
    /// [`FaultCode::StaleEpoch`] or [`FaultCode::InvalidRequest`] when the change was refused; otherwise
    /// as the last node that was tried answered.
    pub async fn submit(
        &self,
        client: &str,
        sequence: u64,
        change: Change,
    ) -> Result<ViewIndex, Fault> {
        let request =
            pb::SubmitRequest { client: client.to_owned(), sequence, command: Some(change.into()) };
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.submit(request).await }
            })
            .await?;
        Ok(ViewIndex(response.index))
    }

    /// As [`ControlClient::submit`], asked again for up to `wait_max` while that may help: across an election,
    /// a restart or a lost answer.
    ///
    /// # Errors
    /// As for [`ControlClient::submit`]. When the time is up without an answer, the change may still be
    /// applied, once: an answer may have been lost.
    pub async fn submit_within(
        &self,
        wait_max: Duration,
        client: &str,
        sequence: u64,
        change: Change,
    ) -> Result<ViewIndex, Fault> {
        let submit = || self.submit(client, sequence, change.clone());
        persist(wait_max, submit, is_passing).await
    }

    /// The view with every write in it that was answered before; waits out an election for up to `wait_max`.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn read_view(&self, wait_max: Duration) -> Result<ViewReading, Fault> {
        let read = || self.read_view_once(false);
        // A node that said when to come back exists; one that is gone is told at once.
        persist(wait_max, read, |fault| is_passing(fault) && fault.retry_after.is_some()).await
    }

    /// The view as the first node that answers has it, which may lag behind. Needs no leader.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn read_view_stale(&self) -> Result<ViewReading, Fault> {
        self.read_view_once(true).await
    }

    async fn read_view_once(&self, stale: bool) -> Result<ViewReading, Fault> {
        let request = pb::ReadViewRequest { stale };
        let response = self.call(|mut stub| async move { stub.read_view(request).await }).await?;
        let view = response.view.ok_or(WireError { field: "view" })?;
        Ok(ViewReading { view: view.try_into()?, node_id: NodeId(response.node_id) })
    }

    /// Changes the control group, and says which node it was about: for an added one, its id. To repeat a
    /// change is harmless.
    ///
    /// # Errors
    /// [`FaultCode::InvalidRequest`] when the change was refused; otherwise as the last node that was tried
    /// answered.
    pub async fn change_group(&self, change: GroupChange) -> Result<NodeId, Fault> {
        let request = pb::ChangeGroupRequest::from(change);
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.change_group(request).await }
            })
            .await?;
        Ok(NodeId(response.node_id))
    }

    /// What one node knows of the Raft group.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn status(&self) -> Result<pb::StatusResponse, Fault> {
        self.call(|mut stub| async move { stub.status(pb::StatusRequest {}).await }).await
    }

    /// Follows the view from what the caller already has; both 0 for nothing.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn watch(&self, lineage: Lineage, after: ViewIndex) -> Result<WatchStream, Fault> {
        let request = pb::WatchRequest { lineage: lineage.0, after_index: after.0 };
        let stream = self.call(|mut stub| async move { stub.watch(request).await }).await?;
        Ok(WatchStream(stream))
    }

    /// Makes the next call start at another node: for a caller that saw this one lag.
    pub fn rotate(&self) {
        self.0.current.fetch_add(1, Ordering::Relaxed);
    }

    async fn call<T, A, F>(&self, attempt: A) -> Result<T, Fault>
    where
        A: Fn(Stub) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(CALL_WAIT_MAX, attempt).await
    }

    /// Tries each node once, for `wait_max`, beginning with the one that answered last.
    async fn call_within<T, A, F>(&self, wait_max: Duration, attempt: A) -> Result<T, Fault>
    where
        A: Fn(Stub) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let nodes = &self.0;
        let first = nodes.current.load(Ordering::Relaxed);
        let mut last = Fault::new(FaultCode::Unavailable, "no control node was tried");
        for turn in 0..nodes.stubs.len() {
            let at = (first + turn) % nodes.stubs.len();
            let (url, stub) = &nodes.stubs[at];
            let answer = timeout(wait_max, attempt(stub.clone())).await;
            let fault = match answer {
                Ok(Ok(response)) => {
                    nodes.current.store(at, Ordering::Relaxed);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) if status.details().is_empty() => {
                    // Not the node's word but the connection's.
                    let fault = from_status(&status);
                    Fault { message: format!("{url}: {}", fault.message), ..fault }
                }
                Ok(Err(status)) => from_status(&status),
                Err(_elapsed) => Fault::new(
                    FaultCode::DeadlineExceeded,
                    format!("{url} did not answer within {wait_max:?}"),
                ),
            };
            if !may_other_node_answer(fault.code) {
                nodes.current.store(at, Ordering::Relaxed);
                return Err(fault);
            }
            // What a node said of its group tells more than that another one is gone.
            if last.retry_after.is_none() || fault.retry_after.is_some() {
                last = fault;
            }
        }
        Err(last)
    }
}

// === impl WatchStream ===

impl WatchStream {
    /// The next event; `None` when the node ended the watch.
    ///
    /// # Errors
    /// [`FaultCode::Unavailable`] when the connection broke, or as the node said.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, Fault> {
        let event = self.0.message().await.map_err(|status| from_status(&status))?;
        event
            .map(|event| WatchEvent::try_from(event).map_err(|error: WireError| error.into()))
            .transpose()
    }
}

/// Asks until the answer is good or final, or the time is up.
async fn persist<T, F>(
    wait_max: Duration,
    attempt: impl Fn() -> F,
    is_worth_asking_again: impl Fn(&Fault) -> bool,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let deadline = Instant::now() + wait_max;
    let mut backoff = Backoff::new(ASK_AGAIN_FIRST, ASK_AGAIN_MAX, std::process::id().into());
    loop {
        let mut fault = match timeout_at(deadline, attempt()).await {
            Ok(Err(fault)) if is_worth_asking_again(&fault) => fault,
            Ok(answer) => return answer,
            Err(_elapsed) => Fault::new(FaultCode::DeadlineExceeded, "the answer did not come"),
        };
        let again_at = Instant::now() + backoff.delay();
        if again_at >= deadline {
            fault.message = format!("{} (asked for {wait_max:?})", fault.message);
            return Err(fault);
        }
        sleep_until(again_at).await;
    }
}

/// Whether the same call may succeed later; a refusal of the state machine never does.
fn is_passing(fault: &Fault) -> bool {
    match fault.code {
        FaultCode::Unavailable | FaultCode::DeadlineExceeded | FaultCode::Draining => true,
        FaultCode::Overloaded => fault.retry_after.is_some(),
        _ => false,
    }
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
    use super::*;

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

    /// Asks nodes that answer in turn as scripted, and then always as at last.
    async fn persist_over(answers: &[Result<u64, FaultCode>]) -> (Result<u64, String>, usize) {
        let asked = AtomicUsize::new(0);
        let attempt = || {
            let turn = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
            std::future::ready(answers[turn].map_err(|code| Fault::new(code, code.as_str())))
        };
        let answer = persist(Duration::from_secs(1), attempt, is_passing).await;
        (answer.map_err(|fault| fault.message), asked.into_inner())
    }

    #[tokio::test]
    async fn a_call_is_asked_again_for_as_long_as_that_may_help() {
        let (gone, lost) = (Err(FaultCode::Unavailable), Err(FaultCode::DeadlineExceeded));
        assert_eq!(persist_over(&[gone, lost, Ok(7)]).await, (Ok(7), 3));
        for code in [FaultCode::InvalidRequest, FaultCode::StaleEpoch, FaultCode::Overloaded] {
            let (answer, asked) = persist_over(&[gone, Err(code), Ok(7)]).await;
            assert_eq!((answer, asked), (Err(code.as_str().to_owned()), 2));
        }

        let (answer, asked) = persist_over(&[gone]).await;
        assert_eq!(answer, Err("unavailable (asked for 1s)".to_owned()));
        // Pauses of 50 to 100 ms, 100 to 200, 200 to 400, 400 to 800.
        assert!((3..=6).contains(&asked), "asked {asked} times");
    }

    #[tokio::test]
    async fn a_call_that_reaches_no_node_says_so() {
        // Nothing can listen on port 0.
        let client = ControlClient::new(&["http://127.0.0.1:0", "http://127.0.0.1:0"]).unwrap();
        let fault = client.status().await.unwrap_err();
        assert_eq!(fault.code, FaultCode::Unavailable);
        assert!(fault.message.starts_with("http://127.0.0.1:0: "), "{fault}");
    }
}
