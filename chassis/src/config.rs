//! Configuration, resolved once: flag, then environment, then file, then default.
//!
//! ```text
//! settings (a table) ──► ConfigFile::check (the whole file) ─┐
//! flags ─ environment ───────────────────────────────────────┴─► Resolved | every fault at once
//! ```
//!
//! The table of [`Setting`]s is the only place that knows an option's names, limits and default; the binary
//! makes its flags and its help from the same table. Deliberately absent: what any setting is for.

pub mod file;
pub mod kind;

use std::collections::BTreeMap;
use std::fmt;

pub use self::file::ConfigFile;
pub use self::kind::{Kind, Value};

/// One option: a flag, an environment variable and a key of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The section of the file.
    pub section: &'static str,
    /// The key within the section: the flag's name with underscores.
    pub key: &'static str,
    /// What a value may be.
    pub kind: Kind,
    /// The value when nobody says anything, as it would be typed.
    pub default: Option<&'static str>,
    /// One sentence for `--help`.
    pub help: &'static str,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The process' environment.
    Environment,
    /// The configuration file.
    File,
    /// The table of settings.
    Default,
}

/// One thing wrong with the configuration. Prints as one line: place, value, limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigFault {
    /// `--flag value`, `VARIABLE=value` or `file:line: [section] key = value`.
    pub place: String,
    /// What was expected instead.
    pub problem: String,
}

/// The value of every setting that has one.
#[derive(Clone, Debug, Default)]
pub struct Resolved(BTreeMap<(&'static str, &'static str), (Value, Origin)>);

/// Everything that may set an option, strongest first.
pub struct Sources<'a> {
    /// What the command line says of a setting.
    pub flag: &'a dyn Fn(&Setting) -> Option<String>,
    /// What the environment says of a variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The file, if one was named.
    pub file: Option<&'a ConfigFile>,
}

/// Resolves `settings`, and checks the whole file against `schema` (the settings of every command).
///
/// # Errors
/// Every fault of every source, in the order: file, then the settings as listed.
pub fn resolve(
    schema: &[&Setting],
    settings: &[&'static Setting],
    sources: &Sources<'_>,
) -> Result<Resolved, Vec<ConfigFault>> {
    let (from_file, mut faults) = match sources.file {
        Some(file) => file.check(schema),
        None => (BTreeMap::new(), Vec::new()),
    };
    let mut resolved = Resolved::default();
    for setting in settings {
        match resolve_one(setting, &from_file, sources) {
            Ok(Some(found)) => {
                resolved.0.insert((setting.section, setting.key), found);
            }
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(resolved) } else { Err(faults) }
}

fn resolve_one(
    setting: &Setting,
    from_file: &BTreeMap<(String, String), Value>,
    sources: &Sources<'_>,
) -> Result<Option<(Value, Origin)>, ConfigFault> {
    if let Some(text) = (sources.flag)(setting) {
        let place = format!("--{} {}", setting.flag(), shown(&text));
        return parse(setting, &text, place).map(|value| Some((value, Origin::Flag)));
    }
    let variable = setting.variable();
    // A variable set to nothing is how scripts unset one.
    if let Some(text) = (sources.environment)(&variable).filter(|text| !text.is_empty()) {
        let place = format!("{variable}={}", shown(&text));
        return parse(setting, &text, place).map(|value| Some((value, Origin::Environment)));
    }
    if let Some(value) = from_file.get(&(setting.section.to_owned(), setting.key.to_owned())) {
        return Ok(Some((value.clone(), Origin::File)));
    }
    let Some(text) = setting.default else { return Ok(None) };
    let place = format!("default of --{}", setting.flag());
    parse(setting, text, place).map(|value| Some((value, Origin::Default)))
}

fn parse(setting: &Setting, text: &str, place: String) -> Result<Value, ConfigFault> {
    setting.kind.parse(text).map_err(|problem| ConfigFault { place, problem })
}

/// A value as a fault shows it: cut short, so that one fault stays one readable line.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect();
    if text.chars().count() > SHOWN_CHARS_MAX {
        line.push_str("...");
    }
    line
}

// === impl Setting ===

impl Setting {
    /// The flag, without its dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("PHALANX_{}", self.key.to_uppercase())
    }
}

// === impl Sources ===

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

// === impl Resolved ===

impl Resolved {
    /// A text setting: also addresses, URLs, paths and choices.
    pub fn text(&self, setting: &Setting) -> Option<&str> {
        match self.value(setting)? {
            Value::Text(text) => Some(text),
            Value::Integer(_) | Value::Switch(_) | Value::List(_) => None,
        }
    }

    /// An integer setting.
    pub fn integer(&self, setting: &Setting) -> Option<u64> {
        match self.value(setting)? {
            Value::Integer(number) => Some(*number),
            Value::Text(_) | Value::Switch(_) | Value::List(_) => None,
        }
    }

    /// A switch; off unless set.
    pub fn is_on(&self, setting: &Setting) -> bool {
        matches!(self.value(setting), Some(Value::Switch(true)))
    }

    /// A list setting; empty unless set.
    pub fn list(&self, setting: &Setting) -> &[String] {
        match self.value(setting) {
            Some(Value::List(items)) => items,
            Some(Value::Text(_) | Value::Integer(_) | Value::Switch(_)) | None => &[],
        }
    }

    /// Who set it.
    pub fn origin(&self, setting: &Setting) -> Option<&Origin> {
        self.0.get(&(setting.section, setting.key)).map(|(_, origin)| origin)
    }

    fn value(&self, setting: &Setting) -> Option<&Value> {
        self.0.get(&(setting.section, setting.key)).map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests;
