//! Replicas compared: one whose state is not that of its log stops, and nobody else does.

use super::*;
use crate::checkpoint::CHECKPOINT_EVERY;
use crate::tests::LONG;

/// Writes until the group has compared its replicas once more, which every node in `at` notices.
async fn write_past_a_checkpoint(group: &Group, through: u64, name: &str, at: &[u64]) {
    let before = group.nodes[&through].consensus.status().last_applied;
    let client = group.client(through);
    for number in 0..CHECKPOINT_EVERY {
        put(&client, &format!("{name} {number}")).await.unwrap();
    }
    let compared = timeout(WAIT_MAX, async {
        let mut look = interval(LOOK_EVERY);
        while at.iter().any(|id| group.nodes[id].consensus.compared() < before) {
            look.tick().await;
        }
    });
    compared.await.expect("the replicas are compared");
}

/// Waits until a node has ended because it drifted.
async fn ends_drifted(group: &mut Group, id: u64) {
    let node = group.nodes.get_mut(&id).unwrap();
    let ended = timeout(WAIT_MAX, &mut node.run).await.expect("the drifted node ends");
    let Err(RunError::Raft(reason)) = ended.unwrap() else { panic!("it ended in order") };
    assert!(reason.contains("this replica has drifted"), "{reason}");
    assert!(node.metrics.encode().contains("phalanx_raft_state_mismatch 1\n"));
}

#[tokio::test]
async fn a_replica_that_drifted_stops_and_the_others_go_on() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [drifted, other] = others(leader);
    write_past_a_checkpoint(&group, leader, "alike", &[1, 2, 3]).await;

    group.nodes[&drifted].consensus.drift().await;
    write_past_a_checkpoint(&group, leader, "drifted", &[leader, other]).await;
    ends_drifted(&mut group, drifted).await;
    group.put(leader, "without it").await;
    group.shows(other, "without it").await;

    // Its log was right: what it makes of it anew is, too.
    group.kill(drifted);
    group.start_node(drifted).await;
    group.shows(drifted, "without it").await;
    write_past_a_checkpoint(&group, leader, "healed", &[1, 2, 3]).await;
}

#[tokio::test]
async fn a_replica_that_came_by_a_snapshot_is_compared_from_there_on() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [away, other] = others(leader);
    group.kill(away);
    write_past_a_checkpoint(&group, leader, "missed", &[leader, other]).await;
    for id in [leader, other] {
        group.nodes[&id].consensus.compact().await;
    }
    group.start_node(away).await;
    write_past_a_checkpoint(&group, leader, "alike", &[1, 2, 3]).await;

    group.nodes[&away].consensus.drift().await;
    write_past_a_checkpoint(&group, leader, "drifted", &[leader, other]).await;
    ends_drifted(&mut group, away).await;
}
