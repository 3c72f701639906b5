//! `phalanx cluster`: what an operator asks of the control group, through any of its nodes.

use phalanx_chassis::config::Resolved;
use phalanx_chassis::control_client::ControlClient;
use phalanx_proto::change::GroupChange;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::NodeId;
use phalanx_proto::pb::{RaftMember, StatusResponse};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::{say, settings};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClusterAction {
    /// Who is in the group and who leads it.
    Status,
    /// A change of the group.
    Change(GroupChange),
}

/// Does what is asked and prints the outcome.
///
/// # Errors
/// `Unreachable` when no node answers or nobody leads; `Failed` when the change was refused.
pub(crate) async fn run(resolved: &Resolved, action: ClusterAction) -> Result<(), Failure> {
    let client = ControlClient::new(resolved.list(&settings::CLUSTER_CONTROL))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let is_json = resolved.is_on(&settings::CLUSTER_JSON);
    let text = match action {
        ClusterAction::Status => {
            let status = client.status().await.map_err(|fault| failure(&fault))?;
            if is_json { format!("{}\n", status_json(&status)) } else { status_table(&status) }
        }
        ClusterAction::Change(change) => {
            let node =
                client.change_group(change.clone()).await.map_err(|fault| failure(&fault))?;
            if is_json {
                format!("{}\n", json!({"id": node.0}))
            } else {
                format!("{}\n", done(&change, node))
            }
        }
    };
    say(&text);
    Ok(())
}

fn failure(fault: &Fault) -> Failure {
    match fault.code {
        FaultCode::Unavailable | FaultCode::DeadlineExceeded | FaultCode::Draining => {
            Failure::Unreachable(format!("no control node could answer: {fault}"))
        }
        _ => Failure::Failed(fault.to_string()),
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
        "cluster_id": status.cluster_id,
        "lineage": status.lineage,
    })
}

fn status_table(status: &StatusResponse) -> String {
    let leader = match status.leader {
        0 => "nobody leads".to_owned(),
        leader => format!("node {leader} leads"),
    };
    let StatusResponse { cluster_id, node_id, term, last_applied, .. } = status;
    let mut text = format!("cluster {cluster_id}\n{leader} in term {term}; ");
    text.push_str(&format!("node {node_id} answers, and has applied {last_applied} entries\n\n"));
    text.push_str(&format!("{:>8}  {:<8}  {}\n", "NODE", "ROLE", "URL"));
    for RaftMember { id, url, role } in &status.members {
        let role = if *id == status.leader { "leader" } else { role };
        text.push_str(&format!("{id:>8}  {role:<8}  {url}\n"));
    }
    text
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
node 2 leads in term 3; node 1 answers, and has applied 42 entries

    NODE  ROLE      URL
       1  voter     http://c1:7400
       2  leader    http://c2:7400
      57  learner   http://c57:7400
";
        assert_eq!(status_table(&status()), expected);
    }

    #[test]
    fn a_group_without_a_leader_says_so() {
        let status = StatusResponse { leader: 0, ..status() };
        assert_eq!(status_json(&status)["leader"], Value::Null);
        assert!(status_table(&status).contains("nobody leads in term 3"));
    }
}
