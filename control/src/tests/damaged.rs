//! A data directory with a damaged file: the start says which one, and what to do.

use std::fs;

use super::golden::write;
use super::{LONG, Node, any_port, folder};
use crate::ControlConfig;
use phalanx_proto::id::NodeId;

/// What a start says after the first byte of each file whose path ends so was changed.
async fn refusal(damaged: &str) -> String {
    let folder = folder();
    write(folder.path());
    let files = [folder.path().to_owned(), folder.path().join("snapshots")];
    let files = files.iter().flat_map(|it| fs::read_dir(it).unwrap()).map(|it| it.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.to_string_lossy().ends_with(damaged)).collect();
    assert!(!files.is_empty(), "no {damaged}");
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        // A version comes first in the one file, a magic number in the others: neither is to be left.
        bytes[..9].fill(b'x');
        fs::write(file, if damaged.ends_with("json") { b"\x01{".to_vec() } else { bytes }).unwrap();
    }
    let config = ControlConfig {
        node_id: NodeId(1),
        listen: any_port(),
        data_dir: folder.path().to_owned(),
        bootstrap: false,
        peers: std::collections::BTreeMap::new(),
    };
    let Err(error) = Node::start_with(config, LONG).await else { panic!("it started") };
    let text = error.to_string();
    assert!(text.contains(&files[0].display().to_string()), "{text}");
    text
}

#[tokio::test]
async fn a_damaged_file_is_named_with_what_to_do() {
    for (file, problem) in [
        (".snapshot", "does not begin as a snapshot does, and the log begins after entry 3"),
        ("cluster.json", "cluster id is damaged"),
        ("log.redb", "log is damaged"),
    ] {
        let text = refusal(file).await;
        assert!(text.contains(problem), "{text}");
        for advice in ["phalanx cluster remove", "phalanx cluster restore a backup"] {
            assert!(text.contains(advice), "{text}");
        }
    }
}
