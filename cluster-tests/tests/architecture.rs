//! The shape of the workspace: which crate may see what, how long a file may be, where `unsafe` may stand.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::process::repository;
use serde_json::Value;

/// Which crates of ours a crate may depend on: the arrows of the architecture, and no others.
const ARROWS: [(&str, &[&str]); 9] = [
    ("phalanx-proto", &[]),
    ("phalanx-chassis", &["phalanx-proto"]),
    ("phalanx-kernels", &[]),
    ("phalanx-control", &["phalanx-chassis", "phalanx-proto"]),
    ("phalanx-router", &["phalanx-chassis", "phalanx-proto"]),
    ("phalanx-engine-sim", &["phalanx-chassis", "phalanx-proto"]),
    ("phalanx-worker", &["phalanx-chassis", "phalanx-kernels", "phalanx-proto"]),
    (
        "phalanx-cli",
        &[
            "phalanx-chassis",
            "phalanx-control",
            "phalanx-engine-sim",
            "phalanx-proto",
            "phalanx-router",
            "phalanx-worker",
        ],
    ),
    ("phalanx-cluster-tests", &["phalanx-chassis", "phalanx-proto"]),
];

/// What a crate may not reach by any path of ordinary dependencies, and why.
const FORBIDDEN: [(&str, &[&str], &str); 5] = [
    (
        "phalanx-router",
        &["tokenizers", "minijinja", "safetensors", "openraft", "redb"],
        "the router never tokenises and keeps no state",
    ),
    ("phalanx-worker", &["openraft", "redb"], "a worker holds only what can be computed again"),
    ("phalanx-control", &["tokenizers", "minijinja", "safetensors"], "control never sees a prompt"),
    ("phalanx-chassis", &["openraft", "tokenizers"], "the chassis is what every process does"),
    ("phalanx-kernels", &["tokio", "tonic", "prost"], "the kernels compute and nothing else"),
];

/// Longer files are not read, only searched.
const FILE_LINES_MAX: usize = 700;

/// Ordinary and build dependencies, by package name.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .current_dir(repository())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let (id, name) = (package["id"].as_str(), package["name"].as_str());
        names.insert(id.context("no id")?, name.context("no name")?.to_owned());
    }
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().context("no nodes")? {
        let of = |id: &Value| names.get(id.as_str().unwrap_or_default()).cloned();
        let edges = graph.entry(of(&node["id"]).context("unknown package")?).or_default();
        for dependency in node["deps"].as_array().context("no deps")? {
            let kinds = dependency["dep_kinds"].as_array().context("no kinds")?;
            if kinds.iter().any(|kind| kind["kind"] != "dev") {
                edges.insert(of(&dependency["pkg"]).context("unknown package")?);
            }
        }
    }
    Ok(graph)
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(name) = next.pop() {
        for dependency in graph.get(&name).into_iter().flatten() {
            if seen.insert(dependency.clone()) {
                next.push(dependency.clone());
            }
        }
    }
    seen
}

/// Rust files of one of our crates.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn crates() -> Vec<(&'static str, PathBuf)> {
    let folder = |name: &str| repository().join(name.trim_start_matches("phalanx-"));
    ARROWS.iter().map(|(name, _)| (*name, folder(name))).collect()
}

#[test]
fn crates_see_only_what_the_architecture_lets_them_see() -> Result<()> {
    let graph = dependencies()?;
    for (name, allowed) in ARROWS {
        let all = graph.get(name).with_context(|| format!("{name} is not in the workspace"))?;
        let ours: Vec<&String> = all.iter().filter(|other| other.starts_with("phalanx-")).collect();
        for other in ours {
            ensure!(allowed.contains(&other.as_str()), "{name} must not depend on {other}");
        }
    }
    let members = graph.keys().filter(|name| name.starts_with("phalanx-")).count();
    ensure!(members == ARROWS.len(), "a crate of the workspace is missing from the table above");
    for (name, forbidden, reason) in FORBIDDEN {
        let reached = reachable(&graph, name);
        for other in forbidden {
            ensure!(!reached.contains(*other), "{name} reaches {other}, but {reason}");
        }
    }
    Ok(())
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() -> Result<()> {
    for (_, folder) in crates() {
        for file in sources(&folder)? {
            let lines = std::fs::read_to_string(&file)?.lines().count();
            ensure!(lines <= FILE_LINES_MAX, "{} has {lines} lines", file.display());
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_is_the_kernels_own_business() -> Result<()> {
    // In two parts each, so that this file does not hold what it looks for.
    let signs = ["{", "fn", "impl", "extern"].map(|what| format!("{} {what}", "unsafe"));
    let waiver = format!("({}_code", "unsafe");
    for (name, folder) in crates().into_iter().filter(|(name, _)| *name != "phalanx-kernels") {
        let mut roots = 0;
        for file in sources(&folder)? {
            let text = std::fs::read_to_string(&file)?;
            let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
            if file.ends_with("src/lib.rs") || file.ends_with("src/main.rs") {
                ensure!(forbids, "{} does not forbid unsafe code", file.display());
                roots += 1;
            }
            for line in text.lines() {
                let code = line.split("//").next().unwrap_or_default();
                let is_unsafe = signs.iter().any(|sign| code.contains(sign));
                let is_waived = code.contains(&waiver) && !code.contains("forbid");
                ensure!(!is_unsafe && !is_waived, "{}: {line}", file.display());
            }
        }
        ensure!(roots > 0, "{name} has no crate root in {}", folder.display());
    }
    Ok(())
}
