//! Stop strings, matched on text across token boundaries.
//!
//! One Knuth-Morris-Pratt automaton per stop string: a byte costs amortised constant time per string, however
//! the text is cut into pieces, and what the automata have matched so far is exactly what must be held back.

/// Finds the first stop string to be completed and keeps back what may become one.
#[derive(Clone, Debug)]
pub(super) struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text not given out yet: the longest beginning of a stop string that the text ends with.
    held: String,
}

/// What a piece of text came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matched {
    /// Text that cannot be part of a stop string any more.
    pub(super) text: String,
    /// Which stop string was completed, as an index; the text ends before it and nothing follows.
    pub(super) stop: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// `borders[n]`: length of the longest proper border of the first `n + 1` bytes.
    borders: Box<[usize]>,
    /// How many bytes the text so far ends with that the pattern begins with.
    matched: usize,
}

// === impl StopMatcher ===

impl StopMatcher {
    /// A matcher for `stops`; empty ones are ignored.
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            patterns: stops.iter().map(|stop| Pattern::new(stop)).collect(),
            held: String::new(),
        }
    }

    /// Takes more text. Of several stop strings the one completed first wins, of those completed by the
    /// same byte the longest: so the outcome does not depend on how the text was cut.
    pub(super) fn push(&mut self, text: &str) -> Matched {
        let held_before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            if let Some((stop, length)) = self.advance(byte) {
                self.held.truncate(held_before + offset + 1 - length);
                return Matched { text: std::mem::take(&mut self.held), stop: Some(stop) };
            }
        }
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Matched { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// The text held back: no stop string came of it.
    pub(super) fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Moves every automaton over `byte`; the longest pattern it completes, with its length.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut completed: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let length = pattern.bytes.len();
            if pattern.advance(byte) && completed.is_none_or(|(_, longest)| length > longest) {
                completed = Some((index, length));
            }
        }
        completed
    }
}

// === impl Pattern ===

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes: Box<[u8]> = stop.as_bytes().into();
        let mut borders = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut border: usize = borders[end - 1];
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border - 1];
            }
            borders[end] = border + usize::from(bytes[border] == bytes[end]);
        }
        Self { bytes, borders: borders.into(), matched: 0 }
    }

    /// Whether `byte` completes the pattern.
    fn advance(&mut self, byte: u8) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        if self.matched < self.bytes.len() {
            return false;
        }
        self.matched = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes `pieces` and returns each piece's output, then what finish gives, then the stop.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let matched = matcher.push(piece);
            out.push(matched.text);
            if matched.stop.is_some() {
                return (out, matched.stop);
            }
        }
        out.push(matcher.finish());
        (out, None)
    }

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], stop: Option<usize>) {
        assert_eq!(
            run(stops, pieces),
            (expected.iter().map(|&text| text.to_owned()).collect(), stop)
        );
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_leak() {
        check(&[], &["a", "b"], &["a", "b", ""], None);
        check(&["END"], &["the END of"], &["the "], Some(0));
        check(&["END"], &["the E", "N", "D!"], &["the ", "", ""], Some(0));
        check(&["END"], &["the E", "N", "TER"], &["the ", "", "ENTER", ""], None);
        check(&["END"], &["the EN"], &["the ", "EN"], None);
        check(&["aab"], &["aaa", "b"], &["a", ""], Some(0));
        check(&["\n\n"], &["one\n", "two\n", "\nthree"], &["one", "\ntwo", ""], Some(0));
        check(&["。", "é!"], &["caf", "é", "? 好", "。"], &["caf", "", "é? 好", ""], Some(0));
    }

    #[test]
    fn the_stop_string_completed_first_wins_then_the_longest() {
        check(&["bcd", "c"], &["abcd"], &["ab"], Some(1));
        check(&["c", "abc"], &["xabc"], &["x"], Some(1));
        check(&["abc", "abcd"], &["abcd"], &[""], Some(0));
    }

    proptest! {
        #[test]
        fn the_outcome_does_not_depend_on_how_the_text_is_cut(
            text in "[ab\u{e9}\u{4f60}]{0,40}",
            stops in prop::collection::vec("[ab\u{e9}\u{4f60}]{1,5}", 0..4),
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let characters: Vec<char> = text.chars().collect();
            let mut pieces = vec![String::new()];
            for (position, character) in characters.iter().enumerate() {
                if cuts.contains(&position) {
                    pieces.push(String::new());
                }
                pieces.last_mut().expect("never empty").push(*character);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (whole, whole_stop) = run(&stops, &[&text]);
            let (cut, cut_stop) = run(&stops, &pieces);
            prop_assert_eq!(cut.concat(), whole.concat());
            prop_assert_eq!(cut_stop, whole_stop);
            // Against the definition: the match that ends first, and the longest of those.
            let naive = (1..=text.len())
                .flat_map(|end| stops.iter().map(move |stop| (end, *stop)))
                .filter(|(end, stop)| text.as_bytes()[..*end].ends_with(stop.as_bytes()))
                .min_by_key(|(end, stop)| (*end, usize::MAX - stop.len()));
            match naive {
                Some((end, stop)) => {
                    prop_assert_eq!(whole.concat(), &text[..end - stop.len()]);
                    prop_assert_eq!(stops[whole_stop.expect("a match")], stop);
                }
                None => prop_assert_eq!(whole_stop, None),
            }
        }
    }
}
