//! Which commands are refused before they are proposed, and with what words.

use phalanx_proto::view::{Capacity, MemberRole};

use super::*;

fn served(name: &str) -> ServedModel {
    ServedModel { name: name.into(), revision: "r".into(), context_tokens_max: 1, kv_tokens_max: 1 }
}

fn registration() -> Registration {
    Registration {
        instance: "i".to_owned(),
        role: MemberRole::Worker,
        address: "http://w:1".to_owned(),
        zone: String::new(),
        models: vec![served("m")],
        capacity: Capacity::default(),
    }
}

fn alias(weights: &[u32]) -> Alias {
    let target = |&weight| AliasTarget { model: "m".into(), revision: None, weight };
    Alias {
        name: "a".into(),
        targets: weights.iter().map(target).collect(),
        shadow: None,
        previous: None,
    }
}

#[track_caller]
fn check(command: &Command, expected: Option<(&str, &str)>) {
    let refusal = validate(command).err();
    let found = refusal
        .as_ref()
        .map(|fault| (fault.param.as_deref().unwrap_or_default(), fault.message.as_str()));
    assert_eq!(found, expected);
}

#[track_caller]
fn check_register(alter: impl FnOnce(&mut Registration), expected: Option<(&str, &str)>) {
    let mut registration = registration();
    alter(&mut registration);
    check(&Command::Register(registration), expected);
}

#[track_caller]
fn check_change(change: Change, expected: Option<(&str, &str)>) {
    check(&Command::Submit { client: "c".to_owned(), sequence: 1, change }, expected);
}

#[test]
fn a_registration_keeps_to_its_limits() {
    check_register(|_registration| {}, None);
    check_register(|r| r.instance.clear(), Some(("instance", "instance is empty")));
    check_register(|r| r.address.clear(), Some(("address", "address is empty")));
    check_register(|r| r.address = "a".repeat(512), None);
    check_register(
        |r| r.address = "a".repeat(513),
        Some(("address", "address has 513 bytes, at most 512 are allowed")),
    );
    check_register(
        |r| r.zone = "z".repeat(257),
        Some(("zone", "zone has 257 bytes, at most 256 are allowed")),
    );
    check_register(
        |r| r.models = (0..65).map(|at| served(&at.to_string())).collect(),
        Some(("models", "models has 65 entries, at most 64 are allowed")),
    );
    check_register(
        |r| r.models = vec![served("m"), served("m")],
        Some(("models", "model m is listed twice")),
    );
    check_register(|r| r.models = vec![served("")], Some(("models.name", "models.name is empty")));
}

#[test]
fn an_alias_has_targets_and_weight() {
    check_change(Change::SetAlias(alias(&[95, 5])), None);
    check_change(Change::SetAlias(alias(&[u32::MAX, u32::MAX])), None);
    check_change(
        Change::SetAlias(alias(&[])),
        Some(("alias.targets", "alias a has 0 targets, at least 1 is needed")),
    );
    check_change(
        Change::SetAlias(alias(&[0, 0])),
        Some(("alias.targets.weight", "weights of alias a sum to 0, must be above 0")),
    );
    check_change(
        Change::SetAlias(alias(&[1; 17])),
        Some(("alias.targets", "alias.targets has 17 entries, at most 16 are allowed")),
    );
    check_change(Change::RemoveAlias("".into()), Some(("name", "name is empty")));
}
