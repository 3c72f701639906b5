//! The engine: turns prompts into tokens, many at once, on one rank group.
//!
//! ```text
//! gRPC ─ server ─ text (template, tokens) ─► engine loop: scheduler.step() ─► executor.run(plan) ─► commit
//!           ▲                                                                                        │
//!           └──────────── text (detokenise, stop strings) ◄── one event stream per choice ◄──────────┘
//! ```
//!
//! Reading order: this file ([`Worker`] composes all), [`config`], [`server`] (gRPC to sequences), [`text`]
//! (tokens), [`engine`] (who runs in the next step), [`executor`] and [`model`] (how), [`weights`], [`load`] and
//! `host` (from where), `pool` (which model, when control chooses), [`metrics`].
//!
//! Deliberately absent: openraft, HTTP, any knowledge of other workers.
#![forbid(unsafe_code)]

pub mod config;
pub mod engine;
pub mod executor;
mod host;
pub mod load;
pub mod metrics;
pub mod model;
mod pool;
mod readiness;
pub mod server;
pub mod text;
pub mod weights;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::announce::Announcer;
use phalanx_chassis::control_client::{ControlClient, ControlUrlError};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::change::Registration;
use phalanx_proto::view::{Capacity, MemberRole, ServedModel};
use tokio::net::TcpListener;
use tokio::time::sleep;

pub use self::config::{ConfigError, ModelSource, RawWorker, WorkerConfig};
pub use self::metrics::WorkerMetrics;
pub use self::readiness::WorkerReadiness;

use self::host::{Host, Hosted};
use self::metrics::WorkerMeter;
use self::pool::Pool;
use self::server::{Seat, ServiceParts};
use self::text::TextError;
use self::weights::LoadError;

/// How long requests may take to end once they were told to stop: their streams only carry a last word.
const STOP_WAIT_MAX: Duration = Duration::from_secs(1);

/// A worker that is ready to serve: the address is bound, and the model loaded and its engine running, or the
/// pool waiting for one.
#[derive(Debug)]
pub struct Worker {
    listener: TcpListener,
    address: SocketAddr,
    parts: ServiceParts,
    announcer: Announcer,
    models: Models,
    engine: EngineGuard,
    drain_timeout: Duration,
}

/// Where the models come from that it serves.
#[derive(Debug)]
enum Models {
    /// The one it was started with; its load is shown for as long as its engine runs.
    One(WorkerMeter),
    /// Whatever control assigns.
    Pool(Box<Pool>),
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or is not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The control URLs cannot be used.
    #[error("cannot follow the control plane")]
    Control(#[source] ControlUrlError),
    /// The tokenizer or the chat template cannot be loaded.
    #[error("cannot load the model's text side")]
    Text(#[source] TextError),
    /// The model cannot be loaded.
    #[error("cannot load the model")]
    Load(#[source] LoadError),
    /// The tokenizer's end token is none of the model's.
    #[error("end token {id} is outside the model's vocabulary of {vocabulary} tokens")]
    EndToken {
        /// The tokenizer's end token.
        id: u32,
        /// Token ids the model has logits for.
        vocabulary: u32,
    },
    /// The loading thread died.
    #[error("loading the model was interrupted")]
    Interrupted,
}

/// Why a worker stopped serving on its own.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The gRPC server failed.
    #[error("the worker's server failed")]
    Server(#[source] tonic::transport::Error),
    /// The engine thread ended: nothing can be served any more.
    #[error("the worker's engine has stopped")]
    Engine,
}

/// Ends the engine thread when the worker goes, however it goes.
#[derive(Debug)]
struct EngineGuard(Seat);

// === impl Worker ===

impl Worker {
    /// Binds the address, loads the model (with a progress bar on a terminal), and starts the engine; a pool
    /// loads nothing yet.
    ///
    /// # Errors
    /// [`StartError`], naming what is wrong with the address or the model folder.
    pub async fn bind(
        config: WorkerConfig,
        metrics: &WorkerMetrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen { address: config.listen().to_owned(), source };
        let listener = TcpListener::bind(config.listen()).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let control = ControlClient::new(config.control()).map_err(StartError::Control)?;
        let meter = metrics.meter(address.to_string());
        let seat = Seat::default();
        let host = Host::new(&config);
        let announced = registration(&config, address);
        let announcer = Announcer::new(control.clone(), announced, drain.clone());
        let registration = announcer.registration();
        let models = match config.source() {
            ModelSource::Folder { path, name } => {
                let loading = host.load(path.clone(), (name.clone(), None), meter.step_observer());
                let Hosted { seated, model } = loading.await?;
                seat.take(seated);
                registration.send_modify(|registration| registration.models = vec![model]);
                Models::One(meter)
            }
            ModelSource::Pool { folder } => {
                registration.send_modify(|registration| registration.capacity = pool::capacity());
                Models::Pool(Box::new(Pool::new(pool::Parts {
                    folder: folder.clone(),
                    host,
                    seat: seat.clone(),
                    meter: Arc::new(meter),
                    registration,
                    standing: announcer.standing(),
                    control,
                })))
            }
        };
        let parts = ServiceParts { seat, standing: announcer.standing(), drain };
        let engine = EngineGuard(parts.seat.clone());
        let drain_timeout = config.drain_timeout();
        Ok(Self { listener, address, parts, announcer, models, engine, drain_timeout })
    }

    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether it can be of use, for probes to ask from now on.
    pub fn readiness(&self) -> WorkerReadiness {
        WorkerReadiness { standing: self.parts.standing.clone(), seat: self.parts.seat.clone() }
    }

    /// What it announces: the model, as routers will know it; a pool has none yet.
    pub fn models(&self) -> Vec<ServedModel> {
        self.announcer.registration().borrow().models.clone()
    }

    /// Registers and serves until the process drains and the last request is over, or the process stops.
    ///
    /// # Errors
    /// [`ServeError`] when the server fails.
    pub async fn run(self) -> Result<(), ServeError> {
        let Self { listener, parts, announcer, models, engine, drain_timeout, .. } = self;
        let (drain, seat) = (parts.drain.clone(), parts.seat.clone());
        let serving = async {
            tokio::select! {
                served = server::serve(listener, parts) => served.map_err(ServeError::Server),
                () = stopped(&drain, &engine.0, drain_timeout) => Ok(()),
            }
        };
        let gone = async {
            match models {
                Models::One(meter) => meter.follow(seat.load()).await,
                Models::Pool(pool) => pool.run(&drain).await,
            }
            if drain.phase() > Phase::Serving {
                // It was told to, or drained for too long.
                pending::<()>().await;
            }
            sleep(STOP_WAIT_MAX).await;
        };
        tokio::select! {
            // The goodbye to control has a bound of its own.
            served = announcer.during(serving) => served,
            () = gone => Err(ServeError::Engine),
        }
    }
}

/// Resolves a while after the process was told to stop, or has drained for as long as it may: the engine fails what
/// is left, and its streams have that long to say so. Routers have them go on elsewhere.
async fn stopped(drain: &Drain, seat: &Seat, drain_timeout: Duration) {
    drain.reached(Phase::Draining).await;
    tokio::select! {
        () = drain.reached(Phase::Stopping) => {}
        () = sleep(drain_timeout) => tracing::info!("drained for {drain_timeout:?}, stopping"),
    }
    seat.stop();
    sleep(STOP_WAIT_MAX).await;
}

/// What control is told at first: where the worker is, and nothing served or offered yet.
fn registration(config: &WorkerConfig, address: SocketAddr) -> Registration {
    Registration {
        instance: uuid::Uuid::new_v4().to_string(),
        role: MemberRole::Worker,
        address: config.advertise().map_or_else(|| format!("http://{address}"), str::to_owned),
        zone: config.zone().to_owned(),
        models: Vec::new(),
        capacity: Capacity::default(),
    }
}

// === impl EngineGuard ===

impl Drop for EngineGuard {
    fn drop(&mut self) {
        self.0.stop();
    }
}
