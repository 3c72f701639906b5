//! Replicas compared, so that one that drifted from the others does not go on serving. Pure.
//!
//! ```text
//! every 1000th entry ──► each replica keeps its hash ──► the leader's goes into the log ──► each compares
//! ```
//!
//! The comparison travels as an entry, so every replica meets it with the same log before it, whenever that
//! is. One that came past the index by a snapshot, or on another build, has nothing to compare, and waits
//! for the next.

use std::collections::VecDeque;

use phalanx_proto::id::ViewIndex;

use crate::command::Command;
use crate::state::{HASH_SCHEMA, State, StateHash};

/// After how many entries the replicas are compared. A state of 5 MB takes some milliseconds to hash, so this
/// costs microseconds an entry; at ten entries a second drift is found within two minutes.
pub(crate) const CHECKPOINT_EVERY: u64 = if cfg!(test) { 50 } else { 1000 };

/// How many hashes wait for the leader's: a leader that is this far behind with comparing skips some.
const KEPT: usize = 8;

/// What one replica knows of its own hashes.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    own: VecDeque<(ViewIndex, StateHash)>,
    /// The last index that was compared, by any replica.
    compared: ViewIndex,
    drifted: bool,
}

/// The replica's state is not what the leader's was at the same index. Which of them is wrong, nobody can tell
/// from here; but this one must not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "state at index {index} has hash {own}, the leader's had {leaders}: this replica has drifted"
)]
pub(crate) struct DriftError {
    index: ViewIndex,
    own: StateHash,
    leaders: StateHash,
}

// === impl Checkpoints ===

impl Checkpoints {
    /// To be told of each entry, once it is applied.
    pub(crate) fn applied(&mut self, state: &State) {
        let index = state.view().index;
        if !index.0.is_multiple_of(CHECKPOINT_EVERY) {
            return;
        }
        if self.own.len() == KEPT {
            self.own.pop_front();
        }
        self.own.push_back((index, state.hash()));
    }

    /// To be told of a snapshot taken in: what was hashed before is another state's.
    pub(crate) fn restored(&mut self) {
        self.own.clear();
    }

    /// What a leader should put into the log, until it is there.
    pub(crate) fn due(&self) -> Option<Command> {
        let (index, hash) = *self.own.back().filter(|(index, _hash)| *index > self.compared)?;
        Some(Command::Checkpoint { index, schema: HASH_SCHEMA, hash })
    }

    /// Compares with what a leader had at `index`. Once drifted, a replica stays so.
    pub(crate) fn compare(
        &mut self,
        index: ViewIndex,
        schema: u32,
        leaders: StateHash,
    ) -> Result<(), DriftError> {
        self.compared = self.compared.max(index);
        if schema != HASH_SCHEMA {
            return Ok(());
        }
        match self.own.iter().find(|(at, _hash)| *at == index) {
            Some(&(_at, own)) if own != leaders => {
                self.drifted = true;
                Err(DriftError { index, own, leaders })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The last index at which the replicas were compared.
    #[cfg(test)]
    pub(crate) const fn compared(&self) -> ViewIndex {
        self.compared
    }

    /// Whether a comparison failed.
    pub(crate) const fn has_drifted(&self) -> bool {
        self.drifted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_at(index: u64) -> State {
        let mut state = State::default();
        state.skip(ViewIndex(index));
        state
    }

    fn compare(checkpoints: &mut Checkpoints, index: u64, schema: u32, of: &State) -> bool {
        checkpoints.compare(ViewIndex(index), schema, of.hash()).is_ok()
    }

    #[test]
    fn a_leader_has_its_latest_hash_compared_once() {
        let mut checkpoints = Checkpoints::default();
        checkpoints.applied(&state_at(CHECKPOINT_EVERY - 1));
        assert_eq!(checkpoints.due(), None);
        for round in 1..=20 {
            checkpoints.applied(&state_at(round * CHECKPOINT_EVERY));
        }
        let (index, state) = (ViewIndex(20 * CHECKPOINT_EVERY), state_at(20 * CHECKPOINT_EVERY));
        let due = Command::Checkpoint { index, schema: HASH_SCHEMA, hash: state.hash() };
        assert_eq!(checkpoints.due(), Some(due));
        assert!(compare(&mut checkpoints, index.0, HASH_SCHEMA, &state));
        assert_eq!(checkpoints.due(), None);
        assert_eq!(checkpoints.own.len(), KEPT);
    }

    #[test]
    fn another_hash_at_the_same_index_is_drift_and_nothing_else_is() {
        let (index, state) = (CHECKPOINT_EVERY, state_at(CHECKPOINT_EVERY));
        let other = state_at(index + 1);
        let mut checkpoints = Checkpoints::default();
        assert!(compare(&mut checkpoints, index, HASH_SCHEMA, &other), "nothing to compare");
        checkpoints.applied(&state);
        assert!(compare(&mut checkpoints, index, HASH_SCHEMA + 1, &other), "another build's");
        assert!(compare(&mut checkpoints, index, HASH_SCHEMA, &state));
        assert!(!checkpoints.has_drifted());
        assert!(!compare(&mut checkpoints, index, HASH_SCHEMA, &other));
        assert!(checkpoints.has_drifted());

        let mut restored = Checkpoints::default();
        restored.applied(&state);
        restored.restored();
        assert!(compare(&mut restored, index, HASH_SCHEMA, &other), "of before the snapshot");
    }
}
