//! Load by `phalanx bench`, in a process of its own.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::process::phalanx_binary;
use serde_json::Value;

/// Runs a load on `url`, and gives its report.
pub(crate) fn run(url: &str, options: &[&str]) -> Result<Value> {
    let mut command = Command::new(phalanx_binary()?);
    command.args(["bench", "--json", "--model-name", "sim", "--url", url]).args(options);
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    serde_json::from_slice(&output.stdout).context("the report is not JSON")
}

/// A number of a report.
pub(crate) fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)
}
