//! Views in, routes and changes out.

use std::time::Duration;

use phalanx_proto::id::{Epoch, Lineage, ViewIndex};
use phalanx_proto::pb;
use phalanx_proto::view::{Alias, Capacity, Member, Model, ServedModel, ViewOp};
use tonic::transport::Endpoint;

use super::*;
use crate::config::foreign::ForeignConfig;
use crate::engine::Kind;
use crate::engine::native::Native;

fn member(id: u64, epoch: u64, models: &[(&str, &str)]) -> Member {
    Member {
        id: MemberId(id),
        role: MemberRole::Worker,
        address: format!("http://worker-{id}"),
        zone: String::new(),
        epoch: Epoch(epoch),
        state: MemberState::Ready,
        models: models
            .iter()
            .map(|&(name, revision)| ServedModel {
                name: name.into(),
                revision: revision.into(),
                context_tokens_max: 512,
                kv_tokens_max: 4_096,
            })
            .collect(),
        capacity: Capacity::default(),
    }
}

fn view(ops: impl IntoIterator<Item = ViewOp>) -> Arc<ClusterView> {
    let mut view = ClusterView { index: ViewIndex(1), ..ClusterView::default() };
    for op in ops {
        view.apply_op(op);
    }
    Arc::new(view)
}

fn alias(targets: &[(&str, Option<&str>, u32)]) -> ViewOp {
    let target = |&(model, revision, weight): &(&str, Option<&str>, u32)| AliasTarget {
        model: model.into(),
        revision: revision.map(Revision::from),
        weight,
    };
    ViewOp::PutAlias(Alias {
        name: "alias".into(),
        targets: targets.iter().map(target).collect(),
        shadow: None,
        previous: None,
    })
}

/// A fleet whose engines are all connected (lazily, so to nothing).
fn fleet(ops: impl IntoIterator<Item = ViewOp>) -> Fleet {
    let (fleet, changes) = Fleet::default().next(view(ops), &[]);
    for engine in changes.opened {
        worker(&engine).mark_up(Endpoint::from_static("http://127.0.0.1:1").connect_lazy());
    }
    fleet
}

/// Every engine but these, whatever its kind.
fn any_but(excluded: &[MemberId]) -> Eligible<'_> {
    Eligible { kinds: Kinds { native: true, foreign: true }, excluded }
}

/// The worker that `engine` is.
fn worker(engine: &Engine) -> &Native {
    match &engine.kind {
        Kind::Native(worker) => worker,
        Kind::Foreign(_) => panic!("a foreign engine"),
    }
}

fn candidates(fleet: &Fleet, name: &str, draw: u64) -> Option<Vec<u64>> {
    let name = ModelName::from(name);
    let route = fleet.route(&name, draw, any_but(&[]))?;
    Some(
        route
            .candidates(any_but(&[]), Instant::now())
            .engines
            .iter()
            .map(|engine| engine.id().0)
            .collect(),
    )
}

#[tokio::test]
async fn a_registration_that_did_not_change_keeps_its_engine() {
    let (first, changes) = Fleet::default().next(
        view([
            ViewOp::PutMember(member(1, 10, &[("m", "r")])),
            ViewOp::PutMember(member(2, 11, &[("m", "r")])),
            ViewOp::PutMember(member(3, 12, &[("m", "r")])),
        ]),
        &[],
    );
    assert_eq!((changes.opened.len(), changes.closed.len()), (3, 0));
    let draining = Member { state: MemberState::Draining, ..member(1, 10, &[("m", "r")]) };
    let (second, changes) = first.next(
        view([ViewOp::PutMember(draining), ViewOp::PutMember(member(2, 20, &[("m", "r")]))]),
        &[],
    );
    let ids = |engines: &[Arc<Engine>]| -> Vec<_> {
        engines.iter().map(|engine| (engine.id().0, worker(engine).epoch.0)).collect()
    };
    assert_eq!(ids(&changes.opened), [(2, 20)]);
    assert_eq!(ids(&changes.closed), [(2, 11), (3, 12)]);
    assert!(Arc::ptr_eq(&first.engines[&MemberId(1)], &second.engines[&MemberId(1)]));
}

#[tokio::test]
async fn only_connected_ready_engines_of_the_model_are_candidates() {
    let draining = Member { state: MemberState::Draining, ..member(3, 3, &[("m", "r")]) };
    let fleet = fleet([
        ViewOp::PutMember(member(1, 1, &[("m", "r")])),
        ViewOp::PutMember(member(2, 2, &[("other", "r")])),
        ViewOp::PutMember(draining),
        ViewOp::PutMember(member(4, 4, &[("m", "r")])),
        ViewOp::PutModel(Model { name: "idle".into(), revision: "r".into() }),
    ]);
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![1, 4]));
    worker(&fleet.engines[&MemberId(1)]).mark_down();
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![4]));
    assert_eq!(candidates(&fleet, "idle", 0), Some(vec![]));
    assert_eq!(candidates(&fleet, "unheard-of", 0), None);
}

#[tokio::test]
async fn a_worker_that_serves_something_else_under_its_epoch_is_routed_by_that() {
    let (fleet, _changes) =
        Fleet::default().next(view([ViewOp::PutMember(member(1, 10, &[]))]), &[]);
    let (fleet, changes) = fleet.next(view([ViewOp::PutMember(member(1, 10, &[("m", "r")]))]), &[]);
    assert_eq!((changes.opened.len(), changes.closed.len()), (1, 1));
    assert!(fleet.engines[&MemberId(1)].revision(&"m".into()).is_some());
}

#[tokio::test]
async fn an_alias_splits_by_weight_among_targets_that_are_alive() {
    let fleet = fleet([
        ViewOp::PutMember(member(1, 1, &[("m", "old")])),
        ViewOp::PutMember(member(2, 2, &[("m", "new")])),
        alias(&[("m", Some("old"), 3), ("m", Some("new"), 1), ("gone", None, 96)]),
    ]);
    let mut counts = [0; 3];
    for draw in draws() {
        for id in candidates(&fleet, "alias", draw).unwrap() {
            counts[usize::try_from(id).unwrap()] += 1;
        }
    }
    assert_eq!(counts, [0, 75, 25]);
    worker(&fleet.engines[&MemberId(1)]).mark_down();
    assert_eq!(candidates(&fleet, "alias", 0), Some(vec![2]));
}

#[tokio::test]
async fn a_target_whose_engines_failed_the_call_is_left_for_another() {
    let fleet = fleet([
        ViewOp::PutMember(member(1, 1, &[("m", "old")])),
        ViewOp::PutMember(member(2, 2, &[("m", "new")])),
        alias(&[("m", Some("old"), 99), ("m", Some("new"), 1)]),
    ]);
    let name = ModelName::from("alias");
    let route = fleet.route(&name, 0, any_but(&[MemberId(1)])).unwrap();
    let left = route.candidates(any_but(&[MemberId(1)]), Instant::now()).engines;
    let left: Vec<u64> = left.iter().map(|e| e.id().0).collect();
    assert_eq!(left, [2]);
}

/// A hundred draws, evenly over all there are.
fn draws() -> impl Iterator<Item = u64> {
    (0..100).map(|part| (2 * part + 1) * (u64::MAX / 200))
}

/// Lets half a second pass in which only `reporting` engines are heard.
fn pass_silence(fleet: &Fleet, reporting: &[u64]) {
    for _ in 0..20 {
        fleet.clock().tick(Duration::from_millis(25));
    }
    for id in reporting {
        fleet.engines[&MemberId(*id)].report(&pb::Load::default());
    }
}

#[tokio::test]
async fn a_silent_engine_is_avoided_until_it_reports_unless_all_are_silent() {
    let ids = [1, 2, 3];
    let fleet = fleet(ids.map(|id| ViewOp::PutMember(member(id, id, &[("m", "r")]))));
    pass_silence(&fleet, &[2, 3]);
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![2, 3]));
    let name = ModelName::from("m");
    let route = fleet.route(&name, 0, any_but(&[])).unwrap();
    let others = route.candidates(any_but(&[MemberId(2), MemberId(3)]), Instant::now()).engines;
    assert!(others.is_empty(), "a silent engine was taken for one that was tried");
    pass_silence(&fleet, &[]);
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![1, 2, 3]));
    fleet.engines[&MemberId(1)].report(&pb::Load::default());
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![1]));
}

#[tokio::test]
async fn an_alias_leaves_a_target_whose_engines_are_silent() {
    let fleet = fleet([
        ViewOp::PutMember(member(1, 1, &[("m", "old")])),
        ViewOp::PutMember(member(2, 2, &[("m", "new")])),
        alias(&[("m", Some("old"), 99), ("m", Some("new"), 1), ("m", Some("gone"), 900)]),
    ]);
    pass_silence(&fleet, &[2]);
    assert!(draws().all(|draw| candidates(&fleet, "alias", draw) == Some(vec![2])));
    pass_silence(&fleet, &[]);
    assert_eq!(candidates(&fleet, "alias", 0), Some(vec![1]));
}

#[tokio::test]
async fn models_and_aliases_are_listed_once_in_order() {
    let fleet = fleet([
        ViewOp::PutMember(member(1, 1, &[("m", "r")])),
        ViewOp::PutModel(Model { name: "m".into(), revision: "r".into() }),
        ViewOp::PutModel(Model { name: "idle".into(), revision: "r".into() }),
        alias(&[("m", None, 1)]),
    ]);
    let listed: Vec<_> = fleet
        .listings()
        .into_iter()
        .map(|listing| (listing.name.to_string(), listing.context_tokens_max))
        .collect();
    let expected =
        [("alias".to_owned(), Some(512)), ("idle".to_owned(), None), ("m".to_owned(), Some(512))];
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_view_that_knows_no_model_does_not_call_a_name_unknown() {
    let name = ModelName::from("m");
    let new = ClusterView { lineage: Lineage(7), index: ViewIndex(3), ..ClusterView::default() };
    let (fleet, _) = Fleet::default().next(Arc::new(new), &[]);
    assert_eq!(fleet.unknown(&name).status(), 503);
    let router = Member { role: MemberRole::Router, ..member(1, 1, &[]) };
    let (fleet, _) = Fleet::default().next(view([ViewOp::PutMember(router)]), &[]);
    assert_eq!(fleet.unknown(&name).status(), 503);
    let (fleet, _) = fleet.next(view([ViewOp::PutMember(member(2, 2, &[("other", "r")]))]), &[]);
    assert_eq!(fleet.unknown(&name).status(), 404);
}

#[tokio::test]
async fn ejected_engines_are_no_candidates_until_more_than_half_are() {
    let members = (1..=4).map(|id| ViewOp::PutMember(member(id, id, &[("m", "r")])));
    let fleet = fleet(members);
    let name = ModelName::from("m");
    let now = Instant::now();
    let eject = |id: u64| {
        let engine = fleet.engines().find(|engine| engine.id() == MemberId(id)).unwrap();
        assert!(engine.health.eject(now));
    };
    eject(1);
    eject(2);
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![3, 4]));
    // A retry that is left with ejected engines only is sent to one of them.
    let route = fleet.route(&name, 0, any_but(&[])).unwrap();
    let left = route.candidates(any_but(&[MemberId(3), MemberId(4)]), now);
    let ids: Vec<u64> = left.engines.iter().map(|engine| engine.id().0).collect();
    assert_eq!((ids, left.admission), (vec![1, 2], Admission::Panic));
    eject(3);
    assert_eq!(candidates(&fleet, "m", 0), Some(vec![1, 2, 3, 4]));
}

fn foreign(index: u64, setting: &str) -> Arc<Foreign> {
    let config = ForeignConfig::parse(setting, &|_| None).unwrap();
    Arc::new(Foreign::new(index, config, &Surroundings::default()))
}

#[tokio::test]
async fn foreign_engines_join_the_members_and_are_no_links_to_open() {
    let pinned = foreign(0, "http://a:1,model=m");
    let (fleet, changes) = Fleet::default()
        .next(view([ViewOp::PutMember(member(1, 1, &[("m", "r")]))]), &[Arc::clone(&pinned)]);
    assert_eq!((changes.opened.len(), changes.closed.len()), (1, 0));
    let both = Kinds { native: true, foreign: true };
    assert_eq!(fleet.kinds(&"m".into()), both);
    assert_eq!(fleet.kinds(&"other".into()), Kinds::default());
    let (second, changes) = fleet.next(view([]), &[pinned]);
    assert_eq!((changes.opened.len(), changes.closed.len()), (0, 1));
    assert_eq!(second.kinds(&"m".into()), Kinds::FOREIGN);
    let kept = |fleet: &Fleet| Arc::clone(fleet.engines.values().next_back().unwrap());
    assert!(Arc::ptr_eq(&kept(&fleet), &kept(&second)), "its books would be lost");
}

#[tokio::test]
async fn an_alias_and_its_shadow_say_what_kinds_a_request_may_come_to() {
    let target = |model: &str| AliasTarget { model: model.into(), revision: None, weight: 1 };
    let alias = |targets: &[&str], shadow: Option<&str>| {
        ViewOp::PutAlias(Alias {
            name: "alias".into(),
            targets: targets.iter().map(|model| target(model)).collect(),
            shadow: shadow.map(target),
            previous: None,
        })
    };
    let servers = [foreign(0, "http://a:1,model=theirs")];
    let kinds = |alias| {
        let ours = ViewOp::PutMember(member(1, 1, &[("ours", "r")]));
        Fleet::default().next(view([ours, alias]), &servers).0.kinds(&"alias".into())
    };
    let both = Kinds { native: true, foreign: true };
    assert_eq!(kinds(alias(&["ours"], None)), Kinds::NATIVE);
    assert_eq!(kinds(alias(&["theirs"], None)), Kinds::FOREIGN);
    assert_eq!(kinds(alias(&["ours", "theirs"], None)), both);
    assert_eq!(kinds(alias(&["ours"], Some("theirs"))), both);
}

#[tokio::test]
async fn a_model_is_not_unknown_before_every_foreign_engine_was_reached() {
    let (fleet, _) = Fleet::default().next(view([]), &[foreign(0, "http://a:1,model=m")]);
    assert!(matches!(fleet.unknown(&"x".into()), RouterError::ModelUnknown { .. }));
    let servers = [foreign(0, "http://a:1,model=m"), foreign(1, "http://b:1")];
    let (fleet, _) = Fleet::default().next(view([]), &servers);
    assert!(matches!(fleet.unknown(&"x".into()), RouterError::NoWorker { .. }));
}
