//! Aligned buffers, and their split among the tasks of one operation.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::backend::DeviceError;

/// A cache line, and the width of the widest vector.
const LINE_BYTES: usize = 64;
/// Buffers from this size on ask for huge pages: fewer misses when weights are streamed.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Element types for which all bits zero is a value.
///
/// # Safety
/// Only for plain numbers.
pub(crate) unsafe trait Zeroable: Copy {}
// SAFETY: a plain number.
unsafe impl Zeroable for f32 {}
// SAFETY: a plain number.
unsafe impl Zeroable for u16 {}

/// A fixed slice of zeros at first, aligned to cache lines (large ones to huge pages). Pages that were never
/// written take no memory: a KV cache costs what is used of it.
pub(crate) struct Aligned<T: Zeroable> {
    pointer: NonNull<T>,
    length: usize,
    memory: Memory,
}

/// Where a buffer lies.
enum Memory {
    /// It has no bytes.
    Nowhere,
    Heap(Layout),
    /// Pages of its own. A heap would hand out recycled ones, which are small for good once they were
    /// written, whatever is advised afterwards.
    #[cfg(target_os = "linux")]
    Pages(#[expect(dead_code, reason = "held for its drop")] pages::Pages),
}

/// A slice that tasks write at the same time, each its own part.
pub(crate) struct Disjoint<'a, T> {
    pointer: *mut T,
    length: usize,
    owner: PhantomData<&'a mut [T]>,
}

// === impl Aligned ===

impl<T: Zeroable> Aligned<T> {
    /// `length` zeros.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn zeroed(length: usize) -> Result<Self, DeviceError> {
        let refused = || DeviceError::OutOfMemory { bytes: length.saturating_mul(size_of::<T>()) };
        let bytes = length.checked_mul(size_of::<T>()).ok_or_else(refused)?;
        if bytes == 0 {
            return Ok(Self { pointer: NonNull::dangling(), length, memory: Memory::Nowhere });
        }
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE_BYTES {
            let pages = pages::Pages::zeroed(bytes).ok_or_else(refused)?;
            let pointer = pages.first().cast();
            return Ok(Self { pointer, length, memory: Memory::Pages(pages) });
        }
        let layout = Layout::from_size_align(bytes, LINE_BYTES).map_err(|_| refused())?;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        let pointer = NonNull::new(memory.cast::<T>()).ok_or_else(refused)?;
        Ok(Self { pointer, length, memory: Memory::Heap(layout) })
    }
}

impl<T: Zeroable> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the pointer covers `length` initialised elements (zeros are values of T).
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl<T: Zeroable> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for Deref, and `&mut self` is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl<T: Zeroable> Drop for Aligned<T> {
    fn drop(&mut self) {
        if let Memory::Heap(layout) = self.memory {
            // SAFETY: allocated by `zeroed` with this very layout.
            unsafe { dealloc(self.pointer.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Zeroable> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aligned").field("length", &self.length).finish_non_exhaustive()
    }
}

// SAFETY: it owns its elements, as a Vec does.
unsafe impl<T: Zeroable + Send> Send for Aligned<T> {}
// SAFETY: shared access only reads, as with a Vec.
unsafe impl<T: Zeroable + Sync> Sync for Aligned<T> {}

// === impl Disjoint ===

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { pointer: slice.as_mut_ptr(), length: slice.len(), owner: PhantomData }
    }

    /// The part `[start, start + length)`.
    ///
    /// # Safety
    /// No two live parts overlap.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "part beyond the slice");
        // SAFETY: within the slice by the assertion.
        let first = unsafe { self.pointer.add(start) };
        // SAFETY: the caller promises that no other reference covers these elements.
        unsafe { std::slice::from_raw_parts_mut(first, length) }
    }
}

// SAFETY: parts are handed out at most once at a time, by the promise of `part`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; sharing the handle shares no element.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

#[cfg(target_os = "linux")]
mod pages {
    //! Pages straight from the kernel, huge where it can.

    use std::ptr::NonNull;

    use super::HUGE_PAGE_BYTES;

    /// A mapping of zeros, given back when dropped.
    pub(super) struct Pages {
        start: NonNull<libc::c_void>,
        bytes: usize,
    }

    impl Pages {
        /// At least `bytes` zeros from [`Pages::first`] on; None when memory runs out.
        pub(super) fn zeroed(bytes: usize) -> Option<Self> {
            // Room to begin at a huge page.
            let bytes = bytes.checked_add(HUGE_PAGE_BYTES)?;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new anonymous mapping, wherever the kernel puts it.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
            if start == libc::MAP_FAILED {
                return None;
            }
            let pages = Self { start: NonNull::new(start)?, bytes };
            // Before the first write: a page keeps the size that it was written with.
            // SAFETY: the mapping was just made, and the advice changes no contents; its refusal changes only speed.
            unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
            Some(pages)
        }

        /// Where its first huge page begins.
        pub(super) fn first(&self) -> NonNull<u8> {
            let start = self.start.cast::<u8>();
            let skip = start.addr().get().next_multiple_of(HUGE_PAGE_BYTES) - start.addr().get();
            // SAFETY: less than a huge page on, by which the mapping is larger than what was asked for.
            unsafe { start.add(skip) }
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: this mapping's own range; nothing refers to it any more.
            unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_and_aligned_to_lines() {
        for length in [0, 1, 1000, HUGE_PAGE_BYTES] {
            let buffer = Aligned::<f32>::zeroed(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|&value| value == 0.0));
            assert!(length == 0 || (buffer.as_ptr() as usize).is_multiple_of(LINE_BYTES));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error_not_an_abort() {
        let error = Aligned::<f32>::zeroed(usize::MAX / 2).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { .. }));
    }
}
