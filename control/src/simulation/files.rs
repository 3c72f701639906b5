//! The files of a simulated machine: a power failure takes what was not synced, and may come between any two steps.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use phalanx_chassis::whole_file::{FileError, Files};

use super::machine::Disks;
use super::network::HostId;

/// The files of one host.
#[derive(Debug)]
pub(super) struct HostFiles {
    pub(super) disks: Disks,
    pub(super) host: HostId,
}

/// What lies on one disk.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// What is there, as processes see it.
    seen: BTreeMap<PathBuf, Vec<u8>>,
    /// What is there after a power failure, whatever else is.
    durable: BTreeMap<PathBuf, Vec<u8>>,
    /// Names that were given and taken since they were synced: each may be on disk or not.
    unsynced: Vec<Naming>,
    /// Steps until the power fails.
    steps_left: Option<u32>,
    /// It failed at one of them.
    is_dark: bool,
}

#[derive(Clone, Debug)]
enum Naming {
    Created(PathBuf, Vec<u8>),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
}

// === impl Folder ===

impl Folder {
    /// The power fails after so many steps from now, if there are as many; or not at all.
    pub(super) const fn fail_after(&mut self, steps: Option<u32>) {
        self.steps_left = steps;
    }

    /// Whether the power failed since this was asked last.
    pub(super) const fn take_dark(&mut self) -> bool {
        std::mem::replace(&mut self.is_dark, false)
    }

    pub(super) const fn is_dark(&self) -> bool {
        self.is_dark
    }

    /// Leaves what was synced, and of the rest what `stays` says.
    pub(super) fn lose_power(&mut self, mut stays: impl FnMut() -> bool) {
        for naming in std::mem::take(&mut self.unsynced) {
            if stays() {
                naming.apply(&mut self.durable);
            }
        }
        self.seen.clone_from(&self.durable);
        self.steps_left = None;
    }

    /// One step that the power may fail before.
    fn step(&mut self) -> io::Result<()> {
        if self.is_dark {
            return Err(power_failed());
        }
        match &mut self.steps_left {
            Some(0) => {
                self.is_dark = true;
                Err(power_failed())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, naming: Naming) {
        naming.apply(&mut self.seen);
        self.unsynced.push(naming);
    }

    fn known(&self, path: &Path) -> io::Result<&Vec<u8>> {
        self.seen.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Naming {
    fn apply(&self, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        match self {
            Self::Created(path, bytes) => _ = files.insert(path.clone(), bytes.clone()),
            Self::Renamed(from, to) => {
                if let Some(bytes) = files.remove(from) {
                    files.insert(to.clone(), bytes);
                }
            }
            Self::Removed(path) => _ = files.remove(path),
        }
    }

    fn is_in(&self, folder: &Path) -> bool {
        let (Self::Created(path, _) | Self::Renamed(_, path) | Self::Removed(path)) = self;
        path.parent() == Some(folder)
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

// === impl HostFiles ===

impl HostFiles {
    fn with<T>(&self, act: impl FnOnce(&mut Folder) -> io::Result<T>) -> io::Result<T> {
        self.disks.with_files(self.host, act)
    }
}

impl Files for HostFiles {
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.with(|folder| {
            if folder.known(path).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            folder.step()?;
            // Its name may be on disk before its bytes are, or with some of them.
            let half = Naming::Created(path.to_owned(), bytes[..bytes.len() / 2].to_vec());
            folder.change(half);
            folder.step()?;
            folder.unsynced.pop();
            folder.change(Naming::Created(path.to_owned(), bytes.to_vec()));
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|folder| {
            folder.step()?;
            folder.known(from)?;
            folder.change(Naming::Renamed(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|folder| {
            folder.known(path)?;
            folder.step()?;
            folder.change(Naming::Removed(path.to_owned()));
            Ok(())
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.with(|folder| folder.known(path).cloned())
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        self.with(|folder| folder.known(path).map(|bytes| u64::try_from(bytes.len()).unwrap()))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.with(|folder| {
            let inside = folder.seen.keys().filter(|file| file.parent() == Some(path));
            Ok(inside.cloned().collect())
        })
    }

    /// Folders are there, always: they are made once, before anything depends on them.
    fn create_folder(&self, _path: &Path) -> Result<(), FileError> {
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> Result<(), FileError> {
        let synced = self.with(|folder| {
            folder.step()?;
            let namings = std::mem::take(&mut folder.unsynced);
            let (here, elsewhere) = namings.into_iter().partition(|naming| naming.is_in(path));
            folder.unsynced = elsewhere;
            let here: Vec<Naming> = here;
            here.iter().for_each(|naming| naming.apply(&mut folder.durable));
            Ok(())
        });
        synced.map_err(|source| FileError { action: "sync", path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use phalanx_chassis::whole_file;

    use super::*;

    /// Writes a file in place of another, with the power failing after so many steps; gives what is left, where what
    /// was not synced stays or goes.
    fn left(steps: u32, stays: bool) -> Vec<u8> {
        let disks = Disks::new(1);
        let files = HostFiles { disks: disks.clone(), host: 1 };
        let path = Path::new("/data/file");
        whole_file::write_on(&files, path, b"before").unwrap();
        disks.with_files(1, |folder| folder.fail_after(Some(steps)));
        let written = whole_file::write_on(&files, path, b"after");
        let is_dark = disks.with_files(1, Folder::take_dark);
        assert_eq!(written.is_err(), is_dark);
        disks.with_files(1, |folder| folder.lose_power(|| stays));
        let left = files.read(path).unwrap();
        assert!(is_dark || left == b"after", "what was told to be on disk is lost");
        left
    }

    #[test]
    fn whenever_the_power_fails_a_file_is_there_whole_as_it_was_or_as_it_is() {
        let mut outcomes = Vec::new();
        for steps in 0..6 {
            for stays in [false, true] {
                outcomes.push(left(steps, stays));
            }
        }
        assert!(outcomes.iter().all(|left| left == b"before" || left == b"after"));
        assert_eq!(outcomes.first().unwrap(), b"before");
        assert_eq!(outcomes.last().unwrap(), b"after");
    }
}
