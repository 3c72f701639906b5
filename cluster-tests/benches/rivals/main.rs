//! Our router beside others, in one run, before the same simulated engines: what each costs, and how well it chooses.
//!
//! `cargo bench -p phalanx-cluster-tests --bench rivals -- [--only overhead|routing] [--seconds N] [--routers A,B]
//! [--traces A,B] [--unique N] [--out FOLDER]`
//!
//! `bench/rivals/install` installs the others. Figures of one run compare; those of two runs on a shared machine may not.
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]

mod load;
mod overhead;
mod routers;
mod routing;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use self::load::number;
use self::routers::{ALL, Kind};
use self::routing::TRACES;

/// What one measurement of routing takes, unless told otherwise; half as much goes before it to warm caches.
const SECONDS: u64 = 30;

/// What to measure, and for how long.
pub(crate) struct Options {
    /// Of each measurement, about.
    pub(crate) seconds: u64,
    /// So many unique prompts, for what a router holds after them.
    pub(crate) unique: Option<u64>,
    routers: Option<Vec<String>>,
    traces: Option<Vec<String>>,
    only: Option<String>,
    out: Option<PathBuf>,
}

// === impl Options ===

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            seconds: SECONDS,
            unique: None,
            routers: None,
            traces: None,
            only: None,
            out: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--bench" {
                continue; // cargo's own
            }
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            let list = || Some(value.split(',').map(str::to_owned).collect());
            match word.as_str() {
                "--seconds" => options.seconds = value.parse()?,
                "--unique" => options.unique = Some(value.parse()?),
                "--routers" => options.routers = list(),
                "--traces" => options.traces = list(),
                "--only" => options.only = Some(value),
                "--out" => options.out = Some(value.into()),
                _ => bail!("unknown option {word}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }

    fn routers(&self) -> Result<Vec<(&'static str, Kind)>> {
        let Some(names) = &self.routers else { return Ok(ALL.to_vec()) };
        let find = |name: &String| {
            ALL.iter().find(|(known, _)| known == name).copied().with_context(|| {
                format!("no router {name}; there are {}", ALL.map(|(name, _)| name).join(", "))
            })
        };
        names.iter().map(find).collect()
    }

    /// Writes a result where results are kept, with how and when it was had.
    fn keep(&self, name: &str, results: &Map<String, Value>) -> Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        // Where it was written says nothing to who runs it again.
        let mut words = std::env::args().skip(1);
        let mut arguments = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--out" => drop(words.next()),
                "--bench" => {}
                _ => arguments.push(word),
            }
        }
        let arguments = arguments.join(" ");
        let report = json!({
            "command": format!("cargo bench -p phalanx-cluster-tests --bench rivals -- {arguments}"),
            "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            "cores": std::thread::available_parallelism()?.get(),
            "results": results,
        });
        let file = folder.join(format!("{name}.json"));
        std::fs::write(&file, format!("{report:#}\n"))?;
        println!("written to {}", file.display());
        Ok(())
    }
}

async fn overhead(options: &Options) -> Result<()> {
    println!(
        "{:<22} {:>9} {:>10} {:>10} {:>10} {:>10} {:>8}",
        "router", "req/s", "us/req", "us/token", "us/t paced", "ms/100k", "MiB"
    );
    let mut results = Map::new();
    for (name, kind) in options.routers()? {
        let measured = had(name, overhead::measure(kind, options).await);
        let cell = |key: &str| number(&measured, &format!("/{key}"));
        println!(
            "{name:<22} {:>9.0} {:>10.1} {:>10.2} {:>10.2} {:>10.1} {:>8.0}",
            cell("requests_per_s"),
            cell("cpu_us_per_request"),
            cell("cpu_us_per_token_burst"),
            cell("cpu_us_per_token_paced"),
            cell("cpu_ms_per_100k_token_prompt"),
            cell("resident_mib"),
        );
        results.insert(name.to_owned(), measured);
    }
    options.keep("rivals-overhead", &results)
}

async fn routing(options: &Options) -> Result<()> {
    let mut results = Map::new();
    for trace in TRACES {
        let wanted = |names: &Vec<String>| names.iter().any(|name| name == trace.name);
        if !options.traces.as_ref().is_none_or(wanted) {
            continue;
        }
        println!(
            "{:<10} {:<22} {:<10} {:>10} {:>10} {:>8} {:>10} {:>10}",
            "trace", "router", "load", "TTFT mean", "TTFT p99", "cached", "max/m req", "max/m busy"
        );
        let mut by_router = Map::new();
        for (name, kind) in options.routers()? {
            if kind == Kind::Direct {
                continue; // it does not choose
            }
            let measured = had(name, routing::measure(kind, &trace, options).await);
            for load in ["ample", "saturated"] {
                let cell = |key: &str| number(&measured, &format!("/{load}/{key}"));
                println!(
                    "{:<10} {name:<22} {load:<10} {:>10.1} {:>10.1} {:>7.1}% {:>10.2} {:>10.2}",
                    trace.name,
                    cell("ttft_ms_mean"),
                    cell("ttft_ms_p99"),
                    cell("cached_percent"),
                    cell("max_over_mean_requests"),
                    cell("max_over_mean_busy"),
                );
            }
            by_router.insert(name.to_owned(), measured);
        }
        results.insert(trace.name.to_owned(), Value::Object(by_router));
    }
    options.keep("rivals-routing", &results)
}

/// A measurement, or why there is none: the others go on.
fn had(name: &str, measured: Result<Value>) -> Value {
    measured.unwrap_or_else(|error| {
        println!("{name}: {error:#}");
        json!({"error": format!("{error:#}")})
    })
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    ensure!(options.seconds > 0, "--seconds must be above 0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if options.wants("overhead") {
            overhead(&options).await?;
        }
        if options.wants("routing") {
            routing(&options).await?;
        }
        Ok(())
    })
}
