//! Aliases: what they may stand for, and what a rollback restores.

use super::*;

pub(super) fn set(name: &str, models: &[&str]) -> Command {
    Command::Internal(Change::SetAlias(to(name, models)))
}

fn to(name: &str, models: &[&str]) -> Alias {
    let target = |&model: &&str| AliasTarget { model: model.into(), revision: None, weight: 1 };
    Alias { targets: models.iter().map(target).collect(), ..alias(name) }
}

fn rollback(name: &str) -> Command {
    Command::Internal(Change::RollbackAlias(name.into()))
}

/// The alias a after `commands`: the models it points to, and those before them.
#[track_caller]
fn check_alias(commands: &[Command], targets: &[&str], previous: Option<&[&str]>) {
    let index = u64::try_from(commands.len()).unwrap();
    let state = check(commands, &applied(index));
    let previous = previous.map(|models| to("a", models).targets);
    assert_eq!(state.view.aliases[&"a".into()], Alias { previous, ..to("a", targets) });
}

#[test]
fn a_rollback_exchanges_the_targets_with_those_before_them() {
    let (first, second) = (set("a", &["m"]), set("a", &["n"]));
    check_alias(&[first.clone(), first.clone()], &["m"], None);
    check_alias(&[first.clone(), second.clone()], &["n"], Some(&["m"]));
    let rolled = [first.clone(), second, rollback("a")];
    check_alias(&rolled, &["m"], Some(&["n"]));
    check_alias(&[rolled.as_slice(), &[rollback("a")]].concat(), &["n"], Some(&["m"]));
    check_alias(&[rolled.as_slice(), &[set("a", &["m"])]].concat(), &["m"], Some(&["n"]));
    let nothing = "alias a has no targets before these, so it cannot be rolled back";
    check_refused(&[first, rollback("a")], nothing);
    check_refused(&[rollback("a")], "alias a is not known");
}

#[test]
fn another_shadow_keeps_what_was_before() {
    let shadow = Some(AliasTarget { model: "s".into(), revision: None, weight: 0 });
    let shadowed = Alias { shadow: shadow.clone(), ..to("a", &["n"]) };
    let commands =
        [set("a", &["m"]), set("a", &["n"]), Command::Internal(Change::SetAlias(shadowed))];
    let state = check(&commands, &applied(3));
    let alias = &state.view.aliases[&"a".into()];
    assert_eq!((&alias.shadow, &alias.previous), (&shadow, &Some(to("a", &["m"]).targets)));
}

#[test]
fn a_shadow_goes_when_a_rollback_makes_it_a_target() {
    let rolled_back = |shadow: &str| {
        let shadow = Some(AliasTarget { model: shadow.into(), revision: None, weight: 0 });
        let shadowed = Command::Internal(Change::SetAlias(Alias { shadow, ..to("a", &["n"]) }));
        let state = check(&[set("a", &["m"]), shadowed, rollback("a")], &applied(3));
        state.view.aliases[&"a".into()].shadow.clone()
    };
    assert_eq!(rolled_back("m"), None);
    assert_eq!(rolled_back("s").map(|shadow| shadow.model), Some("s".into()));
}

#[test]
fn a_name_leads_to_a_model_in_one_step_and_hides_none_that_is_served() {
    let served = "m is a model that member 1 serves, so it cannot be an alias";
    check_refused(&[register("i", 1), set("m", &["n"])], served);
    let (name, revision) = ("d".into(), "r1".into());
    let deploy = Change::SetDeployment { name, revision, replicas: 1, tp: 1 };
    let deployed = "d is a deployment, so it cannot be an alias";
    check_refused(&[Command::Internal(deploy), set("d", &["n"])], deployed);
    let chained = "alias b cannot point to a, which is an alias";
    check_refused(&[set("a", &["m"]), set("b", &["a"])], chained);
    check_refused(&[set("b", &["a"]), set("a", &["m"])], chained);
    check_refused(&[set("b", &["b"])], "alias b cannot point to b, which is an alias");
    let shadow = Some(AliasTarget { model: "a".into(), revision: None, weight: 1 });
    let shadowed = Command::Internal(Change::SetAlias(Alias { shadow, ..to("b", &["m"]) }));
    check_refused(&[set("a", &["m"]), shadowed], chained);
    // What is rolled back to may have become an alias meanwhile.
    let meanwhile = [set("b", &["a"]), set("b", &["m"]), set("a", &["m"]), rollback("b")];
    check_refused(&meanwhile, chained);
}
