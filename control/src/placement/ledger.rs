//! Who holds which device, and where another group would go best.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::id::{MemberId, ModelName};
use phalanx_proto::view::{ClusterView, Group, GroupRank, Member, MemberRole, MemberState};

use super::Wanted;

/// The devices of the cluster and what they are held for.
pub(super) struct Ledger<'a> {
    view: &'a ClusterView,
    /// Devices that no live group holds, of members that take work.
    free: BTreeMap<MemberId, BTreeSet<u32>>,
    /// Ranks by deployment and zone, by deployment and member, and by member.
    in_zone: BTreeMap<(&'a ModelName, &'a str), usize>,
    on_member: BTreeMap<(&'a ModelName, MemberId), usize>,
    ranks: BTreeMap<MemberId, usize>,
}

// === impl Ledger ===

impl<'a> Ledger<'a> {
    pub(super) fn new(view: &'a ClusterView) -> Self {
        let offering = view.members.values().filter(|member| takes_work(member));
        let free = offering.map(|member| (member.id, (0..member.capacity.devices).collect()));
        let mut ledger = Self {
            view,
            free: free.collect(),
            in_zone: BTreeMap::new(),
            on_member: BTreeMap::new(),
            ranks: BTreeMap::new(),
        };
        for group in view.groups.values().filter(|group| group.is_live()) {
            ledger.hold(&group.deployment, &group.ranks);
        }
        ledger
    }

    /// Whether a rank's registration is gone, or takes no more work.
    pub(super) fn is_lost(&self, group: &Group) -> bool {
        let holds = |rank: &GroupRank| {
            let member = self.view.members.get(&rank.member_id);
            member.is_some_and(|member| member.epoch == rank.member_epoch && takes_work(member))
        };
        !group.ranks.iter().all(holds)
    }

    /// The member whose failure broke the group, as long as it has not registered anew.
    pub(super) fn failed_member(&self, group: &Group) -> Option<MemberId> {
        let failed = group.failure.as_ref().map(|failure| failure.member_id);
        failed.filter(|member_id| self.view.members.contains_key(member_id))
    }

    pub(super) fn hold(&mut self, deployment: &'a ModelName, ranks: &[GroupRank]) {
        for rank in ranks {
            if let Some(free) = self.free.get_mut(&rank.member_id) {
                free.remove(&rank.device);
            }
            for count in self.counts(deployment, rank.member_id) {
                *count += 1;
            }
        }
    }

    pub(super) fn release(&mut self, group: &'a Group) {
        for rank in &group.ranks {
            let devices = self.view.members.get(&rank.member_id);
            let is_offered = devices.is_some_and(|member| rank.device < member.capacity.devices);
            if let Some(free) = self.free.get_mut(&rank.member_id).filter(|_free| is_offered) {
                free.insert(rank.device);
            }
            for count in self.counts(&group.deployment, rank.member_id) {
                *count = count.saturating_sub(1);
            }
        }
    }

    fn counts(
        &mut self,
        deployment: &'a ModelName,
        member_id: MemberId,
    ) -> impl Iterator<Item = &mut usize> {
        let zone = self.view.members.get(&member_id).map_or("", |member| member.zone.as_str());
        let counts = [
            self.in_zone.entry((deployment, zone)).or_default(),
            self.on_member.entry((deployment, member_id)).or_default(),
            self.ranks.entry(member_id).or_default(),
        ];
        counts.into_iter()
    }

    /// Free devices for another group of the deployment: on one member if possible, else in one zone, else anywhere.
    pub(super) fn place(&self, wanted: &Wanted<'a>) -> Option<Vec<GroupRank>> {
        let size = wanted.deployment.tp as usize;
        let candidates =
            self.free.iter().filter(|(id, free)| !free.is_empty() && !wanted.failed.contains(id));
        let mut candidates: Vec<&Member> =
            candidates.filter_map(|(id, _free)| self.view.members.get(id)).collect();
        let roomy = candidates.iter().filter(|member| self.free[&member.id].len() >= size);
        if let Some(best) = roomy.min_by_key(|member| self.preference(wanted, member)) {
            return self.take(&[best], size);
        }
        // As few members as there need be: those with the most free devices first.
        candidates.sort_by_key(|member| {
            (Reverse(self.free[&member.id].len()), self.preference(wanted, member))
        });
        let mut zones: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
        for member in &candidates {
            zones.entry(&member.zone).or_default().push(member);
        }
        let load = |zone: &str| self.in_zone.get(&(&wanted.deployment.name, zone)).copied();
        let fitting = zones.iter().filter_map(|(zone, members)| {
            Some(((load(zone).unwrap_or(0), *zone), self.take(members, size)?))
        });
        let in_one_zone = fitting.min_by_key(|(order, _ranks)| *order).map(|(_order, ranks)| ranks);
        in_one_zone.or_else(|| self.take(&candidates, size))
    }

    /// Smaller is better: who has the model loaded for no group, who was in the group before, then the emptiest zone and
    /// the emptiest member.
    fn preference(
        &self,
        wanted: &Wanted<'a>,
        member: &Member,
    ) -> (bool, bool, [usize; 3], MemberId) {
        let deployment = wanted.deployment;
        let name = &deployment.name;
        let was_in = wanted.broken.first().is_some_and(|group| group.holds(member.id));
        let zone = self.in_zone.get(&(name, member.zone.as_str())).copied();
        let here = self.on_member.get(&(name, member.id)).copied();
        let has_to_spare = here.is_none_or(|groups| groups == 0)
            && member
                .models
                .iter()
                .any(|served| served.name == *name && served.revision == deployment.revision);
        let all = self.ranks.get(&member.id).copied();
        (!has_to_spare, !was_in, [zone, here, all].map(Option::unwrap_or_default), member.id)
    }

    /// The first `size` free devices of the members, in their order.
    fn take(&self, members: &[&Member], size: usize) -> Option<Vec<GroupRank>> {
        let devices = members.iter().flat_map(|member| {
            let free = self.free.get(&member.id).into_iter().flatten();
            free.map(|&device| GroupRank {
                member_id: member.id,
                member_epoch: member.epoch,
                device,
            })
        });
        let ranks: Vec<GroupRank> = devices.take(size).collect();
        (ranks.len() == size).then_some(ranks)
    }
}

fn takes_work(member: &Member) -> bool {
    member.role == MemberRole::Worker && member.state == MemberState::Ready
}
