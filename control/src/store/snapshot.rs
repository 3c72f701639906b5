//! Snapshots as files.
//!
//! ```text
//! magic (8) | version u32 | header length u32 | header, JSON | body | blake3 of all before (32)
//! ```
//!
//! Numbers are little-endian. A file is written under another name, synced, renamed, and its folder synced,
//! so that a crash leaves the whole file or none. The latest two are kept.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::file::{file_error, write_whole};
use super::record::{LogPosition, MembershipRecord};

const MAGIC: &[u8; 8] = b"PHXSNAP\n";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = MAGIC.len() + 8;
const DIGEST_BYTES: usize = 32;
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
}

// === impl SnapshotFolder ===

impl SnapshotFolder {
    /// Opens or creates the folder, and clears away what a crash left half-written.
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&path).map_err(|source| file_error("create", &path, source))?;
        let folder = Self { path };
        for file in folder.files("tmp")? {
            fs::remove_file(&file).map_err(|source| file_error("remove", &file, source))?;
        }
        Ok(folder)
    }

    /// Adds `snapshot` unless it is there already, and forgets those that are no longer kept.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let path = self.path.join(file_name(snapshot.header.last));
        if read(&path).is_ok_and(|present| present == *snapshot) {
            return Ok(());
        }
        write_whole(&path, &encode(snapshot)?)?;
        for file in self.files(WHAT)?.iter().skip(KEPT) {
            fs::remove_file(file).map_err(|source| file_error("remove", file, source))?;
        }
        Ok(())
    }

    /// The latest snapshot that is whole. A damaged one is passed over with a warning: the log may still
    /// reach back to the one before it, and the caller finds out if it does not.
    pub(crate) fn latest(&self) -> Result<Option<Snapshot>, StoreError> {
        for file in self.files(WHAT)? {
            match read(&file) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(path = %file.display(), %error, "passing over a snapshot");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Files with `extension`, the latest first.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
        let list = || -> std::io::Result<Vec<PathBuf>> {
            fs::read_dir(&self.path)?.map(|entry| Ok(entry?.path())).collect()
        };
        let mut files = list().map_err(|source| file_error("list", &self.path, source))?;
        files.retain(|file| file.extension().is_some_and(|found| found == extension));
        files.sort();
        files.reverse();
        Ok(files)
    }
}

/// Sorts by index, then term.
fn file_name(last: Option<LogPosition>) -> String {
    let LogPosition { term, index } = last.unwrap_or(LogPosition { term: 0, index: 0 });
    format!("{index:020}-{term:020}.{WHAT}")
}

fn encode(snapshot: &Snapshot) -> Result<Vec<u8>, StoreError> {
    let header =
        serde_json::to_vec(&snapshot.header).map_err(|error| damaged(error.to_string()))?;
    let header_bytes = u32::try_from(header.len())
        .map_err(|_long| damaged("its header is over 4 GiB".to_owned()))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(header_bytes.to_le_bytes());
    bytes.extend(header);
    bytes.extend(&snapshot.body);
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    Ok(bytes)
}

fn read(path: &Path) -> Result<Snapshot, StoreError> {
    let bytes = fs::read(path).map_err(|source| file_error("read", path, source))?;
    decode(&bytes)
}

fn decode(bytes: &[u8]) -> Result<Snapshot, StoreError> {
    let short = || damaged(format!("it has only {} bytes", bytes.len()));
    let at = bytes.len().checked_sub(DIGEST_BYTES).ok_or_else(short)?;
    let (content, digest) = bytes.split_at(at);
    let (prefix, rest) = content.split_at_checked(PREFIX_BYTES).ok_or_else(short)?;
    let (magic, numbers) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it does not begin as a snapshot does".to_owned()));
    }
    let (version, header_bytes) = numbers.split_at(4);
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(|_size| short());
    let found = number(version)?;
    if found != VERSION {
        return Err(StoreError::Version { what: WHAT, found, expected: VERSION });
    }
    if blake3::hash(content) != blake3::Hash::from_slice(digest).map_err(|_size| short())? {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let header_bytes = usize::try_from(number(header_bytes)?).map_err(|_large| short())?;
    let (header, body) = rest.split_at_checked(header_bytes).ok_or_else(short)?;
    let header = serde_json::from_slice(header).map_err(|error| damaged(error.to_string()))?;
    Ok(Snapshot { header, body: body.to_vec() })
}

fn damaged(reason: String) -> StoreError {
    StoreError::Damaged { what: WHAT, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(index: u64) -> Snapshot {
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
        let folder = SnapshotFolder::open(temporary.path().join("snapshots")).unwrap();
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
        assert_eq!(folder.files(WHAT).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_damaged_anywhere_is_passed_over() {
        let (_temporary, folder) = folder();
        folder.write(&snapshot(1)).unwrap();
        folder.write(&snapshot(2)).unwrap();
        let path = folder.path.join(file_name(Some(LogPosition { term: 1, index: 2 })));
        let whole = fs::read(&path).unwrap();
        let version_at = MAGIC.len()..MAGIC.len() + 4;
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
    fn a_snapshot_of_a_later_version_stops_the_start() {
        let mut bytes = encode(&snapshot(1)).unwrap();
        bytes[MAGIC.len()] = 2;
        let refusal = decode(&bytes).unwrap_err().to_string();
        assert_eq!(refusal, "snapshot is of format version 2, this build reads 1");
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared_away() {
        let (_temporary, folder) = folder();
        fs::write(folder.path.join("1.tmp"), b"half").unwrap();
        let folder = SnapshotFolder::open(folder.path).unwrap();
        assert_eq!(folder.files("tmp").unwrap(), Vec::<PathBuf>::new());
    }
}
