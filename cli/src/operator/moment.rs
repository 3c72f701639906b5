//! Times as an operator types and reads them. The cluster keeps milliseconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};

/// The units of a span, in milliseconds.
const UNITS: [(char, u64); 5] =
    [('s', 1000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000), ('w', 604_800_000)];

/// This machine's clock; before 1970 it counts as 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a span as `30d` or `12h`, in milliseconds.
pub(super) fn parse_span(word: &str) -> Result<u64, String> {
    let expected = || "must be a span as 45s, 30m, 12h, 30d or 4w".to_owned();
    let unit = UNITS.iter().find(|(letter, _)| word.ends_with(*letter)).ok_or_else(expected)?;
    let count: u64 = word[..word.len() - 1].parse().map_err(|_| expected())?;
    count.checked_mul(unit.1).ok_or_else(expected)
}

/// Reads a moment after `now_ms`: a span from then, or a date and time as RFC 3339 writes them.
pub(super) fn parse_moment(word: &str, now_ms: u64) -> Result<u64, String> {
    let moment = match (parse_span(word), DateTime::parse_from_rfc3339(word)) {
        (Ok(span), _) => now_ms.checked_add(span),
        (Err(_), Ok(moment)) => u64::try_from(moment.timestamp_millis()).ok(),
        (Err(_), Err(_)) => {
            return Err(
                "must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z".to_owned()
            );
        }
    };
    moment.filter(|moment| *moment > now_ms).ok_or_else(|| "must be in the future".to_owned())
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
            (
                "99999999999999999d",
                Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z"),
            ),
            ("-1d", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("tomorrow", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("d", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
            ("5ü", Err("must be a span as 12h or 30d, or a time as 2030-01-31T12:00:00Z")),
        ] {
            let read = parse_moment(word, NOW).map(shown);
            assert_eq!(read, expected.map(str::to_owned).map_err(str::to_owned), "{word}");
        }
        assert_eq!(shown(u64::MAX), format!("{} ms", u64::MAX));
    }
}
