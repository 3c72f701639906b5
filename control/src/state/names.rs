//! The names that clients may use: models, and aliases that stand for them.

use phalanx_proto::id::ModelName;
use phalanx_proto::view::{Alias, AliasTarget, ClusterView, Member, Model, ViewOp};

use super::{NAMES_MAX, Ops, Refusal, check_room};

pub(super) fn put_model(view: &ClusterView, model: &Model) -> Ops {
    if view.models.contains(model) {
        return Ok(Vec::new());
    }
    check_room("models", view.models.len(), 1, NAMES_MAX)?;
    Ok(vec![ViewOp::PutModel(model.clone())])
}

pub(super) fn remove_model(view: &ClusterView, model: &Model) -> Ops {
    let name = &model.name;
    if !view.models.contains(model) {
        return Err(Refusal::UnknownModel { name: name.clone() });
    }
    let serves = |member: &&Member| {
        member.models.iter().any(|m| m.name == *name && m.revision == model.revision)
    };
    if let Some(member) = view.members.values().find(serves) {
        return Err(Refusal::ModelServed { name: name.clone(), member_id: member.id });
    }
    Ok(vec![ViewOp::RemoveModel(model.clone())])
}

/// A target may name a model that is not known yet: aliases may be set before workers come.
pub(super) fn set_alias(view: &ClusterView, alias: &Alias) -> Ops {
    check_alias_name(view, &alias.name)?;
    check_targets(view, &alias.name, alias.targets.iter().chain(&alias.shadow))?;
    let known = view.aliases.get(&alias.name);
    let previous = known.and_then(|known| {
        let moved = known.targets != alias.targets;
        if moved { Some(known.targets.clone()) } else { known.previous.clone() }
    });
    put_alias(view, Alias { previous, ..alias.clone() })
}

/// What is rolled back is what comes before then, so a second one returns to it. A shadow that is back among
/// the targets has nothing left to be compared with.
pub(super) fn rollback_alias(view: &ClusterView, name: &ModelName) -> Ops {
    let known = known_alias(view, name)?;
    let before = known.previous.clone();
    let targets = before.ok_or_else(|| Refusal::NothingBefore { name: name.clone() })?;
    check_targets(view, name, &targets)?;
    let is_none_of_them =
        |shadow: &AliasTarget| !targets.iter().any(|target| target.is_same_model(shadow));
    let shadow = known.shadow.clone().filter(is_none_of_them);
    let (name, previous) = (name.clone(), Some(known.targets.clone()));
    put_alias(view, Alias { name, targets, shadow, previous })
}

pub(super) fn remove_alias(view: &ClusterView, name: &ModelName) -> Ops {
    known_alias(view, name)?;
    Ok(vec![ViewOp::RemoveAlias(name.clone())])
}

fn put_alias(view: &ClusterView, alias: Alias) -> Ops {
    let known = view.aliases.get(&alias.name);
    if known == Some(&alias) {
        return Ok(Vec::new());
    }
    check_room("aliases", view.aliases.len(), usize::from(known.is_none()), NAMES_MAX)?;
    Ok(vec![ViewOp::PutAlias(alias)])
}

fn known_alias<'a>(view: &'a ClusterView, name: &ModelName) -> Result<&'a Alias, Refusal> {
    view.aliases.get(name).ok_or_else(|| Refusal::UnknownAlias { name: name.clone() })
}

/// An alias hides a model of its name, so it must not take one from under its clients.
fn check_alias_name(view: &ClusterView, name: &ModelName) -> Result<(), Refusal> {
    let serves = |member: &&Member| member.models.iter().any(|model| model.name == *name);
    if let Some(member) = view.members.values().find(serves) {
        return Err(Refusal::NameServed { name: name.clone(), member_id: member.id });
    }
    if view.deployments.contains_key(name) {
        return Err(Refusal::NameDeployed { name: name.clone() });
    }
    let points_here =
        |alias: &&Alias| alias.targets.iter().chain(&alias.shadow).any(|to| to.model == *name);
    if let Some(alias) = view.aliases.values().find(points_here) {
        let (name, target) = (alias.name.clone(), name.clone());
        return Err(Refusal::AliasOfAlias { name, target });
    }
    Ok(())
}

fn check_targets<'a>(
    view: &ClusterView,
    name: &ModelName,
    targets: impl IntoIterator<Item = &'a AliasTarget>,
) -> Result<(), Refusal> {
    let is_alias =
        |target: &&AliasTarget| target.model == *name || view.aliases.contains_key(&target.model);
    match targets.into_iter().find(is_alias) {
        Some(AliasTarget { model, .. }) => {
            Err(Refusal::AliasOfAlias { name: name.clone(), target: model.clone() })
        }
        None => Ok(()),
    }
}
