//! How well a router chooses: the same load on the same eight engines, at ample and at saturated capacity.

use anyhow::Result;
use serde_json::{Value, json};

use crate::Options;
use crate::load::{number, run};
use crate::routers::{Kind, Site};

/// Engines behind each router: prefill at 8,000 tokens a second, 16,384 tokens of cache, decode steps of 8 ms and
/// 0.25 ms for each sequence; these are the simulator's own defaults.
const ENGINES: [&str; 2] = ["--engines", "8"];
/// Engines of unequal speed: together as fast as five and a half.
const UNEQUAL: [&str; 2] = ["--speed", "1,1,1,1,0.5,0.5,0.25,0.25"];

/// A load that routers are compared by.
pub(crate) struct Trace {
    pub(crate) name: &'static str,
    shape: &'static [&'static str],
    /// Sessions a second that leave engines idle, and that fill them.
    rates: [(&'static str, &'static str); 2],
    is_unequal: bool,
}

/// The four traces, and the hot prefix.
pub(crate) const TRACES: [Trace; 5] = [
    Trace {
        name: "shared",
        shape: &["--shape", "chat", "--prompt-bytes", "200", "--max-tokens", "48"],
        rates: [("ample", "12"), ("saturated", "24")],
        is_unequal: false,
    },
    Trace {
        name: "bursty",
        shape: &["--shape", "bursty", "--prompt-bytes", "200", "--max-tokens", "48"],
        rates: [("ample", "6"), ("saturated", "16")],
        is_unequal: false,
    },
    Trace {
        name: "unshared",
        shape: &["--shape", "flat", "--prompt-bytes", "8192", "--max-tokens", "48"],
        rates: [("ample", "10"), ("saturated", "22")],
        is_unequal: false,
    },
    Trace {
        name: "unequal",
        shape: &["--shape", "chat", "--prompt-bytes", "200", "--max-tokens", "48"],
        rates: [("ample", "7"), ("saturated", "14")],
        is_unequal: true,
    },
    Trace {
        name: "hot",
        shape: &["--shape", "hot", "--prompt-bytes", "200", "--max-tokens", "32"],
        rates: [("ample", "60"), ("saturated", "160")],
        is_unequal: false,
    },
];

/// Measures one router on one trace, at both rates.
pub(crate) async fn measure(kind: Kind, trace: &Trace, options: &Options) -> Result<Value> {
    let mut measured = serde_json::Map::new();
    for (name, rate) in trace.rates {
        measured.insert(name.to_owned(), at(kind, trace, rate, options).await?);
    }
    Ok(Value::Object(measured))
}

async fn at(kind: Kind, trace: &Trace, rate: &str, options: &Options) -> Result<Value> {
    let unequal: &[&str] = if trace.is_unequal { &UNEQUAL } else { &[] };
    let site = Site::start(kind, &[&ENGINES, unequal].concat()).await?;
    let seconds = options.seconds.to_string();
    // Caches fill in the warm-up, which is not counted.
    let warmup = (options.seconds / 2).to_string();
    let load = ["--rate", rate, "--duration", &seconds, "--warmup", &warmup];
    let report = run(&site.url, &[&load[..], trace.shape].concat())?;
    let mut requests = Vec::new();
    let mut busy = Vec::new();
    for engine in 0..site.engines.urls.len() {
        let stats = site.engines.stats(engine).await?;
        requests.push(number(&stats, "/requests"));
        busy.push(number(&stats, "/busy_us"));
        site.engines.is_idle(engine).await?;
    }
    Ok(json!({
        "rate": number(&report, "/rate"),
        "requests": report["requests"],
        "errors": report["errors"],
        "ttft_ms_mean": number(&report, "/ttft_ms/mean"),
        "ttft_ms_p50": number(&report, "/ttft_ms/p50"),
        "ttft_ms_p99": number(&report, "/ttft_ms/p99"),
        "tpot_ms_mean": number(&report, "/tpot_ms/mean"),
        "cached_percent": number(&report, "/cached_percent"),
        "max_over_mean_requests": max_over_mean(&requests),
        "max_over_mean_busy": max_over_mean(&busy),
    }))
}

#[expect(clippy::cast_precision_loss, reason = "there are eight engines")]
fn max_over_mean(counts: &[f64]) -> f64 {
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    counts.iter().copied().fold(0.0, f64::max) / mean
}
