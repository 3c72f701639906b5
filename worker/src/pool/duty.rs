//! What the cluster's view asks of a pool worker. Pure.

use phalanx_proto::change::Change;
use phalanx_proto::id::{Epoch, MemberId, ModelName, Revision};
use phalanx_proto::view::{ClusterView, Group, GroupRef, Member, ServedModel};

/// What the worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hands {
    /// No model.
    Empty,
    /// No model, because this one could not be had.
    Failed { group: GroupRef, reason: String },
    /// A model that is loaded, and as whom the worker was last told to serve it.
    Full { model: ServedModel, member_id: MemberId },
}

/// A rank that this worker is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) member_id: MemberId,
    pub(super) group: GroupRef,
    pub(super) rank: u32,
    pub(super) ranks: u32,
    pub(super) name: ModelName,
    pub(super) revision: Revision,
    is_ready: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing, until the view changes.
    Wait,
    /// Load a model.
    Load(Task),
    /// Take the model in hand for this member's, and look again.
    Adopt(MemberId),
    /// Tell control what is so, and wait for the view to show it.
    Report(Change),
    /// Let go of the model.
    Unload,
    /// As [`Self::Unload`], but not yet: the worker was fenced and is another member now, and what it served is
    /// likely to be placed with it again.
    UnloadLater,
}

/// The next duty of the worker whose registration has `epoch`.
pub(super) fn duty(view: &ClusterView, epoch: Epoch, hands: &Hands) -> Duty {
    let Some(member) = registered(view, epoch) else {
        // The view is older than the registration, or the registration is no more: neither says what to do.
        return Duty::Wait;
    };
    match (task(view, member), hands) {
        (Some(task), Hands::Full { model, member_id }) if task.is_for(model) => {
            if *member_id != member.id {
                return Duty::Adopt(member.id);
            }
            if member.models != [model.clone()] {
                // Before the rank is ready: whoever sees a ready group finds it served.
                return Duty::Report(serve(member, vec![model.clone()]));
            }
            if task.is_ready {
                return Duty::Wait;
            }
            Duty::Report(Change::RankReady { group: task.group, rank: task.rank })
        }
        (None, Hands::Full { member_id, .. }) if *member_id != member.id => Duty::UnloadLater,
        (_, Hands::Full { .. }) => Duty::Unload,
        (_, Hands::Empty | Hands::Failed { .. }) if !member.models.is_empty() => {
            Duty::Report(serve(member, Vec::new()))
        }
        (Some(task), Hands::Failed { group, reason }) if task.group == *group => {
            let reason = reason.clone();
            Duty::Report(Change::FailRank { group: task.group, rank: task.rank, reason })
        }
        (Some(task), Hands::Empty | Hands::Failed { .. }) => Duty::Load(task),
        (None, Hands::Empty | Hands::Failed { .. }) => Duty::Wait,
    }
}

/// The rank that the registration with `epoch` has, if any.
pub(super) fn task_of(view: &ClusterView, epoch: Epoch) -> Option<Task> {
    task(view, registered(view, epoch)?)
}

/// What takes every model from the registration with `epoch`; none where it has none.
pub(super) fn serve_nothing(view: &ClusterView, epoch: Epoch) -> Option<Change> {
    let member = registered(view, epoch).filter(|member| !member.models.is_empty())?;
    Some(serve(member, Vec::new()))
}

/// Epochs are log indices: no two registrations have the same one.
fn registered(view: &ClusterView, epoch: Epoch) -> Option<&Member> {
    view.members.values().find(|member| member.epoch == epoch)
}

fn serve(member: &Member, models: Vec<ServedModel>) -> Change {
    Change::Serve { member_id: member.id, epoch: member.epoch, models }
}

/// The rank of this registration. A worker offers one device, so it has one rank at most.
fn task(view: &ClusterView, member: &Member) -> Option<Task> {
    view.groups.values().filter(|group| group.is_live()).find_map(|group| {
        let mut ranks = group.ranks.iter();
        let rank = ranks
            .position(|rank| rank.member_id == member.id && rank.member_epoch == member.epoch)?;
        Some(Task::new(group, member, rank))
    })
}

// === impl Task ===

impl Task {
    fn new(group: &Group, member: &Member, rank: usize) -> Self {
        let as_u32 = |count| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            member_id: member.id,
            group: group.reference(),
            rank: as_u32(rank),
            ranks: as_u32(group.ranks.len()),
            name: group.deployment.clone(),
            revision: group.revision.clone(),
            is_ready: group.ready.contains(&as_u32(rank)),
        }
    }

    pub(super) fn is_for(&self, model: &ServedModel) -> bool {
        model.name == self.name && model.revision == self.revision
    }
}
