//! Limits that an operator sets, keeps or lifts.

use std::fmt::Display;
use std::str::FromStr;

use clap::{Arg, ArgMatches};

/// What is asked of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Limit<N> {
    /// As it was.
    #[default]
    Kept,
    /// Without a limit.
    Lifted,
    /// At most this.
    At(N),
}

/// A limit's option: `--ID N`, or `--ID none`.
pub(super) fn arg<N>(id: &'static str, help: &'static str) -> Arg
where
    N: FromStr + Clone + Send + Sync + 'static,
{
    Arg::new(id).long(id).value_name("N|none").value_parser(parse::<N>).help(help)
}

/// What is asked of the limit `id`.
pub(super) fn of<N>(matches: &ArgMatches, id: &str) -> Limit<N>
where
    N: Clone + Send + Sync + 'static,
{
    matches.get_one::<Limit<N>>(id).cloned().unwrap_or(Limit::Kept)
}

fn parse<N: FromStr>(word: &str) -> Result<Limit<N>, String> {
    if word == "none" {
        return Ok(Limit::Lifted);
    }
    word.parse().map(Limit::At).map_err(|_| "must be a whole number that fits, or none".to_owned())
}

/// A limit as a table shows it.
pub(super) fn shown<N: Display>(limit: Option<N>) -> String {
    limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string())
}

// === impl Limit ===

impl<N> Limit<N> {
    /// The limit that holds from now on, where `current` held.
    pub(super) fn over(self, current: Option<N>) -> Option<N> {
        match self {
            Self::Kept => current,
            Self::Lifted => None,
            Self::At(limit) => Some(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_set_kept_or_lifted() {
        assert_eq!(parse::<u32>("7"), Ok(Limit::At(7)));
        assert_eq!(parse::<u32>("none"), Ok(Limit::Lifted));
        for word in ["", "-1", "4294967296", "many"] {
            assert!(parse::<u32>(word).is_err(), "{word}");
        }
        for (limit, expected) in
            [(Limit::Kept, Some(5)), (Limit::Lifted, None), (Limit::At(7), Some(7))]
        {
            assert_eq!(limit.over(Some(5)), expected);
        }
    }
}
