//! Faults that the simulation plants, to prove that it would find them. Outside tests there are none, and no
//! way to plant one.

/// A fault that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The log says that entries are on disk before they are.
    AckBeforeSync,
    /// A heartbeat of a member that was fenced is taken.
    FenceCheckSkipped,
    /// A process that takes over an address is given the registration of the one before.
    EpochReused,
    /// A watch resumes one index too late.
    WatchOffByOne,
    /// A leader judges members by the leases it remembers from before.
    LeaseNotRearmed,
    /// A watch resumes in whatever history there is.
    LineageIgnored,
    /// A command that is repeated is applied again.
    DedupSkipped,
    /// A snapshot that is installed is not shown to watchers.
    SnapshotUnannounced,
    /// Where the ranks of a group meet may be said anew within an epoch.
    RendezvousReplaced,
    /// A snapshot is written under its name, which nobody syncs.
    SnapshotInPlace,
}

/// Whether the fault is planted.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use crate::simulation::planted;
