//! Who asks what and when: sessions drawn from a seed, or read from a trace. Pure: the same seed gives the same load.
//!
//! ```text
//! chat    turns over one of P shared system prompts      bursty  chat, its sessions arriving in bursts
//! flat    one turn each, nothing shared                  hot     one turn each, 9 of 10 over one system prompt
//! ```

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::Deserialize;

/// A session has one turn at least, and this many at most.
const TURNS_MAX: u32 = 7;
/// How long people read an answer before they go on, on average.
const THINK: Duration = Duration::from_secs(1);
/// The share of requests over the one system prompt of the hot shape.
const HOT_SHARE: f64 = 0.9;
/// Bursts: of each period, the first part brings so many times the rate, the rest what is left of it.
const BURST_PERIOD: f64 = 5.0;
const BURST_PART: f64 = 1.0;
const BURST_FACTOR: f64 = 4.0;
/// Bytes of text to a token, about.
const TOKEN_BYTES: usize = 4;
/// Tokens that one hash of a trace file stands for, as Mooncake's traces have it.
const TRACE_BLOCK_TOKENS: usize = 512;
/// Tokens of one prompt of a trace file at most: 8 MiB of text, the router's own limit.
const TRACE_TOKENS_MAX: usize = 2 << 20;

/// What the load is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Conversations.
    Chat,
    /// Conversations that begin in bursts.
    Bursty,
    /// Single requests with nothing in common.
    Flat,
    /// Single requests that mostly share one prefix.
    Hot,
}

/// All that a generated load depends on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) seed: u64,
    /// Sessions in a second; requests, for shapes of one turn. None: each follows another.
    pub(super) rate: Option<f64>,
    /// Bytes of what a user says, on average.
    pub(super) prompt_bytes: usize,
    /// Shared system prompts, and their size.
    pub(super) prefixes: usize,
    pub(super) prefix_bytes: usize,
    /// Tokens of an answer; of conversations, on average.
    pub(super) max_tokens: u32,
}

/// A conversation, of one turn or more.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    /// After the start.
    pub(super) arrives_at: Duration,
    pub(super) system: Option<Arc<str>>,
    pub(super) turns: Vec<Turn>,
}

/// What a user says, and how long the answer shall be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) text: String,
    pub(super) max_tokens: u32,
    /// After the answer before this.
    pub(super) think: Duration,
}

/// Where sessions come from.
#[derive(Debug)]
pub(super) enum Sessions {
    /// Without end.
    Drawn(Box<Generator>),
    /// From a file, in order.
    Read(std::vec::IntoIter<Session>),
}

/// Draws sessions.
#[derive(Debug)]
pub(super) struct Generator {
    shape: Shape,
    random: Xoshiro256PlusPlus,
    prefixes: Vec<Arc<str>>,
    /// When the last one arrived, in seconds.
    clock: f64,
}

/// A trace file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceError {
    /// Not there, or not readable.
    #[error("cannot read the trace {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not a line of Mooncake's format.
    #[error("{path}:{line}: not a request of a trace")]
    Line {
        /// Which.
        path: String,
        /// Where, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A prompt longer than any router takes.
    #[error("{path}:{line}: input_length must be at most {TRACE_TOKENS_MAX}")]
    TooLong {
        /// Which.
        path: String,
        /// Where, from 1.
        line: usize,
    },
}

/// One line of a trace: lengths in tokens, and a hash for each block of the prompt.
#[derive(Debug, Deserialize)]
struct Line {
    /// In milliseconds.
    timestamp: u64,
    input_length: usize,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

// === impl Sessions ===

impl Iterator for Sessions {
    type Item = Session;

    fn next(&mut self) -> Option<Session> {
        match self {
            Self::Drawn(generator) => Some(generator.draw()),
            Self::Read(sessions) => sessions.next(),
        }
    }
}

// === impl Generator ===

impl Generator {
    pub(super) fn new(shape: Shape) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(shape.seed);
        let shared = match shape.kind {
            Kind::Chat | Kind::Bursty | Kind::Hot => shape.prefixes,
            Kind::Flat => 0,
        };
        let prefixes = (0..shared).map(|_| text(&mut random, shape.prefix_bytes).into()).collect();
        Self { shape, random, prefixes, clock: 0.0 }
    }

    fn draw(&mut self) -> Session {
        let arrives_at = self.arrival();
        let turns = match self.shape.kind {
            Kind::Chat | Kind::Bursty => self.random.random_range(1..=TURNS_MAX),
            Kind::Flat | Kind::Hot => 1,
        };
        let system = self.system();
        let turns = (0..turns).map(|turn| self.turn(turn)).collect();
        Session { arrives_at, system, turns }
    }

    fn system(&mut self) -> Option<Arc<str>> {
        let count = self.prefixes.len();
        if count == 0 {
            return None;
        }
        let is_hot = self.shape.kind == Kind::Hot && self.random.random_bool(HOT_SHARE);
        let which = if is_hot { 0 } else { self.random.random_range(0..count) };
        Some(Arc::clone(&self.prefixes[which]))
    }

    fn turn(&mut self, index: u32) -> Turn {
        let Shape { kind, prompt_bytes, max_tokens, .. } = self.shape;
        let (bytes, tokens) = match kind {
            Kind::Chat | Kind::Bursty => {
                let around = |random: &mut Xoshiro256PlusPlus| random.random_range(0.5..1.5);
                let (bytes, tokens) = (around(&mut self.random), around(&mut self.random));
                (scaled(prompt_bytes, bytes), scaled_tokens(max_tokens, tokens))
            }
            Kind::Flat | Kind::Hot => (prompt_bytes, max_tokens),
        };
        let think =
            if index == 0 { Duration::ZERO } else { THINK.mul_f64(exponential(&mut self.random)) };
        Turn { text: text(&mut self.random, bytes), max_tokens: tokens, think }
    }

    /// When the next session arrives: a Poisson process, its rate changing with the time for bursts.
    fn arrival(&mut self) -> Duration {
        let Some(rate) = self.shape.rate else { return Duration::ZERO };
        let mut left = exponential(&mut self.random);
        loop {
            let (rate, until) = self.rate_now(rate);
            let reached = self.clock + left / rate;
            if reached <= until {
                self.clock = reached;
                return Duration::from_secs_f64(self.clock);
            }
            left -= (until - self.clock) * rate;
            self.clock = until;
        }
    }

    /// The rate at the clock, and until when it holds.
    fn rate_now(&self, rate: f64) -> (f64, f64) {
        if self.shape.kind != Kind::Bursty {
            return (rate, f64::INFINITY);
        }
        let begun = (self.clock / BURST_PERIOD).floor() * BURST_PERIOD;
        let burst_end = begun + BURST_PART;
        if self.clock < burst_end {
            return (rate * BURST_FACTOR, burst_end);
        }
        let rest = BURST_PERIOD - BURST_PART;
        (rate * (BURST_PERIOD - BURST_FACTOR * BURST_PART) / rest, begun + BURST_PERIOD)
    }
}

/// Reads a trace in Mooncake's format: JSON lines of `timestamp`, `input_length`, `output_length` and `hash_ids`.
///
/// # Errors
/// [`TraceError`]
pub(super) fn read(path: &str) -> Result<Vec<Session>, TraceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let mut sessions = Vec::new();
    for (line, json) in (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty()) {
        let path = || path.to_owned();
        let request: Line = serde_json::from_str(json).map_err(|source| TraceError::Line {
            path: path(),
            line,
            source,
        })?;
        if request.input_length > TRACE_TOKENS_MAX {
            return Err(TraceError::TooLong { path: path(), line });
        }
        sessions.push(Session::from(request));
    }
    sessions.sort_by_key(|session| session.arrives_at);
    Ok(sessions)
}

impl From<Line> for Session {
    fn from(line: Line) -> Self {
        let bytes = line.input_length * TOKEN_BYTES;
        let mut prompt = String::with_capacity(bytes);
        for hash in line.hash_ids {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(hash);
            let _ = write!(prompt, "{}", text(&mut random, TRACE_BLOCK_TOKENS * TOKEN_BYTES));
        }
        if prompt.len() < bytes {
            // What no hash stands for is nobody else's.
            let mut random = Xoshiro256PlusPlus::seed_from_u64(line.timestamp ^ bytes as u64);
            let rest = text(&mut random, bytes - prompt.len());
            prompt.push_str(&rest);
        }
        prompt.truncate(bytes.max(1));
        let turn =
            Turn { text: prompt, max_tokens: line.output_length.max(1), think: Duration::ZERO };
        let arrives_at = Duration::from_millis(line.timestamp);
        Self { arrives_at, system: None, turns: vec![turn] }
    }
}

/// Exponentially distributed, with mean 1.
fn exponential(random: &mut Xoshiro256PlusPlus) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of prompts are small and the factor is positive"
)]
fn scaled(bytes: usize, factor: f64) -> usize {
    (bytes as f64 * factor) as usize
}

fn scaled_tokens(tokens: u32, factor: f64) -> u32 {
    let scaled = scaled(usize::try_from(tokens).unwrap_or(usize::MAX), factor);
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}

/// Words of lower-case letters, exactly this long.
fn text(random: &mut Xoshiro256PlusPlus, bytes: usize) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyzaeiou ";
    let mut text = String::with_capacity(bytes + 12);
    while text.len() < bytes {
        // Twelve letters of five bits each.
        let mut bits = random.random::<u64>();
        for _ in 0..12 {
            text.push(char::from(LETTERS[(bits % 32) as usize]));
            bits >>= 5;
        }
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shape(kind: Kind) -> Shape {
        Shape {
            kind,
            seed: 1,
            rate: Some(100.0),
            prompt_bytes: 40,
            prefixes: 8,
            prefix_bytes: 100,
            max_tokens: 10,
        }
    }

    fn sessions(shape: Shape, count: usize) -> Vec<Session> {
        Sessions::Drawn(Box::new(Generator::new(shape))).take(count).collect()
    }

    #[test]
    fn a_seed_is_a_load() {
        assert_eq!(sessions(shape(Kind::Chat), 50), sessions(shape(Kind::Chat), 50));
        let other = Shape { seed: 2, ..shape(Kind::Chat) };
        assert_ne!(sessions(shape(Kind::Chat), 50), sessions(other, 50));
    }

    #[test]
    fn sessions_arrive_at_the_rate_in_order_and_in_bursts_if_so_asked() {
        for kind in [Kind::Chat, Kind::Bursty, Kind::Flat, Kind::Hot] {
            let arrivals: Vec<f64> = sessions(shape(kind), 5000)
                .iter()
                .map(|session| session.arrives_at.as_secs_f64())
                .collect();
            assert!(arrivals.is_sorted());
            let last = arrivals[4999];
            assert!((45.0..55.0).contains(&last), "{kind:?}: 5000 at 100/s took {last} s");
            let in_burst =
                arrivals.iter().filter(|at| *at % BURST_PERIOD < BURST_PART).count() as f64;
            let share = in_burst / 5000.0;
            let expected = if kind == Kind::Bursty { 0.8 } else { 0.2 };
            assert!((share - expected).abs() < 0.05, "{kind:?}: {share}");
        }
    }

    #[test]
    fn what_is_shared_is_what_the_shape_says() {
        let count_of = |kind| {
            let mut counts = BTreeMap::new();
            for session in sessions(shape(kind), 2000) {
                *counts.entry(session.system).or_insert(0) += 1;
            }
            counts
        };
        assert_eq!(count_of(Kind::Flat).len(), 1);
        assert_eq!(count_of(Kind::Chat).len(), 8);
        let hottest = count_of(Kind::Hot).into_values().max().unwrap();
        // A tenth of a tenth comes to the hot prompt by chance, too.
        assert!((1780..1880).contains(&hottest), "{hottest}");
    }

    #[test]
    fn flat_prompts_are_unique_and_of_their_size() {
        let sessions = sessions(shape(Kind::Flat), 1000);
        let texts: std::collections::BTreeSet<&str> =
            sessions.iter().map(|session| session.turns[0].text.as_str()).collect();
        assert_eq!(texts.len(), 1000);
        assert!(texts.iter().all(|text| text.len() == 40));
    }

    #[test]
    fn blocks_of_a_trace_with_one_hash_are_one_text() {
        let line = |timestamp, hash_ids: Vec<u64>| {
            Session::from(Line { timestamp, input_length: 1100, output_length: 3, hash_ids })
        };
        let (one, two) = (line(5, vec![1, 2, 3]), line(9, vec![1, 2, 4]));
        let (one, two) = (&one.turns[0].text, &two.turns[0].text);
        assert_eq!(one.len(), 4400);
        assert_eq!(one[..4096], two[..4096]);
        assert_ne!(one[4096..], two[4096..]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = r#"{"timestamp": 7, "input_length": 10, "output_length": 2, "hash_ids": [0]}"#;
        std::fs::write(file.path(), format!("{good}\n\nnonsense\n")).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(
            read(path).unwrap_err().to_string(),
            format!("{path}:3: not a request of a trace")
        );
        std::fs::write(file.path(), good).unwrap();
        assert_eq!(read(path).unwrap()[0].arrives_at, Duration::from_millis(7));
    }
}
