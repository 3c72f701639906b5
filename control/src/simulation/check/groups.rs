//! What must hold of deployments and groups.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::change::Change;
use phalanx_proto::id::{Epoch, GroupId, ViewIndex};
use phalanx_proto::view::{
    ClusterView, Group, GroupRef, GroupState, MemberRole, MemberState, Rendezvous,
};

use super::Reference;

// === impl Reference ===

impl Reference<'_> {
    /// No device is in two groups, and each epoch of a group has one rendezvous.
    pub(super) fn groups(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut meetings: BTreeMap<(GroupId, Epoch), &Rendezvous> = BTreeMap::new();
        for (index, step) in &self.steps {
            let mut taken = BTreeSet::new();
            for group in step.view.groups.values() {
                let devices = group.ranks.iter().map(|rank| (rank.member_id, rank.device));
                if group.is_live() && !devices.into_iter().all(|device| taken.insert(device)) {
                    found.push(format!("a device of group {} is in two at {index}", group.id));
                }
                let Some(rendezvous) = &group.rendezvous else { continue };
                let first = *meetings.entry((group.id, group.epoch)).or_insert(rendezvous);
                if first != rendezvous {
                    let group = group.reference();
                    found.push(format!("group {group} has another rendezvous at {index}"));
                }
            }
        }
        found
    }

    /// Whether a change that was answered is what the state shows at its index.
    pub(super) fn took_effect(&self, change: &Change, index: ViewIndex) -> bool {
        let Some(step) = self.steps.get(&index.0) else { return true };
        let group =
            |of: &GroupRef| step.view.groups.get(&of.id).filter(|group| group.epoch == of.epoch);
        match change {
            Change::PublishRendezvous { group: of, rendezvous } => {
                group(of).is_some_and(|group| group.rendezvous.as_ref() == Some(rendezvous))
            }
            Change::RankReady { group: of, rank } => {
                group(of).is_some_and(|group| group.ready.contains(rank))
            }
            Change::BreakGroup(of) => group(of).is_none_or(|group| !group.is_live()),
            _ => true,
        }
    }
}

/// Once nothing changes any more, every deployment has the groups that it should have, as far as there are devices.
pub(super) fn unplaced(view: &ClusterView) -> Vec<String> {
    let takes_work = view
        .members
        .values()
        .filter(|member| member.role == MemberRole::Worker && member.state == MemberState::Ready);
    let offered: usize = takes_work.map(|member| member.capacity.devices as usize).sum();
    let ranks = |group: &&Group| if group.is_live() { group.ranks.len() } else { 0 };
    let held: usize = view.groups.values().map(|group| ranks(&group)).sum();
    let mut found = Vec::new();
    for deployment in view.deployments.values() {
        let groups = view.groups.values().filter(|group| group.deployment == deployment.name);
        let (ready, others): (Vec<&Group>, Vec<&Group>) = groups
            .partition(|group| group.state == GroupState::Ready && deployment.is_as_wanted(group));
        let replicas = deployment.replicas as usize;
        // What does not serve as wanted has to give way to what could; but what serves stays as long as nobody has
        // served the revision that is wanted.
        let is_known = view.knows(&deployment.name, &deployment.revision);
        let gives_way = |group: &&&Group| is_known || group.state != GroupState::Ready;
        let available = offered - held + others.iter().filter(gives_way).map(ranks).sum::<usize>();
        let could_serve = ready.len() < replicas && available >= deployment.tp as usize;
        let has_too_many = ready.len() > replicas
            || (ready.len() == replicas && others.iter().any(|group| group.is_live()));
        if could_serve || has_too_many {
            found.push(format!(
                "{deployment:?} has {ready:?} and {others:?}, with {} devices free",
                offered - held
            ));
        }
    }
    let unwanted = view
        .groups
        .values()
        .filter(|group| group.is_live() && !view.deployments.contains_key(&group.deployment));
    found.extend(unwanted.map(|group| format!("nobody wants {group:?}")));
    found
}
