//! The view as a file: written whole or not at all, and ignored when it cannot be read.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx_proto::view::ClusterView;
use serde::{Deserialize, Serialize};

use crate::whole_file::{self, FileError};

/// The format written. A file of another version is ignored: the view comes back from the control plane.
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Saved<V> {
    version: u32,
    /// When control was last heard, in seconds since 1970; 0 when that was not noted.
    #[serde(default)]
    heard: u64,
    /// Whether a router saved it, so that it tells who may use the cluster. Only routers did at first.
    #[serde(default = "yes")]
    is_routers: bool,
    view: V,
}

const fn yes() -> bool {
    true
}

/// Replaces the file at `path`, of a view that control vouched for at `heard`, as it showed it to a router or to
/// others: a crash leaves the old file or the new one.
pub(super) fn save(
    path: &Path,
    view: &ClusterView,
    (heard, is_routers): (SystemTime, bool),
) -> Result<(), FileError> {
    // A clock before 1970 is broken; 0 says so.
    let heard = heard.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let saved = Saved { version: VERSION, heard, is_routers, view };
    let bytes = serde_json::to_vec(&saved).map_err(|error| FileError {
        action: "encode the view for",
        path: path.to_owned(),
        source: error.into(),
    })?;
    if let Some(folder) = path.parent() {
        whole_file::create_folder(folder)?;
    }
    whole_file::write(path, &bytes)
}

/// The view saved at `path` and when control vouched for it, if there is one that can be read. One of another kind of
/// process shows too much or too little.
pub(super) fn load(path: &Path, is_routers: bool) -> Option<(ClusterView, SystemTime)> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the saved cluster view");
            return None;
        }
    };
    match serde_json::from_slice::<Saved<ClusterView>>(&bytes) {
        Ok(saved) if saved.version == VERSION && saved.is_routers != is_routers => {
            tracing::warn!(path = %path.display(), "saved cluster view is of another kind of process");
            None
        }
        Ok(saved) if saved.version == VERSION => {
            Some((saved.view, UNIX_EPOCH + Duration::from_secs(saved.heard)))
        }
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
        assert_eq!(load(&path, true), None);

        let mut view =
            ClusterView { lineage: Lineage(3), index: ViewIndex(7), ..ClusterView::default() };
        view.apply_op(ViewOp::PutModel(Model { name: "m".into(), revision: "r".into() }));
        let heard = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        save(&path, &ClusterView::default(), (UNIX_EPOCH, true)).unwrap();
        save(&path, &view, (heard, true)).unwrap();
        assert_eq!(load(&path, true), Some((view.clone(), heard)));

        assert_eq!(load(&path, false), None, "a router's view for another process");

        let bytes = fs::read(&path).unwrap();
        let first = String::from_utf8(bytes.clone()).unwrap();
        let first = first.replacen("\"is_routers\":true,", "", 1);
        fs::write(&path, first).unwrap();
        assert_eq!(load(&path, true), Some((view.clone(), heard)), "as the first build saved it");
        save(&path, &view, (heard, false)).unwrap();
        assert_eq!(load(&path, true), None, "what lacks the keys is not a router's");
        fs::write(&path, &bytes).unwrap();

        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(load(&path, true), None);
        fs::write(
            &path,
            String::from_utf8(bytes).unwrap().replacen("\"version\":1", "\"version\":2", 1),
        )
        .unwrap();
        assert_eq!(load(&path, true), None);
    }
}
