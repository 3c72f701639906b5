//! Simulated inference engines: what a router sees of an engine, without a model. They batch continuously, have a
//! prefix cache, take the time that a real engine would, fail when told to, and say what can be checked.
//!
//! ```text
//! OpenAI over HTTP ─► http ───┐                                        ┌─ cache (chunks, LRU)
//!                             ├─► engine (a clock, streams) ─► core ───┤
//! Worker over gRPC ─► native ─┘   aborts when a stream is dropped      └─ steps: decodes + prefill chunks
//! ```
//!
//! Reading order: [`answer`] (what is said), [`prompt`], [`cache`], [`core`] (who runs in the next step, and how long
//! that takes; pure), [`faults`], [`engine`], [`config`], then `http` and `native`. Deliberately absent: a tokenizer,
//! and anything that computes.
#![forbid(unsafe_code)]

pub mod answer;
pub mod cache;
pub mod config;
pub mod core;
pub mod engine;
pub mod faults;
mod http;
mod native;
pub mod prompt;
mod served;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use phalanx_chassis::announce::Announcer;
use phalanx_chassis::control_client::{ControlClient, ControlUrlError};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::change::Registration;
use phalanx_proto::id::Revision;
use phalanx_proto::view::{Capacity, MemberRole, ServedModel};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

pub use self::config::{ConfigError, RawSim, SimConfig};

use self::engine::SimEngine;
use self::http::HttpServer;
use self::native::NativeService;
use self::served::Served;

/// How long streams may take to end once the process was told to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(1);

/// One engine, its addresses bound.
#[derive(Debug)]
pub struct Simulated {
    config: SimConfig,
    engine: SimEngine,
    served: Served,
    http: Bound,
    native: Option<(Bound, Announcer)>,
    drain: Drain,
}

/// Where an engine is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where routers send requests: over HTTP, or over gRPC to a native engine.
    pub serving: SocketAddr,
    /// Where stats, metrics and switches are, over HTTP.
    pub admin: SocketAddr,
}

/// A listener and its address.
#[derive(Debug)]
struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or is not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The control URLs cannot be used.
    #[error("cannot follow the control plane")]
    Control(#[source] ControlUrlError),
}

// === impl Bound ===

impl Bound {
    async fn to(address: &str) -> Result<Self, StartError> {
        let refused = |source| StartError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address })
    }
}

// === impl Simulated ===

impl Simulated {
    /// Binds the addresses of engine `index`.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub async fn bind(config: &SimConfig, index: u32, drain: Drain) -> Result<Self, StartError> {
        let pace = config.pace(index);
        let served = Served {
            model: config.model.clone(),
            context_tokens: config.context_tokens,
            kv_tokens: pace.cache_tokens,
        };
        let engine = SimEngine::new(pace, &served.model);
        // Checked with the configuration.
        let _ = engine.set_faults(config.faults);
        let serving = Bound::to(&config.address(index)).await?;
        let (http, native) = match &config.control {
            None => (serving, None),
            Some(control) => {
                let control = ControlClient::new(control).map_err(StartError::Control)?;
                let registration = registration(&served, serving.address);
                let announcer = Announcer::new(control, registration, drain.clone());
                (Bound::to(&config.any_port()).await?, Some((serving, announcer)))
            }
        };
        Ok(Self { config: config.clone(), engine, served, http, native, drain })
    }

    /// Where it is reached.
    pub fn addresses(&self) -> Addresses {
        let serving = self.native.as_ref().map_or(self.http.address, |(bound, _)| bound.address);
        Addresses { serving, admin: self.http.address }
    }

    /// Serves until the process drains and the last request is over, or the process stops.
    ///
    /// # Errors
    /// When the gRPC server fails.
    pub async fn run(self) -> Result<(), tonic::transport::Error> {
        let Self { config, engine, served, http, native, drain } = self;
        let server = HttpServer::new(engine.clone(), served.clone(), config.instant, drain.clone());
        let (gone, gone_seen) = watch::channel(false);
        let serving = async {
            let outcome = match native {
                None => {
                    drain.reached(Phase::Draining).await;
                    Ok(())
                }
                Some((bound, announcer)) => {
                    let service = NativeService {
                        engine: engine.clone(),
                        served,
                        standing: announcer.standing(),
                        drain: drain.clone(),
                        closed: watch::Sender::new(false),
                    };
                    announcer.during(service.run(bound.listener)).await
                }
            };
            gone.send_replace(true);
            outcome
        };
        let mut ended = gone_seen;
        let ended = async move {
            // An error means that nobody serves any more.
            let _ = ended.wait_for(|gone| *gone).await;
        };
        let both = async {
            let (outcome, ()) = tokio::join!(serving, server.run(http.listener, ended));
            outcome
        };
        tokio::select! {
            outcome = both => outcome,
            () = engine.run() => Ok(()),
            () = stopped(&drain) => Ok(()),
        }
    }
}

async fn stopped(drain: &Drain) {
    drain.reached(Phase::Stopping).await;
    sleep(STOP_WAIT_MAX).await;
}

fn registration(served: &Served, address: SocketAddr) -> Registration {
    Registration {
        instance: uuid::Uuid::new_v4().to_string(),
        role: MemberRole::Worker,
        address: format!("http://{address}"),
        zone: String::new(),
        models: vec![ServedModel {
            name: served.model.clone(),
            revision: Revision::from("simulated"),
            context_tokens_max: served.context_tokens,
            kv_tokens_max: served.kv_tokens,
        }],
        capacity: Capacity::default(),
    }
}
