//! What may change in the cluster: the commands that go through the log, and the limits a command must
//! keep to before it is proposed. Pure.

use std::fmt;

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::fault::Fault;
use phalanx_proto::id::{Lineage, ModelName, Revision};
use phalanx_proto::view::{Alias, AliasTarget, Model};
use serde::{Deserialize, Serialize};

/// The longest name, revision, zone, instance or client id, in bytes. Digests take 64 to 71.
pub const TEXT_BYTES_MAX: usize = 256;

/// The longest address, in bytes: a scheme, a DNS name of at most 253 bytes, a port and a short path.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// The most models one member serves: a base model with its adapters, with room to spare.
pub const MEMBER_MODELS_MAX: usize = 64;

/// The most targets of one alias. A rollout needs 2, a comparison a few more.
pub const ALIAS_TARGETS_MAX: usize = 16;

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
    /// A change the leader itself asks for. To repeat it is harmless, so nothing is remembered of it.
    Internal(Change),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { cluster_id, .. } => write!(f, "found {cluster_id}"),
            Self::Register(registration) => write!(f, "register {}", registration.address),
            Self::Submit { client, sequence, .. } => write!(f, "submit {client}/{sequence}"),
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
        Command::Found { .. } | Command::Internal(_) => Ok(()),
        Command::Register(registration) => validate_registration(registration),
        Command::Submit { client, change, .. } => {
            check_text("client", client)?;
            validate_change(change)
        }
    }
}

fn validate_registration(registration: &Registration) -> Result<(), Fault> {
    check_text("instance", &registration.instance)?;
    check_length("address", &registration.address, ADDRESS_BYTES_MAX)?;
    check_present("address", &registration.address)?;
    check_length("zone", &registration.zone, TEXT_BYTES_MAX)?;
    check_count("models", registration.models.len(), MEMBER_MODELS_MAX)?;
    for (at, model) in registration.models.iter().enumerate() {
        check_name("models.name", &model.name)?;
        check_revision("models.revision", &model.revision)?;
        if registration.models[..at].iter().any(|earlier| earlier.name == model.name) {
            return Err(Fault::invalid("models", format!("model {} is listed twice", model.name)));
        }
    }
    Ok(())
}

fn validate_change(change: &Change) -> Result<(), Fault> {
    match change {
        Change::Fence { .. } | Change::Drain { .. } | Change::Deregister { .. } => Ok(()),
        Change::PutModel(Model { name, revision })
        | Change::RemoveModel(Model { name, revision }) => {
            check_name("model.name", name)?;
            check_revision("model.revision", revision)
        }
        Change::SetAlias(alias) => validate_alias(alias),
        Change::RemoveAlias(name) => check_name("name", name),
    }
}

fn validate_alias(alias: &Alias) -> Result<(), Fault> {
    check_name("alias.name", &alias.name)?;
    if alias.targets.is_empty() {
        let message = format!("alias {} has 0 targets, at least 1 is needed", alias.name);
        return Err(Fault::invalid("alias.targets", message));
    }
    check_count("alias.targets", alias.targets.len(), ALIAS_TARGETS_MAX)?;
    for AliasTarget { model, revision, .. } in alias.targets.iter().chain(&alias.shadow) {
        check_name("alias.targets.model", model)?;
        revision
            .iter()
            .try_for_each(|revision| check_revision("alias.targets.revision", revision))?;
    }
    if alias.targets.iter().all(|target| target.weight == 0) {
        let message = format!("weights of alias {} sum to 0, must be above 0", alias.name);
        return Err(Fault::invalid("alias.targets.weight", message));
    }
    Ok(())
}

fn check_name(field: &str, name: &ModelName) -> Result<(), Fault> {
    check_text(field, name.as_str())
}

fn check_revision(field: &str, revision: &Revision) -> Result<(), Fault> {
    check_text(field, revision.as_str())
}

fn check_text(field: &str, text: &str) -> Result<(), Fault> {
    check_present(field, text)?;
    check_length(field, text, TEXT_BYTES_MAX)
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

fn check_count(field: &str, count: usize, count_max: usize) -> Result<(), Fault> {
    if count > count_max {
        let message = format!("{field} has {count} entries, at most {count_max} are allowed");
        return Err(Fault::invalid(field, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use phalanx_proto::view::{MemberRole, ServedModel};

    use super::*;

    fn served(name: &str) -> ServedModel {
        ServedModel {
            name: name.into(),
            revision: "r".into(),
            context_tokens_max: 1,
            kv_tokens_max: 1,
        }
    }

    fn registration() -> Registration {
        Registration {
            instance: "i".to_owned(),
            role: MemberRole::Worker,
            address: "http://w:1".to_owned(),
            zone: String::new(),
            models: vec![served("m")],
        }
    }

    fn alias(weights: &[u32]) -> Alias {
        let target = |&weight| AliasTarget { model: "m".into(), revision: None, weight };
        Alias { name: "a".into(), targets: weights.iter().map(target).collect(), shadow: None }
    }

    #[track_caller]
    fn check(command: &Command, expected: Option<(&str, &str)>) {
        let refusal = validate(command).err();
        let found = refusal
            .as_ref()
            .map(|fault| (fault.param.as_deref().unwrap_or_default(), fault.message.as_str()));
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn check_register(alter: impl FnOnce(&mut Registration), expected: Option<(&str, &str)>) {
        let mut registration = registration();
        alter(&mut registration);
        check(&Command::Register(registration), expected);
    }

    #[track_caller]
    fn check_change(change: Change, expected: Option<(&str, &str)>) {
        check(&Command::Submit { client: "c".to_owned(), sequence: 1, change }, expected);
    }

    #[test]
    fn a_registration_keeps_to_its_limits() {
        check_register(|_registration| {}, None);
        check_register(|r| r.instance.clear(), Some(("instance", "instance is empty")));
        check_register(|r| r.address.clear(), Some(("address", "address is empty")));
        check_register(|r| r.address = "a".repeat(512), None);
        check_register(
            |r| r.address = "a".repeat(513),
            Some(("address", "address has 513 bytes, at most 512 are allowed")),
        );
        check_register(
            |r| r.zone = "z".repeat(257),
            Some(("zone", "zone has 257 bytes, at most 256 are allowed")),
        );
        check_register(
            |r| r.models = (0..65).map(|at| served(&at.to_string())).collect(),
            Some(("models", "models has 65 entries, at most 64 are allowed")),
        );
        check_register(
            |r| r.models = vec![served("m"), served("m")],
            Some(("models", "model m is listed twice")),
        );
        check_register(
            |r| r.models = vec![served("")],
            Some(("models.name", "models.name is empty")),
        );
    }

    #[test]
    fn an_alias_has_targets_and_weight() {
        check_change(Change::SetAlias(alias(&[95, 5])), None);
        check_change(Change::SetAlias(alias(&[u32::MAX, u32::MAX])), None);
        check_change(
            Change::SetAlias(alias(&[])),
            Some(("alias.targets", "alias a has 0 targets, at least 1 is needed")),
        );
        check_change(
            Change::SetAlias(alias(&[0, 0])),
            Some(("alias.targets.weight", "weights of alias a sum to 0, must be above 0")),
        );
        check_change(
            Change::SetAlias(alias(&[1; 17])),
            Some(("alias.targets", "alias.targets has 17 entries, at most 16 are allowed")),
        );
        check_change(Change::RemoveAlias("".into()), Some(("name", "name is empty")));
    }
}
