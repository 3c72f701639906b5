//! Backups, and histories that begin from one.

use std::path::Path;

use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::{Change, GroupChange};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, Lineage, NodeId, ViewIndex};
use phalanx_proto::view::{MemberState, Model};
use tempfile::TempDir;

use super::link::Link;
use super::{LONG, Node, any_port, config, once_led, register, registration, seen};
use crate::backup::inspect;

/// A node with nothing on its disk that nobody told to form a group.
async fn pristine(folder: &Path) -> Node {
    Node::start_with(config(folder, any_port(), false), LONG).await.unwrap()
}

fn model(name: &str) -> Model {
    Model { name: name.into(), revision: "r".into() }
}

async fn put(client: &ControlClient, name: &str) -> ViewIndex {
    once_led(|| client.submit(name, 1, Change::PutModel(model(name)))).await.unwrap()
}

async fn backup(client: &ControlClient) -> Vec<u8> {
    once_led(|| client.backup(false)).await.unwrap()
}

#[tokio::test]
async fn a_watcher_takes_the_restored_history_and_never_goes_back_to_the_old_one() {
    let folders: [TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let [old_folder, new_folder, kept] = folders.each_ref().map(TempDir::path);
    let file = kept.join("view.json");
    let old = Node::start(old_folder, any_port(), LONG).await;
    let wire = Link::new().await;
    wire.lead_to(old.address);
    let watched = ViewWatch::start(ControlClient::new(&[&wire.url]).unwrap(), Some(file.clone()));
    let mut view = watched.view();

    let member = register(&old, "i").await;
    put(&old.client(), "before").await;
    let saved = backup(&old.client()).await;
    // The old history goes on, to higher indexes and ids.
    for name in ["later 1", "later 2", "later 3"] {
        put(&old.client(), name).await;
    }
    let late = register(&old, "late").await;
    let before = seen(&mut view, |view| view.members.contains_key(&late.member_id)).await;
    old.stop().await;

    let new = pristine(new_folder).await;
    let restored = new.client().restore(saved).await.unwrap();
    assert!(Lineage(restored.lineage) > before.lineage);
    assert!(ViewIndex(restored.index) > before.index);
    wire.lead_to(new.address);
    let after = seen(&mut view, |view| view.lineage == Lineage(restored.lineage)).await;
    assert!(after.models.contains(&model("before")) && !after.models.contains(&model("later 1")));
    assert!(after.members.contains_key(&member.member_id));

    // Who was registered in the backup still is; who came later registers again, as somebody new.
    let client = new.client();
    let beat = once_led(|| client.heartbeat(member.member_id, member.epoch)).await;
    assert_eq!(beat, Ok(MemberState::Ready));
    let fault = client.heartbeat(late.member_id, late.epoch).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::StaleEpoch);
    let again = client.register(registration("late")).await.unwrap();
    assert!(again.epoch > Epoch(restored.index) && again.member_id > late.member_id);
    seen(&mut view, |view| view.members.contains_key(&again.member_id)).await;
    drop(watched);

    // The old node comes back with its data, and moves on; whoever has seen the new history stays with that.
    let old = Node::start(old_folder, any_port(), LONG).await;
    let faithful = ViewWatch::start(old.client(), Some(file));
    let fresh = ViewWatch::start(old.client(), None);
    put(&old.client(), "of the past").await;
    seen(&mut fresh.view(), |view| view.models.contains(&model("of the past"))).await;
    assert_eq!(faithful.view().borrow().lineage, Lineage(restored.lineage));
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn a_restored_node_outlives_a_restart_and_grows_into_a_group_with_ids_nobody_had() {
    let folders: [TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let old = Node::start(folders[0].path(), any_port(), LONG).await;
    put(&old.client(), "before").await;
    let saved = backup(&old.client()).await;
    let url = "http://127.0.0.1:9".to_owned();
    let add = |url: &str| GroupChange::Add { url: url.to_owned() };
    let NodeId(old_id) = old.client().change_group(add(&url)).await.unwrap();
    old.stop().await;

    let new = pristine(folders[1].path()).await;
    let restored = new.client().restore(saved).await.unwrap();
    let (address, client) = (new.address, new.client());
    new.stop().await;
    let new = Node::start_with(config(folders[1].path(), address, false), LONG).await.unwrap();
    let status = client.status().await.unwrap();
    assert_eq!((status.cluster_id, status.lineage), (restored.cluster_id, restored.lineage));
    assert_eq!(status.members.len(), 1);
    put(&client, "after").await;
    let NodeId(id) = once_led(|| client.change_group(add(&url))).await.unwrap();
    assert!(id > old_id && id > restored.index, "{id} was given before");
    new.stop().await;
}

async fn refusal(client: &ControlClient, file: &[u8]) -> String {
    let Fault { code, message, .. } = client.restore(file.to_vec()).await.unwrap_err();
    assert_eq!(code, FaultCode::InvalidRequest, "{message}");
    message
}

#[tokio::test]
async fn what_cannot_be_restored_is_refused_and_leaves_the_node_as_it_was() {
    let folders: [TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let old = Node::start(folders[0].path(), any_port(), LONG).await;
    put(&old.client(), "before").await;
    let saved = backup(&old.client()).await;
    let contents = inspect(&saved).unwrap();
    let status = old.client().status().await.unwrap();
    assert_eq!((contents.cluster_id, contents.models), (status.cluster_id.clone(), 1));

    let new = pristine(folders[1].path()).await;
    let client = new.client();
    let bad = "not a backup that can be used: snapshot is";
    let checksum = format!("{bad} damaged: its checksum does not match");
    assert_eq!(refusal(&client, &saved[..saved.len() - 1]).await, checksum);
    let mut flipped = saved.clone();
    flipped[saved.len() / 2] ^= 1;
    assert_eq!(refusal(&client, &flipped).await, checksum);
    let mut later = saved.clone();
    later[8] = 9;
    let version = format!("{bad} of format version 9, this build reads up to 2");
    assert_eq!(refusal(&client, &later).await, version);
    let empty = format!("{bad} damaged: it has only 0 bytes");
    assert_eq!(refusal(&client, b"").await, empty);
    let large = vec![0; usize::try_from(phalanx_proto::wire::parts::BACKUP_BYTES_MAX).unwrap() + 1];
    let expected = "backup has 69206017 bytes, at most 69206016 are taken";
    assert_eq!(refusal(&client, &large).await, expected);
    let untouched = client.status().await.unwrap();
    assert_eq!((untouched.cluster_id.as_str(), untouched.members.len()), ("", 0));

    let has_state = format!(
        "this control node already belongs to cluster {}; to restore, start one with an empty --data-dir and \
         without --bootstrap",
        status.cluster_id
    );
    assert_eq!(refusal(&old.client(), &saved).await, has_state);
    client.restore(saved.clone()).await.unwrap();
    assert!(refusal(&client, &saved).await.starts_with("this control node already belongs to"));
    old.stop().await;
    new.stop().await;
}
