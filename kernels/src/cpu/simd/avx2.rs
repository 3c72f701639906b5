//! Lanes in two AVX registers.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all: this type is used only inside `run`, whose caller checked the features"
)]

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_div_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm256_sub_ps,
};

use half::bf16;

use super::{Kernel, LANES, Lanes};

const HALF: usize = LANES / 2;

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// # Safety
/// The processor has the features.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Halves the lanes until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = HALF;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn power_of_two(rounded: __m256) -> __m256 {
    let bits = unsafe { _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded)) };
    let one = unsafe { _mm256_castps_si256(_mm256_set1_ps(1.0)) };
    unsafe { _mm256_castsi256_ps(_mm256_add_epi32(bits, one)) }
}

/// Eight pairs, widened.
#[inline(always)]
unsafe fn pairs(from: *const bf16) -> (__m256, __m256) {
    let pairs = unsafe { _mm256_loadu_si256(from.cast()) };
    let first = unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)) };
    let upper = unsafe { _mm256_set1_epi32(0xffff_0000_u32.cast_signed()) };
    (first, unsafe { _mm256_castsi256_ps(_mm256_and_si256(pairs, upper)) })
}

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(from) }, unsafe { _mm256_loadu_ps(from.add(HALF)) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) };
        unsafe { _mm256_storeu_ps(to.add(HALF), self.1) };
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        let half = unsafe { _mm256_set1_ps(value) };
        Self(half, half)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        let low = unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) };
        Self(low, unsafe { _mm256_fmadd_ps(self.1, factor.1, addend.1) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let low = unsafe { _mm256_add_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_add_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let low = unsafe { _mm256_sub_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_sub_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let low = unsafe { _mm256_mul_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_mul_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        let low = unsafe { _mm256_div_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_div_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let low = unsafe { _mm256_max_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_max_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        let low = unsafe { _mm256_min_ps(self.0, other.0) };
        Self(low, unsafe { _mm256_min_ps(self.1, other.1) })
    }

    #[inline(always)]
    fn first(self, count: usize, other: Self) -> Self {
        let count = unsafe { _mm256_set1_epi32(i32::try_from(count).unwrap_or(i32::MAX)) };
        let low = unsafe { _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) };
        let high = unsafe { _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15) };
        let low = unsafe { _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low)) };
        let high = unsafe { _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high)) };
        let low = unsafe { _mm256_blendv_ps(other.0, self.0, low) };
        Self(low, unsafe { _mm256_blendv_ps(other.1, self.1, high) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self.to_array(), |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        fold(self.to_array(), |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(power_of_two(self.0), power_of_two(self.1))
    }

    #[inline(always)]
    unsafe fn bf16_pairs(from: *const bf16) -> (Self, Self) {
        let (first_low, second_low) = unsafe { pairs(from) };
        let (first_high, second_high) = unsafe { pairs(from.add(LANES)) };
        (Self(first_low, first_high), Self(second_low, second_high))
    }

    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}
