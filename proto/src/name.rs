//! What public names are made of: models, aliases, tenants and revisions, as operators type them.
//!
//! Checked where a name is given, never where one is applied: a log or a backup from before holds what it holds.

/// A name that cannot be typed, shown and told apart everywhere: `@`, `=` and `,` part names from each other, `*` is
/// for patterns, and a blank ends a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is none.
    #[error("is empty")]
    Empty,
    /// What it begins with.
    #[error("{name:?} begins with {found:?}: a name begins with a letter or a digit")]
    Beginning {
        /// As given.
        name: String,
        /// Its first character.
        found: char,
    },
    /// What it holds.
    #[error("{name:?} holds {found:?}: a name is made of letters, digits and . _ - : / +")]
    Character {
        /// As given.
        name: String,
        /// The first character that is of another kind.
        found: char,
    },
}

/// Whether `name` can be a public name: `Qwen/Qwen2.5-0.5B` and `llama3:8b` can. How long it may be is for others.
///
/// # Errors
/// [`NameError`], with what is wrong.
pub fn check(name: &str) -> Result<(), NameError> {
    let first = name.chars().next().ok_or(NameError::Empty)?;
    let allowed = |found: &char| found.is_ascii_alphanumeric() || ".-_:/+".contains(*found);
    if let Some(found) = name.chars().find(|found| !allowed(found)) {
        return Err(NameError::Character { name: name.to_owned(), found });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Beginning { name: name.to_owned(), found: first });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_nothing_that_parts_them_from_others() {
        for name in ["m", "demo-llm", "Qwen/Qwen2.5-0.5B", "llama3:8b", "a_b+c", "4o"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for (name, expected) in [
            ("", "is empty"),
            ("demo@r1", "\"demo@r1\" holds '@': a name is made of letters, digits and . _ - : / +"),
            ("a b", "\"a b\" holds ' ': a name is made of letters, digits and . _ - : / +"),
            ("ü", "\"ü\" holds 'ü': a name is made of letters, digits and . _ - : / +"),
            ("-x", "\"-x\" begins with '-': a name begins with a letter or a digit"),
        ] {
            assert_eq!(check(name).map_err(|error| error.to_string()), Err(expected.to_owned()));
        }
        for found in ["=", ",", "*", "\n", "\u{0}", "\"", "\\"] {
            assert!(check(&format!("a{found}b")).is_err(), "{found:?}");
        }
    }
}
