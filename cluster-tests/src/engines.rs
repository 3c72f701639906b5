//! `phalanx engine-sim`: engines whose every token and count is known beforehand.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::client::Client;
use crate::process::Process;

/// Simulated engines, all in one process.
#[derive(Debug)]
pub struct Engines {
    /// The process.
    pub process: Process,
    /// Where routers send requests to each engine.
    pub urls: Vec<String>,
    /// Speaks to the stats and switches of each engine.
    pub admins: Vec<Client>,
}

// === impl Engines ===

impl Engines {
    /// Starts engines on free ports with `options`; `folder` takes the log, named `name`.
    ///
    /// # Errors
    /// When they do not come up.
    pub async fn start(folder: &Path, name: &str, options: &[&str]) -> Result<Self> {
        let words = ["engine-sim", "--listen", "127.0.0.1:0"].iter().chain(options);
        let arguments: Vec<String> = words.map(|word| (*word).to_owned()).collect();
        let mut process = Process::start(folder, name, &arguments)?;
        let addresses = process.addresses().await?;
        let engines = addresses["engines"].as_array().context("no engines")?;
        let address = |engine: &Value, key: &str| {
            engine[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {engine}"))
        };
        let urls = engines.iter().map(|engine| address(engine, "url")).collect::<Result<_>>()?;
        let admins = engines.iter().map(|engine| Ok(Client::new(&address(engine, "admin")?)));
        let admins = admins.collect::<Result<_>>()?;
        Ok(Self { process, urls, admins })
    }

    /// What an engine has counted.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn stats(&self, engine: usize) -> Result<Value> {
        self.admins[engine].get("/sim/stats").await?.good()
    }

    /// Breaks an engine, or with `{}` mends it.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn set_faults(&self, engine: usize, faults: &Value) -> Result<()> {
        self.admins[engine].post("/sim/faults", faults).await?.good()?;
        Ok(())
    }

    /// Checks that an engine has nothing to do and holds nothing.
    ///
    /// # Errors
    /// What it still has.
    pub async fn is_idle(&self, engine: usize) -> Result<()> {
        let stats = self.stats(engine).await?;
        for count in ["open", "running", "waiting", "held_tokens", "prefill_backlog_tokens"] {
            ensure!(stats[count] == 0, "{count} is {}: {stats}", stats[count]);
        }
        Ok(())
    }
}

/// A chat of one message.
pub fn chat(content: &str, max_tokens: u32) -> Value {
    json!({
        "model": "sim", "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens, "seed": 7
    })
}
