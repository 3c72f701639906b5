//! What one node takes, the others have: by log, by snapshot, by watch, by read and in a backup.

use std::time::Duration;

use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Lineage, NodeId, ViewIndex};
use tokio::time::timeout;

use super::{Group, model, others};
use crate::backup::inspect;
use crate::tests::{LONG, WAIT_MAX, once_led};

#[tokio::test]
async fn three_nodes_form_one_cluster_and_each_of_them_takes_writes() {
    let group = Group::start(LONG).await;
    for id in 1..=3 {
        group.put(id, &format!("by {id}")).await;
    }
    let mut statuses = Vec::new();
    for id in 1..=3 {
        for from in 1..=3 {
            group.shows(id, &format!("by {from}")).await;
        }
        let status = group.client(id).status().await.unwrap();
        assert_eq!(status.node_id, id);
        let roles: Vec<(u64, &str)> =
            status.members.iter().map(|member| (member.id, member.role.as_str())).collect();
        assert_eq!(roles, [(1, "voter"), (2, "voter"), (3, "voter")]);
        statuses.push((status.cluster_id, status.lineage, status.leader));
    }
    assert!(!statuses[0].0.is_empty());
    assert!(statuses.iter().all(|status| *status == statuses[0]), "{statuses:?}");
}

#[tokio::test]
async fn a_read_at_any_node_holds_what_was_written_at_another_and_needs_a_quorum() {
    let mut group = Group::start(LONG).await;
    for turn in 0..9 {
        let name = format!("turn {turn}");
        group.put(turn % 3 + 1, &name).await;
        let reading = group.client((turn + 1) % 3 + 1).read_view(WAIT_MAX).await.unwrap();
        assert!(reading.view.models.contains(&model(&name)), "{name} is not read: {reading:?}");
    }
    let leader = group.leader(1, 0).await;
    let [left, other] = others(leader);
    group.shows(left, "turn 8").await;
    group.kill(leader);
    group.kill(other);

    let client = group.client(left);
    let patience = Duration::from_millis(500);
    let unread = client.read_view(patience).await.unwrap_err();
    let change = Change::PutModel(model("lost"));
    let unwritten = client.submit_within(patience, "c", 1, change).await.unwrap_err();
    for fault in [unread, unwritten] {
        let hint = (fault.code, fault.retry_after);
        assert_eq!(hint, (FaultCode::Unavailable, Some(Duration::from_secs(1))), "{fault}");
    }
    let stale = client.read_view_stale().await.unwrap();
    assert_eq!(stale.node_id, NodeId(left));
    assert!(stale.view.models.contains(&model("turn 8")));
}

#[tokio::test]
async fn a_node_that_missed_what_is_no_longer_in_the_log_catches_up_by_snapshot() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let away = others(group.leader(1, 0).await)[0];
    group.kill(away);
    for id in others(away) {
        group.put(id, &format!("missed {id}")).await;
    }
    let mut compacted = 0;
    for id in others(away) {
        compacted = group.nodes[&id].consensus.compact().await.max(compacted);
    }

    group.start_node(away).await;
    for id in others(away) {
        group.shows(away, &format!("missed {id}")).await;
    }
    let snapshots = group.folder.path().join(away.to_string()).join("snapshots");
    let names: Vec<String> = std::fs::read_dir(snapshots)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 1, "exactly the one it was sent: {names:?}, leader had {compacted}");
    group.put(away, "after").await;
}

#[tokio::test]
async fn a_watch_goes_on_at_another_node_with_exactly_what_it_has_not_seen() {
    let mut group = Group::start(LONG).await;
    group.put(1, "seen").await;
    let mut stream = group.client(1).watch(Lineage(0), ViewIndex(0)).await.unwrap();
    let Ok(Some(WatchEvent::Snapshot(view))) = stream.next().await else {
        panic!("a client with nothing gets a snapshot");
    };
    assert!(view.models.contains(&model("seen")));
    group.kill(1);

    let missed = group.put(2, "missed").await;
    group.shows(3, "missed").await;
    let mut resumed = group.client(3).watch(view.lineage, view.index).await.unwrap();
    let Ok(Some(WatchEvent::Delta(delta))) = resumed.next().await else {
        panic!("a client that is one change behind gets that change");
    };
    assert_eq!(delta.index, missed);
}

#[tokio::test]
async fn any_node_gives_a_backup_as_of_now_and_a_survivor_what_it_has() {
    let mut group = Group::start(LONG).await;
    for id in 1..=3 {
        let index = group.put(id, &format!("by {id}")).await;
        // Through every node, whoever leads: what was answered before is in it.
        let [other, _another] = others(id);
        let saved = once_led(|| async { group.client(other).backup(false).await }).await.unwrap();
        assert!(inspect(&saved).unwrap().index >= index);
    }
    // A follower may hear of a commit after the one who asked for it.
    group.shows(3, "by 3").await;
    group.kill(1);
    group.kill(2);
    let client = group.client(3);
    let fault = timeout(WAIT_MAX, async {
        // It may take an election's time until the survivor notices that it is alone.
        loop {
            if let Err(fault) = client.backup(false).await {
                break fault;
            }
        }
    });
    let fault = fault.await.expect("a node without a quorum cannot know what is latest");
    assert!(matches!(fault.code, FaultCode::Unavailable | FaultCode::DeadlineExceeded), "{fault}");
    let saved = client.backup(true).await.unwrap();
    assert_eq!(inspect(&saved).unwrap().models, 3);
}
