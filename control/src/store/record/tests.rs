//! The forms that lie on disk.

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::id::{Epoch, GroupId, KeyId, Lineage, MemberId, ViewIndex};
use phalanx_proto::view::{
    Alias, AliasTarget, ApiKey, CachePolicy, Capacity, GroupRank, GroupRef, KeyLimits, KeySecret,
    MemberRole, Model, Rendezvous, Scope, ServedModel, Tenant, TenantLimits,
};

use super::*;
use crate::state::StateHash;

#[track_caller]
fn check(content: EntryContent, golden: &str) {
    let entry = EntryRecord { at: LogPosition { term: 2, index: 9 }, content };
    let bytes = encode("entry", &entry).unwrap();
    let golden = format!("\u{1}{{\"at\":{{\"term\":2,\"index\":9}},\"content\":{golden}}}");
    assert_eq!(String::from_utf8(bytes).unwrap(), golden);
    assert_eq!(decode::<EntryRecord>("entry", golden.as_bytes()).unwrap(), entry);
}

#[track_caller]
fn check_change(change: Change, golden: &str) {
    check(
        EntryContent::Command(Command::Internal(change)),
        &format!(r#"{{"command":{{"internal":{golden}}}}}"#),
    );
}

#[test]
fn entries_keep_their_golden_form() {
    check(EntryContent::Blank, r#""blank""#);
    let voters = vec![BTreeSet::from([1, 2])];
    let urls = BTreeMap::from([(1, "http://a".to_owned()), (2, "http://b".to_owned())]);
    check(
        EntryContent::Membership(MembershipRecord { voters, urls }),
        r#"{"membership":{"voters":[[1,2]],"urls":{"1":"http://a","2":"http://b"}}}"#,
    );
    let found = Command::Found { cluster_id: "x".to_owned(), lineage: Lineage(5) };
    check(EntryContent::Command(found), r#"{"command":{"found":{"cluster_id":"x","lineage":5}}}"#);
}

#[test]
fn commands_keep_their_golden_form() {
    let hash = StateHash::try_from("5a".repeat(32)).unwrap();
    let checkpoint = Command::Checkpoint { index: ViewIndex(7), schema: 1, hash };
    check(
        EntryContent::Command(checkpoint),
        &format!(
            r#"{{"command":{{"checkpoint":{{"index":7,"schema":1,"hash":"{}"}}}}}}"#,
            "5a".repeat(32)
        ),
    );
    let registration = Registration {
        instance: "i".to_owned(),
        role: MemberRole::Worker,
        address: "http://w".to_owned(),
        zone: "z".to_owned(),
        models: vec![ServedModel {
            name: "m".into(),
            revision: "r".into(),
            context_tokens_max: 8,
            kv_tokens_max: 16,
        }],
        capacity: Capacity { devices: 2, memory_bytes: 99 },
    };
    check(
        EntryContent::Command(Command::Register(registration)),
        r#"{"command":{"register":{"instance":"i","role":"worker","address":"http://w","zone":"z","models":[{"name":"m","revision":"r","context_tokens_max":8,"kv_tokens_max":16}],"capacity":{"devices":2,"memory_bytes":99}}}}"#,
    );
    let change = Change::RemoveAlias("a".into());
    let submit = Command::Submit { client: "c".to_owned(), sequence: 3, change };
    check(
        EntryContent::Command(submit),
        r#"{"command":{"submit":{"client":"c","sequence":3,"change":{"remove_alias":"a"}}}}"#,
    );
}

#[test]
fn changes_keep_their_golden_form() {
    let (member_id, epoch) = (MemberId(4), Epoch(6));
    let model = || Model { name: "m".into(), revision: "r".into() };
    let target = AliasTarget { model: "m".into(), revision: Some("r".into()), weight: 95 };
    let alias = Alias { name: "a".into(), targets: vec![target], shadow: None, previous: None };
    check_change(Change::Fence { member_id, epoch }, r#"{"fence":{"member_id":4,"epoch":6}}"#);
    check_change(Change::Drain { member_id, epoch }, r#"{"drain":{"member_id":4,"epoch":6}}"#);
    check_change(
        Change::Deregister { member_id, epoch },
        r#"{"deregister":{"member_id":4,"epoch":6}}"#,
    );
    check_change(Change::PutModel(model()), r#"{"put_model":{"name":"m","revision":"r"}}"#);
    check_change(Change::RemoveModel(model()), r#"{"remove_model":{"name":"m","revision":"r"}}"#);
    check_change(Change::RollbackAlias("a".into()), r#"{"rollback_alias":"a"}"#);
    check_change(
        Change::SetAlias(alias),
        r#"{"set_alias":{"name":"a","targets":[{"model":"m","revision":"r","weight":95}],"shadow":null}}"#,
    );
}

#[test]
fn changes_of_placement_keep_their_golden_form() {
    let (member_id, epoch) = (MemberId(4), Epoch(6));
    let group = GroupRef { id: GroupId(8), epoch: Epoch(9) };
    let rank = GroupRank { member_id, member_epoch: epoch, device: 1 };
    let form = |group| Change::FormGroup {
        group,
        deployment: "m".into(),
        revision: "r".into(),
        ranks: vec![rank],
    };
    let formed =
        r#""deployment":"m","revision":"r","ranks":[{"member_id":4,"member_epoch":6,"device":1}]"#;
    check_change(form(None), &format!(r#"{{"form_group":{{"group":null,{formed}}}}}"#));
    check_change(
        form(Some(group)),
        &format!(r#"{{"form_group":{{"group":{{"id":8,"epoch":9}},{formed}}}}}"#),
    );
    let rendezvous = Rendezvous::try_from(vec![0, 1, 255]).unwrap();
    check_change(
        Change::PublishRendezvous { group, rendezvous },
        r#"{"publish_rendezvous":{"group":{"id":8,"epoch":9},"rendezvous":"AAH/"}}"#,
    );
    check_change(
        Change::RankReady { group, rank: 1 },
        r#"{"rank_ready":{"group":{"id":8,"epoch":9},"rank":1}}"#,
    );
    check_change(Change::BreakGroup(group), r#"{"break_group":{"id":8,"epoch":9}}"#);
    check_change(Change::RemoveGroup(group), r#"{"remove_group":{"id":8,"epoch":9}}"#);
    check_change(
        Change::Serve { member_id, epoch, models: Vec::new() },
        r#"{"serve":{"member_id":4,"epoch":6,"models":[]}}"#,
    );
    let (name, revision) = ("m".into(), "r".into());
    check_change(
        Change::SetDeployment { name, revision, replicas: 2, tp: 4 },
        r#"{"set_deployment":{"name":"m","revision":"r","replicas":2,"tp":4}}"#,
    );
    check_change(Change::RemoveDeployment("m".into()), r#"{"remove_deployment":"m"}"#);
}

#[test]
fn changes_of_access_keep_their_golden_form() {
    let (id, secret) = (KeyId::from("k"), secret());
    let tenant = Tenant {
        name: "t".into(),
        limits: TenantLimits { tokens_per_minute: Some(5), ..TenantLimits::default() },
        priority: 1,
        cache: CachePolicy::Exact,
    };
    check_change(
        Change::PutTenant(tenant),
        r#"{"put_tenant":{"name":"t","limits":{"requests_per_minute":null,"tokens_per_minute":5,"concurrency":null,"budget_tokens_per_day":null},"priority":1,"cache":"exact"}}"#,
    );
    check_change(Change::RemoveTenant("t".into()), r#"{"remove_tenant":"t"}"#);
    let key = ApiKey {
        id: id.clone(),
        tenant: "t".into(),
        scopes: BTreeSet::from([Scope::Inference("*".to_owned()), Scope::CachePurge]),
        limits: KeyLimits { requests_per_minute: Some(3), tokens_per_minute: None },
        secrets: vec![secret.clone()],
        expires_ms: Some(7),
        revoked: false,
    };
    let stored = r#"{"hmac":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=","pepper_version":1,"not_before_ms":2,"expires_ms":null}"#;
    check_change(
        Change::PutKey(key),
        &format!(
            r#"{{"put_key":{{"id":"k","tenant":"t","scopes":["inference:*","cache:purge"],"limits":{{"requests_per_minute":3,"tokens_per_minute":null}},"secrets":[{stored}],"expires_ms":7,"revoked":false}}}}"#
        ),
    );
    check_change(
        Change::RotateKey { id: id.clone(), secret, old_expires_ms: 9 },
        &format!(r#"{{"rotate_key":{{"id":"k","secret":{stored},"old_expires_ms":9}}}}"#),
    );
    check_change(Change::RevokeKey(id.clone()), r#"{"revoke_key":"k"}"#);
    check_change(Change::RemoveKey(id), r#"{"remove_key":"k"}"#);
    let (key, value) = ("s".to_owned(), "v".to_owned());
    check_change(
        Change::PutSetting { key: key.clone(), value },
        r#"{"put_setting":{"key":"s","value":"v"}}"#,
    );
    check_change(Change::RemoveSetting(key), r#"{"remove_setting":"s"}"#);
}

fn secret() -> KeySecret {
    let (pepper_version, not_before_ms, expires_ms) = (1, 2, None);
    KeySecret { hmac: [9; 32].into(), pepper_version, not_before_ms, expires_ms }
}

/// What builds before this one wrote, and none writes any more.
#[test]
fn a_registration_from_before_there_was_capacity_can_be_read() {
    let golden = br#"{"command":{"register":{"instance":"i","role":"router","address":"http://w","zone":"z","models":[]}}}"#;
    let record = [b"\x01".as_slice(), golden].concat();
    let EntryContent::Command(Command::Register(registration)) = decode("entry", &record).unwrap()
    else {
        panic!("it is a registration");
    };
    assert_eq!(registration.capacity, Capacity::default());
}

#[test]
fn a_record_of_another_version_or_cut_short_is_refused() {
    let refusal = |bytes: &[u8]| decode::<VoteRecord>("vote", bytes).unwrap_err().to_string();
    assert_eq!(refusal(b"\x02{}"), "vote is of format version 2, this build reads up to 1");
    assert_eq!(refusal(b""), "vote is damaged: it is empty");
    assert!(refusal(b"\x01{\"term\":1").starts_with("vote is damaged: EOF"));
}
