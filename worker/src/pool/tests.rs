//! What a pool does, by the view it is shown.

use std::collections::BTreeSet;

use phalanx_proto::id::{GroupId, MemberId, ModelName, Revision};
use phalanx_proto::view::{
    Capacity, Group, GroupRank, GroupState, Member, MemberRole, MemberState, ServedModel,
};

use super::*;

const EPOCH: Epoch = Epoch(7);
const MEMBER: MemberId = MemberId(3);

fn model(name: &str) -> ServedModel {
    let (name, revision) = (ModelName::from(name), Revision::from("r"));
    ServedModel { name, revision, context_tokens_max: 1, kv_tokens_max: 1 }
}

/// A view in which the worker is registered, and serves what is said.
fn view(models: &[ServedModel]) -> ClusterView {
    let mut view = ClusterView::default();
    let member = Member {
        id: MEMBER,
        role: MemberRole::Worker,
        address: String::new(),
        zone: String::new(),
        epoch: EPOCH,
        state: MemberState::Ready,
        models: models.to_vec(),
        capacity: Capacity { devices: 1, memory_bytes: 0 },
    };
    view.members.insert(MEMBER, member);
    view
}

/// The same with a group of model `name`, whose rank 0 is placed on the worker.
fn placed(models: &[ServedModel], name: &str, state: GroupState) -> ClusterView {
    let mut view = view(models);
    let rank = GroupRank { member_id: MEMBER, member_epoch: EPOCH, device: 0 };
    let group = Group {
        id: GroupId(9),
        epoch: Epoch(9),
        deployment: name.into(),
        revision: "r".into(),
        ranks: vec![rank],
        ready: BTreeSet::from_iter((state == GroupState::Ready).then_some(0)),
        rendezvous: None,
        state,
        failure: None,
    };
    view.groups.insert(group.id, group);
    view
}

const GROUP: GroupRef = GroupRef { id: GroupId(9), epoch: Epoch(9) };

fn full(name: &str) -> Hands {
    Hands::Full { model: model(name), member_id: MEMBER }
}

fn serve(models: Vec<ServedModel>) -> Duty {
    Duty::Report(Change::Serve { member_id: MEMBER, epoch: EPOCH, models })
}

#[test]
fn a_model_is_loaded_announced_and_then_reported_ready() {
    let forming = |models: &[ServedModel]| placed(models, "m", GroupState::Forming);
    assert_eq!(duty(&view(&[]), EPOCH, &Hands::Empty), Duty::Wait);
    let Duty::Load(task) = duty(&forming(&[]), EPOCH, &Hands::Empty) else { panic!("not loaded") };
    assert_eq!((task.name.as_str(), task.group, task.rank), ("m", GROUP, 0));
    assert_eq!(duty(&forming(&[]), EPOCH, &full("m")), serve(vec![model("m")]));
    let ready = Duty::Report(Change::RankReady { group: GROUP, rank: 0 });
    assert_eq!(duty(&forming(&[model("m")]), EPOCH, &full("m")), ready);
    let served = placed(&[model("m")], "m", GroupState::Ready);
    assert_eq!(duty(&served, EPOCH, &full("m")), Duty::Wait);
}

#[test]
fn what_is_not_wanted_any_more_is_let_go() {
    assert_eq!(duty(&view(&[]), EPOCH, &full("m")), Duty::Unload);
    let other = placed(&[], "other", GroupState::Forming);
    assert_eq!(duty(&other, EPOCH, &full("m")), Duty::Unload);
    let broken = placed(&[], "m", GroupState::Broken);
    assert_eq!(duty(&broken, EPOCH, &full("m")), Duty::Unload);
    // Said again until the view shows it.
    assert_eq!(duty(&view(&[model("m")]), EPOCH, &Hands::Empty), serve(Vec::new()));
}

#[test]
fn a_failure_is_reported_until_it_is_seen_and_not_tried_again() {
    let failed = Hands::Failed { group: GROUP, reason: "why".to_owned() };
    let report = Change::FailRank { group: GROUP, rank: 0, reason: "why".to_owned() };
    let forming = placed(&[], "m", GroupState::Forming);
    assert_eq!(duty(&forming, EPOCH, &failed), Duty::Report(report));
    assert_eq!(duty(&placed(&[], "m", GroupState::Broken), EPOCH, &failed), Duty::Wait);
    let mut again = forming;
    again.groups.get_mut(&GROUP.id).unwrap().epoch = Epoch(10);
    assert!(matches!(duty(&again, EPOCH, &failed), Duty::Load(_)), "formed anew");
}

#[test]
fn a_view_without_the_registration_says_nothing() {
    for hands in [Hands::Empty, full("m")] {
        assert_eq!(duty(&ClusterView::default(), EPOCH, &hands), Duty::Wait);
        assert_eq!(duty(&view(&[]), Epoch(8), &hands), Duty::Wait);
    }
}

#[test]
fn a_worker_that_was_fenced_keeps_its_model_for_a_while_and_takes_it_up_again() {
    let held = Hands::Full { model: model("m"), member_id: MemberId(1) };
    assert_eq!(duty(&view(&[model("m")]), EPOCH, &held), Duty::UnloadLater);
    let forming = placed(&[model("m")], "m", GroupState::Forming);
    assert_eq!(duty(&forming, EPOCH, &held), Duty::Adopt(MEMBER));
}

#[test]
fn a_model_name_leads_nowhere_but_below_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("org/m")).unwrap();
    let found = |name: &str| {
        folder_of(folder.path(), &ModelName::from(name)).map_err(|error| error.to_string())
    };
    assert_eq!(found("org/m"), Ok(folder.path().join("org/m")));
    for name in ["", "..", "../m", "/etc", "org/../.."] {
        assert_eq!(found(name), Err(format!("model {name} does not name a folder")));
    }
    let missing = folder.path().join("n").display().to_string();
    assert_eq!(found("n"), Err(format!("there is no model folder {missing}")));
}
