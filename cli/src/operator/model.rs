//! `phalanx model`: which models are wanted, and what of that there is.

use std::collections::BTreeSet;

use clap::{Arg, ArgMatches, Command};
use phalanx_proto::change::{Change, GROUP_RANKS_MAX, REPLICAS_MAX};
use phalanx_proto::id::{ModelName, Revision};
use phalanx_proto::view::{
    ClusterView, Deployment, Group, GroupState, GroupStatus, MemberRole, MemberState, Model,
    Shortage,
};
use serde_json::{Value, json};

use super::nearest::with_nearest;
use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, limit, list, name, new_name, required, unknown_action};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// What is wanted and what there is.
    List { is_stale: bool },
    /// So many groups that serve a model; what is not said stays.
    Set { name: ModelName, revision: Option<Revision>, replicas: Option<u32>, tp: Option<u32> },
    /// Nothing is to be placed for the model.
    Remove(ModelName),
}

/// One revision of a model: wanted, served, or merely known.
#[derive(Debug)]
struct Row<'a> {
    name: &'a ModelName,
    revision: &'a Revision,
    /// None when nothing is wanted of it.
    wanted: Option<&'a Deployment>,
    ready: usize,
    forming: usize,
    broken: usize,
    /// Workers that take requests for it.
    workers: usize,
    /// Where its groups are, and why one is broken.
    groups: Vec<GroupStatus>,
    /// Why there are fewer than wanted.
    shortage: Option<Shortage>,
}

pub(super) fn command() -> Command {
    let name = || required("name", "NAME", "The model");
    let count = |id: &'static str, (min, max): (u32, u32), help| {
        let range = clap::value_parser!(u32).range(i64::from(min)..=i64::from(max));
        Arg::new(id).long(id).value_name("N").value_parser(range).help(help)
    };
    let revision = "Which revision [default: the one wanted, or the only one known]";
    group("model", "Look at the models and say how many replicas are wanted")
        .subcommand(list("Show what is wanted of each model and what there is"))
        .subcommand(
            Command::new("set")
                .about("Say how a model is to be served; what is not said stays")
                .arg(name())
                .arg(Arg::new("revision").long("revision").value_name("REV").help(revision))
                .arg(count("replicas", (0, REPLICAS_MAX), "How many groups serve it; 1 at first"))
                .arg(count(
                    "tp",
                    (1, GROUP_RANKS_MAX),
                    "Over how many devices each of them shards it; 1 at first",
                )),
        )
        .subcommand(
            Command::new("remove")
                .about("Want nothing of a model any more; workers started with it go on")
                .arg(name()),
        )
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "set" => Ok(Self::Set {
                name: new_name(matches, "name")?.into(),
                revision: revision(matches)?,
                replicas: matches.get_one("replicas").copied(),
                tp: matches.get_one("tp").copied(),
            }),
            "remove" => name(matches, "name").map(Self::Remove),
            other => Err(unknown_action("model", other)),
        }
    }

    pub(super) async fn run(self, session: &mut Session) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => Ok(models(&session.read_to_show(is_stale).await?)),
            Self::Set { name, revision, replicas, tp } => {
                let seen = session.read().await?;
                let current = seen.view.deployments.get(&name);
                let revision = match revision.or(current.map(|known| known.revision.clone())) {
                    Some(revision) => revision,
                    None => only_revision(&seen.view, &name)?,
                };
                let replicas = replicas.or(current.map(|known| known.replicas)).unwrap_or(1);
                let tp = tp.or(current.map(|known| known.tp)).unwrap_or(1);
                let row = json!({
                    "name": name.as_str(),
                    "revision": revision.as_str(),
                    "replicas": replicas,
                    "tp": tp,
                });
                let mut text = format!("wanted: {replicas} of {name}@{revision} at tp {tp}");
                let is_replaced = current.is_some_and(|known| known.revision != revision);
                if is_replaced && !seen.view.knows(&name, &revision) {
                    text.push_str(
                        "\nno worker has served this revision yet: what serves now stays until one does",
                    );
                }
                let change = Change::SetDeployment { name, revision, replicas, tp };
                Ok(Answer::done(text, row, session.submit(change).await?))
            }
            Self::Remove(name) => {
                let seen = session.read().await?;
                if !seen.view.deployments.contains_key(&name) {
                    let known = seen.view.deployments.keys().map(ModelName::as_str);
                    let problem = format!("model {name} is not wanted");
                    return Err(Failure::Failed(with_nearest(problem, name.as_str(), known)));
                }
                let row = json!({"name": name.as_str(), "removed": true});
                let text = format!("nothing of {name} is wanted any more");
                Ok(Answer::done(text, row, session.submit(Change::RemoveDeployment(name)).await?))
            }
        }
    }
}

fn revision(matches: &ArgMatches) -> Result<Option<Revision>, Failure> {
    if matches.get_one::<String>("revision").is_none() {
        return Ok(None);
    }
    new_name(matches, "revision").map(|revision| Some(revision.into()))
}

/// The revision meant when none is given: the only one there is.
fn only_revision(view: &ClusterView, name: &ModelName) -> Result<Revision, Failure> {
    let known: Vec<&Revision> = view
        .models
        .iter()
        .filter(|model| model.name == *name)
        .map(|model| &model.revision)
        .collect();
    match known.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            let problem = format!("model {name} is not known, so it needs a --revision");
            let names = view.models.iter().map(|model| model.name.as_str());
            Err(Failure::Failed(with_nearest(problem, name.as_str(), names)))
        }
        several => {
            let several: Vec<&str> = several.iter().map(|revision| revision.as_str()).collect();
            let several = several.join(", ");
            Err(Failure::Failed(format!("model {name} needs a --revision, one of {several}")))
        }
    }
}

fn rows(view: &ClusterView) -> Vec<Row<'_>> {
    let known = view.models.iter().map(|Model { name, revision }| (name, revision));
    let wanted = view.deployments.values().map(|wanted| (&wanted.name, &wanted.revision));
    let placed = view.groups.values().map(|group| (&group.deployment, &group.revision));
    let all: BTreeSet<(&ModelName, &Revision)> = known.chain(wanted).chain(placed).collect();
    all.into_iter().map(|(name, revision)| row_of(view, name, revision)).collect()
}

fn row_of<'a>(view: &'a ClusterView, name: &'a ModelName, revision: &'a Revision) -> Row<'a> {
    let of_it = |group: &&Group| group.deployment == *name && group.revision == *revision;
    let groups = |state: GroupState| {
        view.groups.values().filter(of_it).filter(|group| group.state == state).count()
    };
    let placed = view.groups.values().filter(of_it);
    let workers = view.members.values().filter(|member| {
        member.role == MemberRole::Worker
            && member.state == MemberState::Ready
            && member.models.iter().any(|m| m.name == *name && m.revision == *revision)
    });
    let wanted = view.deployments.get(name).filter(|wanted| wanted.revision == *revision);
    Row {
        name,
        revision,
        wanted,
        shortage: wanted.and_then(|wanted| Shortage::of(view, wanted)),
        ready: groups(GroupState::Ready),
        forming: groups(GroupState::Forming),
        broken: groups(GroupState::Broken),
        workers: workers.count(),
        groups: placed.map(|group| GroupStatus::new(view, group)).collect(),
    }
}

fn models(seen: &Seen) -> Answer {
    let mut table = Table::new([
        Column::Left("MODEL"),
        Column::Left("REVISION"),
        Column::Right("WANTED"),
        Column::Right("TP"),
        Column::Right("READY"),
        Column::Right("FORMING"),
        Column::Right("BROKEN"),
        Column::Right("WORKERS"),
    ]);
    let rows = rows(&seen.view);
    for row in &rows {
        table.row([
            row.name.to_string(),
            row.revision.to_string(),
            limit::shown(row.wanted.map(|wanted| wanted.replicas)),
            limit::shown(row.wanted.map(|wanted| wanted.tp)),
            row.ready.to_string(),
            row.forming.to_string(),
            row.broken.to_string(),
            row.workers.to_string(),
        ]);
    }
    let mut text = table.or("no model is known");
    for row in &rows {
        if let Some(shortage) = &row.shortage {
            text.push_str(&format!("{}@{}: {shortage}\n", row.name, row.revision));
        }
        for GroupStatus { id, epoch, reason, .. } in &row.groups {
            if let Some(reason) = reason {
                text.push_str(&format!(
                    "group {id} of {} at epoch {epoch} is broken: {reason}\n",
                    row.name
                ));
            }
        }
    }
    seen.answer(text, "models", rows.iter().map(json_of).collect())
}

fn json_of(row: &Row<'_>) -> Value {
    json!({
        "name": row.name.as_str(),
        "revision": row.revision.as_str(),
        "replicas": row.wanted.map(|wanted| wanted.replicas),
        "tp": row.wanted.map(|wanted| wanted.tp),
        "ready": row.ready,
        "forming": row.forming,
        "broken": row.broken,
        "workers": row.workers,
        "missing": row.shortage.as_ref().map_or(0, |shortage| shortage.missing),
        "shortage": row.shortage.as_ref().map(ToString::to_string),
        "groups": row.groups,
    })
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::{Epoch, GroupId, ViewIndex};

    use super::*;

    fn model(name: &str, revision: &str) -> Model {
        Model { name: name.into(), revision: revision.into() }
    }

    fn placed(id: u64, revision: &str, state: GroupState) -> (GroupId, Group) {
        let group = Group {
            id: GroupId(id),
            epoch: Epoch(id),
            deployment: "demo".into(),
            revision: revision.into(),
            ranks: Vec::new(),
            ready: BTreeSet::new(),
            rendezvous: None,
            state,
            failure: None,
        };
        (group.id, group)
    }

    fn view() -> ClusterView {
        let wanted = Deployment {
            name: "demo".into(),
            revision: "r2".into(),
            replicas: 3,
            tp: 2,
            version: ViewIndex(9),
        };
        ClusterView {
            models: [model("demo", "r1"), model("demo", "r2"), model("embedder", "e1")].into(),
            deployments: [("demo".into(), wanted)].into(),
            groups: [
                placed(1, "r1", GroupState::Ready),
                placed(2, "r2", GroupState::Ready),
                placed(3, "r2", GroupState::Forming),
                placed(4, "r2", GroupState::Broken),
            ]
            .into(),
            ..ClusterView::default()
        }
    }

    #[test]
    fn what_is_wanted_stands_beside_what_there_is() {
        let answer = models(&Seen::for_test(view(), false));
        let expected = "MODEL     REVISION  WANTED  TP  READY  FORMING  BROKEN  WORKERS
demo      r1             -   -      1        0       0        0
demo      r2             3   2      1        1       1        0
embedder  e1             -   -      0        0       0        0
demo@r2: 3 missing: no worker offers a device
group 4 of demo at epoch 4 is broken: it was broken while its members stayed
";
        assert_eq!(answer.text, expected);
        let expected = r#"{"name":"demo","revision":"r2","replicas":3,"tp":2,"ready":1,"forming":1,"broken":1,"workers":0,"missing":3,"shortage":"3 missing: no worker offers a device","groups":[{"id":2,"epoch":2,"state":"ready","ranks":[],"reason":null},{"id":3,"epoch":3,"state":"forming","ranks":[],"reason":null},{"id":4,"epoch":4,"state":"broken","ranks":[],"reason":"it was broken while its members stayed"}]}"#;
        assert_eq!(answer.json["models"][1].to_string(), expected);
    }

    #[test]
    fn a_revision_is_left_out_only_where_there_is_one() {
        assert_eq!(only_revision(&view(), &"embedder".into()), Ok("e1".into()));
        for (name, line) in [
            ("demo", "model demo needs a --revision, one of r1, r2"),
            (
                "embeder",
                "model embeder is not known, so it needs a --revision; did you mean embedder?",
            ),
        ] {
            let refused = only_revision(&view(), &name.into());
            assert_eq!(refused, Err(Failure::Failed(line.to_owned())));
        }
    }
}
