//! `phalanx cluster`: what an operator asks of the control group, through any of its nodes.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use phalanx_chassis::config::Kind;
use phalanx_proto::change::GroupChange;
use phalanx_proto::id::NodeId;
use phalanx_proto::pb::{RaftMember, StatusResponse};
use serde_json::{Value, json};

use super::session::Session;
use super::table::{Column, Table};
use super::{Answer, backup, group, required, unknown_action, word};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Who is in the group and who leads it.
    Status,
    /// A change of the group.
    Change(GroupChange),
    /// What the group holds, into a file.
    Backup { file: PathBuf, is_stale: bool },
    /// A new history, from a file.
    Restore { file: PathBuf },
}

pub(super) fn command() -> Command {
    let id = || -> Arg {
        required("id", "ID", "The node").value_parser(clap::value_parser!(u64).range(1..))
    };
    let url = required("url", "URL", "Where its peers will reach it")
        .value_parser(|url: &str| Kind::Url.parse(url).map(|_url| url.to_owned()));
    let action = |name, about| Command::new(name).about(about);
    group("cluster", "Look at the control group and change it")
        .subcommand(action("status", "Show who is in the group and who leads it"))
        .subcommand(action("add", "Add a node that learns without a vote").arg(url))
        .subcommand(action("promote", "Give a node a vote").arg(id()))
        .subcommand(action("remove", "Take a node out for good").arg(id()))
        .subcommand(action("transfer", "Make a voter lead").arg(id()))
        .subcommand(
            action("backup", "Save everything the group holds in a file")
                .arg(required("file", "FILE", "The file, replaced whole or not at all"))
                .arg(
                    Arg::new("stale").long("stale").action(ArgAction::SetTrue).help(
                        "Save what one node has at hand, which may lag behind; needs no leader",
                    ),
                ),
        )
        .subcommand(
            action("restore", "Begin again from a backup, at one node that has no state")
                .arg(required("file", "FILE", "What backup saved")),
        )
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let node = || {
            let id = matches.get_one::<u64>("id").copied();
            id.map(NodeId).ok_or_else(|| Failure::usage("a node's id is required"))
        };
        let file = || word(matches, "file").map(PathBuf::from);
        Ok(Self::Change(match action {
            "status" => return Ok(Self::Status),
            "backup" => {
                return Ok(Self::Backup { file: file()?, is_stale: matches.get_flag("stale") });
            }
            "restore" => return Ok(Self::Restore { file: file()? }),
            "add" => GroupChange::Add { url: word(matches, "url")?.to_owned() },
            "promote" => GroupChange::Promote(node()?),
            "remove" => GroupChange::Remove(node()?),
            "transfer" => GroupChange::Transfer(node()?),
            other => return Err(unknown_action("cluster", other)),
        }))
    }

    pub(super) async fn run(self, session: &Session) -> Result<Answer, Failure> {
        match self {
            Self::Status => {
                let status = session.status().await?;
                Ok(Answer { text: status_table(&status), json: status_json(&status) })
            }
            Self::Change(change) => {
                let node = session.change_group(change.clone()).await?;
                let text = format!("{}\n", done(&change, node));
                Ok(Answer { text, json: json!({"id": node.0}) })
            }
            Self::Backup { file, is_stale } => backup::backup(session, file, is_stale).await,
            Self::Restore { file } => backup::restore(session, file).await,
        }
    }
}

fn status_json(status: &StatusResponse) -> Value {
    let members = status.members.iter();
    let members =
        members.map(|RaftMember { id, url, role }| json!({"id": id, "url": url, "role": role}));
    json!({
        "leader": (status.leader != 0).then_some(status.leader),
        "term": status.term,
        "last_applied": status.last_applied,
        "members": members.collect::<Vec<_>>(),
        "answered_by": status.node_id,
        "cluster_id": (!status.cluster_id.is_empty()).then_some(&status.cluster_id),
        "lineage": status.lineage,
    })
}

fn status_table(status: &StatusResponse) -> String {
    let leader = match status.leader {
        0 => "nobody leads".to_owned(),
        leader => format!("node {leader} leads"),
    };
    let StatusResponse { cluster_id, node_id, term, last_applied, .. } = status;
    if cluster_id.is_empty() && status.members.is_empty() {
        return format!(
            "node {node_id} belongs to no cluster yet: it waits until its group calls it, or for a restore\n"
        );
    }
    let cluster_id = if cluster_id.is_empty() { "without an id yet" } else { cluster_id };
    let mut text = format!("cluster {cluster_id}\n{leader} in term {term}; ");
    text.push_str(&format!(
        "node {node_id} answers, and has applied up to index {last_applied}\n\n"
    ));
    let mut table = Table::new([Column::Right("NODE"), Column::Left("ROLE"), Column::Left("URL")]);
    for RaftMember { id, url, role } in &status.members {
        let role = if *id == status.leader { "leader" } else { role };
        table.row([id.to_string(), role.to_owned(), url.clone()]);
    }
    text + &table.or("it belongs to no group")
}

fn done(change: &GroupChange, node: NodeId) -> String {
    match change {
        GroupChange::Add { url } => format!(
            "node {node} learns at {url}; start it there with --node-id {node} and with itself among its --peers"
        ),
        GroupChange::Promote(_) => format!("node {node} votes"),
        GroupChange::Remove(_) => format!("node {node} is out of the group; stop its process"),
        GroupChange::Transfer(_) => format!("node {node} leads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusResponse {
        let member = |id: u64, role: &str| RaftMember {
            id,
            url: format!("http://c{id}:7400"),
            role: role.to_owned(),
        };
        StatusResponse {
            node_id: 1,
            leader: 2,
            term: 3,
            last_applied: 42,
            members: vec![member(1, "voter"), member(2, "voter"), member(57, "learner")],
            lineage: 7,
            cluster_id: "x".to_owned(),
        }
    }

    #[test]
    fn the_status_is_for_programs_and_for_people() {
        let expected = r#"{"leader":2,"term":3,"last_applied":42,"members":[{"id":1,"url":"http://c1:7400","role":"voter"},{"id":2,"url":"http://c2:7400","role":"voter"},{"id":57,"url":"http://c57:7400","role":"learner"}],"answered_by":1,"cluster_id":"x","lineage":7}"#;
        assert_eq!(status_json(&status()).to_string(), expected);
        let expected = "cluster x
node 2 leads in term 3; node 1 answers, and has applied up to index 42

NODE  ROLE     URL
   1  voter    http://c1:7400
   2  leader   http://c2:7400
  57  learner  http://c57:7400
";
        assert_eq!(status_table(&status()), expected);
    }

    #[test]
    fn a_node_without_a_cluster_says_so() {
        let status = StatusResponse { cluster_id: String::new(), members: Vec::new(), ..status() };
        assert_eq!(status_json(&status)["cluster_id"], Value::Null);
        assert!(status_table(&status).starts_with("node 1 belongs to no cluster yet"));
    }

    #[test]
    fn a_group_without_a_leader_says_so() {
        let status = StatusResponse { leader: 0, ..status() };
        assert_eq!(status_json(&status)["leader"], Value::Null);
        assert!(status_table(&status).contains("nobody leads in term 3"));
    }
}
