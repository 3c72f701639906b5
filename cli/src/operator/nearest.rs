//! The known name that an unknown one was probably meant to be.

use crate::failure::Failure;

/// Names less alike than this (Jaro-Winkler, 0 to 1) are not worth asking about; `clap` draws it here, too.
const LIKENESS_MIN: f64 = 0.7;

/// The name in `known` that is most like `asked`.
pub(super) fn nearest<'a>(
    asked: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let likened = known.into_iter().map(|name| (strsim::jaro_winkler(asked, name), name));
    likened
        .filter(|(likeness, _name)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_likeness, name)| name)
}

/// `problem`, and the nearest known name as a question if there is one.
pub(super) fn with_nearest<'a>(
    problem: String,
    asked: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    match nearest(asked, known) {
        Some(name) => format!("{problem}; did you mean {name}?"),
        None => problem,
    }
}

/// The refusal of a name that is not among those `known`.
pub(super) fn unknown<'a>(
    kind: &str,
    asked: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Failure {
    Failure::Failed(with_nearest(format!("{kind} {asked} is not known"), asked, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_found_and_a_strange_one_is_not() {
        let known = ["demo-llm", "llama-3-8b", "embedder"];
        for (asked, expected) in [
            ("demo-lm", Some("demo-llm")),
            ("lama-3-8b", Some("llama-3-8b")),
            ("gpt", None),
            ("", None),
        ] {
            assert_eq!(nearest(asked, known), expected, "{asked}");
        }
        assert_eq!(with_nearest("x is unknown".to_owned(), "x", known), "x is unknown");
    }
}
