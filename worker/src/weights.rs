//! Weights on disk: found by name, checked against the expected shape, read by position.

pub mod safetensors;

use std::path::PathBuf;

use phalanx_kernels::host::HostMatrix;
use phalanx_proto::id::Revision;

use self::safetensors::Slice;
pub use self::safetensors::Weights;

/// Where a model's tensors come from: the files of a folder, or a generator that makes them up for
/// benchmarks and tests.
pub trait WeightSource {
    /// The matrix `name` of shape `[rows, cols]`, or a slice of it.
    ///
    /// # Errors
    /// A missing tensor, another shape or element type, or a failed read.
    fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        slice: Slice,
    ) -> Result<HostMatrix, LoadError>;

    /// The vector `name` of `length` elements.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    fn vector(&self, name: &str, length: usize) -> Result<HostMatrix, LoadError>;

    /// The configuration that the shapes come from, for errors.
    fn config_path(&self) -> PathBuf;
}

/// What can be wrong with a model folder. Each variant names the file and what was expected of it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file ends before its header says it does.
    #[error("{} is truncated: it has {actual} bytes, its header promises {expected}", path.display())]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Bytes there.
        actual: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// A setting has a value that this build cannot honour.
    #[error("{}: {key} is {value}, expected {expected}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: String,
        /// Its value.
        value: String,
        /// What would work.
        expected: String,
    },
    /// The folder is of another revision than the one asked for.
    #[error("{} holds revision {found}, expected {wanted}", folder.display())]
    Revision {
        /// The model folder.
        folder: PathBuf,
        /// Its digest.
        found: Revision,
        /// The digest asked for.
        wanted: Revision,
    },
    /// A tensor that the architecture needs is in no file.
    #[error("{} holds no tensor {tensor}, expected with shape {expected:?}", folder.display())]
    MissingTensor {
        /// The model folder.
        folder: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its shape by config.json.
        expected: Vec<usize>,
    },
    /// A tensor does not fit the configuration.
    #[error("{}: tensor {tensor} is {actual}, expected {expected}", path.display())]
    WrongTensor {
        /// Which file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its shape or element type.
        actual: String,
        /// What config.json says it should be.
        expected: String,
    },
    /// The device refused the weights.
    #[error("cannot place {what} on the device")]
    Device {
        /// What was being placed.
        what: String,
        /// Why not.
        source: phalanx_kernels::DeviceError,
    },
}
