//! Tenants and their keys; settings of the whole cluster.

use phalanx_proto::id::{KeyId, TenantName, ViewIndex};
use phalanx_proto::view::{ApiKey, ClusterView, KeySecret, Setting, Tenant, ViewOp};

use super::{Ops, Refusal, check_room};

/// The most tenants: every customer of a large provider's cluster, with room to spare.
const TENANTS_MAX: usize = 4096;

/// The most keys, revoked ones too: some 2 MB of the view.
const KEYS_MAX: usize = 10_000;

/// The most settings: an operator reads them all.
const SETTINGS_MAX: usize = 256;

pub(super) fn put_tenant(view: &ClusterView, tenant: &Tenant) -> Ops {
    let known = view.tenants.get(&tenant.name);
    if known == Some(tenant) {
        return Ok(Vec::new());
    }
    check_room("tenants", view.tenants.len(), usize::from(known.is_none()), TENANTS_MAX)?;
    Ok(vec![ViewOp::PutTenant(tenant.clone())])
}

pub(super) fn remove_tenant(view: &ClusterView, name: &TenantName) -> Ops {
    check_tenant(view, name)?;
    let keys = || view.keys.values().filter(|key| key.tenant == *name);
    if let Some(key) = keys().find(|key| !key.revoked) {
        return Err(Refusal::TenantHasKey { name: name.clone(), id: key.id.clone() });
    }
    let mut ops: Vec<ViewOp> = keys().map(|key| ViewOp::RemoveKey(key.id.clone())).collect();
    ops.push(ViewOp::RemoveTenant(name.clone()));
    Ok(ops)
}

pub(super) fn put_key(view: &ClusterView, key: &ApiKey) -> Ops {
    match view.keys.get(&key.id) {
        Some(known) if known == key => return Ok(Vec::new()),
        Some(_) => return Err(Refusal::KeyExists { id: key.id.clone() }),
        None => {}
    }
    check_tenant(view, &key.tenant)?;
    check_room("keys", view.keys.len(), 1, KEYS_MAX)?;
    Ok(vec![ViewOp::PutKey(key.clone())])
}

pub(super) fn rotate_key(
    view: &ClusterView,
    id: &KeyId,
    secret: &KeySecret,
    old_expires_ms: u64,
) -> Ops {
    let key = known_key(view, id)?;
    if key.revoked {
        return Err(Refusal::KeyRevoked { id: id.clone() });
    }
    let newest = key.secrets.last();
    if newest == Some(secret) {
        return Ok(Vec::new());
    }
    let old = newest.map(|newest| {
        let ends = newest.expires_ms.map_or(old_expires_ms, |ends| ends.min(old_expires_ms));
        KeySecret { expires_ms: Some(ends), ..newest.clone() }
    });
    let secrets = old.into_iter().chain([secret.clone()]).collect();
    Ok(vec![ViewOp::PutKey(ApiKey { secrets, ..key.clone() })])
}

pub(super) fn revoke_key(view: &ClusterView, id: &KeyId) -> Ops {
    let key = known_key(view, id)?;
    if key.revoked {
        return Ok(Vec::new());
    }
    Ok(vec![ViewOp::PutKey(ApiKey { revoked: true, ..key.clone() })])
}

pub(super) fn remove_key(view: &ClusterView, id: &KeyId) -> Ops {
    if !known_key(view, id)?.revoked {
        return Err(Refusal::KeyNotRevoked { id: id.clone() });
    }
    Ok(vec![ViewOp::RemoveKey(id.clone())])
}

/// The version is the index of the change, so it only grows.
pub(super) fn put_setting(view: &ClusterView, index: ViewIndex, key: &str, value: &str) -> Ops {
    let known = view.settings.get(key);
    if known.is_some_and(|known| known.value == value) {
        return Ok(Vec::new());
    }
    check_room("settings", view.settings.len(), usize::from(known.is_none()), SETTINGS_MAX)?;
    let (key, value) = (key.to_owned(), value.to_owned());
    Ok(vec![ViewOp::PutSetting(Setting { key, value, version: index })])
}

pub(super) fn remove_setting(view: &ClusterView, key: &str) -> Ops {
    if !view.settings.contains_key(key) {
        return Err(Refusal::UnknownSetting { key: key.to_owned() });
    }
    Ok(vec![ViewOp::RemoveSetting(key.to_owned())])
}

fn check_tenant(view: &ClusterView, name: &TenantName) -> Result<(), Refusal> {
    if view.tenants.contains_key(name) {
        return Ok(());
    }
    Err(Refusal::UnknownTenant { name: name.clone() })
}

fn known_key<'a>(view: &'a ClusterView, id: &KeyId) -> Result<&'a ApiKey, Refusal> {
    view.keys.get(id).ok_or_else(|| Refusal::UnknownKey { id: id.clone() })
}
