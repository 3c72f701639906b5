//! `phalanx check-config`: a configuration file, checked without starting anything.

use std::path::Path;

use phalanx_chassis::config::{ConfigFile, Sources, resolve};

use crate::failure::Failure;
use crate::{relations, say, settings};

/// Checks the file at `path` alone, for every role: neither flags nor environment have a say. What a role needs
/// and the file does not name may come from those, and is no fault of the file.
///
/// # Errors
/// Every fault, as one usage failure.
pub(crate) fn run(path: &Path) -> Result<(), Failure> {
    let file = ConfigFile::read(path).map_err(|fault| Failure::usage(fault.to_string()))?;
    let sources = Sources { flag: &|_| None, environment: &|_| None, file: Some(&file) };
    resolve(settings::ALL, settings::ALL, &sources, &relations::of_all)
        .map_err(|faults| Failure::Usage(faults.iter().map(ToString::to_string).collect()))?;
    say(&format!("{}: good\n", path.display()));
    Ok(())
}
