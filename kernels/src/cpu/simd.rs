//! Sixteen f32 lanes, three times: AVX-512, AVX2, plain Rust.
//!
//! A kernel is written once over [`Lanes`] and compiled once per path: [`run`] calls it from a function
//! that has the path's instructions enabled, and everything on the way is inlined into that function.
//! A lane's arithmetic never depends on its neighbours, and reductions have one fixed order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

use super::path::CpuPath;

/// Lanes in a vector.
pub(crate) const LANES: usize = 16;

/// A vector of [`LANES`] f32.
pub(crate) trait Lanes: Copy {
    /// Whether there are registers enough for large tiles of accumulators.
    const WIDE: bool;

    /// # Safety
    /// `from` is readable for [`LANES`] elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` is writable for [`LANES`] elements.
    unsafe fn store(self, to: *mut f32);
    fn splat(value: f32) -> Self;
    /// `self * factor + addend`; fused where the path can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// Lane by lane, the other's if either is NaN.
    fn max(self, other: Self) -> Self;
    /// Lane by lane, the other's if either is NaN.
    fn min(self, other: Self) -> Self;
    /// Its first `count` lanes, and the other's for the rest.
    fn first(self, count: usize, other: Self) -> Self;
    /// The sum of all lanes, in one fixed order.
    fn sum(self) -> f32;
    /// The largest of all lanes.
    fn largest(self) -> f32;
    /// Two to the power of n, for the sum of n and [`ROUNDER`].
    fn power_of_two(self) -> Self;
    /// [`LANES`] pairs of bf16, widened: the pairs' first elements and their second.
    ///
    /// # Safety
    /// `from` is readable for `2 * LANES` elements.
    unsafe fn bf16_pairs(from: *const bf16) -> (Self, Self);
    /// Brings a cache line closer; any address will do.
    fn prefetch<T>(address: *const T);

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has LANES elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// An array as lanes.
    #[inline(always)]
    fn from_array(lanes: &[f32; LANES]) -> Self {
        // SAFETY: the array has LANES elements.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// The first lanes from a short slice, zeros behind.
    #[inline(always)]
    fn from_part(part: &[f32]) -> Self {
        // A whole vector needs no copy, and most parts are whole.
        if let Ok(lanes) = part.try_into() {
            return Self::from_array(lanes);
        }
        let mut lanes = [0.0; LANES];
        lanes[..part.len()].copy_from_slice(part);
        Self::from_array(&lanes)
    }

    /// Writes as many lanes as the slice has room for.
    #[inline(always)]
    fn write_part(self, part: &mut [f32]) {
        let lanes = self.to_array();
        if let Ok(part) = <&mut [f32; LANES]>::try_from(&mut *part) {
            *part = lanes;
        } else {
            part.copy_from_slice(&lanes[..part.len()]);
        }
    }

    /// e to the power of each lane, within 2e-7 relative. Below -87 it stays at e^-87 (about 1e-38).
    #[inline(always)]
    fn exp(self) -> Self {
        let x = Self::splat(-87.0).max(self);
        let x = Self::splat(88.0).min(x);
        let rounded = x.mul_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUNDER));
        let n = rounded.sub(Self::splat(ROUNDER));
        // Cody and Waite: ln 2 in two parts, so that the remainder is exact.
        let x = n.mul_add(Self::splat(-0.693_359_4), x);
        let x = n.mul_add(Self::splat(2.121_944_4e-4), x);
        let mut y = Self::splat(1.987_569_1e-4);
        y = y.mul_add(x, Self::splat(1.398_199_9e-3));
        y = y.mul_add(x, Self::splat(8.333_452e-3));
        y = y.mul_add(x, Self::splat(4.166_579_6e-2));
        y = y.mul_add(x, Self::splat(1.666_666_5e-1));
        y = y.mul_add(x, Self::splat(5e-1));
        y = y.mul_add(x.mul(x), x).add(Self::splat(1.0));
        y.mul(rounded.power_of_two())
    }
}

/// Adding it rounds a small number to an integer, which then stands in the sum's lowest bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0;

/// An operation's inner part, generic over the vectors. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    fn run<L: Lanes>(self);
}

/// Runs a kernel with the instructions of `path`.
pub(crate) fn run<K: Kernel>(path: CpuPath, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    match path {
        CpuPath::Portable => kernel.run::<portable::Portable>(),
        // SAFETY: a Cpu is built only with a path that is available.
        CpuPath::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: a Cpu is built only with a path that is available.
        CpuPath::Avx512 | CpuPath::Amx => unsafe { avx512::run(kernel) },
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = path;
        kernel.run::<portable::Portable>();
    }
}

/// An element of a packed weight; two consecutive inputs of 16 outputs are 32 elements in one place.
pub(crate) trait Element: Copy + Send + Sync {
    /// The weights of [`LANES`] outputs for two consecutive inputs.
    ///
    /// # Safety
    /// `from` is readable for `2 * LANES` elements.
    unsafe fn pair<L: Lanes>(from: *const Self) -> (L, L);
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const Self) -> (L, L) {
        // SAFETY: as promised by the caller.
        unsafe { L::bf16_pairs(from) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn pair<L: Lanes>(from: *const Self) -> (L, L) {
        // SAFETY: within the 2 * LANES elements.
        let second = unsafe { from.add(LANES) };
        // SAFETY: as promised by the caller.
        let first = unsafe { L::load(from) };
        // SAFETY: as promised by the caller.
        (first, unsafe { L::load(second) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials<'a>(&'a [f32], &'a mut Vec<f32>);

    impl Kernel for Exponentials<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for chunk in self.0.chunks(LANES) {
                self.1.extend(&L::from_part(chunk).exp().to_array()[..chunk.len()]);
            }
        }
    }

    #[test]
    fn exp_is_accurate_on_every_path() {
        let inputs: Vec<f32> = (-8_700..8_800).map(|step| step as f32 / 100.0 + 0.003).collect();
        for path in CpuPath::ALL.into_iter().filter(|path| path.is_available()) {
            let mut outputs = Vec::new();
            run(path, Exponentials(&inputs, &mut outputs));
            for (&input, &output) in inputs.iter().zip(&outputs) {
                let exact = f64::from(input).exp();
                let error = (f64::from(output) - exact).abs() / exact;
                assert!(
                    error < 2e-7 || input < -86.9,
                    "{path}: exp({input}) = {output}: {error:e}"
                );
            }
        }
    }

    #[test]
    fn exp_keeps_nan_and_is_one_at_zero() {
        for path in CpuPath::ALL.into_iter().filter(|path| path.is_available()) {
            let mut outputs = Vec::new();
            run(path, Exponentials(&[f32::NAN, 0.0, f32::NEG_INFINITY], &mut outputs));
            assert!(outputs[0].is_nan(), "{path}");
            assert_eq!(outputs[1], 1.0, "{path}");
            assert!(outputs[2] < 2e-38, "{path}");
        }
    }

    struct Reductions<'a>(&'a [f32; LANES], &'a mut Vec<f32>);

    impl Kernel for Reductions<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let lanes = L::from_array(self.0);
            self.1.push(lanes.sum());
            self.1.push(lanes.largest());
            self.1.extend(lanes.first(5, L::splat(-1.0)).to_array());
        }
    }

    #[test]
    fn reductions_and_masks_agree_on_every_path() {
        let lanes = std::array::from_fn(|lane| ((lane * 7) % 16) as f32);
        for path in CpuPath::ALL.into_iter().filter(|path| path.is_available()) {
            let mut outputs = Vec::new();
            run(path, Reductions(&lanes, &mut outputs));
            assert_eq!(outputs[..2], [120.0, 15.0], "{path}");
            assert_eq!(outputs[2..7], lanes[..5], "{path}");
            assert_eq!(outputs[7..], [-1.0; 11], "{path}");
        }
    }
}
