//! `phalanx setting`: what holds for the whole cluster.

use clap::{ArgMatches, Command};
use phalanx_proto::change::Change;
use phalanx_proto::view::Setting;
use serde_json::{Value, json};

use super::nearest::unknown;
use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, list, required, unknown_action, word};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// What is set.
    List { is_stale: bool },
    /// A value from now on.
    Set { key: String, value: String },
    /// The reader's default again.
    Remove(String),
}

pub(super) fn command() -> Command {
    let key = || required("key", "KEY", "The setting");
    group("setting", "Look at what holds for the whole cluster and change it")
        .subcommand(list("Show the settings"))
        .subcommand(
            Command::new("set").about("Set a setting, which every process follows").arg(key()).arg(
                required("value", "VALUE", "As text; its reader says what it may be")
                    .allow_hyphen_values(true),
            ),
        )
        .subcommand(Command::new("remove").about("Go back to the default").arg(key()))
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let key = || word(matches, "key").map(str::to_owned);
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "set" => {
                let value = matches.get_one::<String>("value").cloned().unwrap_or_default();
                Ok(Self::Set { key: key()?, value })
            }
            "remove" => key().map(Self::Remove),
            other => Err(unknown_action("setting", other)),
        }
    }

    pub(super) async fn run(self, session: &mut Session) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => Ok(settings(&session.read_to_show(is_stale).await?)),
            Self::Set { key, value } => {
                let row = json!({"key": key, "value": value});
                let text = format!("setting {key} is {value}");
                let index = session.submit(Change::PutSetting { key, value }).await?;
                Ok(Answer::done(text, row, index))
            }
            Self::Remove(key) => {
                let seen = session.read().await?;
                if !seen.view.settings.contains_key(&key) {
                    let known = seen.view.settings.keys().map(String::as_str);
                    return Err(unknown("setting", &key, known));
                }
                let row = json!({"key": key, "removed": true});
                let text = format!("setting {key} is back to its default");
                Ok(Answer::done(text, row, session.submit(Change::RemoveSetting(key)).await?))
            }
        }
    }
}

fn settings(seen: &Seen) -> Answer {
    let mut table =
        Table::new([Column::Left("SETTING"), Column::Right("VERSION"), Column::Left("VALUE")]);
    for Setting { key, value, version } in seen.view.settings.values() {
        table.row([key.clone(), version.to_string(), value.clone()]);
    }
    let rows = seen.view.settings.values().map(row).collect();
    seen.answer(table.or("nothing is set"), "settings", rows)
}

fn row(setting: &Setting) -> Value {
    let Setting { key, value, version } = setting;
    json!({"key": key, "value": value, "version": version.0})
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::ViewIndex;
    use phalanx_proto::view::ClusterView;

    use super::*;

    #[test]
    fn settings_are_for_programs_and_for_people() {
        let setting = Setting {
            key: "limits.retry".to_owned(),
            value: "a b".to_owned(),
            version: ViewIndex(12),
        };
        let mut view = ClusterView::default();
        assert_eq!(settings(&Seen::for_test(view.clone(), false)).text, "nothing is set\n");
        view.settings.insert(setting.key.clone(), setting);
        let answer = settings(&Seen::for_test(view, false));
        let expected = "SETTING       VERSION  VALUE\nlimits.retry       12  a b\n";
        assert_eq!(answer.text, expected);
        let expected = r#"[{"key":"limits.retry","value":"a b","version":12}]"#;
        assert_eq!(answer.json["settings"].to_string(), expected);
    }
}
