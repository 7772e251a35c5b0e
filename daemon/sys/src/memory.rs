//! What a process keeps that it needs no more: memory that was given back to the C library's allocator (mallopt(3),
//! malloc_trim(3)), and pages of code that ran once.

/// Has all threads allocate from one place. By default each thread that blocks would get one of its own, which keeps
/// what it once needed. Call it before the first thread is made.
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, and M_ARENA_MAX any number from 1 on.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory back to the kernel, and lets go of the pages of the program's code: what runs on is mapped again, from
/// the page cache, as it is reached. Takes some hundred microseconds.
pub fn give_back() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    for (start, len) in maps.lines().filter_map(|line| code(line, &program.to_string_lossy())) {
        // SAFETY: the range is mapped from a file, for reading and executing only, so that nothing in it was ever changed,
        // and stays mapped: the kernel reads the same bytes again from the same file (madvise(2), MADV_DONTNEED).
        unsafe {
            libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED);
        }
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Start and length of a mapping of the program's code, from a line of proc_pid_maps(5).
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights) = (fields.next()?, fields.next()?);
    if rights != "r-xp" || fields.nth(3) != Some(program) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_let_go() {
        let line = |rights: &str, path: &str| format!("1000-3000 {rights} 00001000 fe:00 77      {path}");
        assert_eq!(code(&line("r-xp", "/bin/duetd"), "/bin/duetd"), Some((0x1000, 0x2000)));
        assert_eq!(code(&line("r--p", "/bin/duetd"), "/bin/duetd"), None, "relocated data");
        assert_eq!(code(&line("r-xp", "/lib/libc.so.6"), "/bin/duetd"), None);
        assert_eq!(code(&line("r-xp", ""), "/bin/duetd"), None);
        assert_eq!(code("", "/bin/duetd"), None);
    }

    #[test]
    fn a_program_runs_on_without_its_code_in_memory() {
        for _ in 0..3 {
            give_back();
        }
        assert_eq!("1".parse(), Ok(1));
    }
}
