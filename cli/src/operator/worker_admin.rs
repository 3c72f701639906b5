//! `phalanx worker-admin`: the workers, and what an operator takes out of service.

use clap::{Arg, ArgMatches, Command};
use phalanx_proto::change::Change;
use phalanx_proto::id::MemberId;
use phalanx_proto::view::{ClusterView, Member, MemberRole, MemberState, ServedModel};
use serde_json::{Value, json};

use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, list, required, unknown_action};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Who serves what.
    List { is_stale: bool },
    /// Finish what it has, take nothing more.
    Drain(MemberId),
    /// Take work again.
    Undrain(MemberId),
    /// Out at once.
    Fence(MemberId),
}

pub(super) fn command() -> Command {
    let id = || -> Arg {
        required("id", "ID", "The worker, as list shows it")
            .value_parser(clap::value_parser!(u64).range(1..))
    };
    group("worker-admin", "Look at the workers and take them out of service or back into it")
        .subcommand(list("Show the workers, what they serve and where"))
        .subcommand(
            Command::new("drain")
                .about("Let a worker finish what it has and take no more")
                .arg(id()),
        )
        .subcommand(
            Command::new("undrain").about("Let a worker that drains take work again").arg(id()),
        )
        .subcommand(
            Command::new("fence")
                .about("Take a worker out at once; its calls are refused from then on")
                .arg(id()),
        )
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let id = || {
            let id = matches.get_one::<u64>("id").copied();
            id.map(MemberId).ok_or_else(|| Failure::usage("a worker's id is required"))
        };
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "drain" => id().map(Self::Drain),
            "undrain" => id().map(Self::Undrain),
            "fence" => id().map(Self::Fence),
            other => Err(unknown_action("worker-admin", other)),
        }
    }

    pub(super) async fn run(self, session: &mut Session) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => Ok(workers(&session.read_to_show(is_stale).await?)),
            Self::Drain(id) => {
                let worker = find(&session.read().await?.view, id)?;
                let Member { epoch, .. } = worker;
                let row = json!({"id": id.0, "epoch": epoch.0, "state": "draining"});
                let text = format!("worker {id} drains: it finishes what it has");
                let index = session.submit(Change::Drain { member_id: id, epoch }).await?;
                Ok(Answer::done(text, row, index))
            }
            Self::Undrain(id) => {
                let worker = find(&session.read().await?.view, id)?;
                let Member { epoch, .. } = worker;
                let row = json!({"id": id.0, "epoch": epoch.0, "state": "ready"});
                let text = format!("worker {id} takes work again");
                let index = session.submit(Change::Undrain { member_id: id, epoch }).await?;
                Ok(Answer::done(text, row, index))
            }
            Self::Fence(id) => {
                let worker = find(&session.read().await?.view, id)?;
                let Member { epoch, address, .. } = worker;
                let row = json!({"id": id.0, "epoch": epoch.0, "state": "fenced"});
                let text = format!(
                    "worker {id} is out; stop its process at {address}, or it registers anew"
                );
                let index = session.submit(Change::Fence { member_id: id, epoch }).await?;
                Ok(Answer::done(text, row, index))
            }
        }
    }
}

fn find(view: &ClusterView, id: MemberId) -> Result<Member, Failure> {
    match view.members.get(&id) {
        Some(member) if member.role == MemberRole::Worker => Ok(member.clone()),
        Some(_router) => Err(Failure::Failed(format!("member {id} is a router, not a worker"))),
        None => {
            let known: Vec<String> = all(view).map(|worker| worker.id.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(Failure::Failed(format!("worker {id} is not registered; registered: {known}")))
        }
    }
}

fn all(view: &ClusterView) -> impl Iterator<Item = &Member> {
    view.members.values().filter(|member| member.role == MemberRole::Worker)
}

fn workers(seen: &Seen) -> Answer {
    let mut table = Table::new([
        Column::Right("ID"),
        Column::Left("STATE"),
        Column::Left("ADDRESS"),
        Column::Left("ZONE"),
        Column::Right("EPOCH"),
        Column::Left("SERVES"),
    ]);
    for worker in all(&seen.view) {
        let served = worker.models.iter().map(|model| format!("{}@{}", model.name, model.revision));
        table.row([
            worker.id.to_string(),
            state_name(worker.state).to_owned(),
            worker.address.clone(),
            worker.zone.clone(),
            worker.epoch.to_string(),
            served.collect::<Vec<_>>().join(" "),
        ]);
    }
    seen.answer(table.or("no worker is registered"), "workers", all(&seen.view).map(row).collect())
}

fn row(worker: &Member) -> Value {
    let served = worker.models.iter().map(|model| {
        let ServedModel { name, revision, context_tokens_max, kv_tokens_max } = model;
        json!({
            "name": name.as_str(),
            "revision": revision.as_str(),
            "context_tokens_max": context_tokens_max,
            "kv_tokens_max": kv_tokens_max,
        })
    });
    json!({
        "id": worker.id.0,
        "state": state_name(worker.state),
        "address": worker.address,
        "zone": worker.zone,
        "epoch": worker.epoch.0,
        "models": served.collect::<Vec<_>>(),
    })
}

const fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Ready => "ready",
        MemberState::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::Epoch;
    use phalanx_proto::view::Capacity;

    use super::*;

    fn member(id: u64, role: MemberRole) -> Member {
        let served = ServedModel {
            name: "demo-llm".into(),
            revision: "r1".into(),
            context_tokens_max: 4096,
            kv_tokens_max: 8192,
        };
        Member {
            id: MemberId(id),
            role,
            address: format!("http://w{id}:7500"),
            zone: "a".to_owned(),
            epoch: Epoch(id + 1),
            state: MemberState::Draining,
            models: vec![served],
            capacity: Capacity::default(),
        }
    }

    fn view(members: &[(u64, MemberRole)]) -> ClusterView {
        let members = members.iter().map(|(id, role)| (MemberId(*id), member(*id, *role)));
        ClusterView { members: members.collect(), ..ClusterView::default() }
    }

    #[test]
    fn workers_are_for_programs_and_for_people() {
        let view =
            view(&[(9, MemberRole::Worker), (10, MemberRole::Worker), (3, MemberRole::Router)]);
        let answer = workers(&Seen::for_test(view, false));
        let expected = "ID  STATE     ADDRESS          ZONE  EPOCH  SERVES
 9  draining  http://w9:7500   a        10  demo-llm@r1
10  draining  http://w10:7500  a        11  demo-llm@r1
";
        assert_eq!(answer.text, expected);
        let expected = r#"{"id":9,"state":"draining","address":"http://w9:7500","zone":"a","epoch":10,"models":[{"name":"demo-llm","revision":"r1","context_tokens_max":4096,"kv_tokens_max":8192}]}"#;
        assert_eq!(answer.json["workers"][0].to_string(), expected);
        assert_eq!(answer.json["stale"], false);
    }

    #[test]
    fn a_stale_view_says_so() {
        let answer = workers(&Seen::for_test(view(&[]), true));
        let expected = "no worker is registered\n\nas node 2 has it at index 0: may be stale\n";
        assert_eq!(answer.text, expected);
        assert_eq!(answer.json["stale"], true);
    }

    #[test]
    fn only_workers_are_found() {
        let view = view(&[(9, MemberRole::Worker), (3, MemberRole::Router)]);
        assert_eq!(find(&view, MemberId(9)).map(|worker| worker.epoch), Ok(Epoch(10)));
        for (id, line) in [
            (3, "member 3 is a router, not a worker"),
            (4, "worker 4 is not registered; registered: 9"),
        ] {
            assert_eq!(find(&view, MemberId(id)), Err(Failure::Failed(line.to_owned())));
        }
    }
}
