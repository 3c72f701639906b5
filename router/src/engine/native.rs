//! A native worker, and calls to it: the request's wire form, its metadata, and the typed reason when it fails.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Event;
use phalanx_proto::id::{Epoch, RequestId};
use phalanx_proto::pb;
use phalanx_proto::view::Member;
use phalanx_proto::wire::from_status;
use tokio::sync::watch;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::hearing::{Condition, Hearing, WakingClock};
use super::link;

/// A registered worker under one epoch, and the connection to it.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) epoch: Epoch,
    pub(crate) address: String,
    channel: ArcSwapOption<Channel>,
    pub(super) hearing: Hearing,
    /// What was made of it last.
    condition: watch::Sender<Condition>,
}

/// What goes beside a message: the time left, the client's request and the trace it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct CallMetadata {
    pub(crate) request_id: RequestId,
    pub(crate) timeout: Duration,
    pub(crate) traceparent: Option<AsciiMetadataValue>,
}

/// The events of one generation; dropping it cancels the work.
#[derive(Debug)]
pub(crate) struct EventSource(Streaming<pb::GenerateEvent>);

/// Starts a generation and returns with its first event.
pub(crate) async fn generate(
    worker: &Native,
    message: pb::GenerateRequest,
    metadata: CallMetadata,
) -> Result<(Event, EventSource), Fault> {
    let channel = connected(worker)?;
    let answer = link::client(channel).generate(request(message, metadata)).await;
    let mut source = EventSource(answer.map_err(|status| fault(&status))?.into_inner());
    let first = std::future::poll_fn(|cx| source.poll_event(cx)).await;
    match first {
        Some(Ok(event)) => Ok((event, source)),
        Some(Err(fault)) => Err(fault),
        None => Err(Fault::new(FaultCode::Unavailable, "answered without an event")),
    }
}

/// Turns text or messages into token ids.
pub(crate) async fn tokenize(
    worker: &Native,
    message: pb::TokenizeRequest,
    metadata: CallMetadata,
) -> Result<pb::TokenizeResponse, Fault> {
    let answer = link::client(connected(worker)?).tokenize(request(message, metadata)).await;
    answer.map(tonic::Response::into_inner).map_err(|status| fault(&status))
}

/// Turns token ids into text.
pub(crate) async fn detokenize(
    worker: &Native,
    message: pb::DetokenizeRequest,
    metadata: CallMetadata,
) -> Result<pb::DetokenizeResponse, Fault> {
    let answer = link::client(connected(worker)?).detokenize(request(message, metadata)).await;
    answer.map(tonic::Response::into_inner).map_err(|status| fault(&status))
}

fn connected(worker: &Native) -> Result<Channel, Fault> {
    worker.channel().ok_or_else(|| Fault::new(FaultCode::Unavailable, "not connected"))
}

fn request<T>(message: T, metadata: CallMetadata) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(metadata.timeout);
    if let Some(traceparent) = metadata.traceparent {
        request.metadata_mut().insert("traceparent", traceparent);
    }
    request
}

/// A status that carries no details was made by the transport: the connection broke, whatever its code says.
fn fault(status: &Status) -> Fault {
    let mut fault = from_status(status);
    let is_broken = matches!(
        status.code(),
        tonic::Code::Unknown | tonic::Code::Internal | tonic::Code::Cancelled
    );
    if is_broken && status.details().is_empty() {
        fault.code = FaultCode::Unavailable;
    }
    fault
}

// === impl Native ===

impl Native {
    /// The worker of a registration; its silence is counted by `clock`.
    pub(super) fn new(member: &Member, clock: Arc<WakingClock>) -> Self {
        Self {
            epoch: member.epoch,
            address: member.address.clone(),
            channel: ArcSwapOption::empty(),
            hearing: Hearing::new(clock),
            condition: watch::Sender::new(Condition::Well),
        }
    }

    pub(super) fn is_of(&self, member: &Member) -> bool {
        self.epoch == member.epoch && self.address == member.address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.channel.load().is_some()
    }

    /// The connection, while there is one.
    fn channel(&self) -> Option<Channel> {
        self.channel.load().as_deref().cloned()
    }

    pub(crate) fn mark_up(&self, channel: Channel) {
        self.channel.store(Some(Arc::new(channel)));
    }

    pub(crate) fn mark_down(&self) {
        self.channel.store(None);
    }

    /// Notes its condition, for a worker that has requests in hand or none; the news, if that changed. Of one that is
    /// not connected there is nothing to hear.
    pub(super) fn note(&self, is_busy: bool) -> Option<Condition> {
        let condition =
            if self.is_connected() { self.hearing.judge(is_busy) } else { Condition::Well };
        let is_news = self.condition.send_if_modified(|noted| {
            let is_news = *noted != condition;
            *noted = condition;
            is_news
        });
        is_news.then_some(condition)
    }

    /// Resolves once it is not well: what it has in hand is better off elsewhere.
    pub(crate) fn failing(&self) -> impl Future<Output = Condition> + Send + use<> {
        let mut condition = self.condition.subscribe();
        async move {
            let failing = condition.wait_for(|condition| *condition != Condition::Well).await;
            match failing.map(|condition| *condition) {
                Ok(condition) => condition,
                // It left the cluster: its connection ends by itself.
                Err(_gone) => std::future::pending().await,
            }
        }
    }
}

// === impl EventSource ===

impl EventSource {
    /// The next event; none when the worker closed the stream.
    pub(crate) fn poll_event(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Event, Fault>>> {
        use futures::Stream;
        std::pin::Pin::new(&mut self.0).poll_next(cx).map(|item| {
            item.map(|message| {
                Event::try_from(message.map_err(|status| fault(&status))?).map_err(|error| {
                    Fault::new(FaultCode::Internal, format!("sent a bad event: {error}"))
                })
            })
        })
    }
}
