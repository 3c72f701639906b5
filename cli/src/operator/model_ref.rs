//! How a model is named on the command line: `MODEL@REVISION`, and `MODEL@REVISION=WEIGHT` in an alias.

use std::collections::BTreeSet;

use phalanx_proto::id::{ModelName, Revision};
use phalanx_proto::name;
use phalanx_proto::view::{AliasTarget, ClusterView, given_twice};

use super::nearest::with_nearest;
use crate::failure::Failure;

/// The weight of the only target of an alias, when none is given.
const WEIGHT_ALONE: u32 = 100;

/// Reads `MODEL@REVISION`, or `MODEL` for any of its revisions.
pub(super) fn parse_model(word: &str) -> Result<(ModelName, Option<Revision>), String> {
    let (name, revision) = match word.rsplit_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (word, None),
    };
    if name.is_empty() || revision.is_some_and(str::is_empty) {
        return Err(format!("{word}: must be MODEL@REVISION, or MODEL for any revision"));
    }
    for part in [Some(name), revision].into_iter().flatten() {
        name::check(part).map_err(|error| format!("{word}: {error}"))?;
    }
    Ok((name.into(), revision.map(Revision::from)))
}

/// Reads what an alias stands for: each `MODEL@REVISION=WEIGHT`. One alone needs no weight.
///
/// # Errors
/// One line for each that cannot be read.
pub(super) fn parse_targets<'a>(
    words: impl ExactSizeIterator<Item = &'a str>,
) -> Result<Vec<AliasTarget>, Vec<String>> {
    let is_alone = words.len() == 1;
    let (mut targets, mut faults) = (Vec::new(), Vec::new());
    for word in words {
        match parse_target(word, is_alone) {
            Ok(target) => targets.push(target),
            Err(fault) => faults.push(fault),
        }
    }
    if let Some(twice) = given_twice(&targets) {
        faults.push(format!("{twice} is given twice"));
    }
    if faults.is_empty() { Ok(targets) } else { Err(faults) }
}

fn parse_target(word: &str, is_alone: bool) -> Result<AliasTarget, String> {
    let (model, weight) = match word.rsplit_once('=') {
        Some((model, weight)) => {
            let range = format!("{word}: the weight must be a whole number from 0 to {}", u32::MAX);
            (model, weight.parse().map_err(|_| range)?)
        }
        None if is_alone => (word, WEIGHT_ALONE),
        None => return Err(format!("{word}: must be MODEL@REVISION=WEIGHT, as demo@r1=95")),
    };
    let (model, revision) = parse_model(model)?;
    Ok(AliasTarget { model, revision, weight })
}

/// Refuses a target that the cluster has never seen, with what may have been meant. A revision is seen once a worker
/// has served it: what is merely wanted may be mistyped.
pub(super) fn check_known(view: &ClusterView, target: &AliasTarget) -> Result<(), Failure> {
    let AliasTarget { model: name, revision, .. } = target;
    let served = view.models.iter().map(|model| (&model.name, &model.revision));
    let wanted = view.deployments.values().map(|wanted| (&wanted.name, &wanted.revision));
    let known: BTreeSet<(&ModelName, &Revision)> = served.chain(wanted).collect();
    let of_name = known.iter().filter(|(known, _revision)| *known == name);
    let revisions: Vec<&str> = of_name.map(|(_name, revision)| revision.as_str()).collect();
    if revisions.is_empty() {
        let names = known.iter().map(|(name, _revision)| name.as_str());
        let problem = format!("model {name} is not known to the cluster");
        return Err(Failure::Failed(with_nearest(problem, name.as_str(), names)));
    }
    match revision {
        Some(revision) if view.knows(name, revision) => Ok(()),
        Some(revision) if revisions.contains(&revision.as_str()) => Err(Failure::Failed(format!(
            "model {name} is wanted at {revision}, which no worker has served yet"
        ))),
        Some(revision) => {
            let served = view.models.iter().filter(|model| model.name == *name);
            let served: Vec<&str> = served.map(|model| model.revision.as_str()).collect();
            let known = if served.is_empty() { "none yet".to_owned() } else { served.join(", ") };
            Err(Failure::Failed(format!("model {name} is known at {known}, not at {revision}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::ViewIndex;
    use phalanx_proto::view::{Deployment, Model};

    use super::*;

    fn target(model: &str, revision: Option<&str>, weight: u32) -> AliasTarget {
        AliasTarget { model: model.into(), revision: revision.map(Revision::from), weight }
    }

    #[track_caller]
    fn check(words: &[&str], expected: Result<&[AliasTarget], &[&str]>) {
        let parsed = parse_targets(words.iter().copied());
        let expected = expected
            .map(<[AliasTarget]>::to_vec)
            .map_err(|lines| lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(parsed, expected);
    }

    #[test]
    fn targets_are_read_as_they_are_shown() {
        check(&["m@r=95", "n=5"], Ok(&[target("m", Some("r"), 95), target("n", None, 5)]));
        check(&["org/m@v1"], Ok(&[target("org/m", Some("v1"), 100)]));
        check(
            &["m=0", "m@r=4294967295"],
            Ok(&[target("m", None, 0), target("m", Some("r"), u32::MAX)]),
        );
        for target in [target("m", Some("r"), 1), target("org/m", None, 1)] {
            let (model, revision) = parse_model(&target.to_string()).unwrap();
            assert_eq!((model, revision), (target.model, target.revision));
        }
    }

    #[test]
    fn every_bad_target_is_named() {
        let lines = [
            "m: must be MODEL@REVISION=WEIGHT, as demo@r1=95",
            "m@: must be MODEL@REVISION, or MODEL for any revision",
            "m@r=-1: the weight must be a whole number from 0 to 4294967295",
        ];
        check(&["m", "n=1", "m@=1", "m@r=-1"], Err(&lines));
        let two = "m@v1@r: \"m@v1\" holds '@': a name is made of letters, digits and . _ - : / +";
        check(&["m@v1@r"], Err(&[two]));
        check(&["m@r=1", "m=2", "m@r=3"], Err(&["m@r is given twice"]));
        check(&["=3"], Err(&[": must be MODEL@REVISION, or MODEL for any revision"]));
    }

    #[test]
    fn a_target_nobody_knows_is_refused_with_what_is_known() {
        let known = ["r1", "r2"].map(|r| Model { name: "demo-llm".into(), revision: r.into() });
        let wanted = Deployment {
            name: "demo-llm".into(),
            revision: "r4".into(),
            replicas: 1,
            tp: 1,
            version: ViewIndex(1),
        };
        let deployments = [(wanted.name.clone(), wanted)].into();
        let view = ClusterView { models: known.into(), deployments, ..ClusterView::default() };
        for (target, expected) in [
            (target("demo-llm", Some("r2"), 1), None),
            (target("demo-llm", None, 1), None),
            (
                target("demo-llm", Some("r3"), 1),
                Some("model demo-llm is known at r1, r2, not at r3"),
            ),
            (
                target("demo-llm", Some("r4"), 1),
                Some("model demo-llm is wanted at r4, which no worker has served yet"),
            ),
            (
                target("demo-lm", None, 1),
                Some("model demo-lm is not known to the cluster; did you mean demo-llm?"),
            ),
        ] {
            let refusal = check_known(&view, &target).err();
            assert_eq!(refusal, expected.map(|line| Failure::Failed(line.to_owned())));
        }
    }
}
