//! Lanes in plain Rust.

use half::bf16;

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, combine: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        for (lane, &other) in lanes.iter_mut().zip(&other.0) {
            *lane = combine(*lane, other);
        }
        Self(lanes)
    }

    /// Halves the lanes until one is left.
    #[inline(always)]
    fn fold(self, combine: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = combine(lanes[lane], lanes[lane + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: readable for LANES elements, as promised by the caller.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: writable for LANES elements, as promised by the caller.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    // Not `f32::mul_add`: without the instruction that is a slow library call.
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn first(self, count: usize, other: Self) -> Self {
        let mut lanes = other.0;
        for (lane, value) in lanes.iter_mut().enumerate() {
            if lane < count {
                *value = self.0[lane];
            }
        }
        Self(lanes)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        let mut lanes = self.0;
        for lane in &mut lanes {
            *lane = f32::from_bits((lane.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn bf16_pairs(from: *const bf16) -> (Self, Self) {
        // SAFETY: readable for 2 * LANES elements, as promised by the caller.
        let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
        for (lane, pair) in pairs.iter().enumerate() {
            first[lane] = f32::from_bits(u32::from(pair[0]) << 16);
            second[lane] = f32::from_bits(u32::from(pair[1]) << 16);
        }
        (Self(first), Self(second))
    }

    #[inline(always)]
    fn prefetch<T>(_address: *const T) {}
}
