//! Nodes that join, vote, lead and leave, and strangers that may not.

use std::collections::BTreeSet;
use std::sync::Arc;

use phalanx_proto::change::GroupChange;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::NodeId;
use phalanx_proto::pb;
use tokio::time::{interval, timeout};
use tonic::Code;

use super::{Group, LOOK_EVERY, others};
use crate::host::{Host as _, ThisMachine};
use crate::identity::Identity;
use crate::peers::{Line, Peers};
use crate::store::identity::IdentityFile;
use crate::tests::link::Link;
use crate::tests::{LONG, WAIT_MAX, once_led};

#[tokio::test]
async fn a_new_node_learns_then_votes_then_leads_and_an_old_one_leaves() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [follower, leaving] = others(leader);
    let client = group.client(follower);

    let link = Link::new().await;
    let add = GroupChange::Add { url: link.url.clone() };
    let NodeId(id) = client.change_group(add.clone()).await.unwrap();
    assert!(id > 3, "ids come from the log");
    assert_eq!(client.change_group(add).await, Ok(NodeId(id)), "a repeated call adds nobody");
    let early = client.change_group(GroupChange::Promote(NodeId(id))).await.unwrap_err();
    assert_eq!(early.code, FaultCode::InvalidRequest, "{early}");

    group.links.insert(id, link);
    group.start_node(id).await;
    group.shows(id, "before").await;
    let promote = || client.change_group(GroupChange::Promote(NodeId(id)));
    let promoted = timeout(WAIT_MAX, async {
        let mut look = interval(LOOK_EVERY);
        while promote().await.is_err() {
            look.tick().await;
        }
    });
    promoted.await.expect("it votes once it is up to date");

    let transfer = || client.change_group(GroupChange::Transfer(NodeId(id)));
    assert_eq!(once_led(transfer).await, Ok(NodeId(id)));
    let remove = |node| client.change_group(GroupChange::Remove(NodeId(node)));
    assert_eq!(once_led(|| remove(leaving)).await, Ok(NodeId(leaving)));
    let refusal = once_led(|| remove(id)).await.unwrap_err();
    assert_eq!(refusal.message, format!("node {id} leads, transfer the leadership first"));
    let refusal = once_led(|| remove(99)).await.unwrap_err();
    assert_eq!(refusal.message, "node 99 is not in the group");

    let expected = BTreeSet::from([leader, follower, id]);
    let shown = timeout(WAIT_MAX, async {
        let mut look = interval(LOOK_EVERY);
        loop {
            look.tick().await;
            // The node that is asked may be the last to hear of it.
            let status = client.status().await.unwrap();
            let is_voter = |member: &pb::RaftMember| member.role == "voter";
            let all_vote = status.members.iter().all(is_voter);
            let ids: BTreeSet<u64> = status.members.iter().map(|member| member.id).collect();
            if (status.leader, all_vote, &ids) == (id, true, &expected) {
                break;
            }
        }
    });
    shown.await.expect("the group is the new one, and led by the new node");
    group.put(id, "after").await;
    group.shows(follower, "after").await;
}

#[tokio::test]
async fn a_call_from_another_cluster_changes_nothing() {
    let group = Group::start(LONG).await;
    group.put(1, "before").await;
    group.shows(2, "before").await;
    let before = group.client(2).status().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = IdentityFile::new(folder.path(), ThisMachine.files());
    let stranger = Identity::open(file, NodeId(1), BTreeSet::new(), Arc::new(ThisMachine)).unwrap();
    stranger.cluster_id_or("another").await.unwrap();
    let url = group.links[&2].url.clone();
    let line = Peers::new(stranger.clone(), Arc::new(ThisMachine), Line::Raft);
    let mut stub = pb::raft_client::RaftClient::new(line.channel(NodeId(2), &url).unwrap());
    let vote = pb::RaftVote { term: 1000, node: 1, committed: true };
    let append = pb::AppendEntriesRequest { vote: Some(vote), ..Default::default() };
    let request = stranger.stamp(NodeId(2), append).unwrap();
    let refusal = stub.append_entries(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    let ours = &before.cluster_id;
    assert_eq!(
        refusal.message(),
        format!("node 1 is of cluster another, this node is of cluster {ours}")
    );
    let unnamed = stub.vote(pb::VoteRequest::default()).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::FailedPrecondition);

    let after = group.client(2).status().await.unwrap();
    assert_eq!((after.term, after.leader), (before.term, before.leader));
}
