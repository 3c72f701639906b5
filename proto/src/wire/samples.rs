//! One of everything, with no field left at its default, for the tests of this folder.

use std::collections::BTreeSet;

use crate::id::{Epoch, GroupId, MemberId, ViewIndex};
use crate::view::{
    Alias, AliasTarget, ApiKey, CachePolicy, Capacity, Deployment, Group, GroupFailure, GroupRank,
    GroupState, KeyLimits, KeySecret, Member, MemberRole, MemberState, Model, Rendezvous, Scope,
    ServedModel, Setting, Tenant, TenantLimits, ViewOp,
};

pub(super) fn model() -> Model {
    Model { name: "m".into(), revision: "r".into() }
}

pub(super) fn served() -> ServedModel {
    let (context_tokens_max, kv_tokens_max) = (8, 16);
    ServedModel { name: "m".into(), revision: "r".into(), context_tokens_max, kv_tokens_max }
}

pub(super) fn capacity() -> Capacity {
    Capacity { devices: 2, memory_bytes: 99 }
}

pub(super) fn alias() -> Alias {
    let target = |revision: Option<&str>, weight| AliasTarget {
        model: "m".into(),
        revision: revision.map(Into::into),
        weight,
    };
    Alias {
        name: "a".into(),
        targets: vec![target(None, 95), target(Some("r"), 5)],
        shadow: Some(target(Some("s"), 1)),
        previous: Some(vec![target(Some("q"), 1)]),
    }
}

pub(super) fn rank() -> GroupRank {
    GroupRank { member_id: MemberId(4), member_epoch: Epoch(6), device: 1 }
}

pub(super) fn rendezvous() -> Rendezvous {
    vec![7; Rendezvous::BYTES_MAX].try_into().unwrap()
}

pub(super) fn tenant() -> Tenant {
    Tenant {
        name: "t".into(),
        limits: TenantLimits {
            requests_per_minute: Some(0),
            tokens_per_minute: Some(2),
            concurrency: Some(3),
            budget_tokens_per_day: None,
        },
        priority: 4,
        cache: CachePolicy::Semantic,
    }
}

pub(super) fn secret() -> KeySecret {
    let (pepper_version, not_before_ms, expires_ms) = (1, 2, Some(3));
    KeySecret { hmac: [9; 32].into(), pepper_version, not_before_ms, expires_ms }
}

pub(super) fn key() -> ApiKey {
    ApiKey {
        id: "k".into(),
        tenant: "t".into(),
        scopes: BTreeSet::from([Scope::Inference("*".to_owned()), Scope::ClusterAdmin]),
        limits: KeyLimits { requests_per_minute: Some(1), tokens_per_minute: None },
        secrets: vec![secret()],
        expires_ms: Some(5),
        revoked: true,
    }
}

/// Puts one of everything.
pub(super) fn puts() -> Vec<ViewOp> {
    let (role, state) = (MemberRole::Worker, MemberState::Draining);
    let (id, epoch, models) = (MemberId(4), Epoch(6), vec![served()]);
    let (address, zone, capacity) = ("http://w".to_owned(), "z".to_owned(), capacity());
    let member = Member { id, role, address, zone, epoch, state, models, capacity };
    let (name, revision, version) = ("m".into(), "r".into(), ViewIndex(8));
    let deployment = Deployment { name, revision, replicas: 2, tp: 4, version };
    let group = Group {
        id: GroupId(3),
        epoch: Epoch(9),
        deployment: "m".into(),
        revision: "r".into(),
        ranks: vec![rank()],
        ready: BTreeSet::from([0]),
        rendezvous: Some(rendezvous()),
        state: GroupState::Ready,
        failure: Some(GroupFailure { member_id: MemberId(4), reason: "why".to_owned() }),
    };
    let setting = Setting { key: "s".to_owned(), value: "v".to_owned(), version };
    vec![
        ViewOp::PutMember(member),
        ViewOp::PutModel(model()),
        ViewOp::PutAlias(alias()),
        ViewOp::PutDeployment(deployment),
        ViewOp::PutGroup(group),
        ViewOp::PutTenant(tenant()),
        ViewOp::PutKey(key()),
        ViewOp::PutSetting(setting),
    ]
}

/// Removes what [`puts`] put.
pub(super) fn removes() -> Vec<ViewOp> {
    vec![
        ViewOp::RemoveMember(MemberId(4)),
        ViewOp::RemoveModel(model()),
        ViewOp::RemoveAlias("a".into()),
        ViewOp::RemoveDeployment("m".into()),
        ViewOp::RemoveGroup(GroupId(3)),
        ViewOp::RemoveTenant("t".into()),
        ViewOp::RemoveKey("k".into()),
        ViewOp::RemoveSetting("s".to_owned()),
    ]
}
