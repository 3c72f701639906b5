//! One number for the whole state, so that replicas can be compared.

use std::fmt;
use std::io::{BufWriter, Write as _};

use serde::{Deserialize, Serialize};

use super::State;

/// The form that is hashed. It changes with every field that the state gains: only hashes of one schema can
/// be compared, and nodes of two builds have nothing to compare.
pub const HASH_SCHEMA: u32 = 1;

/// Buffers the many small writes of the encoder.
const BUFFER_BYTES: usize = 64 << 10;

/// A hash of the whole state: blake3 of its snapshot form, which has one order for everything.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StateHash(blake3::Hash);

impl State {
    /// The hash that every replica has at this index.
    pub fn hash(&self) -> StateHash {
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, blake3::Hasher::new());
        let written = serde_json::to_writer(&mut writer, self);
        written.expect("the state's keys are text, and a hasher takes everything");
        writer.flush().expect("a hasher takes everything");
        StateHash(writer.get_ref().finalize())
    }
}

// === impl StateHash ===

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for StateHash {
    type Error = blake3::HexError;

    fn try_from(hex: String) -> Result<Self, blake3::HexError> {
        blake3::Hash::from_hex(hex).map(Self)
    }
}

impl From<StateHash> for String {
    fn from(hash: StateHash) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::ViewIndex;

    use super::*;

    #[test]
    fn a_hash_is_read_back_as_it_is_written() {
        let hash = State::default().hash();
        assert_eq!(StateHash::try_from(String::from(hash)).unwrap(), hash);
        assert!(StateHash::try_from("5a".to_owned()).is_err());
    }

    #[test]
    fn whatever_differs_changes_the_hash() {
        let (mut state, mut later) = (State::default(), State::default());
        state.skip(ViewIndex(1));
        later.skip(ViewIndex(2));
        assert_ne!(state.hash(), later.hash());
        let before = state.hash();
        state.drift();
        assert_ne!(state.hash(), before);
    }
}
