//! The state of the cluster, and the only thing that changes it: [`State::apply`].
//!
//! Pure and deterministic: no clock, no randomness, no hash order, no floats. Every replica that applies
//! the same log holds the same state, byte for byte. The limits below are part of the state machine:
//! nodes that disagree on one would drift apart, so changing one takes a new schema version.

use std::collections::BTreeMap;

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, Lineage, MemberId, ModelName, ViewIndex};
use phalanx_proto::view::{Alias, ClusterView, Member, MemberRole, MemberState, Model, ViewOp};
use serde::{Deserialize, Serialize};

use crate::command::Command;

/// The most members: ten times the largest cluster the design is measured at, and a view of some 5 MB.
const MEMBERS_MAX: usize = 10_000;

/// The most models, and the most aliases: what a registry of public names holds, with room to spare.
const NAMES_MAX: usize = 4096;

/// How many clients' last answers are kept, by log order. A client that was silent while this many others
/// wrote is not one that still repeats a request.
const CLIENTS_MAX: usize = 1024;

/// All that the log has built. Its serde form is the body of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Empty until the cluster is founded.
    cluster_id: String,
    /// What the data plane sees; moved by the same operations that watchers receive.
    view: ClusterView,
    /// The process start that each member's registration came from.
    instances: BTreeMap<MemberId, String>,
    /// The last answer given to each client.
    clients: BTreeMap<String, Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    sequence: u64,
    reply: Reply,
    /// When the client was last heard, in log order.
    heard: ViewIndex,
}

/// What applying one command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For whoever proposed it.
    pub reply: Reply,
    /// For the watchers; empty when the view stayed as it was.
    pub ops: Vec<ViewOp>,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, at this index.
    Applied {
        /// The log index.
        index: ViewIndex,
    },
    /// The process is a member.
    Registered {
        /// As whom.
        member_id: MemberId,
        /// Its fencing token.
        epoch: Epoch,
    },
    /// Not done; nothing changed.
    Refused(Refusal),
}

/// Why a command was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The command names a registration that was replaced.
    #[error("member {member_id} is registered at epoch {current}, not at {epoch}")]
    StaleEpoch {
        /// Who.
        member_id: MemberId,
        /// The epoch named.
        epoch: Epoch,
        /// The epoch that holds.
        current: Epoch,
    },
    /// The command names a member that left, was fenced, or never was.
    #[error("member {member_id} is not registered")]
    NotRegistered {
        /// Who.
        member_id: MemberId,
    },
    /// There is no such model.
    #[error("model {name} is not known at the revision given")]
    UnknownModel {
        /// Which.
        name: ModelName,
    },
    /// The model is in use.
    #[error("model {name} is served by member {member_id}, so it cannot be removed")]
    ModelServed {
        /// Which.
        name: ModelName,
        /// By whom.
        member_id: MemberId,
    },
    /// There is no such alias.
    #[error("alias {name} is not known")]
    UnknownAlias {
        /// Which.
        name: ModelName,
    },
    /// A bound of the state is reached.
    #[error("the cluster holds {count_max} {what}, the most it can")]
    Full {
        /// Of what.
        what: String,
        /// The bound.
        count_max: u64,
    },
    /// The client already sent a later command.
    #[error("command {sequence} of client {client} was superseded by {last}")]
    Superseded {
        /// Who.
        client: String,
        /// The command refused.
        sequence: u64,
        /// The client's latest.
        last: u64,
    },
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::StaleEpoch { .. } | Refusal::NotRegistered { .. } => FaultCode::StaleEpoch,
            Refusal::UnknownModel { .. } => FaultCode::ModelNotFound,
            Refusal::Full { .. } => FaultCode::Overloaded,
            Refusal::ModelServed { .. }
            | Refusal::UnknownAlias { .. }
            | Refusal::Superseded { .. } => FaultCode::InvalidRequest,
        };
        Self::new(code, refusal.to_string())
    }
}

type Ops = Result<Vec<ViewOp>, Refusal>;

// === impl State ===

impl State {
    /// The cluster as the data plane sees it.
    pub const fn view(&self) -> &ClusterView {
        &self.view
    }

    /// The history's name; none before the cluster is founded.
    pub fn cluster_id(&self) -> Option<&str> {
        (!self.cluster_id.is_empty()).then_some(self.cluster_id.as_str())
    }

    /// Applies the command at `index` of the log.
    ///
    /// # Panics
    /// When `index` was applied before: the log is corrupt, and going on would spread the damage.
    pub fn apply(&mut self, index: ViewIndex, command: &Command) -> Outcome {
        assert!(index > self.view.index, "log index {index} applied after {}", self.view.index);
        self.view.index = index;
        match command {
            Command::Found { cluster_id, lineage } => {
                self.found(cluster_id, *lineage);
                Outcome { reply: Reply::Applied { index }, ops: Vec::new() }
            }
            Command::Register(registration) => self.register(index, registration),
            Command::Submit { client, sequence, change } => {
                self.submit(index, client, *sequence, change)
            }
            Command::Internal(change) => self.change(index, change),
        }
    }

    /// Passes over an entry that carries no command.
    pub fn skip(&mut self, index: ViewIndex) {
        assert!(index >= self.view.index, "log index {index} passed after {}", self.view.index);
        self.view.index = index;
    }

    /// A second founding changes nothing: two leaders may both have seen an unfounded cluster.
    fn found(&mut self, cluster_id: &str, lineage: Lineage) {
        if self.cluster_id.is_empty() {
            cluster_id.clone_into(&mut self.cluster_id);
            self.view.lineage = lineage;
        }
    }

    fn submit(
        &mut self,
        index: ViewIndex,
        client: &str,
        sequence: u64,
        change: &Change,
    ) -> Outcome {
        let last = self.clients.get_mut(client);
        if let Some(answer) = last.filter(|answer| answer.sequence >= sequence) {
            answer.heard = index;
            let reply = if answer.sequence == sequence {
                answer.reply.clone()
            } else {
                let (client, last) = (client.to_owned(), answer.sequence);
                Reply::Refused(Refusal::Superseded { client, sequence, last })
            };
            return Outcome { reply, ops: Vec::new() };
        }
        let outcome = self.change(index, change);
        let answer = Answer { sequence, reply: outcome.reply.clone(), heard: index };
        self.clients.insert(client.to_owned(), answer);
        self.forget_clients();
        outcome
    }

    fn forget_clients(&mut self) {
        while self.clients.len() > CLIENTS_MAX {
            let oldest = self.clients.iter().min_by_key(|(_client, answer)| answer.heard);
            let Some(oldest) = oldest.map(|(client, _answer)| client.clone()) else { return };
            self.clients.remove(&oldest);
        }
    }

    fn register(&mut self, index: ViewIndex, registration: &Registration) -> Outcome {
        let known = self.member_of_instance(registration).map(|member| (member.id, member.epoch));
        if let Some((member_id, epoch)) = known
            && self.view.members.get(&member_id).is_some_and(|member| is_same(member, registration))
        {
            return Outcome { reply: Reply::Registered { member_id, epoch }, ops: Vec::new() };
        }
        let (member_id, epoch) =
            (known.map_or(MemberId(index.0), |(member_id, _epoch)| member_id), Epoch(index.0));
        let ops = match self.registration_ops(member_id, epoch, registration) {
            Ok(ops) => ops,
            Err(refusal) => return Outcome { reply: Reply::Refused(refusal), ops: Vec::new() },
        };
        self.run(&ops);
        self.instances.insert(member_id, registration.instance.clone());
        Outcome { reply: Reply::Registered { member_id, epoch }, ops }
    }

    /// Fences whoever held the address (two processes cannot listen on one), then puts the member and
    /// what it serves.
    fn registration_ops(&self, id: MemberId, epoch: Epoch, registration: &Registration) -> Ops {
        let role = registration.role;
        let members = self.view.members.values();
        let mut ops: Vec<ViewOp> = members
            .filter(|other| other.id != id && holds(other, role, &registration.address))
            .map(|other| ViewOp::RemoveMember(other.id))
            .collect();
        let added = usize::from(!self.view.members.contains_key(&id));
        check_room("members", self.view.members.len() - ops.len(), added, MEMBERS_MAX)?;

        let served = registration.models.iter();
        let unknown: Vec<Model> = served
            .map(|served| Model { name: served.name.clone(), revision: served.revision.clone() })
            .filter(|model| !self.view.models.contains(model))
            .collect();
        check_room("models", self.view.models.len(), unknown.len(), NAMES_MAX)?;

        ops.push(ViewOp::PutMember(Member {
            id,
            role,
            address: registration.address.clone(),
            zone: registration.zone.clone(),
            epoch,
            state: MemberState::Ready,
            models: registration.models.clone(),
        }));
        ops.extend(unknown.into_iter().map(ViewOp::PutModel));
        Ok(ops)
    }

    fn member_of_instance(&self, registration: &Registration) -> Option<&Member> {
        let mut same =
            self.instances.iter().filter(|(_id, instance)| **instance == registration.instance);
        same.find_map(|(id, _instance)| {
            self.view.members.get(id).filter(|member| member.role == registration.role)
        })
    }

    fn change(&mut self, index: ViewIndex, change: &Change) -> Outcome {
        match self.change_ops(change) {
            Ok(ops) => {
                self.run(&ops);
                Outcome { reply: Reply::Applied { index }, ops }
            }
            Err(refusal) => Outcome { reply: Reply::Refused(refusal), ops: Vec::new() },
        }
    }

    fn change_ops(&self, change: &Change) -> Ops {
        match change {
            Change::Fence { member_id, epoch } | Change::Deregister { member_id, epoch } => {
                let member = self.current_member(*member_id, *epoch)?;
                Ok(vec![ViewOp::RemoveMember(member.id)])
            }
            Change::Drain { member_id, epoch } => {
                let member = self.current_member(*member_id, *epoch)?;
                Ok(match member.state {
                    MemberState::Draining => Vec::new(),
                    MemberState::Ready => {
                        let state = MemberState::Draining;
                        vec![ViewOp::PutMember(Member { state, ..member.clone() })]
                    }
                })
            }
            Change::PutModel(model) => self.put_model_ops(model),
            Change::RemoveModel(model) => self.remove_model_ops(model),
            Change::SetAlias(alias) => self.set_alias_ops(alias),
            Change::RemoveAlias(name) => {
                if !self.view.aliases.contains_key(name) {
                    return Err(Refusal::UnknownAlias { name: name.clone() });
                }
                Ok(vec![ViewOp::RemoveAlias(name.clone())])
            }
        }
    }

    fn put_model_ops(&self, model: &Model) -> Ops {
        if self.view.models.contains(model) {
            return Ok(Vec::new());
        }
        check_room("models", self.view.models.len(), 1, NAMES_MAX)?;
        Ok(vec![ViewOp::PutModel(model.clone())])
    }

    fn remove_model_ops(&self, model: &Model) -> Ops {
        let name = &model.name;
        if !self.view.models.contains(model) {
            return Err(Refusal::UnknownModel { name: name.clone() });
        }
        let serves = |member: &&Member| {
            member.models.iter().any(|m| m.name == *name && m.revision == model.revision)
        };
        if let Some(member) = self.view.members.values().find(serves) {
            return Err(Refusal::ModelServed { name: name.clone(), member_id: member.id });
        }
        Ok(vec![ViewOp::RemoveModel(model.clone())])
    }

    fn set_alias_ops(&self, alias: &Alias) -> Ops {
        let known = self.view.aliases.get(&alias.name);
        if known == Some(alias) {
            return Ok(Vec::new());
        }
        let added = usize::from(known.is_none());
        check_room("aliases", self.view.aliases.len(), added, NAMES_MAX)?;
        Ok(vec![ViewOp::PutAlias(alias.clone())])
    }

    fn current_member(&self, member_id: MemberId, epoch: Epoch) -> Result<&Member, Refusal> {
        let member = self.view.members.get(&member_id);
        let member = member.ok_or(Refusal::NotRegistered { member_id })?;
        if member.epoch != epoch {
            return Err(Refusal::StaleEpoch { member_id, epoch, current: member.epoch });
        }
        Ok(member)
    }

    /// The one place that moves the view, so that watchers who fold the same operations agree with it.
    fn run(&mut self, ops: &[ViewOp]) {
        for op in ops {
            if let ViewOp::RemoveMember(id) = op {
                self.instances.remove(id);
            }
            self.view.apply_op(op.clone());
        }
    }
}

fn is_same(member: &Member, registration: &Registration) -> bool {
    member.address == registration.address
        && member.zone == registration.zone
        && member.models == registration.models
}

fn holds(member: &Member, role: MemberRole, address: &str) -> bool {
    member.role == role && member.address == address
}

fn check_room(what: &str, held: usize, added: usize, count_max: usize) -> Result<(), Refusal> {
    if held + added > count_max {
        let count_max = u64::try_from(count_max).unwrap_or(u64::MAX);
        return Err(Refusal::Full { what: what.to_owned(), count_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
