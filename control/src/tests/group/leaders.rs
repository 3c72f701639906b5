//! Leaders that die, leave, are kept busy, or are left in peace by whoever cannot hear them.

use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::change::Change;
use phalanx_proto::id::NodeId;
use tokio::time::interval;

use super::{Group, model, others, put};
use crate::command::Command;
use crate::tests::LONG;

#[tokio::test]
async fn when_the_leader_dies_writes_go_on_and_it_catches_up_when_it_is_back() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    group.kill(leader);
    let [other, another] = others(leader);
    group.put(other, "without it").await;
    assert_ne!(group.leader(another, leader).await, leader);

    group.start_node(leader).await;
    group.shows(leader, "without it").await;
    group.put(leader, "through it").await;
    group.shows(other, "through it").await;
}

#[tokio::test]
async fn a_leader_told_to_leave_makes_another_lead_before_it_is_gone() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [away, successor] = others(leader);
    let term = group.client(leader).status().await.unwrap().term;

    // Without this one the successor needs the leaver's own vote.
    group.kill(away);
    group.put(leader, "without it").await;
    group.drain(leader).await;
    let status = group.client(successor).status().await.unwrap();
    assert_eq!((status.leader, status.term), (successor, term + 1), "no election was waited for");

    group.start_node(away).await;
    group.put(away, "after").await;
    group.shows(successor, "after").await;
}

#[tokio::test]
async fn a_node_that_hears_nobody_does_not_unseat_the_leader() {
    let group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [deaf, other] = others(leader);
    let term = group.client(leader).status().await.unwrap().term;

    // It no longer hears the leader, but everybody hears it ask for votes.
    group.links[&deaf].cut();
    let mut beat = interval(Duration::from_millis(500));
    for beat_number in 0..12 {
        beat.tick().await;
        put(&group.client(other), &format!("meanwhile {beat_number}")).await.unwrap();
    }
    let status = group.client(other).status().await.unwrap();
    assert_eq!((status.leader, status.term), (leader, term));
    let cut_off = group.nodes[&deaf].consensus.status();
    assert_eq!((cut_off.leader, cut_off.term), (None, term), "it knows that it knows nothing");
}

#[tokio::test]
async fn nodes_whose_runtimes_stand_still_keep_their_leader_and_commit() {
    let group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    for id in others(leader) {
        group.shows(id, "before").await;
    }
    let consensus = Arc::clone(&group.nodes[&leader].consensus);
    let term = consensus.status().term;
    let mut held = Vec::new();
    for node in group.nodes.values() {
        held.push(node.hold().await);
    }

    // Longer than any node waits for a leader; and what is connected breaks, so that a connection is taken, too.
    let mut beat = interval(Duration::from_millis(250));
    for sequence in 1..=20 {
        beat.tick().await;
        if sequence == 10 {
            for id in others(leader) {
                group.links[&id].interrupt();
            }
        }
        let change = Change::PutModel(model(&format!("held {sequence}")));
        let command = Command::Submit { client: "held".to_owned(), sequence, change };
        consensus.propose(command).await.unwrap();
    }
    for (id, node) in &group.nodes {
        let status = node.consensus.status();
        assert_eq!((status.leader, status.term), (Some(NodeId(leader)), term), "node {id}");
    }
    drop(held);
    for id in 1..=3 {
        group.shows(id, "held 20").await;
    }
}
