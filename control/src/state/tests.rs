//! What applying a log promises, on chosen sequences and on random ones.

mod access;
mod groups;
mod names;
mod random;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{GroupId, KeyId, ModelName};
use phalanx_proto::view::{
    Alias, AliasTarget, Capacity, MemberRole, MemberState, Model, ServedModel,
};

use super::*;

fn served(name: &str) -> ServedModel {
    ServedModel {
        name: name.into(),
        revision: "r1".into(),
        context_tokens_max: 2048,
        kv_tokens_max: 4096,
    }
}

fn registration(instance: &str, port: u8, model: &str) -> Registration {
    Registration {
        instance: instance.to_owned(),
        role: MemberRole::Worker,
        address: format!("http://worker:{port}"),
        zone: String::new(),
        models: vec![served(model)],
        capacity: Capacity::default(),
    }
}

fn register(instance: &str, port: u8) -> Command {
    Command::Register(registration(instance, port, "m"))
}

fn submit(client: &str, sequence: u64, change: Change) -> Command {
    Command::Submit { client: client.to_owned(), sequence, change }
}

fn alias(name: &str) -> Alias {
    let target = AliasTarget { model: "m".into(), revision: None, weight: 1 };
    Alias { name: name.into(), targets: vec![target], shadow: None, previous: None }
}

/// Applies `commands` at indexes 1, 2, ... and returns the last outcome.
fn apply_all(state: &mut State, commands: &[Command]) -> Outcome {
    let mut last = None;
    for command in commands {
        let index = ViewIndex(state.view().index.0 + 1);
        last = Some(state.apply(index, command));
    }
    last.unwrap()
}

#[track_caller]
fn check(commands: &[Command], expected: &Reply) -> State {
    let mut state = State::default();
    assert_eq!(&apply_all(&mut state, commands).reply, expected);
    state
}

/// The last command is refused, with these words, and changes nothing.
#[track_caller]
fn check_refused(commands: &[Command], expected: &str) {
    let (last, before) = commands.split_last().unwrap();
    let mut state = State::default();
    before.iter().for_each(|command| drop(apply_all(&mut state, std::slice::from_ref(command))));
    let kept = state.view.clone();
    let Reply::Refused(refusal) = apply_all(&mut state, std::slice::from_ref(last)).reply else {
        panic!("expected a refusal: {expected}");
    };
    assert_eq!(refusal.to_string(), expected);
    assert_eq!(state.view, ClusterView { index: state.view.index, ..kept });
}

fn registered(member_id: u64, epoch: u64) -> Reply {
    Reply::Registered { member_id: MemberId(member_id), epoch: Epoch(epoch) }
}

fn applied(index: u64) -> Reply {
    Reply::Applied { index: ViewIndex(index) }
}

fn fence(member_id: u64, epoch: u64) -> Change {
    Change::Fence { member_id: MemberId(member_id), epoch: Epoch(epoch) }
}

#[test]
fn a_retried_registration_is_the_same_registration() {
    let state = check(&[register("i", 1), register("i", 1)], &registered(1, 1));
    assert_eq!(state.view().members.len(), 1);
    assert!(state.view().models.contains(&Model { name: "m".into(), revision: "r1".into() }));
}

#[test]
fn a_changed_registration_keeps_the_member_and_gets_a_new_epoch() {
    let changed = Command::Register(registration("i", 1, "other"));
    check(&[register("i", 1), changed], &registered(1, 2));
}

#[test]
fn a_process_restarted_at_the_same_address_fences_its_predecessor() {
    let state = check(&[register("i", 1), register("j", 1)], &registered(2, 2));
    assert_eq!(state.view().members.keys().copied().collect::<Vec<_>>(), [MemberId(2)]);
}

#[test]
fn a_router_and_a_worker_may_share_an_address_and_an_instance() {
    let router =
        Registration { role: MemberRole::Router, models: Vec::new(), ..registration("i", 1, "m") };
    let state = check(&[register("i", 1), Command::Register(router)], &registered(2, 2));
    assert_eq!(state.view().members.len(), 2);
}

#[test]
fn a_fenced_instance_that_registers_again_is_a_new_member() {
    let commands = [register("i", 1), Command::Internal(fence(1, 1)), register("i", 1)];
    check(&commands, &registered(3, 3));
}

#[test]
fn a_command_for_an_older_epoch_is_refused_and_changes_nothing() {
    let changed = Command::Register(registration("i", 1, "other"));
    let (member_id, epoch, current) = (MemberId(1), Epoch(1), Epoch(2));
    let stale = Refusal::StaleEpoch { member_id, epoch, current };
    for change in [
        fence(1, 1),
        Change::Drain { member_id, epoch },
        Change::Undrain { member_id, epoch },
        Change::Deregister { member_id, epoch },
    ] {
        let commands = [register("i", 1), changed.clone(), Command::Internal(change)];
        let state = check(&commands, &Reply::Refused(stale.clone()));
        assert_eq!(state.view().members[&member_id].state, MemberState::Ready);
    }
    assert_eq!(Fault::from(stale).code, FaultCode::StaleEpoch);
}

#[test]
fn a_drained_member_takes_work_again_once_it_is_told_to() {
    let (member_id, epoch) = (MemberId(1), Epoch(1));
    let drain = Command::Internal(Change::Drain { member_id, epoch });
    let undrain = Command::Internal(Change::Undrain { member_id, epoch });
    let drained = check(&[register("i", 1), drain.clone()], &applied(2));
    assert_eq!(drained.view().members[&member_id].state, MemberState::Draining);
    let commands = [register("i", 1), drain, undrain.clone(), undrain];
    let state = check(&commands, &applied(4));
    let member = &state.view().members[&member_id];
    assert_eq!((member.state, member.epoch), (MemberState::Ready, epoch));
}

#[test]
fn a_repeated_command_is_applied_once_and_answered_alike() {
    let drain = Change::Drain { member_id: MemberId(1), epoch: Epoch(1) };
    let once = [register("i", 1), submit("c", 5, fence(1, 1))];
    check(&once, &applied(2));
    let twice = [once.as_slice(), &[submit("c", 5, fence(1, 1))]].concat();
    check(&twice, &applied(2));
    let earlier = [twice.as_slice(), &[submit("c", 4, drain)]].concat();
    let refusal = Refusal::Superseded { client: "c".to_owned(), sequence: 4, last: 5 };
    check(&earlier, &Reply::Refused(refusal));
}

#[test]
fn a_model_that_is_served_cannot_be_removed() {
    let model = Model { name: "m".into(), revision: "r1".into() };
    let remove = Command::Internal(Change::RemoveModel(model.clone()));
    let refusal = Refusal::ModelServed { name: "m".into(), member_id: MemberId(1) };
    check(&[register("i", 1), remove.clone()], &Reply::Refused(refusal));
    let state = check(&[register("i", 1), Command::Internal(fence(1, 1)), remove], &applied(3));
    assert!(!state.view().models.contains(&model));
}

#[test]
fn a_cluster_is_founded_once() {
    let found =
        |id: &str, lineage| Command::Found { cluster_id: id.to_owned(), lineage: Lineage(lineage) };
    let state = check(&[found("first", 7), found("second", 8)], &applied(2));
    assert_eq!((state.cluster_id(), state.view().lineage), (Some("first"), Lineage(7)));
}

/// When this fails, the hashed form has changed: [`HASH_SCHEMA`] must, too.
#[test]
fn the_hashed_form_is_that_of_the_schema() {
    let mut state = State::default();
    let found = Command::Found { cluster_id: "x".to_owned(), lineage: Lineage(7) };
    apply_all(&mut state, &groups::serving());
    let some = [found, access::tenant(), access::put(access::key("k")), access::put_setting("v")];
    apply_all(&mut state, &some);
    let rollback = [names::set("a", &["n"]), names::set("a", &["o"]), submit("c", 1, fence(9, 9))];
    apply_all(&mut state, &rollback);
    let hash = "45ce7cc6f8ed1ba9f51d4af47487975033a1b618a6ea273dd6526e58a5cf845d";
    assert_eq!((HASH_SCHEMA, state.hash().to_string().as_str()), (1, hash));
}

#[test]
fn the_view_fits_into_a_message_of_the_watch_whatever_is_put_into_it() {
    let mut state = State::default();
    let put = |number: u32| {
        let (key, value) = (format!("s{number}"), "v".repeat(4096));
        Command::Internal(Change::PutSetting { key, value })
    };
    let name = |at: u32| ModelName::from(format!("{at:0256}"));
    let models: Vec<ServedModel> =
        (0..64).map(|at| ServedModel { name: name(at), ..served("m") }).collect();
    let mut refused = None;
    // Each member takes some 18 kB, so the 700th or so is one too many.
    for number in 0..1000u32 {
        let (instance, address) = (number.to_string(), format!("http://{number}"));
        let models = models.clone();
        let registration = Registration { instance, address, models, ..registration("i", 1, "m") };
        let outcome = apply_all(&mut state, &[Command::Register(registration)]);
        if let Reply::Refused(refusal) = outcome.reply {
            refused = Some(refusal);
            break;
        }
    }
    let text = refused.expect("some member is too many").to_string();
    let bytes = weight::VIEW_BYTES_MAX;
    let full =
        format!("the cluster holds {bytes} bytes of members, names and keys, the most it can");
    assert_eq!(text, full);
    let snapshot = phalanx_proto::pb::Snapshot::from(state.view.clone());
    let snapshot_bytes = prost::Message::encoded_len(&snapshot);
    assert!((bytes - (64 << 10)..=bytes).contains(&snapshot_bytes), "{snapshot_bytes}");

    // What makes it lighter, or nothing heavier, is never refused.
    let drain = Change::Drain { member_id: MemberId(1), epoch: Epoch(1) };
    let drained = apply_all(&mut state, &[Command::Internal(drain)]);
    assert!(matches!(drained.reply, Reply::Applied { .. }));
    let fenced = apply_all(&mut state, &[Command::Internal(fence(1, 1)), put(1)]);
    assert!(matches!(fenced.reply, Reply::Applied { .. }));
}

#[test]
fn a_thousand_members_are_replayed_snapshot_and_restored_within_a_second() {
    let started = std::time::Instant::now();
    let mut state = State::default();
    for number in 0..1000u32 {
        let (instance, address) = (number.to_string(), format!("http://worker-{number}:9000"));
        let registration = Registration { instance, address, ..registration("i", 1, "m") };
        apply_all(&mut state, &[Command::Register(registration)]);
    }
    let snapshot = serde_json::to_vec(&state).unwrap();
    let restored: State = serde_json::from_slice(&snapshot).unwrap();
    let took = started.elapsed();
    assert_eq!((restored.hash(), restored.view.members.len()), (state.hash(), 1000));
    assert!(took < std::time::Duration::from_secs(1), "took {took:?}");
}
