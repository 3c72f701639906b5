//! An operator changes the control group: across elections, once, and with a clear line for each mistake.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::cluster::Cluster;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::operator::Operator;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Far longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A URL at which nobody listens: port 9 (discard) is closed on any machine that this runs on.
const NOBODY: &str = "http://127.0.0.1:9";

/// Asks everybody but the node `at`.
fn all_but(group: &ControlGroup, at: usize) -> Operator {
    let urls: Vec<&str> = group.others(at).iter().map(|at| group.nodes[*at].url.as_str()).collect();
    Operator::at(&urls.join(","))
}

/// Kills the leader and gives an operator who asks the others.
async fn behead(group: &mut ControlGroup) -> Result<(usize, Operator)> {
    let everybody: Vec<usize> = (0..group.nodes.len()).collect();
    let (leader, _term) = group.agreed(&everybody, PATIENCE).await?;
    group.nodes[leader].process.crash()?;
    Ok((leader, all_but(group, leader)))
}

#[tokio::test]
async fn the_group_is_changed_and_saved_across_elections() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let file = group.folder().join("saved").display().to_string();

    // The same node again: nobody is added twice, whoever leads.
    let (dead, operator) = behead(&mut group).await?;
    let added = operator.ask(&["cluster", "add", NOBODY])?["id"].take();
    ensure!(operator.ask(&["cluster", "add", NOBODY])?["id"] == added, "it was added again");
    group.restart(dead).await?;

    let (dead, operator) = behead(&mut group).await?;
    let saved = operator.ask(&["cluster", "backup", &file])?;
    ensure!(saved["bytes"].as_u64() > Some(0), "{saved}");
    group.restart(dead).await?;

    let (dead, operator) = behead(&mut group).await?;
    let gone = operator.ask(&["cluster", "remove", &added.to_string()])?["id"].take();
    ensure!(gone == added, "{gone}");
    let status = operator.ask(&["cluster", "status"])?;
    ensure!(status["members"].as_array().map(Vec::len) == Some(3), "{status}");
    group.restart(dead).await?;

    let (dead, operator) = behead(&mut group).await?;
    let heir = (group.others(dead)[0] + 1).to_string();
    operator.ask(&["cluster", "transfer", &heir])?;
    // To lead what it leads already, and to vote where it votes, is done.
    operator.ask(&["cluster", "transfer", &heir])?;
    operator.ask(&["cluster", "promote", &heir])?;
    ensure!(operator.ask(&["cluster", "status"])?["leader"].to_string() == heir);
    Ok(())
}

#[tokio::test]
async fn a_node_that_cannot_be_added_promoted_or_removed_is_refused_in_one_line() -> Result<()> {
    let group = ControlGroup::start(1).await?;
    let url = &group.nodes[0].url;
    let operator = Operator::at(url);
    for broken in ["http://", "127.0.0.1:9", "https://c:1", "http://c:70000", "http://c:1/path"] {
        operator.is_refused(
            &["cluster", "add", broken],
            64,
            "must be a URL as http://HOST:PORT",
        )?;
    }
    for voter in [url.clone(), format!("{url}/")] {
        let line = format!("url {url} is that of node 1, a voter");
        operator.is_refused(&["cluster", "add", &voter], 64, &line)?;
    }
    let id = operator.ask(&["cluster", "add", NOBODY])?["id"].to_string();
    operator.is_refused(&["cluster", "promote", &id], 1, &format!("node {id} was not heard"))?;
    operator.is_refused(&["cluster", "transfer", &id], 1, "has no vote")?;
    operator.is_refused(&["cluster", "remove", "99"], 1, "node 99 is not in the group")?;
    operator.is_refused(&["cluster", "remove", "1"], 1, "the last voter")
}

#[tokio::test]
async fn what_is_not_a_control_node_is_called_so() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    // HTTP/1 alone, as many a web server.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let web = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _peer)) = listener.accept().await {
            let refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let mut heard = [0; 1024];
            let _said = stream.write_all(refusal).await;
            // The answer is read before the connection ends.
            while stream.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        }
    });
    let router = cluster.client.base().to_owned();
    for url in [&router, &cluster.worker.url, &web] {
        // Which of the two the web server is called depends on what is noticed first.
        let line = if *url == web {
            "not a control node".to_owned()
        } else {
            format!("{url} is not a control node")
        };
        for words in
            [&["cluster", "status"][..], &["worker-admin", "list"], &["cluster", "add", NOBODY]]
        {
            // Not on this thread, where the server above is to answer meanwhile.
            let (operator, words, line) = (Operator::at(url), words.to_owned(), line.clone());
            let refused =
                tokio::task::spawn_blocking(move || operator.is_refused(&words, 69, &line));
            refused.await??;
        }
    }
    // One good URL among them is enough.
    let operator = Operator::at(&format!("{router},{}", cluster.control.url));
    ensure!(operator.ask(&["cluster", "status"])?["leader"] == 1);
    Ok(())
}
