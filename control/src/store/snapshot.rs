//! Snapshots as files, in the [`mod@format`]'s bytes.
//!
//! A file is written under another name, synced, renamed, and its folder synced, so that a crash leaves the
//! whole file or none. The latest two are kept.

pub(crate) mod format;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_chassis::whole_file::{self, Files};
use serde::{Deserialize, Serialize};

use self::format::FILE_BYTES_MAX;
use super::record::{LogPosition, MembershipRecord};
use super::{StoreError, file_error};
use crate::planted::{Bug, planted};

const WHAT: &str = "snapshot";

/// The one in use and the one before it, in case the latest turns out damaged.
const KEPT: usize = 2;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) cluster_id: String,
    pub(crate) lineage: u64,
    /// The last entry it covers.
    pub(crate) last: Option<LogPosition>,
    pub(crate) membership: MembershipRecord,
    /// The entry that set the membership.
    pub(crate) membership_at: Option<LogPosition>,
}

/// A header and the state it describes, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) header: SnapshotHeader,
    pub(crate) body: Vec<u8>,
}

/// The folder of snapshots.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFolder {
    path: PathBuf,
    files: Arc<dyn Files>,
}

// === impl SnapshotFolder ===

impl SnapshotFolder {
    /// Opens or creates the folder, and clears away what a crash left half-written.
    pub(crate) fn open(path: PathBuf, files: Arc<dyn Files>) -> Result<Self, StoreError> {
        files.create_folder(&path)?;
        let folder = Self { path, files };
        folder
            .list(whole_file::TEMPORARY_EXTENSION)?
            .iter()
            .try_for_each(|file| folder.remove(file))?;
        Ok(folder)
    }

    /// Adds `snapshot` unless it is there already, and forgets those that are no longer kept.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let path = self.path.join(file_name(snapshot.header.last));
        if self.read(&path).is_ok_and(|present| present == *snapshot) {
            return Ok(());
        }
        let bytes = format::encode(snapshot)?;
        if planted(Bug::SnapshotInPlace) {
            return self
                .files
                .create(&path, &bytes)
                .map_err(|source| file_error("write", &path, source));
        }
        whole_file::write_on(&*self.files, &path, &bytes)?;
        self.list(WHAT)?.iter().skip(KEPT).try_for_each(|file| self.remove(file))
    }

    /// The latest snapshot that is whole. A damaged one is passed over with a warning: the log may still
    /// reach back to the one before it, and the caller finds out if it does not.
    pub(crate) fn latest(&self) -> Result<Option<Snapshot>, StoreError> {
        for file in self.list(WHAT)? {
            match self.read(&file) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(path = %file.display(), %error, "passing over a snapshot");
                }
                Err(error) => return Err(error.in_file(&file)),
            }
        }
        Ok(None)
    }

    /// Refuses to start where nothing whole leads up to the log, whose entries up to `purged` were dropped.
    pub(crate) fn check_reaches(&self, purged: Option<LogPosition>) -> Result<(), StoreError> {
        let Some(purged) = purged else { return Ok(()) };
        let mut damaged = None;
        for file in self.list(WHAT)? {
            match self.read(&file) {
                Ok(Snapshot { header, .. }) if header.last >= Some(purged) => return Ok(()),
                Ok(_earlier) => {}
                Err(error @ StoreError::Damaged { .. }) => {
                    damaged.get_or_insert((file, error));
                }
                Err(error) => return Err(error.in_file(&file)),
            }
        }
        let begins = format!("the log begins after entry {}", purged.index);
        let (path, problem) = match damaged {
            Some((file, error)) => (file, format!("{error}, and {begins}")),
            None => (self.path.clone(), format!("no snapshot is there, and {begins}")),
        };
        Err(StoreError::Lost { path, problem })
    }

    /// Files with `extension`, the latest first.
    fn list(&self, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
        let listed = self.files.list(&self.path);
        let mut files = listed.map_err(|source| file_error("list", &self.path, source))?;
        files.retain(|file| file.extension().is_some_and(|found| found == extension));
        files.sort();
        files.reverse();
        Ok(files)
    }

    fn remove(&self, file: &Path) -> Result<(), StoreError> {
        self.files.remove(file).map_err(|source| file_error("remove", file, source))
    }

    fn read(&self, path: &Path) -> Result<Snapshot, StoreError> {
        let file_failed = |source| file_error("read", path, source);
        if self.files.size(path).map_err(file_failed)? > FILE_BYTES_MAX {
            return Err(format::too_large(WHAT, FILE_BYTES_MAX));
        }
        format::decode(&self.files.read(path).map_err(file_failed)?)
    }
}

/// Sorts by index, then term.
fn file_name(last: Option<LogPosition>) -> String {
    let LogPosition { term, index } = last.unwrap_or(LogPosition { term: 0, index: 0 });
    format!("{index:020}-{term:020}.{WHAT}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use phalanx_chassis::whole_file::ThisDisk;

    use super::*;
    use crate::store::chain;

    pub(super) fn snapshot(index: u64) -> Snapshot {
        let header = SnapshotHeader {
            cluster_id: "x".to_owned(),
            lineage: 5,
            last: Some(LogPosition { term: 1, index }),
            membership: MembershipRecord::default(),
            membership_at: None,
        };
        Snapshot { header, body: b"state".to_vec() }
    }

    fn folder() -> (tempfile::TempDir, SnapshotFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder =
            SnapshotFolder::open(temporary.path().join("snapshots"), Arc::new(ThisDisk)).unwrap();
        (temporary, folder)
    }

    #[test]
    fn the_latest_snapshot_is_read_back_and_two_are_kept() {
        let (_temporary, folder) = folder();
        assert_eq!(folder.latest().unwrap(), None);
        for index in [9, 100, 20] {
            folder.write(&snapshot(index)).unwrap();
        }
        assert_eq!(folder.latest().unwrap(), Some(snapshot(100)));
        assert_eq!(folder.list(WHAT).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_damaged_anywhere_is_passed_over() {
        let (_temporary, folder) = folder();
        folder.write(&snapshot(1)).unwrap();
        folder.write(&snapshot(2)).unwrap();
        let path = folder.path.join(file_name(Some(LogPosition { term: 1, index: 2 })));
        let whole = fs::read(&path).unwrap();
        let version_at = 8..12;
        for at in (0..whole.len()).filter(|at| !version_at.contains(at)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(folder.latest().unwrap(), Some(snapshot(1)), "byte {at} flipped");
        }
        for length in [0, 10, 40, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(folder.latest().unwrap(), Some(snapshot(1)), "cut to {length} bytes");
        }
        folder.write(&snapshot(2)).unwrap();
        assert_eq!(folder.latest().unwrap(), Some(snapshot(2)));
    }

    #[test]
    fn a_log_that_no_whole_snapshot_leads_up_to_stops_the_start() {
        let (_temporary, folder) = folder();
        let purged = |index| Some(LogPosition { term: 1, index });
        assert!(folder.check_reaches(None).is_ok());
        let refusal = folder.check_reaches(purged(1)).unwrap_err().to_string();
        assert!(
            refusal.contains("no snapshot is there, and the log begins after entry 1"),
            "{refusal}"
        );
        folder.write(&snapshot(1)).unwrap();
        folder.write(&snapshot(2)).unwrap();
        assert!(folder.check_reaches(purged(2)).is_ok());
        let path = folder.path.join(file_name(purged(2)));
        fs::write(&path, b"damaged").unwrap();
        assert!(folder.check_reaches(purged(1)).is_ok(), "the one before it will do");
        let refusal = folder.check_reaches(purged(2)).unwrap_err().to_string();
        assert!(refusal.starts_with(&path.display().to_string()), "{refusal}");
        assert!(
            refusal.contains("is damaged: it has only 7 bytes, and the log begins"),
            "{refusal}"
        );
    }

    #[test]
    fn a_snapshot_of_a_later_version_or_too_large_stops_the_start() {
        let (_temporary, folder) = folder();
        folder.write(&snapshot(1)).unwrap();
        let path = folder.path.join(file_name(Some(LogPosition { term: 1, index: 1 })));
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 3;
        fs::write(&path, &bytes).unwrap();
        let refusal = || chain(&folder.latest().unwrap_err());
        let named = |problem: &str| format!("{}: {problem}", path.display());
        assert_eq!(refusal(), named("snapshot is of format version 3, this build reads up to 2"));
        // Only the length is looked at: nothing of it is read.
        fs::File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(refusal(), named("snapshot is over 69206016 bytes, the most that is taken"));
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared_away() {
        let (_temporary, folder) = folder();
        fs::write(folder.path.join("1.tmp"), b"half").unwrap();
        let folder = SnapshotFolder::open(folder.path, Arc::new(ThisDisk)).unwrap();
        assert_eq!(folder.list(whole_file::TEMPORARY_EXTENSION).unwrap(), Vec::<PathBuf>::new());
    }
}
