//! The engine: turns prompts into tokens, many at once, on one rank group.
//!
//! ```text
//! gRPC ─ server ─ text (template, tokens) ─► engine loop: scheduler.step() ─► executor.run(plan) ─► commit
//!           ▲                                                                                        │
//!           └──────────── text (detokenise, stop strings) ◄── one event stream per choice ◄──────────┘
//! ```
//!
//! Reading order: this file ([`Worker`] composes all), [`config`], [`server`] (gRPC to sequences), [`text`]
//! (tokens), [`engine`] (who runs in the next step), [`executor`] and [`model`] (how), [`weights`] and [`load`]
//! (from where), [`metrics`].
//!
//! Deliberately absent: openraft, HTTP, any knowledge of other workers.
#![forbid(unsafe_code)]

pub mod config;
pub mod engine;
pub mod executor;
pub mod load;
pub mod metrics;
pub mod model;
mod readiness;
pub mod server;
pub mod text;
pub mod weights;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use phalanx_chassis::announce::Announcer;
use phalanx_chassis::control_client::{ControlClient, ControlUrlError};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::change::Registration;
use phalanx_proto::view::{Capacity, MemberRole, ServedModel};
use tokio::net::TcpListener;
use tokio::time::sleep;

pub use self::config::{ConfigError, RawWorker, WorkerConfig};
pub use self::metrics::WorkerMetrics;
pub use self::readiness::WorkerReadiness;

use self::engine::{EngineHandle, StepObserver};
use self::load::{LoadOptions, ModelInfo};
use self::metrics::WorkerMeter;
use self::server::{Served, ServiceParts};
use self::text::{Text, TextError};
use self::weights::LoadError;

/// How long requests may take to end once they were told to stop: their streams only carry a last word.
const STOP_WAIT_MAX: Duration = Duration::from_secs(1);

/// A worker that is ready to serve: the address is bound, the model loaded, the engine running.
#[derive(Debug)]
pub struct Worker {
    listener: TcpListener,
    address: SocketAddr,
    parts: ServiceParts,
    announcer: Announcer,
    meter: WorkerMeter,
    engine: RunningEngine,
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
struct RunningEngine(EngineHandle);

/// A loaded model.
struct Loaded {
    text: Text,
    engine: RunningEngine,
    info: ModelInfo,
}

// === impl Worker ===

impl Worker {
    /// Binds the address, loads the model (with a progress bar on a terminal), and starts the engine.
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
        let observer = meter.step_observer();
        let options = config.clone();
        let loading = tokio::task::spawn_blocking(move || Loaded::from_folder(&options, observer));
        let Loaded { text, engine, info } =
            loading.await.map_err(|_panicked| StartError::Interrupted)??;
        let registration = registration(&config, address, &info);
        let announcer = Announcer::new(control, registration, drain.clone());
        let parts = ServiceParts {
            text: Arc::new(text),
            engine: engine.0.clone(),
            served: Served {
                name: config.model_name().clone(),
                context_tokens_max: info.context_tokens_max,
                vocabulary: info.vocab,
            },
            standing: announcer.standing(),
            drain,
        };
        Ok(Self { listener, address, parts, announcer, meter, engine })
    }

    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether it can be of use, for probes to ask from now on.
    pub fn readiness(&self) -> WorkerReadiness {
        WorkerReadiness { standing: self.parts.standing.clone(), load: self.engine.0.load() }
    }

    /// What it announces: the model, as routers will know it.
    pub fn models(&self) -> &[ServedModel] {
        &self.announcer.registration().models
    }

    /// Registers and serves until the process drains and the last request is over, or the process stops.
    ///
    /// # Errors
    /// [`ServeError`] when the server fails.
    pub async fn run(self) -> Result<(), ServeError> {
        let Self { listener, parts, announcer, meter, engine, .. } = self;
        let drain = parts.drain.clone();
        let serving = async {
            tokio::select! {
                served = server::serve(listener, parts) => served.map_err(ServeError::Server),
                () = stopped(&drain, &engine) => Ok(()),
            }
        };
        let gone = async {
            meter.follow(engine.0.load()).await;
            if drain.phase() == Phase::Stopping {
                // It was told to.
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

/// Resolves a while after the process was told to stop: the engine fails what is left, and its streams have
/// that long to say so.
async fn stopped(drain: &Drain, engine: &RunningEngine) {
    drain.reached(Phase::Stopping).await;
    engine.0.stop();
    sleep(STOP_WAIT_MAX).await;
}

fn registration(config: &WorkerConfig, address: SocketAddr, info: &ModelInfo) -> Registration {
    Registration {
        instance: uuid::Uuid::new_v4().to_string(),
        role: MemberRole::Worker,
        address: config.advertise().map_or_else(|| format!("http://{address}"), str::to_owned),
        zone: config.zone().to_owned(),
        models: vec![ServedModel {
            name: config.model_name().clone(),
            revision: info.revision.clone(),
            context_tokens_max: info.context_tokens_max,
            kv_tokens_max: info.kv_tokens_max,
        }],
        capacity: Capacity::default(),
    }
}

// === impl Loaded ===

impl Loaded {
    fn from_folder(config: &WorkerConfig, observer: StepObserver) -> Result<Self, StartError> {
        // The text side first: it is quick, and a bad template should not cost a minute of loading.
        let text = Text::load(config.model()).map_err(StartError::Text)?;
        let bar = progress_bar(config.model_name().as_str());
        let options = LoadOptions {
            folder: config.model().to_owned(),
            engine: config.engine().clone(),
            threads: config.threads(),
            cpu_path: config.cpu_path(),
        };
        let loaded = load::load(&options, observer, &mut |placed, layers| {
            bar.set_length(layers as u64);
            bar.set_position(placed as u64);
        });
        bar.finish_and_clear();
        let (engine, info) = loaded.map_err(StartError::Load)?;
        let engine = RunningEngine(engine);
        match text.end_tokens().iter().find(|&&id| id >= info.vocab) {
            Some(&id) => Err(StartError::EndToken { id, vocabulary: info.vocab }),
            None => Ok(Self { text, engine, info }),
        }
    }
}

/// On stderr, and only when that is a terminal.
fn progress_bar(model: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(format!("loading {model}"));
    // A template that does not parse leaves the plain bar.
    match ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} layers") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

// === impl RunningEngine ===

impl Drop for RunningEngine {
    fn drop(&mut self) {
        self.0.stop();
    }
}
