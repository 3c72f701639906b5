//! How much the view weighs, so that it always fits into one message of the watch.

use phalanx_proto::view::{
    Alias, ApiKey, ClusterView, Deployment, Group, Member, Setting, Tenant, ViewOp,
};
use phalanx_proto::wire::view_op_bytes;

use super::Refusal;

/// The most that the entries of the view may take on the wire, in bytes: three quarters of the largest message
/// ([`phalanx_proto::MESSAGE_BYTES_MAX`]), and as JSON well below the largest snapshot. A cluster of 1,000 members
/// with 10,000 keys takes a tenth of it.
pub(super) const VIEW_BYTES_MAX: usize = 12 << 20;

/// What `view` weighs.
pub(super) fn weight(view: &ClusterView) -> usize {
    let ClusterView { members, models, aliases, deployments, groups, .. } = view;
    let ClusterView { tenants, keys, settings, lineage: _, index: _, .. } = view;
    let names = members.values().cloned().map(ViewOp::PutMember);
    let names = names.chain(models.iter().cloned().map(ViewOp::PutModel));
    let names = names.chain(aliases.values().cloned().map(ViewOp::PutAlias));
    let placed = deployments.values().cloned().map(ViewOp::PutDeployment);
    let placed = placed.chain(groups.values().cloned().map(ViewOp::PutGroup));
    let access = tenants.values().cloned().map(ViewOp::PutTenant);
    let access = access.chain(keys.values().cloned().map(ViewOp::PutKey));
    let access = access.chain(settings.values().cloned().map(ViewOp::PutSetting));
    names.chain(placed).chain(access).map(|op| view_op_bytes(&op)).sum()
}

/// What the view weighs after `ops`, if that is not too much. Whatever makes it lighter is never refused.
pub(super) fn weigh(view: &ClusterView, before: usize, ops: &[ViewOp]) -> Result<usize, Refusal> {
    let (mut added, mut removed) = (0, 0);
    for op in ops {
        removed += held(view, op);
        added += if is_put(op) { view_op_bytes(op) } else { 0 };
    }
    let after = (before + added).saturating_sub(removed);
    if added > removed && after > VIEW_BYTES_MAX {
        let (what, count_max) = ("bytes of members, names and keys".to_owned(), VIEW_BYTES_MAX);
        return Err(Refusal::Full {
            what,
            count_max: u64::try_from(count_max).unwrap_or(u64::MAX),
        });
    }
    Ok(after)
}

const fn is_put(op: &ViewOp) -> bool {
    match op {
        ViewOp::PutMember(_)
        | ViewOp::PutModel(_)
        | ViewOp::PutAlias(_)
        | ViewOp::PutDeployment(_)
        | ViewOp::PutGroup(_)
        | ViewOp::PutTenant(_)
        | ViewOp::PutKey(_)
        | ViewOp::PutSetting(_) => true,
        ViewOp::RemoveMember(_)
        | ViewOp::RemoveModel(_)
        | ViewOp::RemoveAlias(_)
        | ViewOp::RemoveDeployment(_)
        | ViewOp::RemoveGroup(_)
        | ViewOp::RemoveTenant(_)
        | ViewOp::RemoveKey(_)
        | ViewOp::RemoveSetting(_) => false,
    }
}

/// What the entry weighs that `op` replaces or removes.
fn held(view: &ClusterView, op: &ViewOp) -> usize {
    match op {
        ViewOp::PutMember(Member { id, .. }) | ViewOp::RemoveMember(id) => {
            bytes(view.members.get(id), ViewOp::PutMember)
        }
        ViewOp::PutModel(model) | ViewOp::RemoveModel(model) => {
            bytes(view.models.get(model), ViewOp::PutModel)
        }
        ViewOp::PutAlias(Alias { name, .. }) | ViewOp::RemoveAlias(name) => {
            bytes(view.aliases.get(name), ViewOp::PutAlias)
        }
        ViewOp::PutDeployment(Deployment { name, .. }) | ViewOp::RemoveDeployment(name) => {
            bytes(view.deployments.get(name), ViewOp::PutDeployment)
        }
        ViewOp::PutGroup(Group { id, .. }) | ViewOp::RemoveGroup(id) => {
            bytes(view.groups.get(id), ViewOp::PutGroup)
        }
        ViewOp::PutTenant(Tenant { name, .. }) | ViewOp::RemoveTenant(name) => {
            bytes(view.tenants.get(name), ViewOp::PutTenant)
        }
        ViewOp::PutKey(ApiKey { id, .. }) | ViewOp::RemoveKey(id) => {
            bytes(view.keys.get(id), ViewOp::PutKey)
        }
        ViewOp::PutSetting(Setting { key, .. }) | ViewOp::RemoveSetting(key) => {
            bytes(view.settings.get(key), ViewOp::PutSetting)
        }
    }
}

fn bytes<T>(entry: Option<&T>, put: fn(T) -> ViewOp) -> usize
where
    T: Clone,
{
    entry.map_or(0, |entry| view_op_bytes(&put(entry.clone())))
}
