//! Which instructions the CPU's operations use.

use std::fmt;
use std::str::FromStr;

/// One set of instructions. Results are the same bits whatever the batch or the threads, within one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuPath {
    /// Plain Rust, on any processor.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512.
    Avx512,
    /// AVX-512, and AMX tiles for products with bf16 weights.
    Amx,
}

/// A name that is no [`CpuPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not one of portable, avx2, avx512, amx")]
pub struct UnknownPath {
    name: String,
}

// === impl CpuPath ===

impl CpuPath {
    /// All paths, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// The fastest path that this processor and its kernel allow.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|path| path.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has the path's instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => features::avx2(),
            Self::Avx512 => features::avx512(),
            Self::Amx => features::avx512() && features::amx(),
        }
    }

    /// Its name in configuration and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for CpuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuPath {
    type Err = UnknownPath;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|path| path.name() == name)
            .ok_or_else(|| UnknownPath { name: name.to_owned() })
    }
}

#[cfg(target_arch = "x86_64")]
mod features {
    pub(super) fn avx2() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }

    pub(super) fn avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && avx2()
    }

    /// AMX needs the processor's tiles and bf16 products, and the kernel's leave to use their large state.
    #[cfg(target_os = "linux")]
    pub(super) fn amx() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        use std::sync::OnceLock;

        static ALLOWED: OnceLock<bool> = OnceLock::new();
        // Leaf 7, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE.
        const AMX_BITS: u32 = 1 << 22 | 1 << 24;
        *ALLOWED.get_or_init(|| {
            __cpuid(0).eax >= 7
                && __cpuid_count(7, 0).edx & AMX_BITS == AMX_BITS
                && request_tile_state()
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn amx() -> bool {
        false
    }

    /// Asks for the tile data component of the extended state; it holds for every thread of the process.
    #[cfg(target_os = "linux")]
    fn request_tile_state() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: arch_prctl with this code takes one integer and touches no memory of ours.
        let status =
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        status == 0
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod features {
    pub(super) fn avx2() -> bool {
        false
    }

    pub(super) fn avx512() -> bool {
        false
    }

    pub(super) fn amx() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_parses_from_its_own_name() {
        for path in CpuPath::ALL {
            assert_eq!(path.name().parse(), Ok(path));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = "sse9".parse::<CpuPath>().unwrap_err();
        assert_eq!(error.to_string(), "\"sse9\" is not one of portable, avx2, avx512, amx");
    }

    #[test]
    fn the_detected_path_is_the_fastest_available() {
        let detected = CpuPath::detect();
        assert!(detected.is_available());
        assert!(CpuPath::ALL.into_iter().all(|path| path <= detected || !path.is_available()));
    }
}
