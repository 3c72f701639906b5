//! The command line, made from the table of settings.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use phalanx_chassis::config::{ConfigFile, Kind, Relations, Resolved, Setting, Sources, resolve};

use crate::failure::Failure;
use crate::{operator, relations, settings};

/// The variable that names the configuration file.
const CONFIG_VARIABLE: &str = "PHALANX_CONFIG";

/// What the user asked for, resolved.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// All roles in one process.
    Serve(Resolved),
    /// One control node.
    Control(Resolved),
    /// One worker.
    Worker(Resolved),
    /// One router.
    Router(Resolved),
    /// A question or a change for the cluster.
    Operate(Resolved, operator::Action),
    /// Simulated engines.
    EngineSim(Resolved),
    /// A conversation; with a prompt, a single turn.
    Chat(Resolved, Option<String>),
    /// Load, and how it was borne.
    Bench(Resolved),
    /// A check of one file.
    CheckConfig(PathBuf),
}

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("phalanx")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves large language models on a cluster, or on this machine alone")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(role("serve", "Run all roles in one process", settings::serve()))
        .subcommand(role("control", "Run a control node", settings::control()))
        .subcommand(role("worker", "Run a worker: one model on this machine", settings::worker()))
        .subcommand(role("router", "Run a router: the HTTP front door", settings::router()))
        .subcommands(operator::commands().into_iter().map(operated))
        .subcommand(role("chat", "Talk to a cluster in the terminal", settings::chat()).arg(
            Arg::new("prompt").value_name("PROMPT").help("Say this, print the answer, and end"),
        ))
        .subcommand(
            role("bench", "Put a router under load and measure", settings::bench())
                .mut_arg("model_name", |argument| argument.alias("model")),
        )
        .subcommand(role(
            "engine-sim",
            "Run simulated inference engines, to measure routing without GPUs",
            settings::engine_sim(),
        ))
        .subcommand(
            Command::new("check-config")
                .about("Check a configuration file and print every fault in it")
                .arg(config_argument())
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .help("The file to check, in place of --config"),
                ),
        )
}

fn role(name: &'static str, about: &'static str, settings: Vec<&'static Setting>) -> Command {
    with_settings(Command::new(name).about(about), settings)
}

/// An operator's command: its settings belong to each of its actions.
fn operated(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.mut_subcommands(|action| {
        let settings = operator::settings_of(&name, action.get_name());
        with_settings(action, settings)
    })
}

fn with_settings(command: Command, settings: Vec<&'static Setting>) -> Command {
    command
        .after_help(
            "A flag beats the environment, the environment beats the file, the file beats the default.",
        )
        .arg(config_argument())
        .args(settings.into_iter().map(argument))
}

fn config_argument() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(NonEmptyStringValueParser::new())
        .help(format!("Read settings from this TOML file [env: {CONFIG_VARIABLE}]"))
}

fn argument(setting: &'static Setting) -> Arg {
    let mut help = setting.help.to_owned();
    match setting.kind {
        Kind::Integer { .. } | Kind::OneOf(_) | Kind::Only(_) => {
            help = format!("{help}: {}", setting.kind.expected());
        }
        Kind::Text
        | Kind::Path
        | Kind::Address
        | Kind::Url
        | Kind::Urls
        | Kind::Peers
        | Kind::Words
        | Kind::LogFilter
        | Kind::Decimal
        | Kind::Decimals
        | Kind::Switch => {}
    }
    if let Some(default) = setting.default {
        help = format!("{help} [default: {default}]");
    }
    help =
        format!("{help} [env: {}] [file: {}.{}]", setting.variable(), setting.section, setting.key);
    let argument = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.kind.value_name())
        .action(ArgAction::Set)
        .allow_hyphen_values(true)
        .help(help);
    match setting.kind {
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Words => argument.action(ArgAction::Append),
        _ => argument,
    }
}

/// Turns a parsed command line into an invocation; `environment` looks variables up.
///
/// # Errors
/// Every fault of flags, environment and file.
pub(crate) fn resolve_invocation(
    matches: &ArgMatches,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Invocation, Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return Err(Failure::usage("a command is required"));
    };
    let given = matches;
    // The settings of an operator's command belong to its actions.
    let (action, matches) = given.subcommand().unwrap_or((name, given));
    let file = matches
        .get_one::<String>("config")
        .cloned()
        .or_else(|| environment(CONFIG_VARIABLE).filter(|path| !path.is_empty()));
    let resolved = |settings: Vec<&'static Setting>, relations: Relations<'_>| {
        resolve_settings(matches, environment, file.as_deref(), &settings, relations)
    };
    match name {
        "serve" => resolved(settings::serve(), &relations::of_serve).map(Invocation::Serve),
        "control" => resolved(settings::control(), &relations::of_control).map(Invocation::Control),
        "worker" => resolved(settings::worker(), &relations::of_worker).map(Invocation::Worker),
        "router" => resolved(settings::router(), &relations::of_router).map(Invocation::Router),
        "bench" => resolved(settings::bench(), &|_| Vec::new()).map(Invocation::Bench),
        "engine-sim" => {
            resolved(settings::engine_sim(), &relations::of_engine_sim).map(Invocation::EngineSim)
        }
        "chat" => {
            let prompt = matches.get_one::<String>("prompt").cloned();
            resolved(settings::chat(), &|_| Vec::new())
                .map(|settings| Invocation::Chat(settings, prompt))
        }
        "check-config" => matches
            .get_one::<String>("file")
            .cloned()
            .or_else(|| file.clone())
            .map(|path| Invocation::CheckConfig(PathBuf::from(path)))
            .ok_or_else(|| Failure::usage("check-config needs a file: phalanx check-config FILE")),
        operated => {
            let asked = operator::Action::parse(operated, given)?;
            resolved(operator::settings_of(operated, action), &|_| Vec::new())
                .map(|settings| Invocation::Operate(settings, asked))
        }
    }
}

fn resolve_settings(
    matches: &ArgMatches,
    environment: &dyn Fn(&str) -> Option<String>,
    file: Option<&str>,
    settings: &[&'static Setting],
    relations: Relations<'_>,
) -> Result<Resolved, Failure> {
    let file = file
        .map(|path| ConfigFile::read(path.as_ref()))
        .transpose()
        .map_err(|fault| Failure::usage(fault.to_string()))?;
    let sources = Sources {
        flag: &|setting| {
            let given: Vec<&str> = matches.get_many(setting.key)?.map(String::as_str).collect();
            Some(given.join(" "))
        },
        environment,
        file: file.as_ref(),
    };
    resolve(settings::ALL, settings, &sources, relations)
        .map_err(|faults| Failure::Usage(faults.iter().map(ToString::to_string).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoke(words: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Vec<String>> {
        let words = std::iter::once("phalanx").chain(words.iter().copied());
        let matches = command().try_get_matches_from(words).unwrap();
        let environment = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        resolve_invocation(&matches, &environment).map_err(|failure| failure.lines().to_vec())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_and_environment_meet_in_the_settings() {
        let variables = [("PHALANX_MODEL", "src"), ("PHALANX_LISTEN", "0.0.0.0:1")];
        let invocation = invoke(&["serve", "--listen", "127.0.0.1:0"], &variables).unwrap();
        let Invocation::Serve(settings) = invocation else { panic!("{invocation:?}") };
        assert_eq!(settings.text(&settings::ROUTER_LISTEN), Some("127.0.0.1:0"));
        assert_eq!(settings.text(&settings::WORKER_MODEL), Some("src"));
        assert_eq!(settings.integer(&settings::WORKER_COUNT), Some(1));
    }

    #[test]
    fn a_switch_is_on_when_named() {
        for (words, expected) in [
            (&["control", "--bootstrap"][..], true),
            (&["control", "--bootstrap=false"], false),
            (&["control"], false),
        ] {
            let invocation = invoke(words, &[]).unwrap();
            let Invocation::Control(settings) = invocation else { panic!("{invocation:?}") };
            assert_eq!(settings.is_on(&settings::CONTROL_BOOTSTRAP), expected);
        }
    }

    #[test]
    fn engines_are_given_one_by_one_or_all_in_a_variable() {
        let engines = |words: &[&str], variables: &[(&str, &str)]| {
            let invocation = invoke(words, variables).unwrap();
            let Invocation::Router(settings) = invocation else { panic!("{invocation:?}") };
            settings.list(&settings::ROUTER_ENGINE).to_vec()
        };
        let words = ["router", "--engine", "http://a:1,model=m", "--engine", "b=http://b:2"];
        assert_eq!(engines(&words, &[]), ["http://a:1,model=m", "b=http://b:2"]);
        let variables = [("PHALANX_ENGINE", "http://a:1 http://b:2")];
        assert_eq!(engines(&["router"], &variables), ["http://a:1", "http://b:2"]);
        let lines = invoke(&["router", "--engine", "https://a"], &[]).unwrap_err();
        assert!(lines[0].starts_with("--engine https://a: must be an http:// URL"), "{lines:?}");
    }

    #[test]
    fn every_operator_command_takes_the_same_settings() {
        let words = ["cluster", "transfer", "3", "--control", "http://a:1,http://b:2", "--json"];
        let invocation = invoke(&words, &[]).unwrap();
        let Invocation::Operate(settings, _asked) = invocation else { panic!("{invocation:?}") };
        assert_eq!(settings.list(&settings::OPERATOR_CONTROL).len(), 2);
        assert!(settings.is_on(&settings::OPERATOR_JSON));

        let variables = [("PHALANX_CONTROL", "http://c:3")];
        let invocation = invoke(&["alias", "list", "--stale"], &variables).unwrap();
        let Invocation::Operate(settings, _asked) = invocation else { panic!("{invocation:?}") };
        assert_eq!(settings.list(&settings::OPERATOR_CONTROL), ["http://c:3"]);
    }

    #[test]
    fn every_bad_option_is_named() {
        let words = ["serve", "--workers", "0", "--device", "cuda", "--listen", "nowhere"];
        let lines = invoke(&words, &[("PHALANX_TP", "2")]).unwrap_err();
        assert_eq!(lines.len(), 4, "{lines:?}");
        for (line, start) in lines.iter().zip([
            "--listen nowhere: must be HOST:PORT",
            "--workers 0: must be a whole number from 1 to 64",
            "--device cuda: must be cpu: other values are not available",
            "PHALANX_TP=2: must be 1: other values are not available",
        ]) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let lines = invoke(&["router", "--config", "/nowhere/phalanx.toml"], &[]).unwrap_err();
        assert!(lines[0].starts_with("/nowhere/phalanx.toml: cannot be read"), "{lines:?}");
    }
}
