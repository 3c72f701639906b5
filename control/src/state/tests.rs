//! What applying a log promises, on chosen sequences and on random ones.

use phalanx_proto::view::{AliasTarget, ServedModel};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

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
    Alias { name: name.into(), targets: vec![target], shadow: None }
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
    for change in
        [fence(1, 1), Change::Drain { member_id, epoch }, Change::Deregister { member_id, epoch }]
    {
        let commands = [register("i", 1), changed.clone(), Command::Internal(change)];
        let state = check(&commands, &Reply::Refused(stale.clone()));
        assert_eq!(state.view().members[&member_id].state, MemberState::Ready);
    }
    assert_eq!(Fault::from(stale).code, FaultCode::StaleEpoch);
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
fn only_the_clients_heard_last_are_remembered() {
    let mut state = State::default();
    let clients = u64::try_from(CLIENTS_MAX).unwrap() + 1;
    for client in 0..clients {
        let command = submit(&format!("c{client}"), 1, Change::SetAlias(alias("a")));
        apply_all(&mut state, &[command]);
    }
    assert_eq!(state.clients.len(), CLIENTS_MAX);
    assert!(!state.clients.contains_key("c0"));
    assert!(state.clients.contains_key("c1"));
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

/// Few names, so that random commands meet.
fn change_strategy() -> impl Strategy<Value = Change> {
    let target = (1u64..12, 1u64..12).prop_map(|(id, epoch)| (MemberId(id), Epoch(epoch)));
    let model = prop_oneof![Just("m"), Just("n")]
        .prop_map(|name| Model { name: name.into(), revision: "r1".into() });
    prop_oneof![
        target.clone().prop_map(|(member_id, epoch)| Change::Fence { member_id, epoch }),
        target.clone().prop_map(|(member_id, epoch)| Change::Drain { member_id, epoch }),
        target.prop_map(|(member_id, epoch)| Change::Deregister { member_id, epoch }),
        model.clone().prop_map(Change::PutModel),
        model.prop_map(Change::RemoveModel),
        prop_oneof![Just("a"), Just("b")].prop_map(|name| Change::SetAlias(alias(name))),
        prop_oneof![Just("a"), Just("b")].prop_map(|name| Change::RemoveAlias(name.into())),
    ]
}

fn command_strategy() -> impl Strategy<Value = Command> {
    let instance = prop_oneof![Just("i"), Just("j"), Just("k")];
    let model = prop_oneof![Just("m"), Just("n")];
    let register =
        (instance, 0u8..3, model, any::<bool>()).prop_map(|(instance, port, model, is_router)| {
            let role = if is_router { MemberRole::Router } else { MemberRole::Worker };
            Command::Register(Registration { role, ..registration(instance, port, model) })
        });
    let client = prop_oneof![Just("c"), Just("d")];
    prop_oneof![
        4 => register,
        3 => change_strategy().prop_map(Command::Internal),
        3 => (client, 1u64..6, change_strategy())
            .prop_map(|(client, sequence, change)| submit(client, sequence, change)),
        1 => Just(Command::Found { cluster_id: "x".to_owned(), lineage: Lineage(3) }),
    ]
}

proptest! {
    #[test]
    fn a_snapshot_at_any_cut_leads_to_the_same_state(
        commands in vec(command_strategy(), 1..40),
    ) {
        let mut whole = State::default();
        let mut cuts = vec![whole.clone()];
        for command in &commands {
            apply_all(&mut whole, std::slice::from_ref(command));
            cuts.push(whole.clone());
        }
        for (at, cut) in cuts.iter().enumerate() {
            let mut restored: State =
                serde_json::from_slice(&serde_json::to_vec(cut).unwrap()).unwrap();
            prop_assert_eq!(&restored, cut);
            for command in &commands[at..] {
                apply_all(&mut restored, std::slice::from_ref(command));
            }
            prop_assert_eq!(&restored, &whole);
        }
    }

    #[test]
    fn watchers_who_fold_the_operations_hold_the_same_view(
        commands in vec(command_strategy(), 1..60),
    ) {
        let mut state = State::default();
        let mut watched = ClusterView::default();
        for command in &commands {
            for op in apply_all(&mut state, std::slice::from_ref(command)).ops {
                watched.apply_op(op);
            }
        }
        watched.lineage = state.view().lineage;
        watched.index = state.view().index;
        prop_assert_eq!(&watched, state.view());
    }

    #[test]
    fn epochs_only_grow_and_an_address_has_one_holder(
        commands in vec(command_strategy(), 1..60),
    ) {
        let mut state = State::default();
        let mut epoch_last = Epoch(0);
        for command in &commands {
            let before = state.view().clone();
            let outcome = apply_all(&mut state, std::slice::from_ref(command));
            for op in &outcome.ops {
                let ViewOp::PutMember(member) = op else { continue };
                let kept = before.members.get(&member.id).map(|earlier| earlier.epoch);
                if kept != Some(member.epoch) {
                    prop_assert!(member.epoch > epoch_last);
                    epoch_last = member.epoch;
                }
            }
            let members: Vec<&Member> = state.view().members.values().collect();
            for (at, member) in members.iter().enumerate() {
                let held_twice = members[..at]
                    .iter()
                    .any(|other| holds(other, member.role, &member.address));
                prop_assert!(!held_twice, "{} is held twice", member.address);
            }
            let ids: Vec<_> = state.view().members.keys().collect();
            prop_assert_eq!(ids, state.instances.keys().collect::<Vec<_>>());
            if matches!(outcome.reply, Reply::Refused(_)) {
                prop_assert!(outcome.ops.is_empty());
            }
        }
    }
}
