//! What an operator types, read as a program or as a person would.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::process::phalanx_binary;

/// Speaks to the control nodes at `urls` as an operator does.
#[derive(Clone, Debug)]
pub struct Operator {
    urls: String,
}

// === impl Operator ===

impl Operator {
    /// Asks the node at `url`, or several with commas between them.
    pub fn at(url: &str) -> Self {
        Self { urls: url.to_owned() }
    }

    /// What came of a command.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(phalanx_binary()?);
        Ok(command.args(words).args(["--control", &self.urls]).output()?)
    }

    /// What a command answers to a program.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = self.run(&[words, &["--json"]].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} ended with {}: {errors}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// What a command answers to a person.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn tell(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} ended with {}: {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Checks that a command ends with `code` and a line that holds `part`.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn is_refused(&self, words: &[&str], code: i32, part: &str) -> Result<()> {
        let output = self.run(words)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{words:?}: {} {errors}", output.status);
        ensure!(errors.lines().any(|line| line.contains(part)), "no {part:?} in {errors}");
        ensure!(output.stdout.is_empty(), "{words:?} was refused and answered");
        Ok(())
    }
}
