//! What an operator wants served is served, by whichever workers there are.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, refusal, serves};
use phalanx_cluster_tests::cluster::PoolCluster;
use serde_json::{Value, json};

/// Far longer than it takes to fence a member, place a group and load the demo model.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, and the revision of its demo model.
struct Scene {
    cluster: PoolCluster,
    revision: String,
}

impl Scene {
    /// The revision is what a worker says it has, asked for one that nobody has.
    async fn start(workers: usize) -> Result<Self> {
        let cluster = PoolCluster::start("models", workers).await?;
        let mut scene = Self { cluster, revision: "none".to_owned() };
        scene.want(1)?;
        eventually("a worker refuses the revision", PATIENCE, async || {
            Ok(scene.reasons()?.iter().any(|reason| reason.contains("expected none")))
        })
        .await?;
        let reasons = scene.reasons()?;
        let reason = reasons.first().context("no reason")?;
        let found = reason.split("holds revision ").nth(1).and_then(|rest| rest.split(',').next());
        scene.revision = found.with_context(|| format!("no revision in {reason:?}"))?.to_owned();
        Ok(scene)
    }

    fn want(&self, replicas: u32) -> Result<()> {
        let replicas = replicas.to_string();
        let words = ["model", "set", "demo-llm", "--revision", &self.revision, "--replicas"];
        self.cluster.ask(&[&words[..], &[&replicas]].concat())?;
        Ok(())
    }

    /// The groups of the demo model at the revision wanted.
    fn groups(&self) -> Result<Vec<Value>> {
        let answer = self.cluster.ask(&["model", "list"])?;
        let rows = answer["models"].as_array().context("no models")?;
        let row = rows.iter().find(|row| row["revision"] == self.revision.as_str());
        Ok(row.and_then(|row| row["groups"].as_array()).cloned().unwrap_or_default())
    }

    fn reasons(&self) -> Result<Vec<String>> {
        let groups = self.groups()?;
        Ok(groups.iter().filter_map(|group| group["reason"].as_str().map(str::to_owned)).collect())
    }

    async fn has_ready(&self, expected: usize) -> Result<()> {
        eventually(&format!("{expected} groups are ready"), PATIENCE, async || {
            let groups = self.groups()?;
            let ready = groups.iter().filter(|group| group["state"] == "ready").count();
            ensure!(ready == expected && groups.len() == expected, "groups are {groups:?}");
            Ok(true)
        })
        .await
    }

    /// Waits until requests are answered, by exactly so many workers.
    async fn is_served_by(&self, expected: usize) -> Result<()> {
        eventually(&format!("{expected} workers serve"), PATIENCE, async || {
            let mut seen = BTreeSet::new();
            for _request in 0..8 {
                let request = chat("Hello", json!({"max_tokens": 2}));
                let answer = self.cluster.client.post("/v1/chat/completions", &request).await?;
                answer.good()?;
                seen.extend(answer.header("x-phalanx-worker").map(str::to_owned));
            }
            ensure!(seen.len() == expected, "served by {seen:?}");
            Ok(true)
        })
        .await
    }
}

#[tokio::test]
async fn replicas_come_and_go_as_they_are_wanted_and_no_request_is_cut() -> Result<()> {
    let scene = Scene::start(2).await?;
    scene.want(1)?;
    scene.has_ready(1).await?;
    scene.is_served_by(1).await?;
    serves(&scene.cluster.client).await?;
    scene.want(2)?;
    scene.has_ready(2).await?;
    scene.is_served_by(2).await?;

    let long = chat("Hello", json!({"stream": true, "ignore_eos": true, "max_tokens": 600}));
    let mut streams = Vec::new();
    for _stream in 0..4 {
        let mut stream = scene.cluster.client.stream("/v1/chat/completions", &long).await?;
        stream.next().await?.context("no first event")?;
        streams.push(stream);
    }
    scene.want(0)?;
    for stream in streams {
        let events = stream.rest().await.context("a stream was cut by scaling down")?;
        ensure!(events.len() > 100, "a stream ended after {} events", events.len());
    }
    scene.has_ready(0).await?;
    let request = chat("Hello", json!({}));
    let gone = scene.cluster.client.post("/v1/chat/completions", &request).await?;
    ensure!(gone.status == 503, "nobody serves it, but it may come back");
    scene.cluster.ask(&["model", "remove", "demo-llm"])?;

    // Both offer again: what is wanted next finds them.
    scene.want(2)?;
    scene.has_ready(2).await?;
    scene.is_served_by(2).await
}

#[tokio::test]
async fn a_killed_worker_loses_its_group_until_it_is_back() -> Result<()> {
    let mut scene = Scene::start(2).await?;
    scene.want(2)?;
    scene.has_ready(2).await?;
    let url = scene.cluster.workers[1].url.clone();
    let on_it = |group: &Value| group["ranks"][0]["address"] == url.as_str();
    let before = scene.groups()?.into_iter().find(|group| on_it(group)).context("no group")?;
    scene.cluster.workers[1].process.crash()?;
    eventually("the group is broken", PATIENCE, async || {
        let groups = scene.groups()?;
        let group = groups.iter().find(|group| group["id"] == before["id"]).context("no group")?;
        ensure!(group["state"] == "broken", "group is {group}");
        ensure!(group["reason"].as_str().is_some_and(|why| why.ends_with("is gone")), "{group}");
        Ok(true)
    })
    .await?;
    serves(&scene.cluster.client).await?;
    scene.cluster.workers[1].restart().await?;
    scene.has_ready(2).await?;
    let groups = scene.groups()?;
    let after = groups.iter().find(|group| group["id"] == before["id"]).context("no group")?;
    ensure!(after["epoch"].as_u64() > before["epoch"].as_u64(), "{before} became {after}");
    scene.is_served_by(2).await
}

#[tokio::test]
async fn a_mistyped_revision_is_told_and_leaves_what_serves_as_it_is() -> Result<()> {
    let scene = Scene::start(1).await?;
    scene.want(1)?;
    scene.has_ready(1).await?;
    scene.is_served_by(1).await?;
    scene.cluster.ask(&["model", "set", "demo-llm", "--revision", "mistyped"])?;
    let shortage = || -> Result<Value> {
        let mut rows = scene.cluster.ask(&["model", "list"])?["models"].take();
        let rows = rows.as_array_mut().context("no models")?;
        let row = rows.iter_mut().find(|row| row["replicas"].is_u64()).context("none wanted")?;
        Ok(row["shortage"].take())
    };
    let told = shortage()?;
    ensure!(told.to_string().contains("no worker has served this revision"), "{told}");
    // Far longer than the leader takes to look at what is wanted.
    for _request in 0..20 {
        serves(&scene.cluster.client).await?;
    }
    scene.has_ready(1).await?;
    scene.want(1)?;
    ensure!(shortage()?.is_null());
    scene.has_ready(1).await
}

#[tokio::test]
async fn a_model_that_cannot_be_had_is_reported_and_the_worker_goes_on() -> Result<()> {
    let mut scene = Scene::start(1).await?;
    scene.cluster.ask(&["model", "set", "absent", "--revision", "r", "--replicas", "1"])?;
    eventually("the missing folder is reported", PATIENCE, async || {
        let listed = scene.cluster.ask(&["model", "list"])?.to_string();
        ensure!(listed.contains("there is no model folder"), "{listed}");
        Ok(true)
    })
    .await?;
    ensure!(scene.cluster.workers[0].process.is_running()?, "a failure ended the worker");
    let unknown = chat("Hello", json!({"model": "absent"}));
    let answer = scene.cluster.client.post("/v1/chat/completions", &unknown).await?;
    scene.want(1)?;
    scene.has_ready(1).await?;
    serves(&scene.cluster.client).await?;
    let answer_now = scene.cluster.client.post("/v1/chat/completions", &unknown).await?;
    ensure!(answer.status == 503, "while nothing is known, {}", answer.status);
    refusal(&answer_now, 404, Some("model"))
}
