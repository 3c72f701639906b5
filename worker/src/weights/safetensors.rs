//! A folder of `.safetensors` files, one or indexed, as Hugging Face lays them out.
//!
//! Only headers are kept in memory. Each tensor, or the rows or columns of it that a rank needs, is read by
//! position when asked for, so that loading never holds more than one tensor beside the packed weights.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use phalanx_kernels::host::{Dtype, HostMatrix};
use safetensors::tensor::Metadata;

use super::{LoadError, WeightSource};

/// Largest header accepted: the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The tensors of a model folder.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    file: File,
}

#[derive(Clone, Debug)]
struct Tensor {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Byte position of the first element in the file.
    offset: u64,
}

/// The part of a matrix that one rank of a tensor-parallel group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// All of it.
    Whole,
    /// An equal share of the rows (outputs): column-parallel layers.
    Rows(Shard),
    /// An equal share of the columns (inputs): row-parallel layers.
    Columns(Shard),
}

/// Which of how many equal shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub rank: usize,
    /// How many.
    pub world: usize,
}

// === impl Shard ===

impl Shard {
    /// The one rank of a group of one.
    pub const SOLO: Self = Self { rank: 0, world: 1 };

    /// This rank's share of `length` items, which `world` divides.
    pub const fn of(self, length: usize) -> Range<usize> {
        let share = length / self.world;
        self.rank * share..(self.rank + 1) * share
    }
}

// === impl Weights ===

impl Weights {
    /// Opens a folder and checks every header; no tensor is read.
    ///
    /// # Errors
    /// A file that is missing, malformed or shorter than its header promises.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let mut weights =
            Self { folder: folder.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for name in file_names(folder)? {
            weights.add_file(folder.join(name))?;
        }
        Ok(weights)
    }

    /// The weight files, for digests.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let io = |source| LoadError::Io { path: path.clone(), source };
        let malformed = |reason: String| LoadError::Malformed { path: path.clone(), reason };
        let file = File::open(&path).map_err(io)?;
        let actual = file.metadata().map_err(io)?.len();
        if actual < 8 {
            return Err(LoadError::Truncated { path, actual, expected: 8 });
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX {
            return Err(malformed(format!(
                "its header claims {header_bytes} bytes, at most {HEADER_BYTES_MAX} are allowed"
            )));
        }
        if 8 + header_bytes > actual {
            return Err(LoadError::Truncated { path, actual, expected: 8 + header_bytes });
        }
        let mut header = vec![0; usize::try_from(header_bytes).expect("bounded above")];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        let expected = 8 + header_bytes + metadata.data_len() as u64;
        if actual < expected {
            return Err(LoadError::Truncated { path, actual, expected });
        }
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let tensor = Tensor {
                file: index,
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: 8 + header_bytes + info.data_offsets.0 as u64,
            };
            self.tensors.insert(name, tensor);
        }
        self.files.push(WeightFile { path, file });
        Ok(())
    }

    fn find(&self, name: &str, expected: &[usize]) -> Result<&Tensor, LoadError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(LoadError::MissingTensor {
                folder: self.folder.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
            });
        };
        if tensor.shape != expected {
            let actual = format!("of shape {:?}", tensor.shape);
            return Err(self.wrong(name, tensor, actual, format!("shape {expected:?}")));
        }
        Ok(tensor)
    }

    fn dtype(&self, name: &str, tensor: &Tensor) -> Result<Dtype, LoadError> {
        match tensor.dtype {
            safetensors::Dtype::F32 => Ok(Dtype::F32),
            safetensors::Dtype::BF16 => Ok(Dtype::Bf16),
            safetensors::Dtype::F16 => Ok(Dtype::F16),
            other => {
                let expected = "BF16, F16 or F32".to_owned();
                Err(self.wrong(name, tensor, format!("of type {other:?}"), expected))
            }
        }
    }

    fn wrong(&self, name: &str, tensor: &Tensor, actual: String, expected: String) -> LoadError {
        let path = self.files[tensor.file].path.clone();
        LoadError::WrongTensor { path, tensor: name.to_owned(), actual, expected }
    }

    fn read(&self, tensor: &Tensor, skip: usize, bytes: &mut [u8]) -> Result<(), LoadError> {
        let source = &self.files[tensor.file];
        source
            .file
            .read_exact_at(bytes, tensor.offset + skip as u64)
            .map_err(|error| LoadError::Io { path: source.path.clone(), source: error })
    }
}

impl WeightSource for Weights {
    fn matrix(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        slice: Slice,
    ) -> Result<HostMatrix, LoadError> {
        let tensor = self.find(name, &[rows, cols])?;
        let dtype = self.dtype(name, tensor)?;
        let width = dtype.bytes();
        let (row_range, col_range) = match slice {
            Slice::Whole => (0..rows, 0..cols),
            Slice::Rows(shard) => (shard.of(rows), 0..cols),
            Slice::Columns(shard) => (0..rows, shard.of(cols)),
        };
        let mut bytes = vec![0; row_range.len() * col_range.len() * width];
        if col_range.len() == cols {
            self.read(tensor, row_range.start * cols * width, &mut bytes)?;
        } else {
            let line = col_range.len() * width;
            for (row, target) in row_range.clone().zip(bytes.chunks_exact_mut(line)) {
                self.read(tensor, (row * cols + col_range.start) * width, target)?;
            }
        }
        Ok(HostMatrix { dtype, rows: row_range.len(), cols: col_range.len(), bytes })
    }

    fn vector(&self, name: &str, length: usize) -> Result<HostMatrix, LoadError> {
        let tensor = self.find(name, &[length])?;
        let dtype = self.dtype(name, tensor)?;
        let mut bytes = vec![0; length * dtype.bytes()];
        self.read(tensor, 0, &mut bytes)?;
        Ok(HostMatrix { dtype, rows: 1, cols: length, bytes })
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("config.json")
    }
}

/// `model.safetensors`, or the files that `model.safetensors.index.json` names.
fn file_names(folder: &Path) -> Result<Vec<String>, LoadError> {
    let path = folder.join("model.safetensors.index.json");
    if !path.exists() {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|source| LoadError::Io { path: path.clone(), source })?;
    let malformed = |reason: String| LoadError::Malformed { path: path.clone(), reason };
    let index: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let map = index
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
        .ok_or_else(|| malformed("it has no object `weight_map`".to_owned()))?;
    let mut names = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        let name = file
            .as_str()
            .filter(|name| !name.contains('/') && !name.contains('\\'))
            .ok_or_else(|| malformed(format!("tensor {tensor} is not mapped to a file name")))?;
        names.insert(name.to_owned());
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        folder
    }

    /// A file with one f32 matrix `w` of shape [4, 4] that counts from 0.
    fn file() -> Vec<u8> {
        let header = br#"{"w":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend((0u8..16).flat_map(|value| f32::from(value).to_le_bytes()));
        bytes
    }

    fn values(matrix: &HostMatrix) -> Vec<f32> {
        matrix.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn ranks_read_their_own_rows_and_columns() {
        let folder = folder_with(&file());
        let weights = Weights::open(folder.path()).unwrap();
        let shard = Shard { rank: 1, world: 2 };
        let rows = weights.matrix("w", (4, 4), Slice::Rows(shard)).unwrap();
        assert_eq!(values(&rows), [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        let columns = weights.matrix("w", (4, 4), Slice::Columns(shard)).unwrap();
        assert_eq!(values(&columns), [2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0]);
    }

    #[track_caller]
    fn check(bytes: &[u8], shape: (usize, usize), expected: &str) {
        let folder = folder_with(bytes);
        let result = Weights::open(folder.path())
            .and_then(|weights| weights.matrix("w", shape, Slice::Whole));
        let message = result.unwrap_err().to_string();
        let message = message.replace(&folder.path().display().to_string(), "FOLDER");
        assert_eq!(message, expected);
    }

    #[test]
    fn a_wrong_shape_names_both() {
        check(
            &file(),
            (4, 8),
            "FOLDER/model.safetensors: tensor w is of shape [4, 4], expected shape [4, 8]",
        );
    }

    #[test]
    fn a_missing_tensor_names_what_was_expected() {
        let other = String::from_utf8_lossy(&file()).replace("\"w\"", "\"v\"").into_bytes();
        check(&other, (4, 4), "FOLDER holds no tensor w, expected with shape [4, 4]");
    }

    #[test]
    fn a_truncated_file_says_how_much_is_missing() {
        let bytes = file();
        check(
            &bytes[..bytes.len() - 1],
            (4, 4),
            "FOLDER/model.safetensors is truncated: it has 128 bytes, its header promises 129",
        );
        check(
            &bytes[..20],
            (4, 4),
            "FOLDER/model.safetensors is truncated: it has 20 bytes, its header promises 65",
        );
    }

    #[test]
    fn a_header_that_is_no_header_is_malformed() {
        let mut bytes = file();
        bytes[8] = b'x';
        let folder = folder_with(&bytes);
        let error = Weights::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("model.safetensors is malformed"), "{error}");
    }
}
