//! The worker's settings: raw as the user wrote them, then validated once.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use phalanx_kernels::cpu::CpuPath;
use phalanx_proto::id::ModelName;
use phalanx_proto::name;
use serde::Deserialize;

use crate::engine::{EngineConfig, RawEngine};

/// Where routers connect by default: this machine alone, so that nothing is exposed unasked.
const DEFAULT_LISTEN: &str = "127.0.0.1:7500";
/// How long streams may go on by default once the process drains; then they go on at other workers.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest that may be asked for: beyond an hour, it is a typing mistake.
const DRAIN_TIMEOUT_MS_MAX: u64 = 3_600_000;
/// Most threads a worker may be given: beyond what one machine has, it is a typing mistake.
const THREADS_MAX: u32 = 1024;
/// Longest model name: it stands in every request, log line and metric.
const MODEL_NAME_BYTES_MAX: usize = 256;

/// Section `[worker]` as the user wrote it; what is absent takes its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWorker {
    /// URLs of control nodes; at least one.
    pub control: Vec<String>,
    /// HOST:PORT to serve routers on; port 0 takes a free one.
    pub listen: Option<String>,
    /// URL that routers dial; absent: the bound address.
    pub advertise: Option<String>,
    /// Failure domain, free text.
    pub zone: Option<String>,
    /// The model folder.
    pub model: Option<PathBuf>,
    /// The name clients ask for; absent: the folder's.
    pub model_name: Option<String>,
    /// A folder of model folders, in place of `model`: control says which of them to serve.
    pub models: Option<PathBuf>,
    /// What the model runs on.
    pub device: Option<String>,
    /// Ranks that share the model by tensor parallelism.
    pub tp: Option<u32>,
    /// CPU threads; absent: all cores.
    pub threads: Option<u32>,
    /// Instruction set of the CPU's operations; absent: the fastest there is.
    pub cpu_path: Option<String>,
    /// KV cache in blocks of 16 tokens.
    pub kv_blocks: Option<u32>,
    /// KV cache in MiB, when `kv_blocks` is absent.
    pub kv_memory_mib: Option<u32>,
    /// Most tokens computed in one step.
    pub step_tokens_max: Option<u32>,
    /// Most sequences computed in one step.
    pub running_max: Option<u32>,
    /// Most sequences waiting for a place.
    pub waiting_max: Option<u32>,
    /// Whether computed prefixes are kept for later requests.
    pub prefix_cache: Option<bool>,
    /// How long live streams may go on once the process drains.
    pub drain_timeout_ms: Option<u64>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker.{key}: {value} is not allowed, must be {expected}")]
pub struct ConfigError {
    /// The key within the section.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub expected: String,
}

/// A worker's settings. To hold one is to know it is valid.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    control: Vec<String>,
    listen: String,
    advertise: Option<String>,
    zone: String,
    source: ModelSource,
    threads: usize,
    cpu_path: CpuPath,
    engine: EngineConfig,
    drain_timeout: Duration,
}

/// Where a worker has its models from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// It serves one, from the start to the end.
    Folder {
        /// The model folder.
        path: PathBuf,
        /// The name clients ask for.
        name: ModelName,
    },
    /// It offers its capacity, and serves what it is assigned.
    Pool {
        /// Where model NAME is folder NAME.
        folder: PathBuf,
    },
}

// === impl RawWorker ===

impl RawWorker {
    /// Checks every setting.
    ///
    /// # Errors
    /// All settings that cannot be used, in the order of the fields.
    pub fn validate(self) -> Result<WorkerConfig, Vec<ConfigError>> {
        let mut faults = Faults(Vec::new());
        if self.control.is_empty() {
            faults.add("control", &"nothing", &"at least one control url");
        }
        let listen = self.listen.clone().unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let is_everywhere = listen.parse().is_ok_and(|at: SocketAddr| at.ip().is_unspecified());
        if is_everywhere && self.advertise.is_none() {
            let expected = format!("the url routers dial when listen is {listen}");
            faults.add("advertise", &"nothing", &expected);
        }
        let device = self.device.as_deref().unwrap_or("cpu");
        if device != "cpu" {
            faults.add("device", &device, &"cpu");
        }
        let tp = self.tp.unwrap_or(1);
        if tp != 1 {
            faults.add("tp", &tp, &1);
        }
        let source = self.source(&mut faults);
        let threads = self.threads.unwrap_or_else(cores);
        if !(1..=THREADS_MAX).contains(&threads) {
            faults.add("threads", &threads, &format!("between 1 and {THREADS_MAX}"));
        }
        let cpu_path = self.cpu_path(&mut faults);
        let engine = self.engine(&mut faults);
        if let Some(ms) = self.drain_timeout_ms.filter(|ms| *ms > DRAIN_TIMEOUT_MS_MAX) {
            faults.add("drain_timeout_ms", &ms, &format!("at most {DRAIN_TIMEOUT_MS_MAX}"));
        }
        match (engine, source) {
            (Some(engine), Some(source)) if faults.0.is_empty() => Ok(WorkerConfig {
                control: self.control,
                listen,
                advertise: self.advertise,
                zone: self.zone.unwrap_or_default(),
                source,
                threads: threads as usize,
                cpu_path,
                engine,
                drain_timeout: self
                    .drain_timeout_ms
                    .map_or(DEFAULT_DRAIN_TIMEOUT, Duration::from_millis),
            }),
            _ => Err(faults.0),
        }
    }

    fn source(&self, faults: &mut Faults) -> Option<ModelSource> {
        let not_a_folder = |path: &Path| (!path.is_dir()).then(|| path.display().to_string());
        match (&self.model, &self.models) {
            (None, None) => {
                faults.add("model", &"nothing", &"a model folder");
                None
            }
            (Some(_), Some(models)) => {
                faults.add("models", &models.display(), &"absent when model is given");
                None
            }
            (Some(path), None) => {
                if let Some(path) = not_a_folder(path) {
                    faults.add("model", &path, &"an existing folder");
                    return None;
                }
                let name = ModelName::from(self.name(path, faults));
                Some(ModelSource::Folder { path: path.clone(), name })
            }
            (None, Some(folder)) => {
                if let Some(path) = not_a_folder(folder) {
                    faults.add("models", &path, &"an existing folder of model folders");
                }
                if let Some(name) = &self.model_name {
                    faults.add("model_name", name, &"absent when models is given");
                }
                Some(ModelSource::Pool { folder: folder.clone() })
            }
        }
    }

    fn name(&self, folder: &Path, faults: &mut Faults) -> String {
        // `.` and `..` have a name only once they are resolved.
        let of_folder =
            || Some(folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned());
        let name = self.model_name.clone().or_else(of_folder).unwrap_or_default();
        if name.is_empty() || name.len() > MODEL_NAME_BYTES_MAX {
            let shown = format!("{name:?}");
            faults.add("model_name", &shown, &format!("1 to {MODEL_NAME_BYTES_MAX} bytes"));
        } else if let Err(error) = name::check(&name) {
            faults.add("model_name", &name, &format!("another name: {error}"));
        }
        name
    }

    fn cpu_path(&self, faults: &mut Faults) -> CpuPath {
        let Some(name) = self.cpu_path.as_deref().filter(|name| *name != "auto") else {
            return CpuPath::detect();
        };
        match name.parse::<CpuPath>() {
            Ok(path) if path.is_available() => path,
            Ok(path) => {
                faults.add("cpu_path", &path, &"one that this processor has");
                path
            }
            Err(_) => {
                let names: Vec<&str> = CpuPath::ALL.iter().map(|path| path.name()).collect();
                faults.add("cpu_path", &name, &format!("auto or one of {}", names.join(", ")));
                CpuPath::Portable
            }
        }
    }

    fn engine(&self, faults: &mut Faults) -> Option<EngineConfig> {
        let raw = RawEngine {
            kv_blocks: self.kv_blocks,
            kv_memory_mib: self.kv_memory_mib,
            step_tokens_max: self.step_tokens_max,
            running_max: self.running_max,
            waiting_max: self.waiting_max,
            prefix_cache: self.prefix_cache,
        };
        EngineConfig::try_from(raw)
            .map_err(|error| {
                let expected = format!("between {} and {}", error.min, error.max);
                faults.add(error.key, &error.value, &expected);
            })
            .ok()
    }
}

/// What is wrong so far.
struct Faults(Vec<ConfigError>);

impl Faults {
    fn add(&mut self, key: &'static str, value: &dyn Display, expected: &dyn Display) {
        let (value, expected) = (value.to_string(), expected.to_string());
        self.0.push(ConfigError { key, value, expected });
    }
}

fn cores() -> u32 {
    let cores = available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(THREADS_MAX).min(THREADS_MAX)
}

// === impl WorkerConfig ===

impl WorkerConfig {
    /// URLs of control nodes.
    pub fn control(&self) -> &[String] {
        &self.control
    }

    /// HOST:PORT to serve routers on.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// URL that routers dial, unless it is the bound address.
    pub fn advertise(&self) -> Option<&str> {
        self.advertise.as_deref()
    }

    /// Failure domain.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Where its models come from.
    pub const fn source(&self) -> &ModelSource {
        &self.source
    }

    /// CPU threads.
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// Instruction set of the CPU's operations.
    pub const fn cpu_path(&self) -> CpuPath {
        self.cpu_path
    }

    /// How long live streams may go on once the process drains.
    pub const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// The engine's limits.
    pub const fn engine(&self) -> &EngineConfig {
        &self.engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> RawWorker {
        RawWorker {
            control: vec!["http://127.0.0.1:7400".to_owned()],
            model: Some(PathBuf::from(env!("CARGO_MANIFEST_DIR"))),
            ..RawWorker::default()
        }
    }

    #[test]
    fn the_model_is_named_after_its_folder_unless_told_otherwise() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).file_name().unwrap();
        for (given, expected) in [(None, folder.to_str().unwrap()), (Some("m"), "m")] {
            let raw = RawWorker { model_name: given.map(str::to_owned), ..valid() };
            let config = raw.validate().unwrap();
            let ModelSource::Folder { name, .. } = config.source() else { panic!("{config:?}") };
            assert_eq!(name.as_str(), expected);
        }
    }

    #[test]
    fn a_pool_has_no_model_of_its_own() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let pool = RawWorker { model: None, models: Some(folder.clone()), ..valid() };
        let config = pool.clone().validate().unwrap();
        assert_eq!(*config.source(), ModelSource::Pool { folder });
        let both = RawWorker { model: valid().model, ..pool.clone() };
        assert_eq!(both.validate().unwrap_err()[0].key, "models");
        let named = RawWorker { model_name: Some("m".to_owned()), ..pool };
        assert_eq!(named.validate().unwrap_err()[0].key, "model_name");
    }

    #[test]
    fn every_fault_is_reported_at_once_with_key_value_and_limit() {
        let raw = RawWorker {
            listen: Some("0.0.0.0:7500".to_owned()),
            model: Some(PathBuf::from("/nowhere")),
            device: Some("cuda".to_owned()),
            tp: Some(2),
            threads: Some(0),
            cpu_path: Some("sse".to_owned()),
            kv_blocks: Some(1),
            drain_timeout_ms: Some(3_600_001),
            ..RawWorker::default()
        };
        let faults: Vec<String> =
            raw.validate().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "worker.control: nothing is not allowed, must be at least one control url",
                "worker.advertise: nothing is not allowed, must be the url routers dial when listen \
                 is 0.0.0.0:7500",
                "worker.device: cuda is not allowed, must be cpu",
                "worker.tp: 2 is not allowed, must be 1",
                "worker.model: /nowhere is not allowed, must be an existing folder",
                "worker.threads: 0 is not allowed, must be between 1 and 1024",
                "worker.cpu_path: sse is not allowed, must be auto or one of portable, avx2, avx512, \
                 amx",
                "worker.kv_blocks: 1 is not allowed, must be between 2 and 67108864",
                "worker.drain_timeout_ms: 3600001 is not allowed, must be at most 3600000",
            ]
        );
    }
}
