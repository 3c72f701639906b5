//! One operator's call: reads as of now, writes applied once, and refusals told the same way by every command.

use std::time::Duration;

use phalanx_chassis::control_client::{ControlClient, ViewReading};
use phalanx_proto::change::{Change, GROUP_URL, GroupChange};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{NodeId, ViewIndex};
use phalanx_proto::pb::{RestoreResponse, StatusResponse};
use phalanx_proto::view::ClusterView;
use serde_json::{Value, json};

use super::Answer;
use crate::failure::Failure;

/// How long an answer is waited for: an election of up to 4 seconds, one more that is split, and a commit.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(15);

/// The calls of one invocation.
#[derive(Debug)]
pub(super) struct Session {
    client: ControlClient,
    /// How many nodes may be asked.
    nodes: usize,
    /// Names the writes together with `sequence`, so that one asked again is not applied again.
    name: String,
    sequence: u64,
}

/// The cluster as it was read.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) view: ClusterView,
    node_id: NodeId,
    is_stale: bool,
}

// === impl Session ===

impl Session {
    pub(super) fn new(urls: &[String]) -> Result<Self, Failure> {
        let client = ControlClient::new(urls).map_err(|error| Failure::usage(error.to_string()))?;
        let name = format!("operator-{}", uuid::Uuid::new_v4());
        Ok(Self { client, nodes: urls.len(), name, sequence: 0 })
    }

    /// The cluster with every write in it that was answered before.
    pub(super) async fn read(&self) -> Result<Seen, Failure> {
        let reading = self.client.read_view(ANSWER_WAIT_MAX).await;
        Ok(Seen::new(reading.map_err(|fault| failure(&fault))?, false))
    }

    /// The cluster for a command that shows it: as [`Session::read`], or with `is_stale` as one node has it.
    pub(super) async fn read_to_show(&self, is_stale: bool) -> Result<Seen, Failure> {
        let reading = if is_stale {
            self.client.read_view_stale().await
        } else {
            self.client.read_view(ANSWER_WAIT_MAX).await
        };
        let reading = reading
            .map_err(|fault| advised(&fault, is_stale, "--stale shows what a node has at hand"))?;
        Ok(Seen::new(reading, is_stale))
    }

    /// Makes a change, once, and says at which index.
    pub(super) async fn submit(&mut self, change: Change) -> Result<ViewIndex, Failure> {
        self.sequence += 1;
        let submitted =
            self.client.submit_within(ANSWER_WAIT_MAX, &self.name, self.sequence, change);
        submitted.await.map_err(|fault| match failure(&fault) {
            Failure::Unreachable(line) => Failure::Unreachable(format!(
                "{line}; an answer may have been lost, so look before you ask again"
            )),
            failure => failure,
        })
    }

    /// Changes the control group. What is done already is left as it is, so it is asked for again across an election.
    pub(super) async fn change_group(&self, change: GroupChange) -> Result<NodeId, Failure> {
        let changed = self.client.change_group_within(ANSWER_WAIT_MAX, change).await;
        changed.map_err(|fault| match failure(&fault) {
            Failure::Failed(line) if fault.param.as_deref() == Some(GROUP_URL) => {
                Failure::usage(line)
            }
            Failure::Unreachable(line) => Failure::Unreachable(format!(
                "{line}; an answer may have been lost, but to ask again is harmless"
            )),
            failure => failure,
        })
    }

    /// How many nodes may be asked.
    pub(super) const fn nodes(&self) -> usize {
        self.nodes
    }

    /// Everything the group holds, as a file; with `is_stale`, what one node has of it.
    pub(super) async fn backup(&self, is_stale: bool) -> Result<Vec<u8>, Failure> {
        let saved = if is_stale {
            self.client.backup(true).await
        } else {
            self.client.backup_within(ANSWER_WAIT_MAX).await
        };
        saved.map_err(|fault| advised(&fault, is_stale, "--stale saves what a node has at hand"))
    }

    /// Begins a new history from `file` at the node asked.
    pub(super) async fn restore(&self, file: Vec<u8>) -> Result<RestoreResponse, Failure> {
        self.client.restore(file).await.map_err(|fault| failure(&fault))
    }

    /// What one node knows of the control group.
    pub(super) async fn status(&self) -> Result<StatusResponse, Failure> {
        self.client.status().await.map_err(|fault| failure(&fault))
    }
}

// === impl Seen ===

impl Seen {
    fn new(reading: ViewReading, is_stale: bool) -> Self {
        Self { view: reading.view, node_id: reading.node_id, is_stale }
    }

    /// As if read from node 2.
    #[cfg(test)]
    pub(super) const fn for_test(view: ClusterView, is_stale: bool) -> Self {
        Self { view, node_id: NodeId(2), is_stale }
    }

    /// An answer that shows `rows`, which are of the kind `key`, and says how fresh they are.
    pub(super) fn answer(&self, mut text: String, key: &str, rows: Vec<Value>) -> Answer {
        let Self { view, node_id, is_stale } = self;
        if *is_stale {
            let index = view.index;
            text.push_str(&format!("\nas node {node_id} has it at index {index}: may be stale\n"));
        }
        let json = json!({
            key: Value::Array(rows),
            "index": view.index.0,
            "lineage": view.lineage.0,
            "answered_by": node_id.0,
            "stale": is_stale,
        });
        Answer { text, json }
    }
}

/// As [`failure`]; where a node answered that it has no leader, with what does without one.
fn advised(fault: &Fault, is_stale: bool, advice: &str) -> Failure {
    match failure(fault) {
        Failure::Unreachable(line) if !is_stale && fault.retry_after.is_some() => {
            Failure::Unreachable(format!("{line}; {advice}"))
        }
        failure => failure,
    }
}

/// A fault as the process ends with it.
pub(super) fn failure(fault: &Fault) -> Failure {
    let when = match fault.retry_after {
        Some(after) => format!("; try again in {} s", after.as_secs_f64().ceil()),
        None => String::new(),
    };
    match fault.code {
        FaultCode::Unavailable | FaultCode::DeadlineExceeded | FaultCode::Draining => {
            Failure::Unreachable(format!("no control node could answer: {fault}{when}"))
        }
        _ => Failure::Failed(format!("{fault}{when}")),
    }
}
