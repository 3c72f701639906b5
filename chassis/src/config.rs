//! Configuration, resolved once: flag, then environment, then file, then default.
//!
//! ```text
//! settings (a table) ──► ConfigFile::check (the whole file) ─┐
//! flags ─ environment ───────────────────────────────────────┴─► Resolved ──► relations | every fault at once
//! ```
//!
//! The table of [`Setting`]s is the only place that knows an option's names, limits and default; the binary
//! makes its flags and its help from the same table. Deliberately absent: what any setting is for.

pub mod file;
pub mod kind;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use self::file::ConfigFile;
pub use self::kind::{Kind, Value};

use self::file::{FileValue, FileValues};

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
pub struct Resolved {
    values: BTreeMap<Key, Entry>,
    /// Settings that somebody set to what they do not accept.
    faulty: BTreeSet<Key>,
}

/// Section and key.
type Key = (&'static str, &'static str);

/// One value, and who set it.
#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    origin: Origin,
    /// As in [`ConfigFault::place`].
    place: String,
}

/// Everything that may set an option, strongest first.
pub struct Sources<'a> {
    /// What the command line says of a setting.
    pub flag: &'a dyn Fn(&Setting) -> Option<String>,
    /// What the environment says of a variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The file, if one was named.
    pub file: Option<&'a ConfigFile>,
}

/// What is wrong between settings each of which is good in itself.
pub type Relations<'a> = &'a dyn Fn(&Resolved) -> Vec<ConfigFault>;

/// Resolves `settings`, and checks the whole file against `schema` (the settings of every command). Then
/// `relations` sees what could be read.
///
/// # Errors
/// Every fault of every source, in the order: file, then the settings as listed, then the relations.
pub fn resolve(
    schema: &[&Setting],
    settings: &[&'static Setting],
    sources: &Sources<'_>,
    relations: Relations<'_>,
) -> Result<Resolved, Vec<ConfigFault>> {
    let (from_file, mut faults) = match sources.file {
        Some(file) => file.check(schema),
        None => (FileValues::new(), Vec::new()),
    };
    let mut resolved = Resolved::default();
    for setting in settings {
        match resolve_one(setting, &from_file, sources) {
            Ok(Some(found)) => {
                resolved.values.insert((setting.section, setting.key), found);
            }
            Ok(None) => {}
            Err(fault) => {
                resolved.faulty.insert((setting.section, setting.key));
                // The file's own faults are all told already.
                faults.extend(fault);
            }
        }
    }
    faults.extend(relations(&resolved));
    if faults.is_empty() { Ok(resolved) } else { Err(faults) }
}

fn resolve_one(
    setting: &Setting,
    from_file: &FileValues,
    sources: &Sources<'_>,
) -> Result<Option<Entry>, Option<ConfigFault>> {
    if let Some(text) = (sources.flag)(setting) {
        let place = format!("--{} {}", setting.flag(), shown(&text));
        return parse(setting, &text, place, Origin::Flag);
    }
    let variable = setting.variable();
    // A variable set to nothing is how scripts unset one.
    if let Some(text) = (sources.environment)(&variable).filter(|text| !text.is_empty()) {
        let place = format!("{variable}={}", shown(&text));
        return parse(setting, &text, place, Origin::Environment);
    }
    match from_file.get(&(setting.section.to_owned(), setting.key.to_owned())) {
        Some(FileValue::Good { value, place }) => {
            let (value, place) = (value.clone(), place.clone());
            return Ok(Some(Entry { value, origin: Origin::File, place }));
        }
        Some(FileValue::Bad) => return Err(None),
        None => {}
    }
    let Some(text) = setting.default else { return Ok(None) };
    let place = format!("default of --{}", setting.flag());
    parse(setting, text, place, Origin::Default)
}

fn parse(
    setting: &Setting,
    text: &str,
    place: String,
    origin: Origin,
) -> Result<Option<Entry>, Option<ConfigFault>> {
    match setting.kind.parse(text) {
        Ok(value) => Ok(Some(Entry { value, origin, place })),
        Err(problem) => Err(Some(ConfigFault { place, problem })),
    }
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

    /// A decimal number.
    pub fn decimal(&self, setting: &Setting) -> Option<f64> {
        self.text(setting)?.parse().ok()
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
        self.entry(setting).map(|entry| &entry.origin)
    }

    /// Whether somebody set it to what it does not accept.
    pub fn is_faulty(&self, setting: &Setting) -> bool {
        self.faulty.contains(&(setting.section, setting.key))
    }

    /// A fault of its value, at the place where that was set; none if it has no value.
    pub fn fault(&self, setting: &Setting, problem: String) -> Option<ConfigFault> {
        self.entry(setting).map(|entry| ConfigFault { place: entry.place.clone(), problem })
    }

    fn value(&self, setting: &Setting) -> Option<&Value> {
        self.entry(setting).map(|entry| &entry.value)
    }

    fn entry(&self, setting: &Setting) -> Option<&Entry> {
        self.values.get(&(setting.section, setting.key))
    }
}

#[cfg(test)]
mod tests;
