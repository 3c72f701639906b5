//! Which cluster the data directory belongs to, in a file of its own: it is known before the log holds
//! anything, and never changes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_chassis::whole_file::{self, Files};
use serde::{Deserialize, Serialize};

use super::record::{decode, encode};
use super::{StoreError, file_error};

const FILE_NAME: &str = "cluster.json";
const WHAT: &str = "cluster id";

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFile {
    path: PathBuf,
    files: Arc<dyn Files>,
}

#[derive(Debug, Serialize, Deserialize)]
struct IdentityRecord {
    cluster_id: String,
}

// === impl IdentityFile ===

impl IdentityFile {
    pub(crate) fn new(data_dir: &Path, files: Arc<dyn Files>) -> Self {
        Self { path: data_dir.join(FILE_NAME), files }
    }

    /// The cluster's id; none when the directory belongs to no cluster yet.
    pub(crate) fn read(&self) -> Result<Option<String>, StoreError> {
        match self.files.read(&self.path) {
            Ok(bytes) => {
                let record = decode::<IdentityRecord>(WHAT, &bytes);
                record.map(|it| Some(it.cluster_id)).map_err(|error| error.in_file(&self.path))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error("read", &self.path, error)),
        }
    }

    /// On disk when this returns.
    pub(crate) fn write(&self, cluster_id: &str) -> Result<(), StoreError> {
        let record = IdentityRecord { cluster_id: cluster_id.to_owned() };
        Ok(whole_file::write_on(&*self.files, &self.path, &encode(WHAT, &record)?)?)
    }
}

#[cfg(test)]
mod tests {
    use phalanx_chassis::whole_file::ThisDisk;

    use super::*;

    #[test]
    fn the_cluster_id_outlives_the_process_in_its_golden_form() {
        let folder = tempfile::tempdir().unwrap();
        let file = IdentityFile::new(folder.path(), Arc::new(ThisDisk));
        assert_eq!(file.read().unwrap(), None);
        file.write("x").unwrap();
        let bytes = std::fs::read(folder.path().join("cluster.json")).unwrap();
        assert_eq!(bytes, b"\x01{\"cluster_id\":\"x\"}");
        let again = IdentityFile::new(folder.path(), Arc::new(ThisDisk));
        assert_eq!(again.read().unwrap().as_deref(), Some("x"));
    }
}
