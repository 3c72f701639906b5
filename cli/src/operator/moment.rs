//! Times as an operator types and reads them. The cluster keeps milliseconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};

/// The units of a span, in milliseconds.
const UNITS: [(char, u64); 5] =
    [('s', 1000), ('m', 60_000), ('h', 3_600_000), ('d', DAY_MS), ('w', 604_800_000)];

/// A day, in milliseconds.
pub(super) const DAY_MS: u64 = 86_400_000;

/// This machine's clock; before 1970 it counts as 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a span as `30d` or `12h` of at most `max_ms`, in milliseconds.
pub(super) fn parse_span(word: &str, max_ms: u64) -> Result<u64, String> {
    let span = span(word).ok_or_else(|| "must be a span as 45s, 30m, 12h, 30d or 4w".to_owned())?;
    if span > max_ms { Err(format!("must be at most {}d", days(max_ms))) } else { Ok(span) }
}

/// Reads a moment after `now_ms`, by at most `max_ms`: a span from then, or a date and time as RFC 3339 writes them.
pub(super) fn parse_moment(word: &str, now_ms: u64, max_ms: u64) -> Result<u64, String> {
    let moment = match (span(word), DateTime::parse_from_rfc3339(word)) {
        (Some(span), _) => now_ms.saturating_add(span),
        // A year before 1970 is as past as 1970.
        (None, Ok(moment)) => u64::try_from(moment.timestamp_millis()).unwrap_or_default(),
        (None, Err(_)) => {
            return Err(
                "must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z".to_owned()
            );
        }
    };
    match moment.checked_sub(now_ms) {
        None | Some(0) => Err("must be in the future".to_owned()),
        Some(span) if span > max_ms => Err(format!("must be at most {}d from now", days(max_ms))),
        Some(_) => Ok(moment),
    }
}

/// A count and a unit, in milliseconds; what no clock can count to is as long as can be.
fn span(word: &str) -> Option<u64> {
    let (letter, unit) = UNITS.iter().find(|(letter, _)| word.ends_with(*letter))?;
    let count = word.strip_suffix(*letter)?;
    if count.is_empty() || !count.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(count.parse().unwrap_or(u64::MAX).saturating_mul(*unit))
}

const fn days(ms: u64) -> u64 {
    ms / DAY_MS
}

/// A moment as RFC 3339 writes it, in UTC; far ones that no calendar has as milliseconds.
pub(super) fn shown(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
    moment.map_or_else(
        || format!("{ms} ms"),
        |moment| moment.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2030-01-01T00:00:00Z.
    const NOW: u64 = 1_893_456_000_000;

    #[test]
    fn moments_are_read_and_shown() {
        for (word, expected) in [
            ("30d", Ok("2030-01-31T00:00:00Z")),
            ("12h", Ok("2030-01-01T12:00:00Z")),
            ("2w", Ok("2030-01-15T00:00:00Z")),
            ("90s", Ok("2030-01-01T00:01:30Z")),
            ("2030-02-01T02:00:00+02:00", Ok("2030-02-01T00:00:00Z")),
            ("2029-12-31T23:59:59Z", Err("must be in the future")),
            ("0d", Err("must be in the future")),
            ("3650d", Ok("2039-12-30T00:00:00Z")),
            ("3651d", Err("must be at most 3650d from now")),
            ("2040-01-01T00:00:00Z", Err("must be at most 3650d from now")),
            ("99999999999999999999999d", Err("must be at most 3650d from now")),
            ("1960-01-01T00:00:00Z", Err("must be in the future")),
            ("-1d", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("tomorrow", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("d", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("5ü", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
        ] {
            let read = parse_moment(word, NOW, 3650 * DAY_MS).map(shown);
            assert_eq!(read, expected.map(str::to_owned).map_err(str::to_owned), "{word}");
        }
        assert_eq!(shown(u64::MAX), format!("{} ms", u64::MAX));
        assert_eq!(parse_span("90d", 90 * DAY_MS), Ok(90 * DAY_MS));
        assert_eq!(parse_span("91d", 90 * DAY_MS), Err("must be at most 90d".to_owned()));
    }
}
