//! Files that are there whole or not at all, whatever crashes: written under another name, synced, renamed,
//! and their folder synced. Only their owner may read them.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What the name ends with until the file is whole. A crash may leave such a file behind.
pub const TEMPORARY_EXTENSION: &str = "tmp";

/// Views and snapshots name every address, and the digests of keys.
const OWNER_ONLY: u32 = 0o600;

/// What failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    /// A verb.
    pub action: &'static str,
    /// Of what.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// What a disk does with files: this machine's, or one in a test that forgets what was not synced.
pub trait Files: Debug + Send + Sync {
    /// Creates a file that only its owner may read. Its bytes are on disk when this returns, its name may not be.
    ///
    /// # Errors
    /// Whatever the disk says, also that there is such a file.
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Gives a file another name, and takes that from whichever had it.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Whatever the disk says, also that there is no such file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// Whatever the disk says, also that there is no such file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// How many bytes a file has.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn size(&self, path: &Path) -> io::Result<u64>;

    /// What is in a folder.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;

    /// Creates a folder and those above it that are missing; their names are on disk when this returns.
    ///
    /// # Errors
    /// [`FileError`].
    fn create_folder(&self, path: &Path) -> Result<(), FileError>;

    /// Makes the names in a folder as durable as the files they name.
    ///
    /// # Errors
    /// [`FileError`].
    fn sync_folder(&self, path: &Path) -> Result<(), FileError>;
}

/// The files of this machine.
#[derive(Clone, Copy, Debug)]
pub struct ThisDisk;

impl Files for ThisDisk {
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(OWNER_ONLY).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path).map(|metadata| metadata.len())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn create_folder(&self, path: &Path) -> Result<(), FileError> {
        create_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> Result<(), FileError> {
        sync_folder(path)
    }
}

/// Puts `bytes` at `path`, in place of what was there; on disk when this returns.
///
/// # Errors
/// [`FileError`]; whatever was at `path` is then still there, as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_on(&ThisDisk, path, bytes)
}

/// As [`write()`], on another disk.
///
/// # Errors
/// As [`write()`].
pub fn write_on(files: &dyn Files, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(TEMPORARY_EXTENSION);
    let temporary = PathBuf::from(name);
    let cleared = match files.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    let written = cleared.and_then(|()| files.create(&temporary, bytes));
    let written = written.map_err(|source| failed("write", &temporary, source));
    let renamed = written.and_then(|()| {
        files.rename(&temporary, path).map_err(|source| failed("rename a file to", path, source))
    });
    if let Err(error) = renamed {
        // It may not be there, and what failed is told already.
        let _ = files.remove(&temporary);
        return Err(error);
    }
    files.sync_folder(folder_of(path))
}

/// Creates a folder and those above it that are missing; their names are on disk when this returns.
///
/// # Errors
/// [`FileError`].
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path).map_err(|source| failed("create", path, source))?;
    missing.into_iter().rev().try_for_each(|created| sync_folder(folder_of(created)))
}

/// Makes the names in a folder as durable as the files they name.
///
/// # Errors
/// [`FileError`].
pub fn sync_folder(path: &Path) -> Result<(), FileError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| failed("sync", path, source))
}

fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/view.json");
        create_folder(path.parent().unwrap()).unwrap();
        // Left behind by a crash, and longer than what comes.
        fs::write(folder.path().join("a/b/view.json.tmp"), b"half of something").unwrap();
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write(&path, b"bytes").unwrap_err().to_string();
        assert_eq!(error, format!("cannot rename a file to {}", path.display()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write(&folder.path().join("missing/file"), b"").unwrap_err().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
    }
}
