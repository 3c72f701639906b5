//! Tenants, keys and settings.

use std::collections::BTreeSet;

use phalanx_proto::view::{
    ApiKey, CachePolicy, KeyLimits, KeySecret, Setting, Tenant, TenantLimits,
};

use super::*;

pub(super) fn tenant() -> Command {
    let (name, limits) = ("t".into(), TenantLimits::default());
    let tenant = Tenant { name, limits, priority: 1, cache: CachePolicy::Off };
    Command::Internal(Change::PutTenant(tenant))
}

fn secret(byte: u8, expires_ms: Option<u64>) -> KeySecret {
    KeySecret { hmac: [byte; 32].into(), pepper_version: 1, not_before_ms: 0, expires_ms }
}

pub(super) fn key(id: &str) -> ApiKey {
    ApiKey {
        id: id.into(),
        tenant: "t".into(),
        scopes: BTreeSet::new(),
        limits: KeyLimits::default(),
        secrets: vec![secret(1, None)],
        expires_ms: None,
        revoked: false,
    }
}

pub(super) fn put(key: ApiKey) -> Command {
    Command::Internal(Change::PutKey(key))
}

pub(super) fn put_setting(value: &str) -> Command {
    let (key, value) = ("s".to_owned(), value.to_owned());
    Command::Internal(Change::PutSetting { key, value })
}

fn rotate(byte: u8, old_expires_ms: u64) -> Command {
    let (id, secret) = ("k".into(), secret(byte, None));
    Command::Internal(Change::RotateKey { id, secret, old_expires_ms })
}

fn revoke(id: &str) -> Command {
    Command::Internal(Change::RevokeKey(id.into()))
}

fn remove(id: &str) -> Command {
    Command::Internal(Change::RemoveKey(id.into()))
}

fn remove_tenant() -> Command {
    Command::Internal(Change::RemoveTenant("t".into()))
}

#[test]
fn a_key_belongs_to_a_tenant_and_its_id_to_it_alone() {
    check_refused(&[put(key("k"))], "tenant t is not known");
    check(&[tenant(), put(key("k")), put(key("k"))], &applied(3));
    let other = ApiKey { expires_ms: Some(5), ..key("k") };
    check_refused(&[tenant(), put(key("k")), put(other)], "there is a key k already");
}

#[test]
fn a_rotated_key_has_its_newest_secret_and_the_one_before_for_a_while() {
    let before = [tenant(), put(key("k"))];
    let secrets = |commands: &[Command]| {
        let all = [before.as_slice(), commands].concat();
        let index = u64::try_from(all.len()).unwrap();
        let state = check(&all, &applied(index));
        state.view.keys[&"k".into()].secrets.clone()
    };
    let once = [secret(1, Some(50)), secret(2, None)];
    assert_eq!(secrets(&[rotate(2, 50)]), once);
    assert_eq!(secrets(&[rotate(2, 50), rotate(2, 70)]), once, "a retry is no second rotation");
    let twice = [secret(2, Some(60)), secret(3, None)];
    assert_eq!(secrets(&[rotate(2, 50), rotate(3, 60)]), twice);
    let brief = ApiKey { secrets: vec![secret(1, Some(40))], ..key("k") };
    let state = check(&[tenant(), put(brief), rotate(2, 50)], &applied(3));
    assert_eq!(state.view.keys[&"k".into()].secrets, [secret(1, Some(40)), secret(2, None)]);
    check_refused(&[tenant(), rotate(2, 50)], "key k is not known");
}

#[test]
fn a_revoked_key_stays_revoked_until_it_is_removed() {
    let before = [tenant(), put(key("k")), revoke("k")];
    let state = check(&[before.as_slice(), &[revoke("k")]].concat(), &applied(4));
    assert!(state.view.keys[&"k".into()].revoked);
    check_refused(&[before.as_slice(), &[rotate(2, 50)]].concat(), "key k is revoked");
    check_refused(&[before.as_slice(), &[put(key("k"))]].concat(), "there is a key k already");
    let state = check(&[before.as_slice(), &[remove("k")]].concat(), &applied(4));
    assert!(state.view.keys.is_empty());
    let live = "key k is not revoked, so it cannot be removed";
    check_refused(&[tenant(), put(key("k")), remove("k")], live);
    check_refused(&[revoke("k")], "key k is not known");
}

#[test]
fn a_tenant_goes_with_its_revoked_keys_and_not_before() {
    let before = [tenant(), put(key("k")), put(key("l")), revoke("k")];
    let refusal = "tenant t has key l, which is not revoked, so it cannot be removed";
    check_refused(&[before.as_slice(), &[remove_tenant()]].concat(), refusal);
    let all = [before.as_slice(), &[revoke("l"), remove_tenant()]].concat();
    let state = check(&all, &applied(6));
    assert_eq!((state.view.tenants.len(), state.view.keys.len()), (0, 0));
    check_refused(&[remove_tenant()], "tenant t is not known");
}

#[test]
fn a_setting_has_the_version_of_its_last_change() {
    let put = put_setting;
    let remove = Command::Internal(Change::RemoveSetting("s".to_owned()));
    let state = check(&[put("v"), put("v")], &applied(2));
    let (key, value) = ("s".to_owned(), "v".to_owned());
    let expected = Setting { key: key.clone(), value, version: ViewIndex(1) };
    assert_eq!(state.view.settings[&key], expected);
    let state = check(&[put("v"), put("w")], &applied(2));
    assert_eq!(state.view.settings[&key].version, ViewIndex(2));
    assert!(check(&[put("v"), remove.clone()], &applied(2)).view.settings.is_empty());
    check_refused(&[remove], "setting s is not known");
}
