//! Against scripted control nodes on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_proto::fault::FaultCode;
use phalanx_proto::wire::to_status;

use super::*;
use crate::mock_control::{Script, serve};

/// Far longer than two attempts take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that says who is in its group, loses its first answer, and then knows nobody that it is asked about.
struct Forgetful {
    members: Vec<u64>,
    asked: AtomicUsize,
}

impl Script for Forgetful {
    fn status(&self) -> Result<pb::StatusResponse, Status> {
        let member = |id: &u64| pb::RaftMember { id: *id, ..pb::RaftMember::default() };
        let members = self.members.iter().map(member).collect();
        Ok(pb::StatusResponse { members, ..pb::StatusResponse::default() })
    }

    fn change_group(
        &self,
        _request: pb::ChangeGroupRequest,
    ) -> Result<pb::ChangeGroupResponse, Status> {
        Err(match self.asked.fetch_add(1, Ordering::Relaxed) {
            0 => Status::unavailable("the connection broke"),
            _ => to_status(&Fault::invalid(GROUP_NODE, "node 5 is not in the group")),
        })
    }
}

async fn remove_5_from(members: &[u64]) -> Result<NodeId, Fault> {
    let script = Forgetful { members: members.to_vec(), asked: AtomicUsize::new(0) };
    let client = ControlClient::new(&[serve(script).await]).unwrap();
    client.change_group_within(PATIENCE, GroupChange::Remove(NodeId(5))).await
}

#[tokio::test]
async fn a_node_that_left_while_its_removal_was_asked_for_is_removed() {
    assert_eq!(remove_5_from(&[1, 5]).await, Ok(NodeId(5)));
    let fault = remove_5_from(&[1]).await.unwrap_err();
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some(GROUP_NODE)));
}
