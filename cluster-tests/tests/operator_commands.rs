//! What an operator types: every command once, against control nodes that run, read as a program would.
#![forbid(unsafe_code)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_chassis::control_client::ControlClient;
use phalanx_cluster_tests::check::{eventually, serves};
use phalanx_cluster_tests::cluster::Cluster;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::operator::Operator;
use phalanx_cluster_tests::process::phalanx_binary;
use phalanx_proto::api_key::{ApiKeyText, Pepper};
use serde_json::{Value, json};

/// Far longer than what is waited for takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_worker_is_listed_drained_and_undrained_by_its_id() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let operator = Operator::at(&cluster.control.url);
    let listed = operator.ask(&["worker-admin", "list"])?;
    let worker = listed["workers"][0].clone();
    let id = worker["id"].as_u64().context("no id")?.to_string();
    ensure!(worker["state"] == "ready" && worker["models"][0]["name"] == "demo-llm", "{worker}");
    let table = operator.tell(&["worker-admin", "list"])?;
    ensure!(table.lines().count() == 2 && table.contains(&format!("{id}  ready")), "{table}");

    let drained = operator.ask(&["worker-admin", "drain", &id])?;
    ensure!(drained["state"] == "draining" && drained["epoch"] == worker["epoch"], "{drained}");
    let state = || {
        Ok::<_, anyhow::Error>(
            operator.ask(&["worker-admin", "list"])?["workers"][0]["state"].take(),
        )
    };
    ensure!(state()? == "draining");
    let probe = async |status: u16| {
        eventually("the probe says so", PATIENCE, async || {
            Ok(cluster.worker.metrics.get("/health/ready").await?.status == status)
        })
        .await
    };
    probe(503).await?;
    let back = operator.ask(&["worker-admin", "undrain", &id])?;
    ensure!(back["state"] == "ready" && back["epoch"] == worker["epoch"], "{back}");
    ensure!(state()? == "ready");
    probe(200).await?;
    eventually("it serves", PATIENCE, async || Ok(serves(&cluster.client).await.is_ok())).await?;

    operator.is_refused(
        &["worker-admin", "fence", "999999"],
        1,
        "worker 999999 is not registered",
    )?;
    operator.is_refused(&["worker-admin", "fence", "0"], 64, "0")?;
    Ok(())
}

#[tokio::test]
async fn a_fenced_worker_is_gone_under_its_id() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let operator = Operator::at(&cluster.control.url);
    let worker = operator.ask(&["worker-admin", "list"])?["workers"][0].take();
    let id = worker["id"].as_u64().context("no id")?.to_string();
    let fenced = operator.ask(&["worker-admin", "fence", &id])?;
    ensure!(fenced["id"] == worker["id"] && fenced["state"] == "fenced", "{fenced}");
    eventually("the worker is back as another", PATIENCE, async || {
        let listed = operator.ask(&["worker-admin", "list"])?;
        let now = &listed["workers"][0];
        Ok(now["id"].is_u64() && now["id"] != worker["id"])
    })
    .await
}

#[tokio::test]
async fn an_alias_is_set_promoted_and_removed() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let operator = Operator::at(&cluster.control.url);
    let model = operator.ask(&["worker-admin", "list"])?["workers"][0]["models"][0].take();
    let exact = format!("demo-llm@{}", model["revision"].as_str().context("no revision")?);

    let set = operator.ask(&["alias", "set", "chat", &format!("{exact}=95"), "demo-llm=5"])?;
    let index = set["index"].as_u64().context("no index")?;
    let listed = operator.ask(&["alias", "list"])?;
    ensure!(listed["index"].as_u64() >= Some(index), "{listed} is from before {index}");
    let expected = json!([
        {"model": "demo-llm", "revision": model["revision"], "weight": 95},
        {"model": "demo-llm", "revision": null, "weight": 5},
    ]);
    ensure!(listed["aliases"][0]["targets"] == expected, "{listed}");
    let table = operator.tell(&["alias", "list"])?;
    ensure!(table.lines().any(|row| row.contains(&exact) && row.ends_with("95")), "{table}");

    operator.is_refused(&["alias", "promote", "chta", &exact], 1, "did you mean chat?")?;
    operator.is_refused(&["alias", "set", "chat", "demo-lm"], 1, "did you mean demo-llm?")?;
    operator.is_refused(
        &["alias", "set", "chat", "a", "b=x"],
        64,
        "a: must be MODEL@REVISION=WEIGHT",
    )?;
    for (words, line) in [
        (&["chat@x", "demo-llm"][..], "name \"chat@x\" holds '@'"),
        (&["my chat", "demo-llm"], "name \"my chat\" holds ' '"),
        (&["chat", "demo-llm=1", "demo-llm=2"], "demo-llm is given twice"),
    ] {
        operator.is_refused(&[&["alias", "set"], words].concat(), 64, line)?;
    }
    operator.is_refused(
        &["alias", "set", "chat", "demo-llm=0"],
        1,
        "weights of alias chat sum to 0",
    )?;

    let promoted = operator.ask(&["alias", "promote", "chat", &exact])?;
    let expected = json!([{"model": "demo-llm", "revision": model["revision"], "weight": 100}]);
    ensure!(promoted["targets"] == expected, "{promoted}");
    let back = operator.ask(&["alias", "rollback", "chat"])?;
    ensure!(back["targets"] == listed["aliases"][0]["targets"], "{back}");
    operator.ask(&["alias", "set", "later", "not-yet", "--unchecked"])?;
    operator.ask(&["alias", "remove", "later"])?;
    operator.is_refused(&["alias", "remove", "later"], 1, "alias later is not known")?;
    ensure!(operator.ask(&["alias", "list"])?["aliases"].as_array().map(Vec::len) == Some(1));
    Ok(())
}

#[tokio::test]
async fn a_model_is_wanted_and_shown_beside_what_there_is() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let operator = Operator::at(&cluster.control.url);
    let row = |operator: &Operator| {
        Ok::<_, anyhow::Error>(operator.ask(&["model", "list"])?["models"][0].take())
    };
    let before = row(&operator)?;
    ensure!(before["name"] == "demo-llm" && before["workers"] == 1, "{before}");
    ensure!(before["replicas"] == Value::Null && before["ready"] == 0, "{before}");

    let set = operator.ask(&["model", "set", "demo-llm", "--replicas", "2", "--tp", "4"])?;
    ensure!(set["revision"] == before["revision"], "the only revision was not taken: {set}");
    operator.ask(&["model", "set", "demo-llm", "--replicas", "3"])?;
    let after = row(&operator)?;
    ensure!(after["replicas"] == 3 && after["tp"] == 4, "{after}");

    let unknown = ["model", "set", "demo-lm", "--replicas", "1"];
    operator.is_refused(&unknown, 1, "needs a --revision; did you mean demo-llm?")?;
    operator.is_refused(&["model", "set", "demo-llm", "--tp", "0"], 64, "1..=64")?;
    operator.is_refused(&["model", "set", "demo-llm", "--replicas", "1025"], 64, "0..=1024")?;
    operator.is_refused(&["model", "set", "demo llm"], 64, "name \"demo llm\" holds ' '")?;
    operator.is_refused(&["model", "set", "demo-llm", "--tp", "x"], 64, "x")?;
    operator.ask(&["model", "remove", "demo-llm"])?;
    operator.is_refused(&["model", "remove", "demo-llm"], 1, "model demo-llm is not wanted")
}

#[tokio::test]
async fn a_tenant_gets_a_key_that_is_shown_once_and_verifies() -> Result<()> {
    let group = ControlGroup::start(1).await?;
    let url = &group.nodes[0].url;
    let operator = Operator::at(url);
    operator.is_refused(&["key", "create", "--tenant", "acme"], 1, "tenant acme is not known")?;
    let limits = ["--rpm", "60", "--tpm", "90000", "--concurrency", "8", "--budget", "1000000"];
    operator.ask(
        &[&["tenant", "set", "acme"], &limits[..], &["--priority", "2", "--cache", "exact"]]
            .concat(),
    )?;
    operator.ask(&["tenant", "set", "acme", "--rpm", "none"])?;
    operator.is_refused(&["tenant", "set", "a,b"], 64, "name \"a,b\" holds ','")?;
    let tenants = operator.ask(&["tenant", "list"])?["tenants"].take();
    let expected = json!([{
        "name": "acme", "rpm": null, "tpm": 90_000, "concurrency": 8, "budget": 1_000_000,
        "priority": 2, "cache": "exact",
    }]);
    ensure!(tenants == expected, "{tenants}");

    let words = ["key", "create", "--tenant", "acme", "--scopes", "inference:demo-*,metrics:read"];
    let made = operator.ask(&[&words[..], &["--rpm", "5", "--expires", "30d"]].concat())?;
    let key = ApiKeyText::parse(made["key"].as_str().context("no key")?)?;
    let cluster_id = operator.ask(&["cluster", "status"])?["cluster_id"].take();
    let pepper = Pepper::new(0, cluster_id.as_str().context("no id")?.into())?;
    ensure!(verifies(url, &key, &pepper).await?, "what is kept does not verify the key");
    let listed = operator.ask(&["key", "list"])?["keys"][0].take();
    ensure!(listed["id"] == made["id"] && listed["state"] == "live", "{listed}");
    ensure!(listed["scopes"] == json!(["inference:demo-*", "metrics:read"]), "{listed}");
    ensure!(listed.get("key").is_none(), "the secret is shown again: {listed}");

    let id = key.id().to_string();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pepper");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n")?;
    let file = file.display().to_string();
    let words = ["key", "rotate", &id, "--overlap", "1h", "--pepper-file", &file];
    let told = operator.tell(&words)?;
    let printed = told.lines().find(|line| line.starts_with("sk-")).context("no key is told")?;
    let second = ApiKeyText::parse(printed)?;
    let other = Pepper::new(1, b"0123456789abcdef0123456789abcdef".to_vec())?;
    ensure!(second.id() == key.id(), "the key has another id");
    ensure!(
        verifies(url, &second, &other).await?,
        "what is kept does not verify the second secret"
    );
    ensure!(!verifies(url, &key, &other).await?, "any secret verifies");
    let listed = operator.ask(&["key", "list"])?["keys"][0].take();
    ensure!(listed["state"] == "rotating" && listed["pepper_version"] == 1, "{listed}");

    operator.is_refused(&["key", "rotate", &id, "--overlap", "91d"], 64, "at most 90d")?;
    let forever = ["key", "create", "--tenant", "acme", "--expires", "9999999w"];
    operator.is_refused(&forever, 64, "at most 3650d from now")?;
    operator.is_refused(&["tenant", "remove", "acme"], 1, "which is not revoked")?;
    operator.is_refused(&["key", "remove", &id], 1, "revoked")?;
    operator.ask(&["key", "revoke", &id])?;
    operator.is_refused(&["key", "rotate", &id], 1, "revoked")?;
    operator.ask(&["key", "remove", &id])?;
    operator.ask(&["tenant", "remove", "acme"])?;
    operator.is_refused(&["key", "create", "--tenant", "acme", "--expires", "soon"], 64, "30d")
}

/// Whether the newest secret that control keeps under the key's id is this one.
async fn verifies(url: &str, key: &ApiKeyText, pepper: &Pepper) -> Result<bool> {
    let reading = ControlClient::new(&[url])?.read_view(PATIENCE).await?;
    let kept = reading.view.keys.get(&key.id()).context("the key is not kept")?;
    let newest = kept.secrets.last().context("no secret is kept")?;
    Ok(newest.pepper_version == pepper.version && key.verify(pepper, &newest.hmac))
}

#[tokio::test]
async fn a_setting_is_set_and_removed() -> Result<()> {
    let group = ControlGroup::start(1).await?;
    let operator = Operator::at(&group.nodes[0].url);
    let set = operator.ask(&["setting", "set", "cache.ttl", "-1"])?;
    let listed = operator.ask(&["setting", "list"])?["settings"].take();
    let expected = json!([{"key": "cache.ttl", "value": "-1", "version": set["index"]}]);
    ensure!(listed == expected, "{listed}");
    ensure!(operator.tell(&["setting", "list"])?.contains("cache.ttl"));
    operator.is_refused(&["setting", "remove", "cache.tl"], 1, "did you mean cache.ttl?")?;
    operator.ask(&["setting", "remove", "cache.ttl"])?;
    ensure!(operator.tell(&["setting", "list"])? == "nothing is set\n");
    Ok(())
}

#[test]
fn help_names_every_command_and_action() -> Result<()> {
    let help = |words: &[&str]| -> Result<String> {
        let output = Command::new(phalanx_binary()?).args(words).arg("--help").output()?;
        ensure!(output.status.success(), "{words:?}: {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    for (command, actions) in [
        ("cluster", &["status", "add", "promote", "remove", "transfer"][..]),
        ("worker-admin", &["list", "drain", "undrain", "fence"]),
        ("model", &["list", "set", "remove"]),
        ("alias", &["list", "set", "promote", "rollback", "remove"]),
        ("tenant", &["list", "set", "remove"]),
        ("key", &["list", "create", "rotate", "revoke", "remove"]),
        ("setting", &["list", "set", "remove"]),
    ] {
        let names = |text: &str, name| {
            text.lines().any(|line| line.split_whitespace().next() == Some(name))
        };
        ensure!(names(&help(&[])?, command), "{command} is not named");
        let own = help(&[command])?;
        for action in actions {
            ensure!(names(&own, action), "{command} {action} is not named in\n{own}");
            let own = help(&[command, action])?;
            ensure!(own.contains("PHALANX_CONTROL") && own.contains("--json"), "{own}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn any_node_answers_and_without_a_quorum_only_what_it_has_at_hand() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let set = ["alias", "set", "chat", "not-yet", "--unchecked"];
    for node in 0..3 {
        // Through one node alone: two of the three are followers.
        let operator = Operator::at(&group.nodes[node].url);
        operator.ask(&set)?;
        ensure!(operator.ask(&["alias", "list"])?["aliases"][0]["name"] == "chat");
    }
    let left = Operator::at(&group.nodes[2].url);
    for node in &mut group.nodes[..2] {
        node.process.crash()?;
    }
    left.is_refused(&set, 69, "try again in 1 s")?;
    left.is_refused(&["alias", "list"], 69, "--stale shows what a node has at hand")?;
    let drain = left.run(&["worker-admin", "drain", "3"])?;
    let line = String::from_utf8_lossy(&drain.stderr).into_owned();
    ensure!(drain.status.code() == Some(69) && !line.contains("--stale"), "{line}");
    let stale = left.ask(&["alias", "list", "--stale"])?;
    ensure!(stale["stale"] == true && stale["answered_by"] == 3, "{stale}");
    ensure!(stale["aliases"][0]["name"] == "chat", "{stale}");
    let told = left.tell(&["alias", "list", "--stale"])?;
    ensure!(told.contains("as node 3 has it at index"), "{told}");

    // Port 9 (discard) is closed on any machine that this runs on.
    let nowhere = Operator::at("http://127.0.0.1:9");
    nowhere.is_refused(&["worker-admin", "list"], 69, "http://127.0.0.1:9: ")?;
    nowhere.is_refused(&["cluster", "status"], 69, "no control node could answer")
}
