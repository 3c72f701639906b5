//! The configuration file: read whole, checked whole, every fault with its line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigFault, Setting, Value, shown};

/// Sections that the format knows and this build has no feature for.
const SECTIONS_UNAVAILABLE: [&str; 7] =
    ["auth", "limits", "cache", "dispatch", "breaker", "retry", "tls"];

/// Larger files are not configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file as it was read, not yet understood.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// As the user named it.
    name: String,
    text: String,
}

/// Values by section and key.
pub(super) type FileValues = BTreeMap<(String, String), FileValue>;

/// What the file says of a known key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileValue {
    /// A value that the key accepts, and where it stands.
    Good { value: Value, place: String },
    /// Told as a fault.
    Bad,
}

// === impl ConfigFile ===

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is too large or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, ConfigFault> {
        let name = path.display().to_string();
        let fault = |problem: String| ConfigFault { place: name.clone(), problem };
        let bytes = std::fs::metadata(path)
            .map_err(|error| fault(format!("cannot be read: {error}")))?
            .len();
        if bytes > FILE_BYTES_MAX {
            return Err(fault(format!("must hold at most {FILE_BYTES_MAX} bytes, holds {bytes}")));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| fault(format!("cannot be read: {error}")))?;
        Ok(Self { name, text })
    }

    /// A file that is already in memory.
    pub fn from_text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// The values of all known keys, and everything that is wrong.
    pub(super) fn check(&self, schema: &[&Setting]) -> (FileValues, Vec<ConfigFault>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut values = FileValues::new();
        // By line, so that faults read from top to bottom.
        let mut faults: Vec<(usize, ConfigFault)> = Vec::new();
        let mut lines_unreadable = Vec::new();
        for error in &errors {
            let line = self.line(error.span().map_or(0, |span| span.start));
            lines_unreadable.push(line);
            let written = self.text.lines().nth(line - 1).unwrap_or_default().trim();
            faults.push((
                line,
                self.fault(line, &shown(written), format!("not TOML: {}", error.message())),
            ));
        }
        for (section, body) in table.get_ref() {
            self.check_section(schema, (section, body), &mut values, &mut faults);
        }
        // What recovery made of a broken line says nothing about what was meant.
        let mut seen_unreadable = Vec::new();
        faults.retain(|(line, _)| {
            let first = !seen_unreadable.contains(line);
            if lines_unreadable.contains(line) {
                seen_unreadable.push(*line);
                return first;
            }
            true
        });
        faults.sort_by_key(|(line, _)| *line);
        (values, faults.into_iter().map(|(_, fault)| fault).collect())
    }

    fn check_section(
        &self,
        schema: &[&Setting],
        (section, body): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>),
        values: &mut FileValues,
        faults: &mut Vec<(usize, ConfigFault)>,
    ) {
        let name: &str = section.get_ref();
        let line = self.line(section.span().start);
        let mut refuse = |line: usize, place: &str, problem: String| {
            faults.push((line, self.fault(line, place, problem)));
        };
        if SECTIONS_UNAVAILABLE.contains(&name) {
            refuse(line, &format!("[{name}]"), "not available in this build".to_owned());
            return;
        }
        if !schema.iter().any(|setting| setting.section == name) {
            let mut known: Vec<&str> = schema.iter().map(|setting| setting.section).collect();
            known.sort_unstable();
            known.dedup();
            let problem = format!("unknown section, must be one of {}", known.join(", "));
            refuse(line, &format!("[{}]", shown(name)), problem);
            return;
        }
        let Some(keys) = body.get_ref().as_table() else {
            refuse(line, name, format!("must be a section, as [{name}]"));
            return;
        };
        let named = |key: &Spanned<Cow<'_, str>>| (name.to_owned(), key.get_ref().to_string());
        for (key, value) in keys {
            let line = self.line(key.span().start);
            let written = self.text.get(value.span()).unwrap_or_default();
            let place = format!("[{name}] {} = {}", shown(key.get_ref()), shown(written));
            let setting = schema
                .iter()
                .find(|setting| setting.section == name && setting.key == key.get_ref().as_ref());
            match setting.map(|setting| setting.kind.parse_toml(value.get_ref())) {
                Some(Ok(value)) => {
                    let place = self.place(line, &place);
                    values.insert(named(key), FileValue::Good { value, place });
                }
                Some(Err(problem)) => {
                    values.insert(named(key), FileValue::Bad);
                    refuse(line, &place, problem);
                }
                None => {
                    let known: Vec<&str> = schema
                        .iter()
                        .filter(|setting| setting.section == name)
                        .map(|setting| setting.key)
                        .collect();
                    let problem = format!("unknown key, must be one of {}", known.join(", "));
                    refuse(line, &place, problem);
                }
            }
        }
    }

    fn fault(&self, line: usize, place: &str, problem: String) -> ConfigFault {
        ConfigFault { place: self.place(line, place), problem }
    }

    fn place(&self, line: usize, place: &str) -> String {
        format!("{}:{line}: {place}", self.name)
    }

    /// The line, from 1, of a byte of the text.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}
