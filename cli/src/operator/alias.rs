//! `phalanx alias`: the public names, and where their traffic goes.

use clap::{Arg, ArgAction, ArgMatches, Command};
use phalanx_proto::change::Change;
use phalanx_proto::id::{ModelName, ViewIndex};
use phalanx_proto::view::{Alias, AliasTarget, ClusterView};
use serde_json::{Value, json};

use super::model_ref::{check_known, parse_targets};
use super::nearest::unknown;
use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, list, name, new_name, required, unknown_action};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Which names there are.
    List { is_stale: bool },
    /// A name that stands for these targets.
    Set { alias: Alias, is_unchecked: bool },
    /// All traffic of a name to one target.
    Promote { name: ModelName, target: AliasTarget, is_unchecked: bool },
    /// Back to where its traffic went before.
    Rollback(ModelName),
    /// No such name any more.
    Remove(ModelName),
}

pub(super) fn command() -> Command {
    let alias = || required("name", "NAME", "The alias");
    let target = |name| required("target", name, "A model, and its revision or any");
    let unchecked = || {
        let help = "Take targets that the cluster has not seen yet";
        Arg::new("unchecked").long("unchecked").action(ArgAction::SetTrue).help(help)
    };
    group("alias", "Look at the public model names and say where their traffic goes")
        .subcommand(list("Show the aliases and what they stand for"))
        .subcommand(
            Command::new("set")
                .about("Let a name stand for models, each with its share of the traffic")
                .arg(alias())
                .arg(target("MODEL@REV=WEIGHT").num_args(1..))
                .arg(
                    Arg::new("shadow")
                        .long("shadow")
                        .value_name("MODEL@REV")
                        .help("Send a copy of the traffic here and throw the answers away"),
                )
                .arg(unchecked()),
        )
        .subcommand(
            Command::new("promote")
                .about("Send all traffic of a name to one model")
                .arg(alias())
                .arg(target("MODEL@REV"))
                .arg(unchecked()),
        )
        .subcommand(
            Command::new("rollback")
                .about("Send a name's traffic where it went before; twice to undo that")
                .arg(alias()),
        )
        .subcommand(Command::new("remove").about("Forget a name").arg(alias()))
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "set" => {
                let shadow = targets(matches, "shadow")?.pop();
                let targets = targets(matches, "target")?;
                let name = new_name(matches, "name")?.into();
                let alias = Alias { name, targets, shadow, previous: None };
                Ok(Self::Set { alias, is_unchecked: matches.get_flag("unchecked") })
            }
            "promote" => {
                let target = targets(matches, "target")?.pop();
                let target = target.ok_or_else(|| Failure::usage("a target is required"))?;
                let is_unchecked = matches.get_flag("unchecked");
                Ok(Self::Promote { name: new_name(matches, "name")?.into(), target, is_unchecked })
            }
            "rollback" => name(matches, "name").map(Self::Rollback),
            "remove" => name(matches, "name").map(Self::Remove),
            other => Err(unknown_action("alias", other)),
        }
    }

    pub(super) async fn run(self, session: &mut Session) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => Ok(aliases(&session.read_to_show(is_stale).await?)),
            Self::Set { alias, is_unchecked } => {
                if !is_unchecked {
                    let seen = session.read().await?;
                    alias
                        .targets
                        .iter()
                        .chain(&alias.shadow)
                        .try_for_each(|target| check_known(&seen.view, target))?;
                }
                set(session, alias).await
            }
            Self::Promote { name, target, is_unchecked } => {
                let seen = session.read().await?;
                check_alias(&seen.view, &name)?;
                if !is_unchecked {
                    check_known(&seen.view, &target)?;
                }
                let targets = vec![target];
                set(session, Alias { name, targets, shadow: None, previous: None }).await
            }
            Self::Rollback(name) => {
                check_alias(&session.read().await?.view, &name)?;
                session.submit(Change::RollbackAlias(name.clone())).await?;
                // What it stands for is read back: others may have changed it meanwhile.
                let seen = session.read().await?;
                check_alias(&seen.view, &name)?;
                Ok(answer(&seen.view.aliases[&name], seen.view.index))
            }
            Self::Remove(name) => {
                check_alias(&session.read().await?.view, &name)?;
                let row = json!({"name": name.as_str(), "removed": true});
                let text = format!("alias {name} is no more");
                Ok(Answer::done(text, row, session.submit(Change::RemoveAlias(name)).await?))
            }
        }
    }
}

fn targets(matches: &ArgMatches, id: &str) -> Result<Vec<AliasTarget>, Failure> {
    let words: Vec<&str> =
        matches.get_many::<String>(id).unwrap_or_default().map(String::as_str).collect();
    parse_targets(words.into_iter()).map_err(Failure::Usage)
}

async fn set(session: &mut Session, alias: Alias) -> Result<Answer, Failure> {
    let index = session.submit(Change::SetAlias(alias.clone())).await?;
    Ok(answer(&alias, index))
}

/// What an alias stands for at an index.
fn answer(alias: &Alias, index: ViewIndex) -> Answer {
    let text = format!("alias {} stands for {}", alias.name, stands_for(alias));
    Answer::done(text, row(alias), index)
}

fn check_alias(view: &ClusterView, name: &ModelName) -> Result<(), Failure> {
    if view.aliases.contains_key(name) {
        return Ok(());
    }
    Err(unknown("alias", name.as_str(), view.aliases.keys().map(ModelName::as_str)))
}

fn stands_for(alias: &Alias) -> String {
    let targets = alias.targets.iter();
    let targets = targets.map(|target| format!("{target}={}", target.weight));
    let mut text = targets.collect::<Vec<_>>().join(" ");
    if let Some(shadow) = &alias.shadow {
        text.push_str(&format!(", with a copy to {shadow}"));
    }
    text
}

fn aliases(seen: &Seen) -> Answer {
    let mut table =
        Table::new([Column::Left("ALIAS"), Column::Left("TARGET"), Column::Right("WEIGHT")]);
    let known = || seen.view.aliases.values();
    for alias in known() {
        for target in &alias.targets {
            table.row([alias.name.to_string(), target.to_string(), target.weight.to_string()]);
        }
        if let Some(shadow) = &alias.shadow {
            table.row([alias.name.to_string(), shadow.to_string(), "shadow".to_owned()]);
        }
    }
    seen.answer(table.or("no alias is set"), "aliases", known().map(row).collect())
}

fn row(alias: &Alias) -> Value {
    let model = |target: &AliasTarget| {
        let revision = target.revision.as_ref().map(|revision| revision.as_str());
        json!({"model": target.model.as_str(), "revision": revision})
    };
    let target = |target: &AliasTarget| {
        let mut json = model(target);
        json["weight"] = target.weight.into();
        json
    };
    json!({
        "name": alias.name.as_str(),
        "targets": alias.targets.iter().map(target).collect::<Vec<_>>(),
        "shadow": alias.shadow.as_ref().map(model),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(model: &str, revision: Option<&str>, weight: u32) -> AliasTarget {
        AliasTarget { model: model.into(), revision: revision.map(Into::into), weight }
    }

    fn chat() -> Alias {
        Alias {
            name: "chat".into(),
            targets: vec![target("demo", Some("r1"), 95), target("demo", None, 5)],
            shadow: Some(target("big", Some("r7"), 100)),
            previous: None,
        }
    }

    #[test]
    fn aliases_are_for_programs_and_for_people() {
        let view =
            ClusterView { aliases: [("chat".into(), chat())].into(), ..ClusterView::default() };
        let answer = aliases(&Seen::for_test(view, false));
        let expected = "ALIAS  TARGET   WEIGHT
chat   demo@r1      95
chat   demo          5
chat   big@r7   shadow
";
        assert_eq!(answer.text, expected);
        let expected = r#"{"name":"chat","targets":[{"model":"demo","revision":"r1","weight":95},{"model":"demo","revision":null,"weight":5}],"shadow":{"model":"big","revision":"r7"}}"#;
        assert_eq!(answer.json["aliases"][0].to_string(), expected);
        assert_eq!(stands_for(&chat()), "demo@r1=95 demo=5, with a copy to big@r7");
    }

    #[test]
    fn an_unknown_alias_is_refused_with_the_nearest() {
        let view =
            ClusterView { aliases: [("chat".into(), chat())].into(), ..ClusterView::default() };
        assert_eq!(check_alias(&view, &"chat".into()), Ok(()));
        let line = "alias chta is not known; did you mean chat?".to_owned();
        assert_eq!(check_alias(&view, &"chta".into()), Err(Failure::Failed(line)));
    }
}
