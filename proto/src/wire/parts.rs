//! A file that travels in parts. Pure: what has arrived is whole, in order and within the limit, or refused.

use crate::fault::{Fault, FaultCode};
use crate::pb;

/// The most data in one part; far below the largest message, so that other calls pass between parts.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// The largest file that is taken: a control node's state of 64 MiB that does not shrink, and what frames it.
pub const BACKUP_BYTES_MAX: u64 = 66 << 20;

/// A file on its way in.
#[derive(Debug, Default)]
pub struct Assembly {
    total_bytes: Option<u64>,
    bytes: Vec<u8>,
}

/// Parts that do not make a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// More than is taken.
    #[error("backup has {bytes} bytes, at most {BACKUP_BYTES_MAX} are taken")]
    TooLarge {
        /// So many, its sender says.
        bytes: u64,
    },
    /// A part that does not go on where the one before it ended, or goes beyond the end.
    #[error("backup part of {bytes} bytes at {offset} does not go on at {expected}")]
    Misplaced {
        /// How long it is.
        bytes: u64,
        /// Where it says it belongs.
        offset: u64,
        /// Where the next part begins.
        expected: u64,
    },
    /// The sender stopped too early.
    #[error("backup was cut short: {bytes} of {total_bytes} bytes came")]
    CutShort {
        /// What came.
        bytes: u64,
        /// What was announced.
        total_bytes: u64,
    },
}

impl From<PartError> for Fault {
    fn from(error: PartError) -> Self {
        Self::new(FaultCode::InvalidRequest, error.to_string())
    }
}

/// The parts of a file, in order; one for an empty file.
pub fn split(bytes: Vec<u8>) -> impl Iterator<Item = pb::BackupPart> + Send + 'static {
    let total_bytes = length(&bytes);
    let starts = (0..bytes.len().max(1)).step_by(PART_BYTES_MAX);
    starts.map(move |start| {
        let end = bytes.len().min(start + PART_BYTES_MAX);
        let offset = u64::try_from(start).unwrap_or(u64::MAX);
        pb::BackupPart { total_bytes, offset, data: bytes[start..end].to_vec() }
    })
}

// === impl Assembly ===

impl Assembly {
    /// Adds the next part.
    ///
    /// # Errors
    /// [`PartError`] when it is not the next part of a file that is taken.
    pub fn take(&mut self, part: &pb::BackupPart) -> Result<(), PartError> {
        let total_bytes = *self.total_bytes.get_or_insert(part.total_bytes);
        if total_bytes > BACKUP_BYTES_MAX {
            return Err(PartError::TooLarge { bytes: total_bytes });
        }
        let (bytes, offset, expected) = (length(&part.data), part.offset, length(&self.bytes));
        let fits = offset == expected && offset + bytes <= total_bytes;
        if !fits || part.total_bytes != total_bytes {
            return Err(PartError::Misplaced { bytes, offset, expected });
        }
        self.bytes.extend_from_slice(&part.data);
        Ok(())
    }

    /// The file, once every part was taken.
    ///
    /// # Errors
    /// [`PartError::CutShort`].
    pub fn finish(self) -> Result<Vec<u8>, PartError> {
        let (bytes, total_bytes) = (length(&self.bytes), self.total_bytes.unwrap_or(0));
        if self.total_bytes.is_none() || bytes < total_bytes {
            return Err(PartError::CutShort { bytes, total_bytes });
        }
        Ok(self.bytes)
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parts: &[pb::BackupPart], expected: Result<Vec<u8>, &str>) {
        let mut assembly = Assembly::default();
        let taken = parts.iter().try_for_each(|part| assembly.take(part));
        let whole = taken.and_then(|()| assembly.finish()).map_err(|error| error.to_string());
        assert_eq!(whole, expected.map_err(ToOwned::to_owned));
    }

    fn part(total_bytes: u64, offset: u64, data: &[u8]) -> pb::BackupPart {
        pb::BackupPart { total_bytes, offset, data: data.to_vec() }
    }

    #[test]
    fn a_file_arrives_as_it_was_sent() {
        for bytes in [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX] {
            let file: Vec<u8> = (0u8..251).cycle().take(bytes).collect();
            let parts: Vec<_> = split(file.clone()).collect();
            assert_eq!(parts.len(), bytes.div_ceil(PART_BYTES_MAX).max(1));
            check(&parts, Ok(file));
        }
    }

    #[test]
    fn parts_that_make_no_file_are_refused() {
        check(&[], Err("backup was cut short: 0 of 0 bytes came"));
        check(&[part(4, 0, b"ab")], Err("backup was cut short: 2 of 4 bytes came"));
        let lost = "backup part of 1 bytes at 3 does not go on at 2";
        check(&[part(4, 0, b"ab"), part(4, 3, b"d")], Err(lost));
        let twice = "backup part of 2 bytes at 0 does not go on at 2";
        check(&[part(4, 0, b"ab"), part(4, 0, b"ab")], Err(twice));
        let beyond = "backup part of 3 bytes at 2 does not go on at 2";
        check(&[part(4, 0, b"ab"), part(4, 2, b"cde")], Err(beyond));
        let other = "backup part of 3 bytes at 2 does not go on at 2";
        check(&[part(4, 0, b"ab"), part(5, 2, b"cde")], Err(other));
        check(
            &[part(4, u64::MAX, b"")],
            Err("backup part of 0 bytes at 18446744073709551615 does not go on at 0"),
        );
        let large = "backup has 69206017 bytes, at most 69206016 are taken";
        check(&[part(BACKUP_BYTES_MAX + 1, 0, b"")], Err(large));
    }
}
