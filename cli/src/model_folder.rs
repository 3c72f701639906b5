//! Which model folder is served, and under which name.

use std::path::{Path, PathBuf};

use phalanx_chassis::config::Resolved;

use crate::failure::Failure;
use crate::settings;

/// The model that ships with the project, relative to its root.
const DEMO_MODEL: &str = "models/demo-llm";

/// A folder that exists, and the name clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelFolder {
    /// Where the model is.
    pub path: PathBuf,
    /// Its public name.
    pub name: String,
}

// === impl ModelFolder ===

impl ModelFolder {
    /// The folder of `--model`, or the demo model below the current folder or above the executable.
    ///
    /// # Errors
    /// When there is no such folder.
    pub(crate) fn resolve(resolved: &Resolved) -> Result<Self, Failure> {
        let path = match resolved.text(&settings::WORKER_MODEL) {
            Some(path) if Path::new(path).is_dir() => PathBuf::from(path),
            Some(path) => {
                return Err(Failure::usage(format!("--model {path}: there is no such folder")));
            }
            None => find_demo_model(&starting_points()).ok_or_else(|| {
                Failure::usage(format!(
                    "the demo model {DEMO_MODEL} is neither below the current folder nor above the \
                     executable: name a model folder with --model DIR"
                ))
            })?,
        };
        let name = match resolved.text(&settings::WORKER_MODEL_NAME) {
            Some(name) => name.to_owned(),
            None => folder_name(&path)?,
        };
        Ok(Self { path, name })
    }
}

fn folder_name(path: &Path) -> Result<String, Failure> {
    // `.` and `..` have a name only once they are resolved.
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    absolute.file_name().map(|name| name.to_string_lossy().into_owned()).ok_or_else(|| {
        let path = path.display();
        Failure::usage(format!(
            "--model {path}: the folder has no name, give one with --model-name"
        ))
    })
}

fn starting_points() -> Vec<PathBuf> {
    let current = std::env::current_dir().into_iter();
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).into_iter();
    let above = executable
        .flat_map(|path| path.ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<PathBuf>>());
    current.chain(above).collect()
}

fn find_demo_model(folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(DEMO_MODEL)).find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_is_found_above_the_executable() {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> =
            root.path().join("target/debug").ancestors().take(3).map(Path::to_path_buf).collect();
        assert_eq!(find_demo_model(&folders), None);
        let model = root.path().join(DEMO_MODEL);
        std::fs::create_dir_all(&model).unwrap();
        assert_eq!(find_demo_model(&folders), Some(model));
    }
}
