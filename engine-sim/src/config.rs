//! What the simulator is told, and what it makes of it.

use std::time::Duration;

use phalanx_proto::id::ModelName;

use crate::core::Pace;
use crate::faults::Faults;

/// Engines of one process at most: more than the dispatch benchmark's 4,000, each with a port.
pub const ENGINES_MAX: u32 = 8192;
/// Tokens of prompts computed in one step at most, as vLLM has it with chunked prefill.
const STEP_TOKENS_MAX: u32 = 512;
/// Fastest and slowest engine beside one of speed 1.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.001..=1000.0;
/// Milliseconds of a step at most: a minute, of which nobody waits for two.
const STEP_MS_MAX: f64 = 60_000.0;

/// The simulator's options, as they are typed. What is absent has its default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawSim {
    /// Where the first engine listens; the others follow.
    pub listen: String,
    /// How many engines.
    pub engines: Option<u32>,
    /// The model's name.
    pub model_name: Option<String>,
    /// Tokens of prompts in a second.
    pub prefill_rate: Option<f64>,
    /// Milliseconds of a step that decodes.
    pub decode_base_ms: Option<f64>,
    /// Milliseconds more for each sequence in it.
    pub decode_per_seq_ms: Option<f64>,
    /// Sequences in a step.
    pub batch_max: Option<u32>,
    /// Sequences that wait.
    pub waiting_max: Option<u32>,
    /// Tokens of the prefix cache.
    pub cache_tokens: Option<u64>,
    /// Tokens of prompt and answer together.
    pub context_tokens: Option<u32>,
    /// How fast each engine is beside the others; the last speed is that of all that follow.
    pub speeds: Vec<f64>,
    /// No delays at all.
    pub instant: bool,
    /// Whether routers reach the engines over gRPC, as workers.
    pub native: bool,
    /// Control nodes to register with.
    pub control: Vec<String>,
    /// The switches at the start, as JSON.
    pub faults: Option<String>,
}

/// Everything the engines need. To hold one is to know it is valid.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub(crate) listen: String,
    pub(crate) engines: u32,
    pub(crate) model: ModelName,
    pub(crate) context_tokens: u32,
    pub(crate) instant: bool,
    /// Where to register, of native engines.
    pub(crate) control: Option<Vec<String>>,
    pub(crate) faults: Faults,
    pace: Pace,
    speeds: Vec<f64>,
}

/// One option that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be {expected}")]
pub struct ConfigError {
    /// Which.
    pub key: &'static str,
    /// What it may be.
    pub expected: String,
}

// === impl RawSim ===

impl RawSim {
    /// Checks everything.
    ///
    /// # Errors
    /// Every option that cannot be.
    pub fn validate(self) -> Result<SimConfig, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut within = |key, value: f64, min: f64, max: f64| {
            if !(min..=max).contains(&value) {
                errors.push(ConfigError { key, expected: format!("between {min} and {max}") });
            }
            value
        };
        let engines = self.engines.unwrap_or(1);
        within("engines", f64::from(engines), 1.0, f64::from(ENGINES_MAX));
        let prefill_rate = within("prefill_rate", self.prefill_rate.unwrap_or(8000.0), 1.0, 1e9);
        let ms = self.decode_base_ms.unwrap_or(8.0);
        let decode_base_ms = within("decode_base_ms", ms, 0.0, STEP_MS_MAX);
        let ms = self.decode_per_seq_ms.unwrap_or(0.25);
        let per_sequence_ms = within("decode_per_seq_ms", ms, 0.0, STEP_MS_MAX);
        for speed in &self.speeds {
            within("speed", *speed, *SPEEDS.start(), *SPEEDS.end());
        }
        let faults = parse_faults(self.faults.as_deref()).unwrap_or_else(|error| {
            errors.push(error);
            Faults::default()
        });
        errors.extend(check_ports(&self.listen, engines));
        if self.instant && self.native {
            let expected = "off with native: it is for HTTP".to_owned();
            errors.push(ConfigError { key: "instant", expected });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let pace = Pace {
            prefill_rate,
            decode_base: Duration::from_secs_f64(decode_base_ms / 1e3),
            decode_per_sequence: Duration::from_secs_f64(per_sequence_ms / 1e3),
            step_tokens_max: STEP_TOKENS_MAX,
            batch_max: self.batch_max.unwrap_or(64) as usize,
            waiting_max: self.waiting_max.unwrap_or(1024) as usize,
            cache_tokens: self.cache_tokens.unwrap_or(16_384),
            speed: 1.0,
        };
        Ok(SimConfig {
            listen: self.listen,
            engines,
            model: ModelName::from(self.model_name.unwrap_or_else(|| "sim".to_owned())),
            context_tokens: self.context_tokens.unwrap_or(131_072),
            instant: self.instant,
            control: self.native.then_some(self.control),
            faults,
            pace,
            speeds: self.speeds,
        })
    }
}

fn parse_faults(text: Option<&str>) -> Result<Faults, ConfigError> {
    let Some(text) = text else { return Ok(Faults::default()) };
    let bad = |error: String| ConfigError {
        key: "faults",
        expected: format!("a JSON object of switches: {error}"),
    };
    let faults: Faults = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    faults.validate().map_err(|error| bad(error.to_string()))?;
    Ok(faults)
}

fn check_ports(listen: &str, engines: u32) -> Option<ConfigError> {
    let port: u16 = listen.rsplit_once(':')?.1.parse().ok()?;
    let last = u32::from(port) + engines.saturating_sub(1);
    (port != 0 && last > u32::from(u16::MAX)).then(|| ConfigError {
        key: "engines",
        expected: format!("fewer: {engines} from port {port} on need ports above 65535"),
    })
}

// === impl SimConfig ===

impl SimConfig {
    /// How many engines there are.
    pub const fn engines(&self) -> u32 {
        self.engines
    }

    /// How fast and how large engine `index` is.
    pub(crate) fn pace(&self, index: u32) -> Pace {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let speed = self.speeds.get(index).or(self.speeds.last()).copied().unwrap_or(1.0);
        Pace { speed, ..self.pace.clone() }
    }

    /// Where engine `index` listens: on the port after the one before, or on any free one each.
    pub(crate) fn address(&self, index: u32) -> String {
        let Some((host, port)) = self.listen.rsplit_once(':') else { return self.listen.clone() };
        match port.parse::<u32>() {
            Ok(port) if port > 0 => format!("{host}:{}", port + index),
            _ => self.listen.clone(),
        }
    }

    /// A free port of the host that engines listen on.
    pub(crate) fn any_port(&self) -> String {
        let host = self.listen.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
        format!("{host}:0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawSim {
        RawSim { listen: "127.0.0.1:9000".to_owned(), ..RawSim::default() }
    }

    #[test]
    fn every_bad_option_is_named() {
        let bad = RawSim {
            engines: Some(0),
            prefill_rate: Some(0.0),
            speeds: vec![1.0, f64::NAN],
            faults: Some(r#"{"explode": true}"#.to_owned()),
            instant: true,
            native: true,
            ..raw()
        };
        let errors: Vec<String> =
            bad.validate().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert_eq!(errors[0], "engines must be between 1 and 8192");
    }

    #[test]
    fn engines_listen_side_by_side_and_the_last_speed_is_the_rest() {
        let config = RawSim { engines: Some(4), speeds: vec![1.0, 0.5], ..raw() };
        let config = config.validate().unwrap();
        assert_eq!(config.address(3), "127.0.0.1:9003");
        let speeds: Vec<f64> = (0..4).map(|index| config.pace(index).speed).collect();
        assert_eq!(speeds, [1.0, 0.5, 0.5, 0.5]);
        let free = RawSim { listen: "127.0.0.1:0".to_owned(), ..raw() };
        assert_eq!(free.validate().unwrap().address(3), "127.0.0.1:0");
    }

    #[test]
    fn ports_do_not_run_out() {
        let high = RawSim { listen: "127.0.0.1:65530".to_owned(), engines: Some(7), ..raw() };
        assert_eq!(high.validate().unwrap_err().len(), 1);
    }
}
