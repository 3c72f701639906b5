//! Writes JSON into a buffer: an answer is produced once per token, so no tree is built for it.

use std::fmt::Write as _;

use bytes::BytesMut;
use phalanx_proto::generate::TokenScore;

/// The least log probability shown, as JSON has no infinity.
const LOGPROB_MIN: f32 = -9_999.0;

/// Appends `text` as a JSON string.
pub(crate) fn string(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(b"\"");
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.extend_from_slice(b"\"");
}

/// Appends a JSON string, or `null`.
pub(crate) fn optional_string(out: &mut BytesMut, text: Option<&str>) {
    match text {
        Some(text) => string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends a whole number.
pub(crate) fn number(out: &mut BytesMut, value: impl Into<u64>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.into();
    loop {
        at -= 1;
        digits[at] = b"0123456789"[usize::try_from(rest % 10).unwrap_or(0)];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a log probability.
pub(crate) fn logprob(out: &mut BytesMut, value: f32) {
    let value = if value.is_nan() { LOGPROB_MIN } else { value.clamp(LOGPROB_MIN, 0.0) };
    // Writing to a BytesMut cannot fail; Rust's shortest form of a finite float is valid JSON.
    let _ = write!(out, "{value:?}");
}

/// Appends an array, one `write` per item.
pub(crate) fn array<T>(
    out: &mut BytesMut,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut BytesMut, T),
) {
    out.extend_from_slice(b"[");
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b",");
        }
        write(out, item);
    }
    out.extend_from_slice(b"]");
}

/// Appends an array of token ids.
pub(crate) fn token_ids(out: &mut BytesMut, ids: &[u32]) {
    array(out, ids, |out, &id| number(out, id));
}

/// Appends a token as text: its own, or its bytes spelt out when they are no text alone.
pub(crate) fn token(out: &mut BytesMut, score: &TokenScore) {
    match std::str::from_utf8(&score.token) {
        Ok(text) => string(out, text),
        Err(_) => {
            out.extend_from_slice(b"\"bytes:");
            for byte in &score.token {
                let _ = write!(out, "\\\\x{byte:02x}");
            }
            out.extend_from_slice(b"\"");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_log_probabilities_stay_json() {
        for (value, expected) in [
            (f32::NEG_INFINITY, "-9999.0"),
            (f32::NAN, "-9999.0"),
            (0.0, "0.0"),
            (-1.5, "-1.5"),
            (-1e-7, "-1e-7"),
        ] {
            let mut out = BytesMut::new();
            logprob(&mut out, value);
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
            serde_json::from_slice::<f64>(&out).unwrap();
        }
    }

    #[test]
    fn a_token_that_is_no_text_is_spelt_in_bytes() {
        let mut out = BytesMut::new();
        token(&mut out, &TokenScore { token_id: 1, token: vec![0xe2, 0x82], logprob: 0.0 });
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), r"bytes:\xe2\x82");
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let mut out = BytesMut::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn any_number_survives(value in any::<u64>()) {
            let mut out = BytesMut::new();
            number(&mut out, value);
            prop_assert_eq!(serde_json::from_slice::<u64>(&out).unwrap(), value);
        }
    }
}
