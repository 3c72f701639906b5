//! Reads an untrusted JSON object field by field; every refusal names the field by its path, the type that
//! was expected and what was found. `null` is the same as absent, as OpenAI's clients send it.

use phalanx_proto::fault::Fault;
use serde_json::{Map, Value};

/// How much of a bad value an error message shows.
const SHOWN_CHARS_MAX: usize = 64;

/// An object and where it sits in the body.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// The body itself.
    pub(crate) const fn root(object: &'a Map<String, Value>) -> Self {
        Self { object, path: String::new() }
    }

    /// The object that `value`, at `path`, must be.
    pub(crate) fn of(value: &'a Value, path: String) -> Result<Self, Fault> {
        match value {
            Value::Object(object) => Ok(Self { object, path }),
            other => Err(mismatch(&path, "an object", other)),
        }
    }

    /// The path of a field, as error envelopes name it.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field, unless absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A refusal of the field.
    pub(crate) fn refuse(&self, name: &str, message: impl Into<String>) -> Fault {
        Fault::invalid(&self.path(name), message)
    }

    /// The refusal of a field that must be there.
    pub(crate) fn missing(&self, name: &str) -> Fault {
        let path = self.path(name);
        Fault::invalid(&path, format!("{path} is required"))
    }

    fn wrong(&self, name: &str, expected: &str, value: &Value) -> Fault {
        mismatch(&self.path(name), expected, value)
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(name, "a string", value)))
            .transpose()
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.get(name)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(name, "a boolean", value)))
            .transpose()
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, Fault> {
        self.get(name)
            .map(|value| {
                value.as_f64().map(narrow).ok_or_else(|| self.wrong(name, "a number", value))
            })
            .transpose()
    }

    /// A whole number between `min` and `max`.
    pub(crate) fn integer(&self, name: &str, min: i64, max: i64) -> Result<Option<i64>, Fault> {
        self.get(name).map(|value| integer(value, &self.path(name), min, max)).transpose()
    }

    /// A whole number of 32 bits, at least `min`.
    pub(crate) fn count(&self, name: &str, min: u32, max: u32) -> Result<Option<u32>, Fault> {
        let value = self.integer(name, min.into(), max.into())?;
        Ok(value.and_then(|value| u32::try_from(value).ok()))
    }

    pub(crate) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, Fault> {
        self.get(name)
            .map(|value| match value {
                Value::Array(items) => Ok(items.as_slice()),
                other => Err(self.wrong(name, "an array", other)),
            })
            .transpose()
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, Fault> {
        self.get(name).map(|value| Self::of(value, self.path(name))).transpose()
    }

    /// The object itself.
    pub(crate) const fn map(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// Who asks, as far as the client says: only a hint, so that what is no text is no user.
    pub(crate) fn user(&self) -> Option<&'a str> {
        self.get("user").and_then(Value::as_str)
    }

    /// An array of token ids.
    pub(crate) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>, Fault> {
        let Some(items) = self.array(name)? else { return Ok(None) };
        token_ids(items, &self.path(name)).map(Some)
    }
}

/// The refusal of `value`, which is not what was expected at `path`.
pub(crate) fn mismatch(path: &str, expected: &str, value: &Value) -> Fault {
    Fault::invalid(path, format!("{path} must be {expected}, got {}", shown(value)))
}

/// A whole number between `min` and `max`.
pub(crate) fn integer(value: &Value, path: &str, min: i64, max: i64) -> Result<i64, Fault> {
    let number = match value {
        Value::Number(number) => number,
        other => return Err(mismatch(path, "an integer", other)),
    };
    if number.is_f64() {
        return Err(mismatch(path, "an integer", value));
    }
    match number.as_i64() {
        Some(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(mismatch(path, &format!("between {min} and {max}"), value)),
    }
}

/// Token ids in `items`, which sit at `path`.
pub(crate) fn token_ids(items: &[Value], path: &str) -> Result<Vec<u32>, Fault> {
    let id = |(index, item): (usize, &Value)| {
        let id = integer(item, &format!("{path}.[{index}]"), 0, u32::MAX.into())?;
        // The range was checked just above.
        Ok(u32::try_from(id).unwrap_or(u32::MAX))
    };
    items.iter().enumerate().map(id).collect()
}

/// Ranges are checked on the narrow value, where an overflow is infinite and so out of range.
#[expect(clippy::cast_possible_truncation, reason = "the engine computes in 32 bits")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::String(text) if text.chars().count() > SHOWN_CHARS_MAX => {
            let start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            format!("the string {start:?}... of {} bytes", text.len())
        }
        Value::String(text) => format!("the string {text:?}"),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
