//! Values written as Python writes them: templates are made for Jinja on Python, and a model has learnt its
//! spaces and capitals.

use std::fmt::Write as _;
use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Most spaces one level of `tojson(indent=..)` may have.
const INDENT_MAX: usize = 16;

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, as Hugging Face defines `tojson`.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let _: (Option<Value>, Option<bool>) = (options.get("separators")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, SpacedFormatter)),
        Some(indent) => {
            let spaces = " ".repeat(indent.min(INDENT_MAX));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
    };
    let failed = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
    Ok(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text })
}

/// `str(value)`.
pub(super) fn to_string(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => representation(value),
    }
}

/// `repr(value)`.
fn representation(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => format!("[{}]", items(value).join(", ")),
        ValueKind::Map => format!("{{{}}}", items(value).join(", ")),
        _ => value.to_string(),
    }
}

fn items(value: &Value) -> Vec<String> {
    let is_map = value.kind() == ValueKind::Map;
    let Ok(entries) = value.try_iter() else { return Vec::new() };
    let write = |entry: Value| {
        if !is_map {
            return representation(&entry);
        }
        let of_key = value.get_item(&entry).unwrap_or_default();
        format!("{}: {}", representation(&entry), representation(&of_key))
    };
    entries.map(write).collect()
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
    out
}

fn escape_non_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

/// One line, with a space after each comma and colon.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(b": ")
    }
}
