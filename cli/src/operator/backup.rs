//! `phalanx cluster backup` and `restore`: the state of the control group in a file of the operator's.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use phalanx_chassis::whole_file;
use phalanx_control::backup::{Contents, inspect};
use phalanx_proto::wire::parts::BACKUP_BYTES_MAX;
use serde_json::json;

use super::Answer;
use super::session::Session;
use crate::failure::{Failure, chain};

/// Writes what the group holds to `file`, whole or not at all.
pub(super) async fn backup(
    session: &Session,
    file: PathBuf,
    is_stale: bool,
) -> Result<Answer, Failure> {
    check_regular(&file)?;
    let bytes = session.backup(is_stale).await?;
    let contents = inspect(&bytes).map_err(|error| Failure::Failed(chain(&error)))?;
    let (path, size) = (file.clone(), bytes.len());
    let written = tokio::task::spawn_blocking(move || whole_file::write(&path, &bytes)).await;
    let written = written.map_err(|error| Failure::Failed(error.to_string()))?;
    written.map_err(|error| Failure::Failed(chain(&error)))?;
    Ok(saved(&file, size, &contents, is_stale))
}

/// Begins a new history from `file` at the one node named by `--control`.
pub(super) async fn restore(session: &Session, file: PathBuf) -> Result<Answer, Failure> {
    if session.nodes() != 1 {
        let text =
            "restore needs exactly one URL in --control: that of a node with an empty --data-dir";
        return Err(Failure::usage(text));
    }
    check_regular(&file)?;
    let path = file.clone();
    let read = tokio::task::spawn_blocking(move || read(&path)).await;
    let bytes = read.map_err(|error| Failure::Failed(error.to_string()))??;
    let contents = inspect(&bytes);
    let contents = contents.map_err(|error| Failure::Failed(named(&file, &chain(&error))))?;
    let restored = session.restore(bytes).await?;
    let (node, new) = (restored.node_id, &restored.cluster_id);
    let text = format!(
        "cluster {old} lives on as cluster {new}: node {node} leads it alone, from index {index} of lineage {lineage}\n\
         {held}\n\
         add more nodes with phalanx cluster add; nodes of the old group must not run any more\n",
        old = contents.cluster_id,
        index = restored.index,
        lineage = restored.lineage,
        held = held(&contents),
    );
    let json = json!({
        "node_id": node,
        "cluster_id": new,
        "lineage": restored.lineage,
        "index": restored.index,
        "backup": contents_json(&contents),
    });
    Ok(Answer { text, json })
}

/// Refuses what is there and is no file: a device would be replaced, a pipe waited for.
fn check_regular(path: &Path) -> Result<(), Failure> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(Failure::usage(named(path, "it is not a regular file")))
        }
        // What cannot be looked at is for the reading or writing to tell.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The file, unless it is larger than any backup.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| {
        // One more than may be: that tells a file that is too large.
        file.take(BACKUP_BYTES_MAX + 1).read_to_end(&mut bytes)
    });
    opened.map_err(|error| Failure::usage(named(path, &format!("cannot be read: {error}"))))?;
    if u64::try_from(bytes.len()).is_ok_and(|size| size > BACKUP_BYTES_MAX) {
        let text = format!("it is over {BACKUP_BYTES_MAX} bytes, more than any backup");
        return Err(Failure::Failed(named(path, &text)));
    }
    Ok(bytes)
}

fn named(path: &Path, what: &str) -> String {
    format!("{}: {what}", path.display())
}

fn saved(file: &Path, size: usize, contents: &Contents, is_stale: bool) -> Answer {
    let Contents { cluster_id, lineage, index, file_digest, state_hash, .. } = contents;
    let mut text = format!(
        "{file}: cluster {cluster_id} at index {index} of lineage {lineage}, {size} bytes\n\
         {held}\nblake3 {file_digest}\nstate  {state_hash}\n",
        file = file.display(),
        held = held(contents),
    );
    if is_stale {
        text.push_str("as one node has it: the latest writes may be missing\n");
    }
    let mut json = contents_json(contents);
    json["file"] = file.display().to_string().into();
    json["bytes"] = size.into();
    json["stale"] = is_stale.into();
    Answer { text, json }
}

fn held(contents: &Contents) -> String {
    let Contents { members, models, aliases, .. } = contents;
    format!("it holds {members} members, {models} models and {aliases} aliases")
}

fn contents_json(contents: &Contents) -> serde_json::Value {
    let Contents { cluster_id, lineage, index, members, models, aliases, file_digest, state_hash } =
        contents;
    json!({
        "cluster_id": cluster_id,
        "lineage": lineage.0,
        "index": index.0,
        "members": members,
        "models": models,
        "aliases": aliases,
        "blake3": file_digest,
        "state_hash": state_hash,
    })
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::{Lineage, ViewIndex};

    use super::*;

    #[test]
    fn a_backup_is_told_to_people_and_to_programs() {
        let contents = Contents {
            cluster_id: "x".to_owned(),
            lineage: Lineage(7),
            index: ViewIndex(42),
            members: 2,
            models: 3,
            aliases: 1,
            file_digest: "d1".to_owned(),
            state_hash: "5a".to_owned(),
        };
        let answer = saved(Path::new("/b/x.backup"), 900, &contents, true);
        let expected = "/b/x.backup: cluster x at index 42 of lineage 7, 900 bytes
it holds 2 members, 3 models and 1 aliases
blake3 d1
state  5a
as one node has it: the latest writes may be missing
";
        assert_eq!(answer.text, expected);
        let expected = r#"{"cluster_id":"x","lineage":7,"index":42,"members":2,"models":3,"aliases":1,"blake3":"d1","state_hash":"5a","file":"/b/x.backup","bytes":900,"stale":true}"#;
        assert_eq!(answer.json.to_string(), expected);
    }

    #[test]
    fn a_file_that_is_missing_or_too_large_is_told_before_anybody_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.backup");
        let Failure::Usage(lines) = read(&path).unwrap_err() else { panic!("a usage fault") };
        assert!(lines[0].contains("x.backup: cannot be read: "), "{lines:?}");
        File::create(&path).unwrap().set_len(BACKUP_BYTES_MAX + 1).unwrap();
        let expected =
            format!("{}: it is over 69206016 bytes, more than any backup", path.display());
        assert_eq!(read(&path).unwrap_err(), Failure::Failed(expected));
    }
}
