//! From a model folder to a model that a server can seat: the text side, the engine, and what routers are told.

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use phalanx_kernels::cpu::CpuPath;
use phalanx_proto::id::{ModelName, Revision};
use phalanx_proto::view::ServedModel;

use crate::StartError;
use crate::config::WorkerConfig;
use crate::engine::{EngineConfig, StepObserver};
use crate::load::{self, LoadOptions};
use crate::server::{Seated, Served};
use crate::text::Text;

/// How this worker runs whatever model it is given.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    engine: EngineConfig,
    threads: usize,
    cpu_path: CpuPath,
}

/// A model that is loaded and runs, and what it is announced as.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) seated: Seated,
    pub(crate) model: ServedModel,
}

// === impl Host ===

impl Host {
    pub(crate) fn new(config: &WorkerConfig) -> Self {
        let engine = config.engine().clone();
        Self { engine, threads: config.threads(), cpu_path: config.cpu_path() }
    }

    /// Loads the folder, if it is of `revision` where one is given, and starts the engine, on a thread that may
    /// block; on a terminal with a progress bar.
    pub(crate) async fn load(
        &self,
        folder: PathBuf,
        (name, revision): (ModelName, Option<Revision>),
        observer: StepObserver,
    ) -> Result<Hosted, StartError> {
        let Self { engine, threads, cpu_path } = self.clone();
        let options = LoadOptions { folder, revision, engine, threads, cpu_path };
        let loading = tokio::task::spawn_blocking(move || Hosted::load(&options, &name, observer));
        loading.await.map_err(|_panicked| StartError::Interrupted)?
    }
}

// === impl Hosted ===

impl Hosted {
    fn load(
        options: &LoadOptions,
        name: &ModelName,
        observer: StepObserver,
    ) -> Result<Self, StartError> {
        // The text side first: it is quick, and a bad template should not cost a minute of loading.
        let text = Text::load(&options.folder).map_err(StartError::Text)?;
        let bar = progress_bar(name.as_str());
        let loaded = load::load(options, observer, &mut |placed, layers| {
            bar.set_length(layers as u64);
            bar.set_position(placed as u64);
        });
        bar.finish_and_clear();
        let (engine, info) = loaded.map_err(StartError::Load)?;
        let served = Served {
            name: name.clone(),
            context_tokens_max: info.context_tokens_max,
            vocabulary: info.vocab,
        };
        // From here on the engine ends with what holds it.
        let seated = Seated::new(Arc::new(text), engine, served);
        let outside = seated.text.end_tokens().iter().copied().find(|&id| id >= info.vocab);
        if let Some(id) = outside {
            return Err(StartError::EndToken { id, vocabulary: info.vocab });
        }
        let model = ServedModel {
            name: name.clone(),
            revision: info.revision,
            context_tokens_max: info.context_tokens_max,
            kv_tokens_max: info.kv_tokens_max,
        };
        Ok(Self { seated, model })
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
