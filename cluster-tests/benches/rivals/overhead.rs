//! What a router costs: CPU of its process per request and per streamed token, and what it holds.
//!
//! The engines are instant, so that time and CPU are the router's and the load's; CPU is the router's alone. The cost
//! of a token is the slope between short and long answers, in bursts and at a fast engine's pace.

use anyhow::Result;
use serde_json::{Value, json};

use crate::Options;
use crate::load::{number, run};
use crate::routers::{Kind, Site};

/// Clients that send one request after the other.
const CLIENTS: &str = "32";
/// Requests of a second of measurement, about: a slow router takes longer for them.
const REQUESTS_PER_SECOND: u64 = 5000;
/// Streams of a second of measurement, and tokens of a long one.
const STREAMS_PER_SECOND: u64 = 160;
const STREAM_TOKENS: u32 = 257;
/// Prompts of 100,000 tokens of four bytes, and how many of them.
const LONG_PROMPT: (&str, &str) = ("400000", "200");
/// Engines behind each router.
const INSTANT: [&str; 3] = ["--engines", "4", "--instant"];
/// Native engines have no instant path: theirs is a pace that takes no time.
const AT_ONCE: [&str; 8] = paced("0");
/// A fast engine's pace: 2 ms a token.
const PACED: [&str; 8] = paced("2");

/// Engines that only wait between tokens.
const fn paced(decode_ms: &'static str) -> [&'static str; 8] {
    let decode = ["--decode-base-ms", decode_ms, "--decode-per-seq-ms", "0"];
    ["--engines", "4", "--prefill-rate", "1000000000", decode[0], decode[1], decode[2], decode[3]]
}

/// Measures one router.
pub(crate) async fn measure(kind: Kind, options: &Options) -> Result<Value> {
    let instant: &[&str] = if kind == Kind::Native { &AT_ONCE } else { &INSTANT };
    let site = Site::start(kind, instant).await?;
    let small = ["--stream=false", "--max-tokens", "1", "--prompt-bytes", "64"];
    let seconds = options.seconds.max(1);
    let count = (seconds * REQUESTS_PER_SECOND).to_string();
    let warm = ["--concurrency", CLIENTS, "--requests", "1000"];
    run(&site.url, &[&warm[..], &small].concat())?;
    let load = ["--concurrency", CLIENTS, "--requests", &count, "--seed", "2"];
    let (report, request_s) = costed(&site, &[&load[..], &small].concat())?;
    let burst_us = token_us(&site, seconds)?;
    let (bytes, prompts) = LONG_PROMPT;
    let long = ["--stream=false", "--max-tokens", "1", "--concurrency", "4"];
    let long = [&long[..], &["--requests", prompts, "--prompt-bytes", bytes]].concat();
    let (_, long_s) = costed(&site, &long)?;
    let resident = site.resident()?;
    let unique = options.unique.map(|count| unique(&site, count)).transpose()?;
    drop(site);
    let site = Site::start(kind, &PACED).await?;
    let paced_us = token_us(&site, seconds)?;
    Ok(json!({
        "requests_per_s": number(&report, "/requests_per_s"),
        "e2e_ms_p50": number(&report, "/e2e_ms/p50"),
        "e2e_ms_p99": number(&report, "/e2e_ms/p99"),
        "errors": report["errors"],
        "cpu_us_per_request": request_s * 1e6,
        "cpu_us_per_token_burst": burst_us,
        "cpu_us_per_token_paced": paced_us,
        "cpu_ms_per_100k_token_prompt": long_s * 1e3,
        "resident_mib": resident,
        "unique_prefixes": unique,
    }))
}

/// Runs a load, and gives its report and the router's CPU seconds per request.
fn costed(site: &Site, options: &[&str]) -> Result<(Value, f64)> {
    let before = site.cpu()?;
    let report = run(&site.url, options)?;
    let seconds = (site.cpu()? - before) / number(&report, "/ok");
    Ok((report, seconds))
}

/// CPU microseconds per streamed token.
fn token_us(site: &Site, seconds: u64) -> Result<f64> {
    let count = (seconds * STREAMS_PER_SECOND).to_string();
    let mut costs = [0.0; 2];
    for (cost, tokens) in costs.iter_mut().zip([1, STREAM_TOKENS]) {
        let tokens = tokens.to_string();
        let load = ["--concurrency", CLIENTS, "--requests", &count, "--max-tokens", &tokens];
        *cost = costed(site, &[&load[..], &["--prompt-bytes", "64"]].concat())?.1;
    }
    Ok((costs[1] - costs[0]) / f64::from(STREAM_TOKENS - 1) * 1e6)
}

/// What the router holds after so many prompts that have nothing in common, a chunk and a half each.
fn unique(site: &Site, count: u64) -> Result<Value> {
    let text = count.to_string();
    let load = ["--stream=false", "--max-tokens", "1", "--prompt-bytes", "768", "--seed", "3"];
    let load = [&load[..], &["--concurrency", CLIENTS, "--requests", &text]].concat();
    let report = run(&site.url, &load)?;
    Ok(json!({"requests": report["ok"], "resident_mib": site.resident()?}))
}
