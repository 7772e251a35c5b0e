//! Whether a program runs without libraries (elf(5)).

/// `PT_INTERP`: the program is started by another, the dynamic linker.
const INTERPRETER: u32 = 3;

/// Whether these are the bytes of a 64-bit little-endian program that no other program has to start.
pub(super) fn is_static(program: &[u8]) -> bool {
    // e_ident: the magic number, 64 bits, little-endian.
    program.starts_with(b"\x7fELF\x02\x01") && interpreter(program) == Some(false)
}

/// Whether there is an interpreter; `None` if the headers are not to be understood.
fn interpreter(program: &[u8]) -> Option<bool> {
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    // e_phoff, e_phentsize, e_phnum.
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        let at = usize::try_from(table.checked_add(header * size)?).ok()?;
        if number(at, 4)? == u64::from(INTERPRETER) {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one program header of this kind after it.
    fn program(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[32], bytes[54], bytes[56], bytes[64]) = (64, 56, 1, kind);
        bytes
    }

    #[test]
    fn a_program_with_an_interpreter_is_told_from_one_without() {
        assert!(is_static(&program(1)));
        assert!(!is_static(&program(3)));
        assert!(!is_static(&program(1)[..60]));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&std::fs::read("/bin/sh").unwrap()));
        let mut wild = program(1);
        wild[32..40].fill(0xff);
        wild[54..58].fill(0xff);
        assert!(!is_static(&wild));
    }
}
