//! Which commands are refused before they are proposed, and with what words.

use phalanx_proto::id::{Epoch, MemberId};
use phalanx_proto::view::{
    CachePolicy, Capacity, KeyLimits, KeySecret, MemberRole, Tenant, TenantLimits,
};

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
    let target = |(at, weight): (usize, &u32)| {
        let revision = (at > 0).then(|| at.to_string().into());
        AliasTarget { model: "m".into(), revision, weight: *weight }
    };
    Alias {
        name: "a".into(),
        targets: weights.iter().enumerate().map(target).collect(),
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
        |r| r.zone = "a\nb".to_owned(),
        Some(("zone", "zone \"a\\nb\" holds a control character")),
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
    let mut twice = alias(&[1, 2, 3]);
    twice.targets[2] = AliasTarget { weight: 5, ..twice.targets[1].clone() };
    let refusal = "alias a has m@1 among its targets twice";
    check_change(Change::SetAlias(twice), Some(("alias.targets", refusal)));
}

#[test]
fn a_name_that_is_given_is_made_of_few_characters_and_one_from_before_can_be_removed() {
    let bad = "m@r";
    let refusal = |field| {
        format!("{field} \"m@r\" holds '@': a name is made of letters, digits and . _ - : / +")
    };
    let model = || Model { name: bad.into(), revision: "r".into() };
    let (replicas, tp) = (1, 1);
    let given = [
        ("alias.name", Change::SetAlias(Alias { name: bad.into(), ..alias(&[1]) })),
        (
            "deployment.revision",
            Change::SetDeployment { name: "m".into(), revision: bad.into(), replicas, tp },
        ),
        (
            "tenant.name",
            Change::PutTenant(Tenant {
                name: bad.into(),
                limits: TenantLimits::default(),
                priority: 0,
                cache: CachePolicy::Off,
            }),
        ),
    ];
    for (field, change) in given {
        check_change(change, Some((field, &refusal(field))));
    }
    for change in [
        Change::RemoveModel(model()),
        Change::RemoveAlias(bad.into()),
        Change::RollbackAlias(bad.into()),
        Change::RemoveDeployment(bad.into()),
        Change::RemoveTenant(bad.into()),
    ] {
        check_change(change, None);
    }
    check_register(|r| r.models = vec![served(bad)], None);
}

#[test]
fn a_shadow_is_none_of_the_targets() {
    let shadowed = |revision: Option<&str>| {
        let revision = revision.map(Into::into);
        let shadow = Some(AliasTarget { model: "m".into(), revision, weight: 0 });
        Change::SetAlias(Alias { shadow, ..alias(&[1]) })
    };
    check_change(shadowed(Some("r2")), None);
    let refusal = "shadow m of alias a is one of its targets";
    check_change(shadowed(None), Some(("alias.shadow", refusal)));
}

#[test]
fn a_deployment_and_a_group_keep_to_their_limits() {
    let deploy = |replicas, tp| {
        let (name, revision) = ("m".into(), "r".into());
        Change::SetDeployment { name, revision, replicas, tp }
    };
    check_change(deploy(0, 1), None);
    check_change(deploy(1024, 64), None);
    let replicas = "deployment.replicas is 1025, it must be 0 to 1024";
    check_change(deploy(1025, 1), Some(("deployment.replicas", replicas)));
    let tp = "deployment.tp is 0, it must be 1 to 64";
    check_change(deploy(1, 0), Some(("deployment.tp", tp)));

    let rank = |device| GroupRank { member_id: MemberId(4), member_epoch: Epoch(6), device };
    let form = |devices: &[u32]| Change::FormGroup {
        group: None,
        deployment: "m".into(),
        revision: "r".into(),
        ranks: devices.iter().map(|device| rank(*device)).collect(),
    };
    check_change(form(&[0, 1]), None);
    check_change(form(&[]), Some(("ranks", "ranks is 0, it must be 1 to 64")));
    let twice = "device 1 of member 4 is listed twice";
    check_change(form(&[1, 0, 1]), Some(("ranks", twice)));
}

#[test]
fn a_key_and_a_setting_keep_to_their_limits() {
    let key = |id: &str, secrets| {
        let (pepper_version, not_before_ms, expires_ms) = (1, 0, None);
        let secret = KeySecret { hmac: [0; 32].into(), pepper_version, not_before_ms, expires_ms };
        Change::PutKey(ApiKey {
            id: id.into(),
            tenant: "t".into(),
            scopes: BTreeSet::new(),
            limits: KeyLimits::default(),
            secrets: vec![secret; secrets],
            expires_ms: None,
            revoked: false,
        })
    };
    check_change(key("0123456789ab", 2), None);
    let secrets = "key.secrets is 3, it must be 1 to 2";
    check_change(key("0123456789ab", 3), Some(("key.secrets", secrets)));
    let id = "key id \"k-1\" does not have 12 letters and digits";
    check_change(key("k-1", 1), Some(("key.id", id)));

    let put = |bytes| {
        let (key, value) = ("s".to_owned(), "v".repeat(bytes));
        Change::PutSetting { key, value }
    };
    check_change(put(4096), None);
    let value = "setting.value has 4097 bytes, at most 4096 are allowed";
    check_change(put(4097), Some(("setting.value", value)));
}
