//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use super::StoreError;
use super::redb::sync_folder;

/// Writes a file under another name, syncs it, renames it, and syncs its folder.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| file_error("write", &temporary, source))?;
    fs::rename(&temporary, path).map_err(|source| file_error("rename", &temporary, source))?;
    path.parent().map_or(Ok(()), sync_folder)
}

pub(super) fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { action, path: path.to_owned(), source }
}
