//! Whether a history of calls could have come from one copy of the data that takes one call at a time: the
//! search of Wing and Gong (1993), with Lowe's memory of configurations tried (2017).

use std::collections::HashSet;
use std::hash::Hash;

use super::history::Ms;

/// Configurations tried before a history is given up as too long to judge.
const CONFIGURATIONS_MAX: usize = 1_000_000;

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Op<C> {
    pub(super) began: Ms,
    /// None: nobody was told of an end, so it may have happened at any time from then on, or never.
    pub(super) ended: Option<Ms>,
    /// What was asked and answered.
    pub(super) call: C,
}

/// Whether some order of `ops` keeps to their times and to `step`, which gives the state after a call, or none
/// where the call could not have been answered so.
pub(super) fn is_linearizable<C, S>(
    ops: &[Op<C>],
    initial: S,
    step: impl Fn(&S, &C) -> Option<S>,
) -> bool
where
    S: Clone + Eq + Hash,
{
    let mut tried: HashSet<(Vec<bool>, S)> = HashSet::new();
    let mut open = vec![(vec![false; ops.len()], initial)];
    while let Some((done, state)) = open.pop() {
        let rest = || ops.iter().zip(&done).filter(|(_op, done)| !**done);
        // Whatever begins after this has to come later.
        let Some(first_end) = rest().filter_map(|(op, _done)| op.ended).min() else { return true };
        for (at, op) in ops.iter().enumerate() {
            if done[at] || op.began > first_end {
                continue;
            }
            let Some(state) = step(&state, &op.call) else { continue };
            let mut done = done.clone();
            done[at] = true;
            if tried.insert((done.clone(), state.clone())) {
                assert!(tried.len() <= CONFIGURATIONS_MAX, "the history is too long to judge");
                open.push((done, state));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Call {
        Write(u8),
        Read(u8),
    }
    use Call::{Read, Write};

    #[track_caller]
    fn check(ops: &[(Ms, Option<Ms>, Call)], expected: bool) {
        let ops: Vec<Op<Call>> =
            ops.iter().map(|&(began, ended, call)| Op { began, ended, call }).collect();
        let step = |state: &u8, call: &Call| match *call {
            Write(value) => Some(value),
            Read(value) => (value == *state).then_some(value),
        };
        assert_eq!(is_linearizable(&ops, 0, step), expected, "{ops:?}");
    }

    #[test]
    fn histories_that_one_copy_could_have_given_pass() {
        check(&[], true);
        check(&[(0, Some(1), Write(1)), (2, Some(3), Read(1))], true);
        // Two that overlap happen in either order.
        check(&[(0, Some(9), Write(1)), (1, Some(2), Read(0)), (3, Some(4), Read(1))], true);
        // A write that nobody was told of happened late, or not at all.
        check(&[(0, None, Write(1)), (5, Some(6), Read(0)), (7, Some(8), Read(1))], true);
        check(&[(0, None, Write(1)), (5, Some(6), Read(0))], true);
    }

    #[test]
    fn histories_that_no_copy_could_have_given_are_found() {
        // A stale read.
        check(&[(0, Some(1), Write(1)), (2, Some(3), Read(0))], false);
        // A value that came back.
        check(
            &[
                (0, Some(1), Write(1)),
                (2, Some(3), Write(2)),
                (4, Some(5), Read(2)),
                (6, Some(7), Read(1)),
            ],
            false,
        );
        // A write seen, and then not, though nothing else was written.
        check(&[(0, None, Write(1)), (5, Some(6), Read(1)), (7, Some(8), Read(0))], false);
        // A value from nowhere.
        check(&[(0, Some(1), Read(3))], false);
    }
}
