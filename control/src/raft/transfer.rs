//! A snapshot on its way in, part by part. Pure.
//!
//! What has arrived is kept when the sender breaks off, and goes on with whoever sends the same snapshot:
//! its name is the digest of its body, which every leader writes alike.

use super::wire::MessageError;
use crate::store::snapshot::format::BODY_BYTES_MAX;

/// At most one snapshot on its way in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    current: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    digest: blake3::Hash,
    total_bytes: u64,
    body: Vec<u8>,
}

/// One part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) digest: &'a [u8],
    pub(super) total_bytes: u64,
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
}

/// What a part led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes are there; go on from here.
    Until(u64),
    /// The body is whole, and what its digest says.
    Whole(Vec<u8>),
}

/// A part that cannot be of any snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("snapshot has {bytes} bytes, at most {BODY_BYTES_MAX} are taken")]
    TooLarge { bytes: u64 },
    #[error("snapshot part of {bytes} bytes at {offset} goes beyond the end at {total_bytes}")]
    BeyondEnd { bytes: u64, offset: u64, total_bytes: u64 },
    #[error("snapshot does not match its digest, it is dropped")]
    Damaged,
    #[error(transparent)]
    Message(#[from] MessageError),
}

// === impl Incoming ===

impl Incoming {
    /// Takes a part. One that does not continue what is there changes nothing: the answer says where to go on.
    pub(super) fn take(&mut self, part: Part<'_>) -> Result<Taken, TransferError> {
        let Part { total_bytes, offset, data, .. } = part;
        let digest = blake3::Hash::from_slice(part.digest)
            .map_err(|_size| MessageError::Missing { field: "digest" })?;
        if total_bytes > BODY_BYTES_MAX {
            return Err(TransferError::TooLarge { bytes: total_bytes });
        }
        let bytes = length(data);
        if offset.checked_add(bytes).is_none_or(|end| end > total_bytes) {
            return Err(TransferError::BeyondEnd { bytes, offset, total_bytes });
        }
        let same =
            |partial: &Partial| partial.digest == digest && partial.total_bytes == total_bytes;
        let partial = self.current.take().filter(same);
        let mut partial = partial.unwrap_or(Partial { digest, total_bytes, body: Vec::new() });
        if offset == length(&partial.body) {
            partial.body.extend_from_slice(data);
        }
        let received = length(&partial.body);
        if received < total_bytes {
            self.current = Some(partial);
            return Ok(Taken::Until(received));
        }
        if blake3::hash(&partial.body) != digest {
            return Err(TransferError::Damaged);
        }
        Ok(Taken::Whole(partial.body))
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(incoming: &mut Incoming, body: &[u8], offset: usize, end: usize) -> Taken {
        let digest = blake3::hash(body);
        let data = &body[offset..end];
        let (total_bytes, offset) = (length(body), u64::try_from(offset).unwrap());
        incoming.take(Part { digest: digest.as_bytes(), total_bytes, offset, data }).unwrap()
    }

    proptest! {
        /// Parts of any size, from any place, sent twice or too early: whoever follows the answers gets
        /// the whole through.
        #[test]
        fn a_snapshot_arrives_whole_whatever_the_breaks(
            body in prop::collection::vec(any::<u8>(), 1..200),
            steps in prop::collection::vec((1usize..50, 0usize..220), 0..20),
        ) {
            let mut incoming = Incoming::default();
            let mut received = 0;
            let mut whole = None;
            let follow = std::iter::repeat_n((16, 1000), 200);
            for (size, jump) in steps.into_iter().chain(follow) {
                // A jump within the body plays a sender that lost its place.
                let offset = if jump < body.len() { jump } else { received };
                match take(&mut incoming, &body, offset, (offset + size).min(body.len())) {
                    Taken::Until(bytes) => received = usize::try_from(bytes).unwrap(),
                    Taken::Whole(bytes) => { whole = Some(bytes); break; }
                }
            }
            prop_assert_eq!(whole, Some(body));
        }
    }

    #[test]
    fn a_break_loses_nothing_and_another_snapshot_starts_anew() {
        let mut incoming = Incoming::default();
        assert_eq!(take(&mut incoming, b"snapshot", 0, 4), Taken::Until(4));
        assert_eq!(take(&mut incoming, b"snapshot", 0, 0), Taken::Until(4));
        assert_eq!(take(&mut incoming, b"other one", 0, 0), Taken::Until(0));
        assert_eq!(take(&mut incoming, b"snapshot", 0, 0), Taken::Until(0));
        assert_eq!(take(&mut incoming, b"snapshot", 0, 8), Taken::Whole(b"snapshot".to_vec()));
    }

    #[track_caller]
    fn check_refused(total_bytes: u64, offset: u64, data: &[u8], expected: &str) {
        let digest = blake3::hash(b"body");
        let part = Part { digest: digest.as_bytes(), total_bytes, offset, data };
        assert_eq!(Incoming::default().take(part).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_cannot_be_a_snapshot_is_refused() {
        check_refused(4, 0, b"bodi", "snapshot does not match its digest, it is dropped");
        check_refused(4, 2, b"dy!", "snapshot part of 3 bytes at 2 goes beyond the end at 4");
        check_refused(
            u64::MAX,
            0,
            b"",
            "snapshot has 18446744073709551615 bytes, at most 67108864 are taken",
        );
    }
}
