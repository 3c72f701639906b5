//! What an operator asks of the cluster, through any control node.
//!
//! ```text
//! cluster | worker_admin | model | alias | tenant | key | setting ──► Session (reads as of now, writes once) ──► Answer (table or JSON)
//! ```
//!
//! One file per command: its part of the command line, what it asks, and how the answer looks. Exit codes
//! are those of [`Failure`]: 64 for a request that cannot be read, 1 for one that was refused, 69 when no
//! control node could answer it.

mod alias;
mod backup;
mod cluster;
mod key;
mod limit;
mod model;
mod model_ref;
mod moment;
mod nearest;
mod session;
mod setting;
pub(crate) mod table;
mod tenant;
mod worker_admin;

use clap::{Arg, ArgAction, ArgMatches, Command};
use phalanx_chassis::config::{Resolved, Setting};
use phalanx_proto::id::{ModelName, ViewIndex};
use phalanx_proto::name;
use serde_json::Value;

use self::session::Session;
use crate::failure::Failure;
use crate::{say, settings};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Of the control group.
    Cluster(cluster::Action),
    /// Of the workers.
    WorkerAdmin(worker_admin::Action),
    /// Of the models.
    Model(model::Action),
    /// Of the aliases.
    Alias(alias::Action),
    /// Of the tenants.
    Tenant(tenant::Action),
    /// Of the clients' keys.
    Key(key::Action),
    /// Of the cluster's settings.
    Setting(setting::Action),
}

/// What came of it, for people and for programs.
#[derive(Debug)]
struct Answer {
    text: String,
    json: Value,
}

/// The operator's commands, without the settings that all of them take.
pub(crate) fn commands() -> Vec<Command> {
    vec![
        cluster::command(),
        worker_admin::command(),
        model::command(),
        alias::command(),
        tenant::command(),
        key::command(),
        setting::command(),
    ]
}

/// Does what is asked and prints the answer.
///
/// # Errors
/// `Unreachable` when no node could answer; `Failed` when the cluster refused.
pub(crate) async fn run(resolved: &Resolved, action: Action) -> Result<(), Failure> {
    let mut session = Session::new(resolved.list(&settings::OPERATOR_CONTROL))?;
    let answer = match action {
        Action::Cluster(action) => action.run(&session).await?,
        Action::WorkerAdmin(action) => action.run(&mut session).await?,
        Action::Model(action) => action.run(&mut session).await?,
        Action::Alias(action) => action.run(&mut session).await?,
        Action::Tenant(action) => action.run(&mut session).await?,
        Action::Key(action) => action.run(&mut session, resolved).await?,
        Action::Setting(action) => action.run(&mut session).await?,
    };
    if resolved.is_on(&settings::OPERATOR_JSON) {
        say(&format!("{}\n", answer.json));
    } else {
        say(&answer.text);
    }
    Ok(())
}

/// The settings that one action of a command takes.
pub(crate) fn settings_of(command: &str, action: &str) -> Vec<&'static Setting> {
    match (command, action) {
        ("key", "create" | "rotate") => settings::key_maker(),
        _ => settings::operator(),
    }
}

// === impl Answer ===

impl Answer {
    /// What a change left behind, at the index that made it.
    fn done(text: String, row: Value, index: ViewIndex) -> Self {
        Self { text: text + "\n", json: row }.at(index)
    }

    fn at(mut self, index: ViewIndex) -> Self {
        self.json["index"] = index.0.into();
        self
    }
}

// === impl Action ===

impl Action {
    /// Reads the words after `phalanx COMMAND`.
    ///
    /// # Errors
    /// `Usage`, with what is wrong.
    pub(crate) fn parse(command: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let Some((action, matches)) = matches.subcommand() else {
            return Err(Failure::usage(format!("{command} needs an action")));
        };
        match command {
            "cluster" => cluster::Action::parse(action, matches).map(Self::Cluster),
            "worker-admin" => worker_admin::Action::parse(action, matches).map(Self::WorkerAdmin),
            "model" => model::Action::parse(action, matches).map(Self::Model),
            "alias" => alias::Action::parse(action, matches).map(Self::Alias),
            "tenant" => tenant::Action::parse(action, matches).map(Self::Tenant),
            "key" => key::Action::parse(action, matches).map(Self::Key),
            "setting" => setting::Action::parse(action, matches).map(Self::Setting),
            other => Err(Failure::usage(format!("unknown command {other}"))),
        }
    }
}

/// A command that only groups actions.
fn group(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
}

/// The action that shows everything of a kind.
fn list(about: &'static str) -> Command {
    let stale = "Show what one node has at hand, which may lag behind; needs no leader";
    Command::new("list")
        .about(about)
        .arg(Arg::new("stale").long("stale").action(ArgAction::SetTrue).help(stale))
}

/// A word that must be given.
fn required(id: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(id).value_name(value_name).required(true).help(help)
}

/// The word given for a [`required`] argument.
fn word<'a>(matches: &'a ArgMatches, id: &str) -> Result<&'a str, Failure> {
    let word = matches.get_one::<String>(id).filter(|word| !word.is_empty());
    word.map(String::as_str).ok_or_else(|| Failure::usage(format!("{id} is required")))
}

/// The name given as `id`, of something that there is.
fn name(matches: &ArgMatches, id: &str) -> Result<ModelName, Failure> {
    word(matches, id).map(ModelName::from)
}

/// The name given as `id`, of something that may be new.
fn new_name<'a>(matches: &'a ArgMatches, id: &str) -> Result<&'a str, Failure> {
    let name = word(matches, id)?;
    name::check(name).map_err(|error| Failure::usage(format!("{id} {error}")))?;
    Ok(name)
}

fn unknown_action(command: &str, action: &str) -> Failure {
    Failure::usage(format!("unknown command {command} {action}"))
}
