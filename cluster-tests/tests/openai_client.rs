//! The official OpenAI client works, unchanged.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::cluster::Served;
use phalanx_cluster_tests::process::repository;

#[tokio::test]
async fn the_official_python_client_finds_what_it_expects() -> Result<()> {
    let python = repository().join(".venv/bin/python");
    ensure!(python.is_file(), "{} is missing: `make test` makes it", python.display());
    let served = Served::start(&[]).await?;
    let base = format!("{}/v1", served.client.base());
    let output = tokio::task::spawn_blocking(move || {
        Command::new(python)
            .arg(repository().join("cluster-tests/python/test_openai.py"))
            .arg(base)
            .output()
    })
    .await??;
    let (printed, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{printed}\n{complained}", output.status);
    Ok(())
}
