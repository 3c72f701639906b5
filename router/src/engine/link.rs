//! The standing connection to one engine: while its event stream is open the engine is up.
//!
//! ```text
//! down ── connect, subscribe ──► up (events update the load) ── stream ends, keep-alive fails ──► down
//! ```

use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::backoff::Backoff;
use phalanx_proto::pb::worker_client::WorkerClient;
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::Engine;
use super::native::Native;

/// A peer in the same cluster answers a SYN in milliseconds, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Answering a subscription needs no compute, only a process that is alive.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(3);
/// With the timeout: a silent peer (stopped, cut off) is found within 8 s, whatever TCP believes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A restarted worker is found again within this time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Events of all streams share the connection: one slow reader must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Why a link went down.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("address {address} is not a URL")]
    Address { address: String, source: tonic::transport::Error },
    #[error("cannot connect to {address}")]
    Connect { address: String, source: tonic::transport::Error },
    #[error("no answer to the subscription within {SUBSCRIBE_TIMEOUT:?}")]
    SubscribeTimeout,
    #[error("event stream failed")]
    Events(#[from] Status),
    #[error("event stream ended")]
    Ended,
    #[error("changes {known} to {since} of the prefix cache were lost")]
    PrefixGap { known: u64, since: u64 },
    #[error("worker is at epoch {got}, registered at {expected}")]
    Epoch { expected: u64, got: u64 },
}

/// Marks the worker down however its link ends, an abort included.
struct Up<'a>(&'a Native);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.mark_down();
    }
}

/// Keeps `engine`, which is at `worker`, connected until aborted.
pub(crate) async fn keep(engine: Arc<Engine>, worker: Arc<Native>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX, worker.epoch.0);
    loop {
        let mut was_up = false;
        let error = match open(&engine, &worker).await {
            Ok((channel, events)) => {
                backoff.reset();
                was_up = true;
                tracing::info!(worker = %engine.identity, epoch = %worker.epoch, "worker is up");
                worker.mark_up(channel);
                let _up = Up(&worker);
                follow(&engine, &worker, events).await
            }
            Err(error) => error,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        if was_up {
            tracing::warn!(worker = %engine.identity, %error, cause, "worker is down");
        } else {
            tracing::debug!(worker = %engine.identity, %error, cause, "worker is not reachable yet");
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

async fn open(
    engine: &Engine,
    worker: &Native,
) -> Result<(Channel, Streaming<pb::WorkerEvent>), LinkError> {
    let address = || worker.address.clone();
    let channel = Endpoint::from_shared(worker.address.clone())
        .map_err(|source| LinkError::Address { address: address(), source })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .connect()
        .await
        .map_err(|source| LinkError::Connect { address: address(), source })?;
    let mut client = client(channel.clone());
    let subscribe = client.events(pb::EventsRequest {});
    let mut events = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribe)
        .await
        .map_err(|_| LinkError::SubscribeTimeout)??
        .into_inner();
    // The first report says whether it is the worker that the view means, and whether it takes work.
    let first = tokio::time::timeout(SUBSCRIBE_TIMEOUT, events.message())
        .await
        .map_err(|_| LinkError::SubscribeTimeout)??
        .ok_or(LinkError::Ended)?;
    apply(engine, worker, &first)?;
    Ok((channel, events))
}

async fn follow(
    engine: &Engine,
    worker: &Native,
    mut events: Streaming<pb::WorkerEvent>,
) -> LinkError {
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                if let Err(error) = apply(engine, worker, &event) {
                    return error;
                }
            }
            Ok(None) => return LinkError::Ended,
            Err(status) => return LinkError::Events(status),
        }
    }
}

fn apply(engine: &Engine, worker: &Native, event: &pb::WorkerEvent) -> Result<(), LinkError> {
    let (expected, got) = (worker.epoch.0, event.worker_epoch);
    if expected != got {
        return Err(LinkError::Epoch { expected, got });
    }
    match &event.event {
        Some(pb::worker_event::Event::Load(load)) => engine.report(load),
        Some(pb::worker_event::Event::Prefix(changes)) => {
            // The stream begins anew, with a snapshot.
            let lost = |(known, since)| LinkError::PrefixGap { known, since };
            engine.holding().follow(changes).map_err(lost)?;
        }
        // A kind of event that a newer worker sends.
        None => {}
    }
    Ok(())
}

pub(super) fn client(channel: Channel) -> WorkerClient<Channel> {
    WorkerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
