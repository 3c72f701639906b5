//! Where groups are and why one is broken, for operators: read off the view alone.

use serde::Serialize;

use super::{ClusterView, Group, GroupRank, GroupState, MemberState};
use crate::id::{Epoch, GroupId, MemberId};

/// One group of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// Which.
    pub id: GroupId,
    /// How often it was formed anew shows in this: it only grows.
    pub epoch: Epoch,
    /// How far it is.
    pub state: GroupState,
    /// Where, rank 0 first.
    pub ranks: Vec<RankStatus>,
    /// Why it is broken, if it is.
    pub reason: Option<String>,
}

/// One rank of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RankStatus {
    /// On which member.
    pub member_id: MemberId,
    /// Which of its devices.
    pub device: u32,
    /// Where the member is; none once it is gone.
    pub address: Option<String>,
    /// Whether the rank is ready.
    pub is_ready: bool,
}

// === impl GroupStatus ===

impl GroupStatus {
    /// What `view` tells of one of its groups.
    pub fn new(view: &ClusterView, group: &Group) -> Self {
        let ranks = (0..).zip(&group.ranks).map(|(rank, at)| RankStatus {
            member_id: at.member_id,
            device: at.device,
            address: view.members.get(&at.member_id).map(|member| member.address.clone()),
            is_ready: group.ready.contains(&rank),
        });
        Self {
            id: group.id,
            epoch: group.epoch,
            state: group.state,
            ranks: ranks.collect(),
            reason: (group.state == GroupState::Broken).then(|| reason(view, group)),
        }
    }
}

/// What a member said, or what became of one.
fn reason(view: &ClusterView, group: &Group) -> String {
    if let Some(failure) = &group.failure {
        return format!("member {}: {}", failure.member_id, failure.reason);
    }
    let lost = |rank: &GroupRank| match view.members.get(&rank.member_id) {
        None => Some(format!("member {} is gone", rank.member_id)),
        Some(member) if member.state == MemberState::Draining => {
            Some(format!("member {} drains", rank.member_id))
        }
        Some(member) if member.epoch != rank.member_epoch => {
            Some(format!("member {} registered anew", rank.member_id))
        }
        Some(_) => None,
    };
    let found = group.ranks.iter().find_map(lost);
    found.unwrap_or_else(|| "it was broken while its members stayed".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::view::{Capacity, GroupFailure, Member, MemberRole};

    fn member(id: u64, state: MemberState) -> Member {
        Member {
            id: MemberId(id),
            role: MemberRole::Worker,
            address: format!("http://{id}"),
            zone: String::new(),
            epoch: Epoch(id),
            state,
            models: Vec::new(),
            capacity: Capacity { devices: 1, memory_bytes: 0 },
        }
    }

    fn group(on: u64, state: GroupState) -> Group {
        let rank = GroupRank { member_id: MemberId(on), member_epoch: Epoch(on), device: 0 };
        Group {
            id: GroupId(9),
            epoch: Epoch(9),
            deployment: "m".into(),
            revision: "r".into(),
            ranks: vec![rank],
            ready: BTreeSet::from_iter((state == GroupState::Ready).then_some(0)),
            rendezvous: None,
            state,
            failure: None,
        }
    }

    #[test]
    fn a_group_says_where_it_is_and_why_it_is_broken() {
        let mut view = ClusterView::default();
        for (id, state) in [(1, MemberState::Ready), (2, MemberState::Draining)] {
            view.members.insert(MemberId(id), member(id, state));
        }
        let failure = GroupFailure { member_id: MemberId(1), reason: "no folder".to_owned() };
        for (group, address, reason) in [
            (group(1, GroupState::Ready), Some("http://1"), None),
            (group(2, GroupState::Broken), Some("http://2"), Some("member 2 drains")),
            (group(3, GroupState::Broken), None, Some("member 3 is gone")),
            (
                Group { failure: Some(failure), ..group(1, GroupState::Broken) },
                Some("http://1"),
                Some("member 1: no folder"),
            ),
        ] {
            let status = GroupStatus::new(&view, &group);
            assert_eq!(status.reason.as_deref(), reason);
            let [rank] = status.ranks.as_slice() else { panic!("{status:?}") };
            assert_eq!(rank.address.as_deref(), address);
            assert_eq!(rank.is_ready, group.state == GroupState::Ready);
        }
    }
}
