//! A snapshot as bytes: what lies in its file, and what a backup is.
//!
//! ```text
//! magic (8) | version u32 | header length u32 | header, JSON | body | blake3 of all before (32)
//! ```
//!
//! Numbers are little-endian. Version 1 holds the body as it is, version 2 as a zstd frame.

use std::io::Read as _;

use phalanx_proto::wire::parts::BACKUP_BYTES_MAX;

use super::{Snapshot, WHAT};
use crate::store::StoreError;

const MAGIC: &[u8; 8] = b"PHXSNAP\n";
/// The version written.
const VERSION: u32 = 2;
const VERSION_OF_PLAIN_BODY: u32 = 1;
const PREFIX_BYTES: usize = MAGIC.len() + 8;
const DIGEST_BYTES: usize = 32;

/// The largest body: several times that of the largest cluster the state machine allows.
pub(crate) const BODY_BYTES_MAX: u64 = 64 << 20;

/// The largest file: a body that does not shrink, its header, and what frames them.
pub(crate) const FILE_BYTES_MAX: u64 = BACKUP_BYTES_MAX;
const _: () = assert!(FILE_BYTES_MAX > BODY_BYTES_MAX + (1 << 20), "a body fits into a file");

/// zstd's own choice. A body of 10 MB takes some 50 ms and a fifteenth of the space; higher levels take far
/// longer for little.
const LEVEL: i32 = 3;

/// The bytes that [`decode`] reads back.
pub(crate) fn encode(snapshot: &Snapshot) -> Result<Vec<u8>, StoreError> {
    let body = snapshot.body.as_slice();
    if length(body) > BODY_BYTES_MAX {
        return Err(too_large("snapshot's state", BODY_BYTES_MAX));
    }
    let header =
        serde_json::to_vec(&snapshot.header).map_err(|error| damaged(error.to_string()))?;
    let header_bytes = u32::try_from(header.len())
        .map_err(|_long| damaged("its header is over 4 GiB".to_owned()))?;
    let body = zstd::bulk::compress(body, LEVEL).map_err(|error| damaged(error.to_string()))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(header_bytes.to_le_bytes());
    bytes.extend(header);
    bytes.extend(body);
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    Ok(bytes)
}

/// Reads what this build's [`encode`] wrote, or that of an earlier one.
pub(crate) fn decode(bytes: &[u8]) -> Result<Snapshot, StoreError> {
    if length(bytes) > FILE_BYTES_MAX {
        return Err(too_large(WHAT, FILE_BYTES_MAX));
    }
    let short = || damaged(format!("it has only {} bytes", bytes.len()));
    let at = bytes.len().checked_sub(DIGEST_BYTES).ok_or_else(short)?;
    let (content, digest) = bytes.split_at(at);
    let (prefix, rest) = content.split_at_checked(PREFIX_BYTES).ok_or_else(short)?;
    let (magic, numbers) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it does not begin as a snapshot does".to_owned()));
    }
    let (version, header_bytes) = numbers.split_at(4);
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(|_size| short());
    let found = number(version)?;
    if !(VERSION_OF_PLAIN_BODY..=VERSION).contains(&found) {
        return Err(StoreError::Version { what: WHAT, found, latest: VERSION });
    }
    if blake3::hash(content) != blake3::Hash::from_slice(digest).map_err(|_size| short())? {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let header_bytes = usize::try_from(number(header_bytes)?).map_err(|_large| short())?;
    let (header, body) = rest.split_at_checked(header_bytes).ok_or_else(short)?;
    let header = serde_json::from_slice(header).map_err(|error| damaged(error.to_string()))?;
    let body = if found == VERSION_OF_PLAIN_BODY { body.to_vec() } else { inflate(body)? };
    Ok(Snapshot { header, body })
}

/// Unpacks a body, and stops at the limit: a small frame may hold a very large one.
fn inflate(frame: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(frame);
    let unpacked = decoder.and_then(|it| it.take(BODY_BYTES_MAX + 1).read_to_end(&mut body));
    unpacked.map_err(|error| damaged(format!("its body cannot be unpacked: {error}")))?;
    if length(&body) > BODY_BYTES_MAX {
        return Err(too_large("snapshot's state", BODY_BYTES_MAX));
    }
    Ok(body)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn damaged(reason: String) -> StoreError {
    StoreError::Damaged { what: WHAT, reason }
}

pub(super) fn too_large(what: &'static str, bytes_max: u64) -> StoreError {
    StoreError::TooLarge { what, bytes_max }
}

#[cfg(test)]
mod tests {
    use super::super::tests::snapshot;
    use super::*;

    #[track_caller]
    fn check_refused(bytes: &[u8], expected: &str) {
        assert_eq!(decode(bytes).unwrap_err().to_string(), expected);
    }

    /// Puts a true checksum at the end of `content`.
    fn sealed(mut content: Vec<u8>) -> Vec<u8> {
        let digest = blake3::hash(&content);
        content.extend(digest.as_bytes());
        content
    }

    #[test]
    fn a_body_is_packed_and_comes_back() {
        let mut large = snapshot(1);
        large.body = br#"{"address":"http://worker:1"}"#.repeat(10_000);
        let bytes = encode(&large).unwrap();
        assert!(bytes.len() < large.body.len() / 10, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), large);
    }

    #[test]
    fn what_is_no_snapshot_is_told_by_what_is_wrong_with_it() {
        let whole = encode(&snapshot(1)).unwrap();
        check_refused(b"", "snapshot is damaged: it has only 0 bytes");
        check_refused(&[b'x'; 100], "snapshot is damaged: it does not begin as a snapshot does");
        let cut = &whole[..whole.len() - 1];
        check_refused(cut, "snapshot is damaged: its checksum does not match");
        let mut later = whole.clone();
        later[MAGIC.len()] = 3;
        check_refused(&later, "snapshot is of format version 3, this build reads up to 2");
        let mut first = whole[..whole.len() - DIGEST_BYTES].to_vec();
        first.truncate(first.len() - 2);
        let reason = decode(&sealed(first)).unwrap_err().to_string();
        assert!(reason.starts_with("snapshot is damaged: its body cannot be unpacked"), "{reason}");
    }

    #[test]
    fn no_more_is_unpacked_than_a_state_may_take() {
        let limit = usize::try_from(BODY_BYTES_MAX).unwrap();
        let mut huge = snapshot(1);
        huge.body = vec![0; limit + 1];
        let refusal = encode(&huge).unwrap_err().to_string();
        assert_eq!(refusal, "snapshot's state is over 67108864 bytes, the most that is taken");

        let whole = encode(&snapshot(1)).unwrap();
        let header_bytes = whole[MAGIC.len() + 4..PREFIX_BYTES].try_into().unwrap();
        let header_bytes = usize::try_from(u32::from_le_bytes(header_bytes)).unwrap();
        let bomb = zstd::bulk::compress(&huge.body, LEVEL).unwrap();
        assert!(bomb.len() < limit / 1000);
        let content = [&whole[..PREFIX_BYTES + header_bytes], &bomb].concat();
        check_refused(&sealed(content), &refusal);
    }
}
