//! Sums and copies across the ranks of a tensor-parallel group.
