//! What the C library's allocator keeps of memory that was given back to it (mallopt(3), malloc_trim(3)).
//!
//! With another C library these do nothing.

/// Has all threads allocate from one place. By default each thread that blocks would get one of its own, which keeps
/// what it once needed. Call it before the first thread is made.
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, and M_ARENA_MAX any number from 1 on.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory back to the kernel. Takes some hundred microseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
