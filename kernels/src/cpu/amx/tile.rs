//! The tile instructions, in assembly: the compiler's intrinsics for them are not stable yet.

use std::arch::asm;
use std::marker::PhantomData;

use half::bf16;

use crate::cpu::weight::TILE_INPUTS;

/// Prefetches the tile 4 KiB on, line by line: few rows leave the tiles waiting for memory.
macro_rules! bring_closer {
    ($from:literal) => {
        bring_closer!(
            $from, 8192 8256 8320 8384 8448 8512 8576 8640 8704 8768 8832 8896 8960 9024 9088 9152
        )
    };
    ($from:literal, $($offset:literal)*) => {
        concat!($("prefetcht1 [", $from, " + ", $offset, "]\n"),*)
    };
}

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Elements per step by which the square kernel brings the next weights closer, of each panel.
pub(super) const AHEAD_ELEMENTS: usize = 64;
/// Bytes of a tile, and how far the next tile of the same kind is.
const TILE_BYTES: usize = 1024;

/// 32 inputs of one row, as bits of bf16: a row of a tile.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; TILE_INPUTS]);

/// The right to use this thread's tile registers, which are shaped for one operation. 0 to 3 hold sums,
/// 4 and 5 activations, 6 and 7 weights.
pub(super) struct Tiles {
    /// Bound to its thread.
    thread: PhantomData<*const ()>,
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Line {
    pub(super) const ZERO: Self = Self([0; TILE_INPUTS]);
}

impl Tiles {
    /// Shapes the tiles for `rows` activations, at most [`TILE_ROWS`]. Only where the AMX path is available.
    pub(super) fn configure(rows: usize) -> Self {
        let rows = u8::try_from(rows.clamp(1, TILE_ROWS)).unwrap_or(16);
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..6].fill(rows);
        configuration.rows[6..8].fill(16);
        // SAFETY: the configuration is a valid one, and the compiler itself uses no tiles.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Self { thread: PhantomData }
    }

    /// Adds the product of one tile of rows and four panels to four tiles of sums.
    #[expect(clippy::unused_self, reason = "to hold the tiles is the right to use them")]
    pub(super) fn multiply_flat(
        &self,
        lines: &[Line],
        weights: [&[bf16]; 4],
        sums: &mut [f32; 1024],
    ) {
        let steps = lines.len() / (2 * TILE_ROWS);
        for weights in weights {
            assert_eq!(weights.len(), steps * TILE_ROWS * TILE_INPUTS, "weights of {steps} steps");
        }
        if steps == 0 {
            return;
        }
        let [w0, w1, w2, w3] = weights.map(<[bf16]>::as_ptr);
        // SAFETY: each step reads two tiles of lines and one of each panel, of which there are `steps`; the
        // sums are four tiles. Prefetching past the end reads nothing.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 1024]",
                "tileloadd tmm2, [{sums} + {stride} + 2048]",
                "tileloadd tmm3, [{sums} + {stride} + 3072]",
                "2:",
                bring_closer!("{w0}"),
                bring_closer!("{w1}"),
                bring_closer!("{w2}"),
                bring_closer!("{w3}"),
                "tileloadd tmm4, [{lines} + {stride} + 1024]",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lines} + {stride}]",
                "tileloadd tmm7, [{w1} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm0, tmm5, tmm6",
                "tileloadd tmm6, [{w2} + {stride}]",
                "tdpbf16ps tmm2, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm5, tmm7",
                "tileloadd tmm7, [{w3} + {stride}]",
                "tdpbf16ps tmm3, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {lines}, 2048",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "add {w2}, 1024",
                "add {w3}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 1024], tmm1",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 3072], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                stride = in(reg) TILE_BYTES / TILE_ROWS,
                lines = inout(reg) lines.as_ptr() => _,
                w0 = inout(reg) w0 => _,
                w1 = inout(reg) w1 => _,
                w2 = inout(reg) w2 => _,
                w3 = inout(reg) w3 => _,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Adds the product of two tiles of rows and two panels to four tiles of sums, and brings what comes
    /// next, `ahead`, closer meanwhile.
    #[expect(clippy::unused_self, reason = "to hold the tiles is the right to use them")]
    pub(super) fn multiply_square(
        &self,
        lines: [&[Line]; 2],
        weights: [&[bf16]; 2],
        ahead: [&[bf16]; 2],
        sums: &mut [f32; 1024],
    ) {
        let steps = lines[0].len() / (2 * TILE_ROWS);
        assert_eq!(lines[0].len(), lines[1].len(), "rows of {steps} steps");
        for weights in weights {
            assert_eq!(weights.len(), steps * TILE_ROWS * TILE_INPUTS, "weights of {steps} steps");
        }
        if steps == 0 {
            return;
        }
        // SAFETY: each step reads two tiles of each row's lines and one of each panel, of which there are
        // `steps`; the sums are four tiles. Prefetching past the end reads nothing.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 1024]",
                "tileloadd tmm2, [{sums} + {stride} + 2048]",
                "tileloadd tmm3, [{sums} + {stride} + 3072]",
                "2:",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tileloadd tmm7, [{w1} + {stride}]",
                "tileloadd tmm4, [{x0} + {stride} + 1024]",
                "tileloadd tmm5, [{x1} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{x0} + {stride}]",
                "tileloadd tmm5, [{x1} + {stride}]",
                "prefetcht1 [{a0}]",
                "prefetcht1 [{a0} + 64]",
                "prefetcht1 [{a1}]",
                "prefetcht1 [{a1} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, 2048",
                "add {x1}, 2048",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "add {a0}, 128",
                "add {a1}, 128",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 1024], tmm1",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 3072], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                stride = in(reg) TILE_BYTES / TILE_ROWS,
                x0 = inout(reg) lines[0].as_ptr() => _,
                x1 = inout(reg) lines[1].as_ptr() => _,
                w0 = inout(reg) weights[0].as_ptr() => _,
                w1 = inout(reg) weights[1].as_ptr() => _,
                a0 = inout(reg) ahead[0].as_ptr() => _,
                a1 = inout(reg) ahead[1].as_ptr() => _,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives the tiles' state back; nothing else on this thread uses it.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
