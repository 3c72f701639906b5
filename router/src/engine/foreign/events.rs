//! Watches a stream of server-sent events go by, in whatever pieces it comes. Pure.
//!
//! Nothing is taken apart but what says how the stream goes: where events end, which is the last one, what it used.
//! A line ends with LF or CRLF; a lone CR, which the standard allows, no engine sends.

use memchr::{memchr, memmem};

/// Longest line that is kept while it is incomplete. A longer one is passed on like any other, but not looked at.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What is known of a stream so far.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The line is longer than what is kept of it.
    is_cut: bool,
    /// The current event has data.
    has_data: bool,
    verdict: Option<Verdict>,
    /// The newest data that says what was used.
    usage: Vec<u8>,
}

/// How a stream says that it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is complete.
    Done,
    /// It failed.
    Failed,
}

/// What one piece brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes up to the end of the last event that is complete; what follows belongs to the next.
    pub(super) complete: usize,
    /// Events with data that ended in it, but for the last one.
    pub(super) events: u32,
}

// === impl Events ===

impl Events {
    /// Looks at the next piece.
    pub(super) fn observe(&mut self, bytes: &[u8]) -> Piece {
        let mut piece = Piece::default();
        let mut at = 0;
        while let Some(length) = memchr(b'\n', &bytes[at..]) {
            let end = at + length;
            let is_blank = if self.line.is_empty() && !self.is_cut {
                self.observe_line(&bytes[at..end])
            } else {
                self.keep(&bytes[at..end]);
                let line = std::mem::take(&mut self.line);
                let is_blank = if self.is_cut { false } else { self.observe_line(&line) };
                self.is_cut = false;
                self.line = line;
                self.line.clear();
                is_blank
            };
            at = end + 1;
            if is_blank {
                piece.events += u32::from(std::mem::take(&mut self.has_data));
                piece.complete = at;
            }
        }
        self.keep(&bytes[at..]);
        piece
    }

    /// How the stream said that it went, once it did.
    pub(super) const fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// The newest data that says what was used; empty if none does.
    pub(super) fn take_usage(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.usage)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(LINE_BYTES_MAX - self.line.len());
        self.is_cut |= kept < bytes.len();
        self.line.extend_from_slice(&bytes[..kept]);
    }

    /// Whether the line is blank, which ends an event.
    fn observe_line(&mut self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(data) = line.strip_prefix(b"data:") else { return line.is_empty() };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.verdict = Some(Verdict::Done);
            return false;
        }
        self.has_data = true;
        if data.starts_with(b"{\"error\"") {
            self.verdict = Some(Verdict::Failed);
        }
        if let Some(at) = memmem::find(data, b"\"usage\"")
            && !data[at + 7..].trim_ascii_start().starts_with(b":null")
        {
            self.usage.clear();
            self.usage.extend_from_slice(data);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] = b": hello\n\ndata: {\"choices\":[1],\"usage\":null}\n\nevent: x\r\ndata:{\"a\":1}\r\n\r\ndata: {\"usage\":{\"n\":3}}\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_counted_and_the_end_is_seen() {
        let mut events = Events::default();
        let piece = events.observe(STREAM);
        assert_eq!(piece, Piece { complete: STREAM.len(), events: 3 });
        assert_eq!(events.verdict(), Some(Verdict::Done));
        assert_eq!(events.take_usage(), br#"{"usage":{"n":3}}"#);
    }

    #[test]
    fn half_an_event_is_not_complete() {
        let mut events = Events::default();
        let piece = events.observe(b"data: 1\n\ndata: {\"err");
        assert_eq!(piece, Piece { complete: 9, events: 1 });
        assert_eq!(events.verdict(), None);
        assert_eq!(events.observe(b"or\":1}\n"), Piece::default());
        assert_eq!(events.verdict(), Some(Verdict::Failed));
        assert_eq!(events.observe(b"\ndata"), Piece { complete: 1, events: 1 });
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut events = Events::default();
        for _ in 0..1_000 {
            assert_eq!(events.observe(&[b'x'; 1_000]), Piece::default());
        }
        assert_eq!(events.line.len(), LINE_BYTES_MAX);
        assert_eq!(events.observe(b"\n\ndata: 1\n\n"), Piece { complete: 11, events: 1 });
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(cuts in prop::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let mut counted = 0;
            let mut complete = 0;
            for cut in cuts.windows(2) {
                let piece = events.observe(&STREAM[cut[0]..cut[1]]);
                counted += piece.events;
                if piece.complete > 0 {
                    complete = cut[0] + piece.complete;
                }
            }
            prop_assert_eq!((counted, complete), (3, STREAM.len()));
            prop_assert_eq!(events.verdict(), Some(Verdict::Done));
            prop_assert_eq!(events.take_usage(), br#"{"usage":{"n":3}}"#);
        }
    }
}
