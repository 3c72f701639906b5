//! The group's timings.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// How often a leader is heard. The library's 50 ms is for a bench; this survives a slow disk and a busy node.
const HEARTBEAT_MS: u64 = 200;

/// Silence after which a follower stands, drawn anew for each campaign. A leader's lease is the longer one, so
/// a failover takes about 2 s and one campaign.
const ELECTION_MS_MIN: u64 = 1000;
/// See [`ELECTION_MS_MIN`].
const ELECTION_MS_MAX: u64 = 2000;

/// Silence of the group, of a quorum for the leader and of the leader for others, after which a node no longer
/// speaks for it: another may lead by then.
pub(super) const GROUP_SILENCE_MAX: Duration = Duration::from_millis(ELECTION_MS_MAX);

/// How long a leader that hears no quorum stays silent, and then calls again, in turns. One that is heard and
/// hears nobody would else keep the others from standing for ever. The library's least: their lease on it, and
/// the longest election timeout.
const QUORUM_LOSS_PROBE_MS: u64 = 2 * ELECTION_MS_MAX;

/// A snapshot of the largest cluster is some 10 MB; this is that over a bad link.
const INSTALL_SNAPSHOT_MS: u64 = 10_000;

/// Entries between two snapshots: under a second of replay at start.
const SNAPSHOT_EVERY: u64 = 10_000;

/// Entries kept behind a snapshot, so that a node that was away briefly catches up without one, and a damaged
/// snapshot can be done without. More than [`SNAPSHOT_EVERY`], for the latter.
const KEPT_BEHIND_SNAPSHOT: u64 = 20_000;

/// Entries sent at once. The longest take some 80 KiB, and a message's limit is 16 MiB.
const ENTRIES_PER_APPEND: u64 = 64;

/// The library's configuration.
pub(super) fn config() -> Result<Config, ConfigError> {
    Config {
        cluster_name: "phalanx".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS_MIN,
        election_timeout_max: ELECTION_MS_MAX,
        install_snapshot_timeout: INSTALL_SNAPSHOT_MS,
        max_payload_entries: ENTRIES_PER_APPEND,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_BEHIND_SNAPSHOT,
        replication_lag_threshold: KEPT_BEHIND_SNAPSHOT,
        // A node cut off must not come back with a term that unseats a working leader.
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_PROBE_MS),
        // A restarted leader asks its peers first: they may have moved on.
        enable_leader_restore: Some(false),
        // A follower whose log went back has lost data, and must not vote again.
        allow_log_reversion: Some(false),
        ..Config::default()
    }
    .validate()
}
