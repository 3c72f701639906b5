//! A small file system of a test's own, to be filled up. It takes root to mount one.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The file that takes the room.
const BALLAST: &str = "ballast";
/// Written at once.
const BLOCK: [u8; 4096] = [0; 4096];

/// A file system in memory. Dropping it takes it away.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

// === impl SmallDisk ===

impl SmallDisk {
    /// Mounts one of `mebibytes` over `folder`, and copies there what was in it.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn mount_over(folder: &Path, mebibytes: u32) -> Result<Self> {
        let aside = folder.with_extension("aside");
        std::fs::rename(folder, &aside)?;
        std::fs::create_dir(folder)?;
        let size = format!("size={mebibytes}m");
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", &size, "phalanx-test"]).arg(folder))?;
        let disk = Self(folder.to_owned());
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder))?;
        Ok(disk)
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.0.join(BALLAST))?;
        loop {
            match ballast.write(&BLOCK) {
                Ok(_written) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
    }

    /// Gives that room back.
    ///
    /// # Errors
    /// When it cannot.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join(BALLAST))?)
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::print_stderr, reason = "what is left behind belongs to the test's output")]
    fn drop(&mut self) {
        // Lazily: a process may still have a file open there.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, errors.trim());
    Ok(())
}
