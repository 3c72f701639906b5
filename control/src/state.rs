//! The state of the cluster, and the only thing that changes it: [`State::apply`].
//!
//! Pure and deterministic: no clock, no randomness, no hash order, no floats. Every replica that applies
//! the same log holds the same state, byte for byte. The limits here and below are part of the state machine:
//! nodes that disagree on one would drift apart, so changing one takes a new schema version.
//!
//! ```text
//! Command ──► members, names, groups, access: (view, change) ──► operations, or a refusal ──► run
//!        └──► clients: was it answered before?
//! ```
//!
//! A change is decided on the view alone and is either all of its operations or none.

mod access;
mod clients;
mod groups;
mod hash;
mod members;
mod names;
mod reply;
mod weight;

use std::collections::BTreeMap;

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::id::{Epoch, Lineage, MemberId, ViewIndex};
use phalanx_proto::view::{ClusterView, Deployment, Member, MemberState, ViewOp};
use serde::{Deserialize, Serialize};

use self::clients::Clients;
pub use self::hash::{HASH_SCHEMA, StateHash};
pub use self::reply::{Refusal, Reply};
use crate::command::Command;

/// The most models, the most aliases and the most deployments: what a registry of public names holds, with
/// room to spare.
const NAMES_MAX: usize = 4096;

/// All that the log has built. Its serde form is the body of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct State {
    /// Empty until the cluster is founded.
    cluster_id: String,
    /// What the data plane sees; moved by the same operations that watchers receive.
    view: ClusterView,
    /// The process start that each member's registration came from.
    instances: BTreeMap<MemberId, String>,
    /// The last answer given to each client.
    clients: Clients,
    /// What the view weighs; see [`weight`].
    #[serde(skip)]
    view_bytes: usize,
}

/// A state as a snapshot holds it.
#[derive(Deserialize)]
struct Stored {
    cluster_id: String,
    view: ClusterView,
    instances: BTreeMap<MemberId, String>,
    clients: Clients,
}

/// What applying one command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For whoever proposed it.
    pub reply: Reply,
    /// For the watchers; empty when the view stayed as it was.
    pub ops: Vec<ViewOp>,
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
            // Compared by whoever keeps the hashes; the state is what is compared.
            Command::Checkpoint { .. } => {
                Outcome { reply: Reply::Applied { index }, ops: Vec::new() }
            }
            Command::Submit { client, sequence, change } => {
                if let Some(reply) = self.clients.answer(index, client, *sequence) {
                    return Outcome { reply, ops: Vec::new() };
                }
                let outcome = self.change(index, change);
                self.clients.remember(index, client, *sequence, outcome.reply.clone());
                outcome
            }
            Command::Internal(change) => self.change(index, change),
        }
    }

    /// Passes over an entry that carries no command.
    pub fn skip(&mut self, index: ViewIndex) {
        assert!(index >= self.view.index, "log index {index} passed after {}", self.view.index);
        self.view.index = index;
    }

    /// Something that no log led to, for tests of what notices it.
    #[cfg(test)]
    pub(crate) fn drift(&mut self) {
        self.instances.insert(MemberId(0), "drifted".to_owned());
    }

    /// Goes on as another history, at an index beyond this one's.
    pub(crate) fn begin_anew(&mut self, cluster_id: &str, lineage: Lineage, index: ViewIndex) {
        cluster_id.clone_into(&mut self.cluster_id);
        self.view.lineage = lineage;
        self.skip(index);
    }

    /// A second founding changes nothing: two leaders may both have seen an unfounded cluster.
    fn found(&mut self, cluster_id: &str, lineage: Lineage) {
        if self.cluster_id.is_empty() {
            cluster_id.clone_into(&mut self.cluster_id);
            self.view.lineage = lineage;
        }
    }

    fn register(&mut self, index: ViewIndex, registration: &Registration) -> Outcome {
        let known = self.member_of_instance(registration);
        if let Some(Member { id, epoch, .. }) =
            known.filter(|known| members::is_same(known, registration))
        {
            let reply = Reply::Registered { member_id: *id, epoch: *epoch };
            return Outcome { reply, ops: Vec::new() };
        }
        let member_id = known.map_or(MemberId(index.0), |known| known.id);
        let epoch = Epoch(index.0);
        let ops = members::register(&self.view, member_id, epoch, registration);
        let outcome = self.run(ops, Reply::Registered { member_id, epoch });
        if matches!(outcome.reply, Reply::Registered { .. }) {
            self.instances.insert(member_id, registration.instance.clone());
        }
        outcome
    }

    fn member_of_instance(&self, registration: &Registration) -> Option<&Member> {
        let mut same =
            self.instances.iter().filter(|(_id, instance)| **instance == registration.instance);
        same.find_map(|(id, _instance)| {
            self.view.members.get(id).filter(|member| member.role == registration.role)
        })
    }

    fn change(&mut self, index: ViewIndex, change: &Change) -> Outcome {
        let ops = change_ops(&self.view, index, change);
        self.run(ops, Reply::Applied { index })
    }

    /// The one place that moves the view, so that watchers who fold the same operations agree with it.
    fn run(&mut self, ops: Ops, reply: Reply) -> Outcome {
        let weighed = ops.and_then(|ops| {
            let bytes = weight::weigh(&self.view, self.view_bytes, &ops)?;
            Ok((ops, bytes))
        });
        let ops = match weighed {
            Ok((ops, bytes)) => {
                self.view_bytes = bytes;
                ops
            }
            Err(refusal) => return Outcome { reply: Reply::Refused(refusal), ops: Vec::new() },
        };
        for op in &ops {
            if let ViewOp::RemoveMember(id) = op {
                self.instances.remove(id);
            }
            self.view.apply_op(op.clone());
        }
        Outcome { reply, ops }
    }
}

impl From<Stored> for State {
    fn from(stored: Stored) -> Self {
        let Stored { cluster_id, view, instances, clients } = stored;
        let view_bytes = weight::weight(&view);
        Self { cluster_id, view, instances, clients, view_bytes }
    }
}

fn change_ops(view: &ClusterView, index: ViewIndex, change: &Change) -> Ops {
    match change {
        Change::Fence { member_id, epoch } | Change::Deregister { member_id, epoch } => {
            members::remove(view, *member_id, *epoch)
        }
        Change::Drain { member_id, epoch } => {
            members::stand(view, *member_id, *epoch, MemberState::Draining)
        }
        Change::Undrain { member_id, epoch } => {
            members::stand(view, *member_id, *epoch, MemberState::Ready)
        }
        Change::Serve { member_id, epoch, models } => {
            members::serve(view, *member_id, *epoch, models)
        }
        Change::PutModel(model) => names::put_model(view, model),
        Change::RemoveModel(model) => names::remove_model(view, model),
        Change::SetAlias(alias) => names::set_alias(view, alias),
        Change::RollbackAlias(name) => names::rollback_alias(view, name),
        Change::RemoveAlias(name) => names::remove_alias(view, name),
        Change::SetDeployment { name, revision, replicas, tp } => {
            let (name, revision) = (name.clone(), revision.clone());
            let deployment =
                Deployment { name, revision, replicas: *replicas, tp: *tp, version: index };
            groups::set_deployment(view, deployment)
        }
        Change::RemoveDeployment(name) => groups::remove_deployment(view, name),
        Change::FormGroup { group, deployment, revision, ranks } => {
            let plan = groups::Plan { group: *group, deployment, revision, ranks };
            groups::form(view, index, &plan)
        }
        Change::PublishRendezvous { group, rendezvous } => {
            groups::publish(view, *group, rendezvous)
        }
        Change::RankReady { group, rank } => groups::rank_ready(view, *group, *rank),
        Change::FailRank { group, rank, reason } => groups::fail_rank(view, *group, *rank, reason),
        Change::BreakGroup(group) => groups::break_group(view, *group),
        Change::RemoveGroup(group) => groups::remove(view, *group),
        Change::PutTenant(tenant) => access::put_tenant(view, tenant),
        Change::RemoveTenant(name) => access::remove_tenant(view, name),
        Change::PutKey(key) => access::put_key(view, key),
        Change::RotateKey { id, secret, old_expires_ms } => {
            access::rotate_key(view, id, secret, *old_expires_ms)
        }
        Change::RevokeKey(id) => access::revoke_key(view, id),
        Change::RemoveKey(id) => access::remove_key(view, id),
        Change::PutSetting { key, value } => access::put_setting(view, index, key, value),
        Change::RemoveSetting(key) => access::remove_setting(view, key),
    }
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
