//! What may change in the cluster: the commands that go through the log, and the limits a command must
//! keep to before it is proposed. Pure.

use std::collections::BTreeSet;
use std::fmt;

use phalanx_proto::api_key;
use phalanx_proto::change::{
    Change, FAILURE_BYTES_MAX, GROUP_RANKS_MAX, REPLICAS_MAX, Registration,
};
use phalanx_proto::fault::Fault;
use phalanx_proto::id::{KeyId, Lineage, ModelName, Revision, TenantName, ViewIndex};
use phalanx_proto::name;
use phalanx_proto::view::{
    Alias, AliasTarget, ApiKey, GroupRank, Model, Scope, ServedModel, given_twice,
};
use serde::{Deserialize, Serialize};

use crate::state::StateHash;

/// The longest name, revision, zone, instance or client id, in bytes. Digests take 64 to 71.
pub const TEXT_BYTES_MAX: usize = 256;

/// The longest address, in bytes: a scheme, a DNS name of at most 253 bytes, a port and a short path.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// The most models one member serves: a base model with its adapters, with room to spare.
pub const MEMBER_MODELS_MAX: usize = 64;

/// The most targets of one alias. A rollout needs 2, a comparison a few more.
pub const ALIAS_TARGETS_MAX: usize = 16;

/// The most scopes of one key: every route, and a few models by name.
pub const KEY_SCOPES_MAX: usize = 16;

/// The most secrets of one key: the one in use, and the one before it while a rotation overlaps.
pub const KEY_SECRETS_MAX: u32 = 2;

/// The longest value of a setting, in bytes. What is larger belongs into a file.
pub const SETTING_BYTES_MAX: usize = 4096;

/// One entry of the log, as far as the cluster's state is concerned.
///
/// Its serde form is what lies on disk and travels between nodes: variants and fields are added, never
/// renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Gives the history its identity. The first leader of a new cluster proposes it once.
    Found {
        /// Drawn by the proposer.
        cluster_id: String,
        /// From the proposer's clock, so that a cluster founded anew outranks the one it replaces.
        lineage: Lineage,
    },
    /// Makes a process a member.
    Register(Registration),
    /// A change asked for from outside, applied exactly once.
    Submit {
        /// Who asks.
        client: String,
        /// Which of its requests; only grows.
        sequence: u64,
        /// What.
        change: Change,
    },
    /// The hash that the leader's state had at an index, for every replica to compare its own with.
    Checkpoint {
        /// Where.
        index: ViewIndex,
        /// What was hashed: see [`crate::state::HASH_SCHEMA`].
        schema: u32,
        /// The leader's.
        hash: StateHash,
    },
    /// A change the leader itself asks for. To repeat it is harmless, so nothing is remembered of it.
    Internal(Change),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { cluster_id, .. } => write!(f, "found {cluster_id}"),
            Self::Register(registration) => write!(f, "register {}", registration.address),
            Self::Submit { client, sequence, .. } => write!(f, "submit {client}/{sequence}"),
            Self::Checkpoint { index, .. } => write!(f, "checkpoint of {index}"),
            Self::Internal(_) => f.write_str("internal change"),
        }
    }
}

/// Checks everything that can be told without the state.
///
/// # Errors
/// [`phalanx_proto::fault::FaultCode::InvalidRequest`], naming the field and its limit.
pub fn validate(command: &Command) -> Result<(), Fault> {
    match command {
        Command::Found { .. } | Command::Checkpoint { .. } | Command::Internal(_) => Ok(()),
        Command::Register(registration) => validate_registration(registration),
        Command::Submit { client, change, .. } => {
            check_text("client", client)?;
            validate_change(change)
        }
    }
}

fn validate_registration(registration: &Registration) -> Result<(), Fault> {
    check_text("instance", &registration.instance)?;
    check_line("address", &registration.address, ADDRESS_BYTES_MAX)?;
    check_present("address", &registration.address)?;
    check_line("zone", &registration.zone, TEXT_BYTES_MAX)?;
    check_served(&registration.models)
}

fn validate_change(change: &Change) -> Result<(), Fault> {
    match change {
        Change::Fence { .. }
        | Change::Drain { .. }
        | Change::Undrain { .. }
        | Change::Deregister { .. }
        | Change::PublishRendezvous { .. }
        | Change::RankReady { .. }
        | Change::BreakGroup(_)
        | Change::RemoveGroup(_) => Ok(()),
        Change::Serve { models, .. } => check_served(models),
        Change::FailRank { reason, .. } => check_length("reason", reason, FAILURE_BYTES_MAX),
        Change::PutModel(Model { name, revision })
        | Change::RemoveModel(Model { name, revision }) => {
            check_name("model.name", name)?;
            check_revision("model.revision", revision)
        }
        Change::SetAlias(alias) => validate_alias(alias),
        Change::RollbackAlias(name)
        | Change::RemoveAlias(name)
        | Change::RemoveDeployment(name) => check_name("name", name),
        Change::SetDeployment { name, revision, replicas, tp } => {
            check_new_name("deployment.name", name.as_str())?;
            check_new_name("deployment.revision", revision.as_str())?;
            check_range("deployment.replicas", *replicas, 0, REPLICAS_MAX)?;
            check_range("deployment.tp", *tp, 1, GROUP_RANKS_MAX)
        }
        Change::FormGroup { deployment, revision, ranks, group: _ } => {
            check_name("deployment", deployment)?;
            check_revision("revision", revision)?;
            validate_ranks(ranks)
        }
        Change::PutTenant(tenant) => check_new_name("tenant.name", tenant.name.as_str()),
        Change::RemoveTenant(name) => check_tenant("name", name),
        Change::PutKey(key) => validate_key(key),
        Change::RotateKey { id, .. } | Change::RevokeKey(id) | Change::RemoveKey(id) => {
            check_key_id(id)
        }
        Change::PutSetting { key, value } => {
            check_text("setting.key", key)?;
            check_length("setting.value", value, SETTING_BYTES_MAX)
        }
        Change::RemoveSetting(key) => check_text("key", key),
    }
}

fn validate_alias(alias: &Alias) -> Result<(), Fault> {
    check_new_name("alias.name", alias.name.as_str())?;
    if alias.targets.is_empty() {
        let message = format!("alias {} has 0 targets, at least 1 is needed", alias.name);
        return Err(Fault::invalid("alias.targets", message));
    }
    check_count("alias.targets", alias.targets.len(), ALIAS_TARGETS_MAX)?;
    for AliasTarget { model, revision, .. } in alias.targets.iter().chain(&alias.shadow) {
        check_new_name("alias.targets.model", model.as_str())?;
        revision
            .iter()
            .try_for_each(|revision| check_new_name("alias.targets.revision", revision.as_str()))?;
    }
    if let Some(twice) = given_twice(&alias.targets) {
        let message = format!("alias {} has {twice} among its targets twice", alias.name);
        return Err(Fault::invalid("alias.targets", message));
    }
    if alias.targets.iter().all(|target| target.weight == 0) {
        let message = format!("weights of alias {} sum to 0, must be above 0", alias.name);
        return Err(Fault::invalid("alias.targets.weight", message));
    }
    validate_shadow(alias)
}

/// A shadow is there to be compared with the targets, so it is none of them.
fn validate_shadow(alias: &Alias) -> Result<(), Fault> {
    let Some(shadow) = &alias.shadow else { return Ok(()) };
    if alias.targets.iter().any(|target| target.is_same_model(shadow)) {
        let message =
            format!("shadow {} of alias {} is one of its targets", shadow.model, alias.name);
        return Err(Fault::invalid("alias.shadow", message));
    }
    Ok(())
}

fn validate_ranks(ranks: &[GroupRank]) -> Result<(), Fault> {
    check_range("ranks", ranks.len(), 1, GROUP_RANKS_MAX)?;
    let mut devices = BTreeSet::new();
    for GroupRank { member_id, device, .. } in ranks {
        if !devices.insert((member_id, device)) {
            let message = format!("device {device} of member {member_id} is listed twice");
            return Err(Fault::invalid("ranks", message));
        }
    }
    Ok(())
}

fn validate_key(key: &ApiKey) -> Result<(), Fault> {
    check_key_id(&key.id)?;
    check_tenant("key.tenant", &key.tenant)?;
    check_count("key.scopes", key.scopes.len(), KEY_SCOPES_MAX)?;
    for scope in &key.scopes {
        if let Scope::Inference(glob) = scope {
            check_text("key.scopes", glob)?;
        }
    }
    check_range("key.secrets", key.secrets.len(), 1, KEY_SECRETS_MAX)
}

fn check_served(models: &[ServedModel]) -> Result<(), Fault> {
    check_count("models", models.len(), MEMBER_MODELS_MAX)?;
    for (at, model) in models.iter().enumerate() {
        check_name("models.name", &model.name)?;
        check_revision("models.revision", &model.revision)?;
        if models[..at].iter().any(|earlier| earlier.name == model.name) {
            return Err(Fault::invalid("models", format!("model {} is listed twice", model.name)));
        }
    }
    Ok(())
}

/// A name that is given now. What is removed, or told of by those who hold it already, may be from before this rule.
fn check_new_name(field: &str, text: &str) -> Result<(), Fault> {
    check_text(field, text)?;
    name::check(text).map_err(|error| Fault::invalid(field, format!("{field} {error}")))
}

fn check_key_id(id: &KeyId) -> Result<(), Fault> {
    if api_key::is_id(id) {
        return Ok(());
    }
    let message =
        format!("key id {:?} does not have {} letters and digits", id.as_str(), api_key::ID_CHARS);
    Err(Fault::invalid("key.id", message))
}

fn check_tenant(field: &str, name: &TenantName) -> Result<(), Fault> {
    check_text(field, name.as_str())
}

fn check_name(field: &str, name: &ModelName) -> Result<(), Fault> {
    check_text(field, name.as_str())
}

fn check_revision(field: &str, revision: &Revision) -> Result<(), Fault> {
    check_text(field, revision.as_str())
}

fn check_text(field: &str, text: &str) -> Result<(), Fault> {
    check_present(field, text)?;
    check_line(field, text, TEXT_BYTES_MAX)
}

/// What is shown in tables and logs keeps to one line of them.
fn check_line(field: &str, text: &str, bytes_max: usize) -> Result<(), Fault> {
    if text.chars().any(char::is_control) {
        return Err(Fault::invalid(field, format!("{field} {text:?} holds a control character")));
    }
    check_length(field, text, bytes_max)
}

fn check_present(field: &str, text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::invalid(field, format!("{field} is empty")));
    }
    Ok(())
}

fn check_length(field: &str, text: &str, bytes_max: usize) -> Result<(), Fault> {
    if text.len() > bytes_max {
        let message = format!("{field} has {} bytes, at most {bytes_max} are allowed", text.len());
        return Err(Fault::invalid(field, message));
    }
    Ok(())
}

fn check_range<N>(field: &str, number: N, min: u32, max: u32) -> Result<(), Fault>
where
    N: TryInto<u32> + Copy + fmt::Display,
{
    if !number.try_into().is_ok_and(|number| (min..=max).contains(&number)) {
        let message = format!("{field} is {number}, it must be {min} to {max}");
        return Err(Fault::invalid(field, message));
    }
    Ok(())
}

fn check_count(field: &str, count: usize, count_max: usize) -> Result<(), Fault> {
    if count > count_max {
        let message = format!("{field} has {count} entries, at most {count_max} are allowed");
        return Err(Fault::invalid(field, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
