//! What was measured: samples in, quantiles and rates out. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::operator::table::{Column, Table};

/// Longest time that is told from longer ones: requests are given up before.
const TIME_MAX_US: u64 = 3_600_000_000;
/// Significant digits of every time.
const DIGITS: u8 = 3;

/// How one request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to the end.
    Good,
    /// Refused: the status, or the code of an error within the stream.
    Refused(String),
    /// No connection, no whole answer, or none in time.
    Broken(&'static str),
}

/// One request. Times count from when it was meant to be sent.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) outcome: Outcome,
    /// To the first token; only of streams.
    pub(super) ttft: Option<Duration>,
    /// Between tokens.
    pub(super) gaps: Vec<Duration>,
    pub(super) whole: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) tokens: u64,
}

/// What a request must keep to be of use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Targets {
    pub(super) ttft: Option<Duration>,
    pub(super) tpot: Option<Duration>,
}

/// Everything so far.
#[derive(Debug)]
pub(super) struct Report {
    targets: Targets,
    ttft: Histogram<u64>,
    tpot: Histogram<u64>,
    itl: Histogram<u64>,
    whole: Histogram<u64>,
    good: u64,
    /// Good, and within the targets.
    useful: u64,
    errors: BTreeMap<String, u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    tokens: u64,
}

// === impl Sample ===

impl Sample {
    /// A request without an answer.
    pub(super) fn failed(outcome: Outcome, whole: Duration) -> Self {
        let (ttft, gaps) = (None, Vec::new());
        Self { outcome, ttft, gaps, whole, prompt_tokens: 0, cached_tokens: 0, tokens: 0 }
    }

    /// Time per token after the first, on average.
    fn tpot(&self) -> Option<Duration> {
        let count = u32::try_from(self.gaps.len()).ok().filter(|count| *count > 0)?;
        Some(self.gaps.iter().sum::<Duration>() / count)
    }
}

// === impl Targets ===

impl Targets {
    fn are_met(self, sample: &Sample) -> bool {
        let within = |time: Option<Duration>, target: Option<Duration>| {
            target.is_none_or(|target| time.is_none_or(|time| time <= target))
        };
        within(sample.ttft, self.ttft) && within(sample.tpot(), self.tpot)
    }
}

// === impl Report ===

impl Report {
    pub(super) fn new(targets: Targets) -> Self {
        let histogram = || {
            Histogram::new_with_max(TIME_MAX_US, DIGITS)
                .expect("the bounds are good for any histogram")
        };
        Self {
            targets,
            ttft: histogram(),
            tpot: histogram(),
            itl: histogram(),
            whole: histogram(),
            good: 0,
            useful: 0,
            errors: BTreeMap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
        }
    }

    /// Takes one request in. The times of those that failed are no times of answers.
    pub(super) fn add(&mut self, sample: &Sample) {
        let code = match &sample.outcome {
            Outcome::Good => {
                self.add_good(sample);
                return;
            }
            Outcome::Refused(code) => code.as_str(),
            Outcome::Broken(how) => how,
        };
        *self.errors.entry(code.to_owned()).or_default() += 1;
    }

    fn add_good(&mut self, sample: &Sample) {
        let record = |histogram: &mut Histogram<u64>, time: Duration| {
            histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        };
        self.good += 1;
        self.useful += u64::from(self.targets.are_met(sample));
        if let Some(ttft) = sample.ttft {
            record(&mut self.ttft, ttft);
        }
        if let Some(tpot) = sample.tpot() {
            record(&mut self.tpot, tpot);
        }
        for gap in &sample.gaps {
            record(&mut self.itl, *gap);
        }
        record(&mut self.whole, sample.whole);
        self.prompt_tokens += sample.prompt_tokens;
        self.cached_tokens += sample.cached_tokens;
        self.tokens += sample.tokens;
    }

    /// Requests answered to the end.
    pub(super) const fn good(&self) -> u64 {
        self.good
    }

    /// Requests that failed.
    pub(super) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// For programs.
    pub(super) fn json(&self, took: Duration) -> Value {
        let Rates { requests, useful, tokens, cached } = self.rates(took);
        json!({
            "duration_s": took.as_secs_f64(),
            "requests": self.good + self.failed(),
            "ok": self.good,
            "errors": self.errors,
            "requests_per_s": requests,
            "goodput_per_s": useful,
            "tokens_per_s": tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.tokens,
            "cached_percent": cached,
            "ttft_ms": quantiles(&self.ttft),
            "tpot_ms": quantiles(&self.tpot),
            "itl_ms": quantiles(&self.itl),
            "e2e_ms": quantiles(&self.whole),
        })
    }

    /// For people.
    pub(super) fn table(&self, took: Duration) -> String {
        let Rates { requests, useful, tokens, cached } = self.rates(took);
        let heads = ["mean", "p50", "p90", "p99", "max"].map(Column::Right);
        let mut table = Table::new([Column::Left("ms")].into_iter().chain(heads));
        for (name, histogram) in [
            ("TTFT", &self.ttft),
            ("TPOT", &self.tpot),
            ("ITL", &self.itl),
            ("end to end", &self.whole),
        ] {
            if histogram.is_empty() {
                continue;
            }
            let times = times(histogram).map(|(_, ms)| format!("{ms:.2}"));
            table.row([name.to_owned()].into_iter().chain(times));
        }
        let errors: Vec<String> =
            self.errors.iter().map(|(code, count)| format!("{count} x {code}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        format!(
            "{} requests in {:.1} s, {} good; errors: {errors}\n\
             {requests:.1} requests/s ({useful:.1} within targets), {tokens:.0} tokens/s, \
             {cached:.1}% of prompt tokens cached\n{table}",
            self.good + self.failed(),
            took.as_secs_f64(),
            self.good,
        )
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn rates(&self, took: Duration) -> Rates {
        let per_second = |count: u64| count as f64 / took.as_secs_f64().max(1e-9);
        Rates {
            requests: per_second(self.good),
            useful: per_second(self.useful),
            tokens: per_second(self.tokens),
            cached: self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64 * 100.0,
        }
    }
}

struct Rates {
    requests: f64,
    useful: f64,
    tokens: f64,
    /// In percent.
    cached: f64,
}

fn times(histogram: &Histogram<u64>) -> [(&'static str, f64); 5] {
    #[expect(clippy::cast_precision_loss, reason = "times stay far below 2^53 us")]
    let ms = |us: u64| us as f64 / 1e3;
    [
        ("mean", histogram.mean() / 1e3),
        ("p50", ms(histogram.value_at_quantile(0.5))),
        ("p90", ms(histogram.value_at_quantile(0.9))),
        ("p99", ms(histogram.value_at_quantile(0.99))),
        ("max", ms(histogram.max())),
    ]
}

/// Null when there was nothing to measure.
fn quantiles(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    times(histogram).into_iter().map(|(name, ms)| (name.to_owned(), json!(ms))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn good(ttft: u32, gap: u32) -> Sample {
        Sample {
            outcome: Outcome::Good,
            ttft: Some(ttft * MS),
            gaps: vec![gap * MS; 2],
            whole: (ttft + 2 * gap) * MS,
            prompt_tokens: 100,
            cached_tokens: 25,
            tokens: 3,
        }
    }

    #[test]
    fn what_failed_is_counted_by_its_reason_and_has_no_times() {
        let mut report = Report::new(Targets::default());
        report.add(&good(10, 1));
        report.add(&Sample::failed(Outcome::Refused("503".to_owned()), 900 * MS));
        report.add(&Sample::failed(Outcome::Refused("503".to_owned()), 900 * MS));
        report.add(&Sample::failed(Outcome::Broken("broken"), 900 * MS));
        let json = report.json(Duration::from_secs(2));
        assert_eq!(json["requests"], 4);
        assert_eq!(json["errors"], json!({"503": 2, "broken": 1}));
        assert_eq!(json["requests_per_s"], 0.5);
        assert_eq!(json["cached_percent"], 25.0);
        assert!(json["e2e_ms"]["max"].as_f64().unwrap() < 13.0);
        assert_eq!(report.failed(), 3);
        assert!(report.table(MS).contains("errors: 2 x 503, 1 x broken"));
    }

    #[test]
    fn goodput_is_what_keeps_all_targets() {
        let targets = Targets { ttft: Some(50 * MS), tpot: Some(5 * MS) };
        let mut report = Report::new(targets);
        for sample in [good(50, 5), good(51, 5), good(50, 6)] {
            report.add(&sample);
        }
        let json = report.json(Duration::from_secs(1));
        assert_eq!((&json["ok"], &json["goodput_per_s"]), (&json!(3), &json!(1.0)));
    }

    #[test]
    fn nothing_measured_is_null() {
        let json = Report::new(Targets::default()).json(MS);
        assert_eq!(json["ttft_ms"], Value::Null);
        assert_eq!(json["cached_percent"], 0.0);
    }
}
