//! The view as a file: written whole or not at all, and ignored when it cannot be read.

use std::fs;
use std::io;
use std::path::Path;

use phalanx_proto::view::ClusterView;
use serde::{Deserialize, Serialize};

use crate::whole_file::{self, FileError};

/// The format written. A file of another version is ignored: the view comes back from the control plane.
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Saved<V> {
    version: u32,
    view: V,
}

/// Replaces the file at `path`: a crash leaves the old file or the new one.
pub(super) fn save(path: &Path, view: &ClusterView) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(&Saved { version: VERSION, view }).map_err(|error| {
        FileError { action: "encode the view for", path: path.to_owned(), source: error.into() }
    })?;
    if let Some(folder) = path.parent() {
        whole_file::create_folder(folder)?;
    }
    whole_file::write(path, &bytes)
}

/// The view saved at `path`, if there is one that can be read.
pub(super) fn load(path: &Path) -> Option<ClusterView> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the saved cluster view");
            return None;
        }
    };
    match serde_json::from_slice::<Saved<ClusterView>>(&bytes) {
        Ok(saved) if saved.version == VERSION => Some(saved.view),
        Ok(saved) => {
            let version = saved.version;
            tracing::warn!(path = %path.display(), version, "saved cluster view is of another version");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "saved cluster view is damaged");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::{Lineage, ViewIndex};
    use phalanx_proto::view::{Model, ViewOp};

    use super::*;

    #[test]
    fn a_saved_view_is_read_back_and_a_damaged_one_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/view.json");
        assert_eq!(load(&path), None);

        let mut view =
            ClusterView { lineage: Lineage(3), index: ViewIndex(7), ..ClusterView::default() };
        view.apply_op(ViewOp::PutModel(Model { name: "m".into(), revision: "r".into() }));
        save(&path, &ClusterView::default()).unwrap();
        save(&path, &view).unwrap();
        assert_eq!(load(&path), Some(view));

        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(load(&path), None);
        fs::write(
            &path,
            String::from_utf8(bytes).unwrap().replacen("\"version\":1", "\"version\":2", 1),
        )
        .unwrap();
        assert_eq!(load(&path), None);
    }
}
