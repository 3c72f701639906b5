//! Why a deployment has fewer groups than are wanted, for operators: read off the view alone.

use std::collections::BTreeSet;
use std::fmt;

use super::{ClusterView, Deployment, Group, GroupState, Member, MemberRole, MemberState};
use crate::id::MemberId;

/// What a deployment lacks, and why nobody is about to make it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Groups that are wanted, and neither serve nor form.
    pub missing: usize,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Nobody offers a device.
    NoOffer,
    /// One group needs more devices than all workers offer.
    TooWide { tp: u32, offered: usize },
    /// Every worker with a free device said that it cannot.
    AllFailed,
    /// Every device is held, or too many are.
    NoRoom { tp: u32, free: usize, offered: usize },
    /// As [`Self::NoRoom`], while another revision serves that does not give way to one that nobody has served.
    Untried { serving: usize },
    /// There is room: it is about to be placed.
    Placing,
}

// === impl Shortage ===

impl Shortage {
    /// What the deployment lacks in `view`; none when it has as many groups as are wanted.
    pub fn of(view: &ClusterView, wanted: &Deployment) -> Option<Self> {
        let of_it = || view.groups.values().filter(|group| group.deployment == wanted.name);
        let current = of_it().filter(|group| group.is_live() && wanted.is_as_wanted(group));
        let missing = usize::try_from(wanted.replicas).ok()?.checked_sub(current.count())?;
        if missing == 0 {
            return None;
        }
        let failed: BTreeSet<MemberId> = of_it()
            .filter(|group| wanted.is_as_wanted(group))
            .filter_map(|group| group.failure.as_ref().map(|failure| failure.member_id))
            .collect();
        let outdated =
            |group: &&Group| group.state == GroupState::Ready && !wanted.is_as_wanted(group);
        let serving = of_it().filter(outdated).count();
        Some(Self { missing, reason: reason(view, wanted, &failed, serving) })
    }
}

fn reason(
    view: &ClusterView,
    wanted: &Deployment,
    failed: &BTreeSet<MemberId>,
    serving: usize,
) -> Reason {
    let takes_work =
        |member: &&Member| member.role == MemberRole::Worker && member.state == MemberState::Ready;
    let workers = || view.members.values().filter(takes_work);
    let devices = |member: &Member| usize::try_from(member.capacity.devices).unwrap_or(usize::MAX);
    let free = |member: &Member| {
        let live = view.groups.values().filter(|group| group.is_live());
        let held = live.flat_map(|group| &group.ranks).filter(|rank| rank.member_id == member.id);
        devices(member).saturating_sub(held.count())
    };
    let offered: usize = workers().map(devices).sum();
    let tp = wanted.tp;
    let size = usize::try_from(tp).unwrap_or(usize::MAX);
    let able = workers().filter(|member| !failed.contains(&member.id)).map(free).sum::<usize>();
    let free = workers().map(free).sum::<usize>();
    if offered == 0 {
        Reason::NoOffer
    } else if size > offered {
        Reason::TooWide { tp, offered }
    } else if able >= size {
        Reason::Placing
    } else if free >= size {
        Reason::AllFailed
    } else if serving > 0 && !view.knows(&wanted.name, &wanted.revision) {
        Reason::Untried { serving }
    } else {
        Reason::NoRoom { tp, free, offered }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, reason } = self;
        match reason {
            Reason::NoOffer => write!(f, "{missing} missing: no worker offers a device"),
            Reason::TooWide { tp, offered } => write!(
                f,
                "{missing} missing: tp {tp} needs {tp} devices, all workers together offer {offered}"
            ),
            Reason::AllFailed => {
                write!(f, "{missing} missing: whoever has a free device could not serve it")
            }
            Reason::NoRoom { tp, free, offered } => write!(
                f,
                "{missing} missing, each of tp {tp}: of {offered} devices offered {free} are free"
            ),
            Reason::Untried { serving } => write!(
                f,
                "{missing} missing: no worker has served this revision and none has a free device to try it, so \
                 what serves stays ({serving}); add a worker, or want fewer replicas for a while"
            ),
            Reason::Placing => write!(f, "{missing} missing: about to be placed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, GroupId, ViewIndex};
    use crate::view::{Capacity, GroupFailure, GroupRank, Model};

    /// Workers with one device each.
    fn cluster(workers: u64) -> ClusterView {
        let mut view = ClusterView::default();
        for id in 1..=workers {
            let member = Member {
                id: MemberId(id),
                role: MemberRole::Worker,
                address: format!("http://{id}"),
                zone: String::new(),
                epoch: Epoch(id),
                state: MemberState::Ready,
                models: Vec::new(),
                capacity: Capacity { devices: 1, memory_bytes: 0 },
            };
            view.members.insert(member.id, member);
        }
        view
    }

    fn group(view: &mut ClusterView, on: u64, revision: &str, state: GroupState) {
        let rank = GroupRank { member_id: MemberId(on), member_epoch: Epoch(on), device: 0 };
        let reason = "why".to_owned();
        let failure = GroupFailure { member_id: MemberId(on), reason };
        let group = Group {
            id: GroupId(on),
            epoch: Epoch(on),
            deployment: "m".into(),
            revision: revision.into(),
            ranks: vec![rank],
            ready: BTreeSet::new(),
            rendezvous: None,
            state,
            failure: (state == GroupState::Broken).then_some(failure),
        };
        view.groups.insert(group.id, group);
    }

    #[track_caller]
    fn check(view: &ClusterView, (replicas, tp): (u32, u32), expected: Option<&str>) {
        let (name, revision, version) = ("m".into(), "r2".into(), ViewIndex(1));
        let wanted = Deployment { name, revision, replicas, tp, version };
        let shortage = Shortage::of(view, &wanted).map(|shortage| shortage.to_string());
        assert_eq!(shortage.as_deref(), expected);
    }

    #[test]
    fn what_is_missing_is_told_with_its_reason() {
        check(&cluster(0), (2, 1), Some("2 missing: no worker offers a device"));
        check(
            &cluster(3),
            (1, 4),
            Some("1 missing: tp 4 needs 4 devices, all workers together offer 3"),
        );
        check(&cluster(1), (1, 1), Some("1 missing: about to be placed"));
        check(&cluster(1), (0, 1), None);

        let mut view = cluster(2);
        group(&mut view, 1, "r2", GroupState::Ready);
        check(&view, (1, 1), None);
        group(&mut view, 2, "r2", GroupState::Forming);
        check(&view, (2, 1), None);
        check(&view, (5, 1), Some("3 missing, each of tp 1: of 2 devices offered 0 are free"));

        let mut view = cluster(1);
        group(&mut view, 1, "r2", GroupState::Broken);
        let line = "1 missing: whoever has a free device could not serve it";
        check(&view, (1, 1), Some(line));

        let mut view = cluster(1);
        group(&mut view, 1, "r1", GroupState::Ready);
        check(
            &view,
            (1, 1),
            Some(
                "1 missing: no worker has served this revision and none has a free device to try it, so what \
                 serves stays (1); add a worker, or want fewer replicas for a while",
            ),
        );
        view.models.insert(Model { name: "m".into(), revision: "r2".into() });
        check(&view, (1, 1), Some("1 missing, each of tp 1: of 1 devices offered 0 are free"));
    }
}
